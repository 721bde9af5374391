"""A chain of three steps that do real work with the standard library alone.

The controller, the store, the leases and the step contract under it are the product's
own; only the work is small, so that hundreds of faults can be injected in minutes.

    python -m tests.faults.light RUNS DOCUMENTS [--wait]
"""
