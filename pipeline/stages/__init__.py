"""The work itself: one module or folder per stage, each run inside its toolchain.

Nothing here is imported by the controller.  ``python -m pipeline.stages JOB.json`` is how
a step starts (:mod:`pipeline.stages.__main__`); :mod:`pipeline.stages.step` is all that
a stage knows of the world outside.
"""
