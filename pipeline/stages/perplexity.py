"""Perplexity: what a loss means in equally likely tokens."""

from __future__ import annotations

import math

LARGEST = 700.0  # nats; a float holds e to the power of 709


def perplexity(loss: float) -> float:
    """``exp`` of a mean loss in nats a token; of a loss beyond all sense the largest that can be written."""
    return math.exp(min(loss, LARGEST))
