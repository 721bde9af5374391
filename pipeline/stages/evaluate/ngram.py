"""Unigram and bigram models: the honest baselines of a perplexity.

Both are fitted on the whole training split, of which a short pre-training sees only a part,
and scored on the tokens that the model is scored on.  The bigram model is interpolated Kneser-Ney with one discount
(Chen & Goodman 1999, section 2.7), the strongest simple bigram.
"""

from __future__ import annotations

from typing import Any

import numpy as np


class Unigram:
    """Add-one smoothed token frequencies."""

    def __init__(self, tokens: Any, vocabulary: int) -> None:
        counts = np.bincount(tokens, minlength=vocabulary).astype(np.float64) + 1
        self.log_probabilities = np.log(counts / counts.sum())

    def losses(self, labels: Any) -> Any:
        """Negative log-probability (nats) of each label."""
        return -self.log_probabilities[labels]


class Bigram:
    """Interpolated Kneser-Ney over (token, next token) pairs."""

    def __init__(self, inputs: Any, labels: Any, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        keys = inputs.astype(np.int64) * vocabulary + labels
        self.pairs, self.counts = np.unique(keys, return_counts=True)
        once, twice = int((self.counts == 1).sum()), int((self.counts == 2).sum())
        self.discount = once / (once + 2 * twice) if once else 0.75
        contexts, followers = self.pairs // vocabulary, self.pairs % vocabulary
        self.context_totals = np.bincount(contexts, weights=self.counts, minlength=vocabulary)
        self.context_types = np.bincount(contexts, minlength=vocabulary)
        # How many different tokens a token follows, smoothed so that none is impossible.
        continuation = np.bincount(followers, minlength=vocabulary).astype(np.float64)
        lower = np.maximum(continuation - self.discount, 0) / continuation.sum()
        self.continuation = lower + (1 - lower.sum()) / vocabulary

    def probabilities(self, inputs: Any, labels: Any) -> Any:
        """Probability of each label after its input token."""
        keys = inputs.astype(np.int64) * self.vocabulary + labels
        places = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        counts = np.where(self.pairs[places] == keys, self.counts[places], 0)
        totals = self.context_totals[inputs]
        seen = totals > 0
        safe = np.where(seen, totals, 1)
        direct = np.where(seen, np.maximum(counts - self.discount, 0) / safe, 0.0)
        held_back = np.where(seen, self.discount * self.context_types[inputs] / safe, 1.0)
        return direct + held_back * self.continuation[labels]

    def losses(self, inputs: Any, labels: Any) -> Any:
        """Negative log-probability (nats) of each label after its input token."""
        return -np.log(self.probabilities(inputs, labels))
