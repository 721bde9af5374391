"""Copies of weights: bf16 ones under autocast, whole ones under FSDP2, with the gradients that it scatters."""

from __future__ import annotations

from pipeline.plan.training.eager.setting import Setting, adapter_parameters, linears

REDUCED = 4  # bytes of a gradient while FSDP2 adds it up over processes


def copied_bytes(setting: Setting, live: bool = False) -> float:
    """bf16 copies of fp32 weights: those that autocast makes for a forward pass and autograd keeps."""
    if setting.mode != "autocast":
        return 0.0
    model, found = setting.model, linears(setting.model, setting.lora, setting.adapted)
    matrices = sum(linear.inner * linear.outer for linear in found)
    head, adapters = model.vocab_size * model.hidden_size, adapter_parameters(setting)
    if not setting.adapted:
        everything = model.layers * matrices  # kept until the forward pass ends, recomputed or not
        together = setting.kept == "none" or setting.several
        reference = head if live and setting.kept == "none" else 0  # for its logits, beside the policy's
        return 2 * (everything + head + reference if together else max(everything, head))
    # Of frozen weights only what a gradient goes through is kept; none does through the first layer's input.
    through = model.layers * matrices - sum(linear.inner * linear.outer for linear in found[:3])
    if setting.kept == "none":
        return 2 * (through + head + adapters)
    largest = max(linear.inner * linear.outer for linear in found)
    forward = adapters + (head if setting.several else largest)
    return 2 * max(forward, matrices + adapters / model.layers, head)


def gathered_bytes(setting: Setting, ranks: int, models: int = 1) -> float:
    """What FSDP2 holds of whole weights, and of gradients while it scatters them.

    Its units are the layers, each trained embedding table that is not tied, and the root with the rest.  The
    root, the last layer and the output layer stay gathered after the forward pass.  While a unit is gathered,
    there are what was received for it and for the one before, besides the weights cut out of it.
    A unit's gradients are scattered from one fp32 buffer, of which gloo makes a copy, to the shard's.
    ``models`` is 2 where a live reference stays gathered, too.
    """
    model, b = setting.model, setting.element
    table: float = model.vocab_size * model.hidden_size
    separate = not setting.adapted and not model.tie_embeddings
    own = adapter_parameters(setting) / model.layers
    matrices = sum(linear.inner * linear.outer for linear in linears(model)) + 2 * model.hidden_size
    unit = (matrices + own) / setting.tensor
    rest = 0.0 if separate else table * (1 if model.tie_embeddings else 2)
    root = model.hidden_size + rest / setting.tensor
    table = table / setting.tensor if separate else 0.0
    first = table or unit
    gathering = [root + first + (root + first), root + unit + 2 * unit, root + unit + table + (unit + table)]
    gathering.append(root + unit + (table + unit) if table else 0)
    staging = (2 if setting.device == "cpu" else 1) + 1 / ranks
    learned = own / setting.tensor if setting.adapted else unit
    scattering = [b * (root + unit) + REDUCED * staging * max(table, learned)]
    if not setting.adapted:
        scattering.append(REDUCED * staging * root)
    return max(b * max(gathering), *scattering) + (models - 1) * b * (root + unit + table)
