"""A model as the planner sees it: its layers, and what can be counted from them.

    shape = read("path/to/config.json")     # any supported Hugging Face family
    shape = of_recipe(recipe.model)         # the Llama that a recipe describes

A :class:`Shape` says how many parameters a model has, in all and for one token, how many bytes one token
leaves in the cache, and how many floating-point operations it costs; nothing here knows of GPUs or layouts.
"""
