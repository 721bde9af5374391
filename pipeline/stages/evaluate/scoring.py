"""Log-probabilities of held-out tokens under a model: no dropout, no sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.engines.automodel.examples import IGNORED, Examples

Progress = Callable[[int, int], None]


@torch.inference_mode()
def label_losses(model: Any, examples: Examples, batch_size: int, progress: Progress) -> list[Any]:
    """Negative log-probabilities (nats) of each sequence's labels, in the examples' order.

    Element ``i`` is ``float32 [labels of sequence i]``.  Sequences are batched by length,
    padded on the right; logits are computed at labelled positions only.
    """
    count = len(examples.offsets) - 1
    lengths = (examples.offsets[1:] - examples.offsets[:-1]).tolist()
    by_length = sorted(range(count), key=lambda index: lengths[index])
    losses: list[Any] = [None] * count
    for start in range(0, count, batch_size):
        chosen = by_length[start : start + batch_size]
        rows = [_sequence(examples, index) for index in chosen]
        inputs = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in rows], batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(
            [row for _, row in rows], batch_first=True, padding_value=IGNORED
        )
        wanted = labels != IGNORED
        hidden = model.model(input_ids=inputs.to(model.device), use_cache=False).last_hidden_state
        hidden = hidden[wanted.to(hidden.device)]
        each = [
            _losses(model.lm_head(h), t)
            for h, t in zip(hidden.split(2048), labels[wanted].split(2048), strict=True)
        ]
        flat = torch.cat(each).numpy()
        ends = np.cumsum(wanted.sum(1).numpy())
        for index, part in zip(chosen, np.split(flat, ends[:-1]), strict=True):
            losses[index] = part
        progress(min(start + batch_size, count), count)
    return losses


def _losses(logits: Any, labels: Any) -> Any:
    each = torch.nn.functional.cross_entropy(logits.float(), labels.to(logits.device), reduction="none")
    return each.cpu()


def _sequence(examples: Examples, index: int) -> tuple[Any, Any]:
    start, end = int(examples.offsets[index]), int(examples.offsets[index + 1])
    return examples.inputs[start:end].long(), examples.labels[start:end].long()
