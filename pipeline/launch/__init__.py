"""Submitting a chain to a cluster: one job a step, each of them the controller for that step.

::

    lifecycle run RECIPE --site slurm
      submit.py        controller: what is to do, the recipe and site as they are now, pinned
      └─ process in the ``launch`` toolchain, one order file in, one answer file out
           slurm.py, kubernetes.py    NeMo-Run's executors: scripts or manifests, and sending them
                ┊ the cluster
           python -m pipeline STAGE pinned.yaml --only --here      on the machine of the job
           node.py      on its further machines, which the step calls over muster.py

A job is no second way to run a step: it runs the controller there, so that identity, leases,
sealed checkpoints and publishing are what they are on a laptop.  A job starts only when those
that it rests on ended well.  ``runs/RECIPE/launch/NUMBER/`` keeps what was sent
(:mod:`pipeline.launch.orders`); :mod:`pipeline.launch.status` reads it.
"""
