"""Direct preference optimisation as a pure function of log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional


def dpo_loss(
    policy_chosen: Any,
    policy_rejected: Any,
    reference_chosen: Any,
    reference_rejected: Any,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Any, Any, Any]:
    """DPO loss and implicit rewards of preference pairs.

    Rafailov et al. 2023, "Direct Preference Optimization", equation 7; with
    ``label_smoothing`` the conservative form of Mitchell 2023 (cDPO).  The arguments are
    summed answer log-probabilities in nats, ``float [pairs]``.  Returns the loss of each
    pair and the rewards of its two sides, ``beta * (log policy - log reference)``,
    each ``float [pairs]``; rewards carry no gradient.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    logits = beta * margin
    losses = -(1 - label_smoothing) * functional.logsigmoid(logits) - label_smoothing * functional.logsigmoid(
        -logits
    )
    chosen_reward = beta * (policy_chosen - reference_chosen).detach()
    rejected_reward = beta * (policy_rejected - reference_rejected).detach()
    return losses, chosen_reward, rejected_reward


def sequence_log_probabilities(logits: Any, labels: Any, rows: Any, count: int) -> Any:
    """Summed log-probability of each sequence's labels.

    ``logits`` is ``float [labels, vocabulary]``, ``labels`` ``int64 [labels]``, and
    ``rows`` names the sequence of each label (``int64 [labels]``, below ``count``).
    Returns ``float32 [count]``.
    """
    each = -functional.cross_entropy(logits.float(), labels, reduction="none")
    return torch.zeros(count, dtype=torch.float32, device=each.device).index_add(0, rows, each)
