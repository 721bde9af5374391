"""Whether so many processes can share the work of a training step as its settings say."""

from __future__ import annotations

from pipeline.schema.training import Optimisation


def layout_fault(settings: Optimisation, section: str, count: int) -> str | None:
    """What is wrong with ``count`` processes for these settings, in words; None where nothing is."""
    shape = settings.parallel
    shared = shape.tensor * shape.context
    if count % shared:
        return (
            f"{section}.parallel: tensor {shape.tensor} x context {shape.context} needs a multiple of {shared} processes; "
            f"there are {count} (launch.processes)"
        )
    ranks = count // shared
    if settings.global_batch_size % (settings.micro_batch_size * ranks):
        fitting = settings.global_batch_size / ranks
        hint = f"at most {fitting:.0f}, and a divisor of it" if fitting >= 1 else "fewer processes"
        return (
            f"{section}.global_batch_size = {settings.global_batch_size} is not {ranks} data-parallel processes x a whole "
            f"number of {section}.micro_batch_size = {settings.micro_batch_size}; set the micro batch to {hint}"
        )
    return None
