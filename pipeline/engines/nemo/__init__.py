"""NeMo 2.x (nemo-toolkit) as an engine: ``train.engine: nemo`` and ``pretrain.engine: nemo``.

The recipe's settings become the package's own recipe (``llm.<name>.finetune_recipe``), the data and
the weights its formats, and NeMo-Run starts it.  Training needs GPUs and was not executed here; all
before it, and the conversion of weights both ways, runs on any machine.
"""
