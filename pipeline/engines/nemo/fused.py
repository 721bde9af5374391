"""Which of Megatron's fused linear layers a recipe's adapter targets mean.

Megatron holds a Llama's ``q_proj``, ``k_proj`` and ``v_proj`` in one layer, and ``gate_proj`` and ``up_proj`` in another, so
these get an adapter together: one down-projection for all of them.  NeMo's CanonicalLoRA would give each its own,
but adds q, k and v one after the other where the layer holds them group by group (nemo-toolkit 2.7.3,
``LoRALinearSplitQKV``): with grouped queries it trains another function than it exports.
"""

from __future__ import annotations

from fnmatch import fnmatchcase

from pipeline.stages.step import InputError

LAYERS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))


def fused_targets(section: str, targets: list[str], names: tuple[str, str, str, str]) -> list[str]:
    """The names of the layers that ``targets`` (Hugging Face names, ``*`` for anything) cover.

    ``names`` are what the package calls the layers for q, k and v; o; gate and up; down.  Raises :class:`InputError`
    for a target that covers part of a layer, and when nothing is covered.
    """
    found = []
    for name, parts in zip(names, LAYERS, strict=True):
        hit = [part for part in parts if any(fnmatchcase(part, target) for target in targets)]
        if hit and len(hit) < len(parts):
            raise InputError(
                f"{section}.lora.targets: NeMo holds {', '.join(parts)} in one layer, so they get an adapter together; "
                f"name all of them or none (named: {', '.join(hit)})"
            )
        if hit:
            found.append(name)
    if not found:
        raise InputError(f"{section}.lora.targets: {', '.join(targets)} names no linear layer of a Llama")
    return found
