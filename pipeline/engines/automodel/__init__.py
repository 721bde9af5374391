"""NeMo AutoModel as the engine of pre-training, fine-tuning and alignment.

cpu.py        what has to be made harmless on a machine without CUDA
examples.py   token sequences on disk, their order, and batches of them
config.py     a recipe's settings as AutoModel's configuration
recipe.py     next-token training on AutoModel's own recipe class
dpo_loss.py   the preference loss, a pure function
dpo.py        preference training as a recipe class on the same engine
session.py    one training stage from settings to a published model
publish.py    Hugging Face folders and PEFT adapters
"""
