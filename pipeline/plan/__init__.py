"""What a recipe needs before it is run.

layout.py   whether so many processes can share a training step
memory.py   parameters and memory of a step, from a documented estimate
site.py     whether the site has it, and what would fit instead
"""
