"""What a recipe needs before it is run.

memory.py   parameters and memory of a training step, from a documented estimate
site.py     whether the site has it, and what would fit instead
"""
