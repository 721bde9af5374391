"""Trackers: a step's figures told to TensorBoard, Weights & Biases or MLflow while it runs.

A process of its own follows the step's ``events.jsonl`` (``python -m pipeline.tracking JOB``, in the
toolchain ``tracking``), started and ended by the controller (:mod:`pipeline.runner.tracked`).  The step
knows nothing of it: training never waits for a server, a tracker that fails costs a warning, and
every engine and stage is told alike.  A step that goes on after an interruption goes on in the same run.
"""
