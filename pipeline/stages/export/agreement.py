"""How far one model is from another on the same tokens: answers, logits, perplexity.

Pure functions over lists of tokens and arrays of logits; who computed them is nobody's business here.
Logits are compared where the reference went: at every position of its own greedy answer, given the
same prompt and the same tokens before (teacher forcing), so that one early difference does not count for
all that follows it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from pipeline.stages.step import InputError

ROWS_AT_ONCE = 64
TIE = 1e-3  # logits: two implementations of the same fp32 arithmetic differ in the last bits


@dataclass
class Tokens:
    """Greedy answers beside the reference's.

    Where the reference's own two best tokens lie within ``TIE`` either is right: such a difference is
    ``excused``, and the comparison of that prompt ends there.
    """

    prompts: int = 0
    equal: int = 0
    excused: int = 0
    different: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Logits:
    """Differences over ``positions`` next-token distributions.

    ``max_difference`` and ``mean_difference`` of single logits (absolute; each distribution's mean is taken
    out, since a constant changes nothing), ``top1_agreement`` the share of positions with the same best
    token, ``kl`` the mean Kullback-Leibler divergence from the reference, in nats.
    """

    positions: int = 0
    max_difference: float = 0.0
    mean_difference: float = 0.0
    top1_agreement: float = 1.0
    kl: float = 0.0


class LogitsSum:
    """Adds up distributions, a prompt at a time."""

    def __init__(self) -> None:
        self._positions = self._same = 0
        self._max = self._sum = self._kl = 0.0

    def add(self, got: np.ndarray, wanted: np.ndarray) -> None:
        """Both (positions, vocabulary)."""
        if got.shape != wanted.shape:
            raise ValueError(f"logits of shapes {got.shape} and {wanted.shape}")
        _require_finite(got)
        ours, theirs = _centred(got), _centred(wanted)
        difference = np.abs(ours - theirs)
        self._positions += len(ours)
        self._max = max(self._max, float(difference.max(initial=0.0)))
        self._sum += float(difference.mean(-1).sum())
        self._same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        log_p, log_q = _log_softmax(theirs), _log_softmax(ours)
        self._kl += float((np.exp(log_p) * (log_p - log_q)).sum())

    def figures(self) -> Logits:
        count = max(1, self._positions)
        return Logits(
            self._positions, self._max, self._sum / count, self._same / count, max(0.0, self._kl / count)
        )


def _require_finite(values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise InputError(
            "the model's logits are not finite numbers, so its weights are not either, or overflow"
        )


def _centred(values: np.ndarray) -> np.ndarray:
    wide = values.astype(np.float64)
    return np.asarray(wide - wide.mean(-1, keepdims=True))


def _log_softmax(values: np.ndarray) -> np.ndarray:
    shifted = values - values.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def log_likelihood(logits: np.ndarray, tokens: list[int]) -> float:
    """The sum of the log-probabilities of ``tokens[1:]``; ``logits`` (tokens, vocabulary), in nats."""
    total = 0.0
    for start in range(0, len(tokens) - 1, ROWS_AT_ONCE):  # a copy in 64 bits of all would be twice as large
        rows = logits[start : min(start + ROWS_AT_ONCE, len(tokens) - 1)]
        _require_finite(rows)
        logs = _log_softmax(rows.astype(np.float64))
        total += float(logs[np.arange(len(rows)), tokens[start + 1 : start + 1 + len(rows)]].sum())
    return total


def first_difference(got: list[int], wanted: list[int]) -> int | None:
    """Where two token lists part, None if they are the same."""
    for place, (left, right) in enumerate(zip(got, wanted, strict=False)):
        if left != right:
            return place
    return None if len(got) == len(wanted) else min(len(got), len(wanted))


@dataclass(frozen=True)
class Perplexity:
    """On the same held-out documents, of the model before export and as it was exported."""

    before: float
    after: float
    documents: int


@dataclass(frozen=True)
class Tolerance:
    """What a precision may cost before the export is refused.

    ``different`` is the share of prompts whose greedy answer may differ, None where that is told and bounds
    nothing: of two tokens that are almost equally likely, rounding decides, and all that follows differs.
    So is ``top1_agreement``, the least share of positions with the same best token.  ``kl`` is in nats and ``perplexity`` the relative rise on held-out documents.
    """

    different: float | None
    top1_agreement: float | None
    kl: float
    perplexity: float

    def faults(self, tokens: Tokens, logits: Logits, held_out: Perplexity | None) -> list[str]:
        """What lies outside, in words, each with the setting that bounds it."""
        found = []
        if self.different is not None and tokens.different > self.different * tokens.prompts:
            found.append(
                f"greedy answers differ on {tokens.different} of {tokens.prompts} prompts "
                f"({tokens.equal} equal, {tokens.excused} excused as ties; {self.different:.0%} may differ: "
                "export.tolerance.different)"
            )
        if self.top1_agreement is not None and logits.top1_agreement < self.top1_agreement:
            found.append(
                f"the best next token is the same at {logits.top1_agreement:.1%} of {logits.positions} positions "
                f"(at least {self.top1_agreement:.1%}: export.tolerance.top1_agreement)"
            )
        if logits.kl > self.kl:
            found.append(
                f"the divergence from the model is {logits.kl:.2g} nats a token (at most {self.kl:.2g}: "
                "export.tolerance.kl)"
            )
        if held_out is not None and held_out.after > held_out.before * (1 + self.perplexity):
            found.append(
                f"held-out perplexity goes from {held_out.before:.4g} to {held_out.after:.4g} "
                f"(at most {self.perplexity:+.2%}: export.tolerance.perplexity)"
            )
        return found


def plain(value: Any) -> dict[str, Any]:
    """A record of figures as JSON takes it."""
    return asdict(value)
