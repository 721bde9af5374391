"""NeMo AutoModel as the engine of pre-training, fine-tuning and alignment.

cpu.py                what has to be made harmless on a machine without CUDA
examples.py           token sequences on disk, their order, and batches of them
config.py             a recipe's settings as AutoModel's configuration
recipe.py             next-token training on AutoModel's own recipe class
preference_losses.py  DPO, IPO, RPO, SimPO, ORPO and KTO, pure functions of log-probabilities
dpo.py                preference training as a recipe class on the same engine
session.py            one training stage from settings to a published model
publish.py            Hugging Face folders and PEFT adapters
"""
