"""NeMo AutoModel as the engine of pre-training, fine-tuning and alignment.

cpu.py                what has to be made harmless on a machine without CUDA
one_gpu.py            what AutoModel does to a model on a single GPU, undone
tokenise.py           curated records as token sequences, with the loss where it belongs
examples.py           token sequences on disk, their order, and batches of them
packing.py            sequences laid end to end, and attention that keeps them apart
config.py             a recipe's settings as AutoModel's configuration
recipe.py             next-token training on AutoModel's own recipe class
preference_losses.py  the preference losses, pure functions
adapters.py           LoRA layers: their start, and the model without them
precision.py          bf16 or fp32, by a measurement
pairs.py              what training on preference pairs has in common
preference.py         preference training as a recipe class on the same engine
reward.py             a Bradley-Terry reward model on the same engine
linear_loss.py        output layer and cross-entropy in one pass
session.py            one training stage from settings to a published model
rank.py               one process of several that train together
publish.py            Hugging Face folders and PEFT adapters
"""
