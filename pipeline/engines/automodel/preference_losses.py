"""Preference losses as pure functions of log-probabilities.

    made = preference_loss("simpo", PreferenceBatch(...), beta=2.0, gamma=1.0)
    made.losses.mean().backward()

``LOSSES`` says what each loss rests on (a reference policy, answer lengths, ground-truth
rewards, an estimate of the KL), so that a caller computes no more than that.  Notation: a
prompt x, answers y (chosen) and y' (rejected), the policy p, the reference q, and the log-ratio
log p(y|x) - log q(y|x).  Log-probabilities are in nats.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from pipeline.stages.step import InputError


@dataclass(frozen=True)
class PreferenceBatch:
    """What is known of a batch of preference pairs; each field ``float [pairs]`` unless said.

    The log-probabilities are sums over an answer's tokens, its end token included, in nats.
    """

    policy_chosen: Any
    policy_rejected: Any
    reference_chosen: Any = None
    reference_rejected: Any = None
    chosen_tokens: Any = None  # tokens summed over, integer or float
    rejected_tokens: Any = None
    true_reward_chosen: Any = None  # of a reward model or a judge, in its own units
    true_reward_rejected: Any = None
    kl: Any = None  # float []: see mismatched_kl


@dataclass(frozen=True)
class PreferenceLosses:
    """The loss of each pair, and the implicit rewards of its sides; each ``float [pairs]``.

    Rewards are what the loss compares, ``beta`` included, and carry no gradient.
    """

    losses: Any
    chosen_rewards: Any
    rejected_rewards: Any


def dpo(
    batch: PreferenceBatch, *, beta: float, label_smoothing: float = 0.0, average: bool = False
) -> PreferenceLosses:
    """Direct preference optimisation, Rafailov et al. 2023, equation 7.

    ``-log sigmoid(beta * margin)``, the margin being the chosen minus the rejected log-ratio.
    ``label_smoothing`` is the share of pairs assumed to be labelled the wrong way round (Mitchell
    2023, "A note on DPO with noisy preferences", cDPO).  With ``average`` a log-ratio is divided
    by the answer's tokens (Lambert et al. 2024, "Tulu 3", length-normalised DPO).
    """
    chosen, rejected = _log_ratios(batch, average)
    logits = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * functional.logsigmoid(logits) - label_smoothing * functional.logsigmoid(
        -logits
    )
    return _made(losses, beta * chosen, beta * rejected)


def ipo(batch: PreferenceBatch, *, beta: float, average: bool = True) -> PreferenceLosses:
    """Identity preference optimisation, Azar et al. 2023, equation 17: ``(margin - 1 / (2 beta))**2``.

    ``beta`` is the paper's tau.  The equation is over whole answers, where the target margin is a
    matter of length; the experiments of its authors, as TRL reports of them, averaged over the
    tokens, and so does this unless ``average`` is off.  NeMo-Aligner 0.7 sums by default.
    """
    chosen, rejected = _log_ratios(batch, average)
    losses = (chosen - rejected - 1 / (2 * beta)) ** 2
    return _made(losses, beta * chosen, beta * rejected)


def rpo_squared(
    batch: PreferenceBatch, *, beta: float, eta: float = 1.0, average: bool = False
) -> PreferenceLosses:
    """Reward-aware preference optimisation with the squared distance: ``(a - b)**2``.

    ``a`` is beta times the margin of :func:`dpo`, ``b`` is ``eta`` times the gap of the ground-truth
    rewards: the margin is drawn to what the rewards say, not to infinity.  Adler et al. 2024,
    "Nemotron-4 340B", section 3.3.2 (the family); Sun et al. 2025, arXiv 2502.00203 (the
    distances); NeMo-Aligner 0.7, ``rpo_sq``.
    """
    chosen, rejected, implicit, given = _reward_margins(batch, beta, eta, average)
    return _made((implicit - given) ** 2, chosen, rejected)


def rpo_forward_kl(
    batch: PreferenceBatch, *, beta: float, eta: float = 1.0, average: bool = False
) -> PreferenceLosses:
    """RPO with ``KL(Bernoulli(sigmoid(a)) || Bernoulli(sigmoid(b)))``: implicit before given.

    ``a`` and ``b`` as in :func:`rpo_squared`; NeMo-Aligner 0.7, ``rpo_fwd_kl``.
    """
    chosen, rejected, implicit, given = _reward_margins(batch, beta, eta, average)
    return _made(_bernoulli_kl(implicit, given), chosen, rejected)


def rpo_backward_kl(
    batch: PreferenceBatch, *, beta: float, eta: float = 1.0, average: bool = False
) -> PreferenceLosses:
    """RPO with ``KL(Bernoulli(sigmoid(b)) || Bernoulli(sigmoid(a)))``: given before implicit.

    The distance of the Nemotron-4 340B report (section 3.3.2); NeMo-Aligner 0.7, ``rpo_bwd_kl``.
    Its gradient is that of DPO with soft labels ``sigmoid(b)``.
    """
    chosen, rejected, implicit, given = _reward_margins(batch, beta, eta, average)
    return _made(_bernoulli_kl(given, implicit), chosen, rejected)


def simpo(batch: PreferenceBatch, *, beta: float, gamma: float = 0.5) -> PreferenceLosses:
    """Simple preference optimisation, Meng et al. 2024, equation 6; no reference.

    ``-log sigmoid(reward(y) - reward(y') - gamma)`` with the reward ``beta * log p(y|x) / |y|``
    (equation 4).  ``gamma`` is the target margin in units of the reward, so ``gamma / beta`` is
    in nats a token; the paper's betas lie at 2 to 2.5, far from those of DPO.
    """
    chosen, rejected = _token_means(batch)
    losses = -functional.logsigmoid(beta * (chosen - rejected) - gamma)
    return _made(losses, beta * chosen, beta * rejected)


def orpo(batch: PreferenceBatch, *, beta: float) -> PreferenceLosses:
    """Odds ratio preference optimisation, Hong et al. 2024, equations 6 and 7; no reference.

    The negative log-likelihood of the chosen answer plus ``beta`` (the paper's lambda) times
    ``-log sigmoid(log odds(y) - log odds(y'))``, where ``odds = P / (1 - P)`` (equation 4) and log P
    is the mean over an answer's tokens (equation 3).  The likelihood term is that of the answer
    and a mean over its tokens; TRL's is over prompt and answer and a mean over a batch's tokens.
    """
    chosen, rejected = _token_means(batch)
    log_odds_ratio = _log_odds(chosen) - _log_odds(rejected)
    losses = -chosen - beta * functional.logsigmoid(log_odds_ratio)
    return _made(losses, beta * chosen, beta * rejected)


def kto(
    batch: PreferenceBatch, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> PreferenceLosses:
    """Kahneman-Tversky optimisation of pairs taken apart: the mean of :func:`kto_answers` over both sides.

    So the mean over pairs is the mean over all answers, as many desirable as undesirable.
    """
    chosen, rejected = _log_ratios(batch, average=False)
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    good = kto_answers(chosen, torch.ones_like(chosen, dtype=torch.bool), batch.kl, beta=beta, **weights)
    bad = kto_answers(rejected, torch.zeros_like(rejected, dtype=torch.bool), batch.kl, beta=beta, **weights)
    return _made((good + bad) / 2, beta * chosen, beta * rejected)


def kto_answers(
    log_ratios: Any,
    desirable: Any,
    kl: Any,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Any:
    """Kahneman-Tversky optimisation of unpaired answers, Ethayarajh et al. 2024, equation 7.

    ``w * (1 - sigmoid(beta * (r - z)))`` for a desirable answer, ``w * (1 - sigmoid(beta * (z - r)))`` for
    an undesirable one; ``log_ratios`` r is ``float [answers]``, ``desirable`` ``bool [answers]``.
    The reference point z is ``kl`` (``float []``, :func:`mismatched_kl`), no less than 0 and without
    gradient.  Equation 8: each weight times the number of its answers, the desirable side should
    have 1 to 4/3 times what the undesirable one has.  Returns ``float [answers]``.
    """
    reference_point = kl.detach().clamp(min=0)
    sign = torch.where(desirable, log_ratios.new_tensor(1.0), log_ratios.new_tensor(-1.0))
    weights = torch.where(
        desirable, log_ratios.new_tensor(desirable_weight), log_ratios.new_tensor(undesirable_weight)
    )
    # 1 - sigmoid(x) is sigmoid(-x), without the cancellation.
    return weights * torch.sigmoid(-beta * sign * (log_ratios - reference_point))


def mismatched_kl(policy: Any, reference: Any) -> Any:
    """An estimate of KL(policy || reference) in nats, ``float []``, without gradient; may be below 0.

    The arguments, ``float [answers]``, are summed log-probabilities of answers after prompts that
    they do not belong to: each prompt of a batch with the answer of its neighbour (Ethayarajh et
    al. 2024, section 4.1).  :func:`kto_answers` clamps it, so under data parallelism the ranks'
    estimates can be averaged first.
    """
    return (policy - reference).detach().mean()


def bradley_terry(chosen_scores: Any, rejected_scores: Any, margin: Any = 0.0) -> Any:
    """Loss of a reward model's scores of preference pairs, each ``float [pairs]``.

    ``-log sigmoid(chosen - rejected - margin)``: Ouyang et al. 2022, equation 1 (one pair a prompt),
    with the margin by strength of preference of Touvron et al. 2023, "Llama 2", equation 2.
    """
    return -functional.logsigmoid(chosen_scores - rejected_scores - margin)


@dataclass(frozen=True)
class Loss:
    """A loss and what it rests on; its own parameters are the function's keywords beside ``beta``."""

    function: Callable[..., PreferenceLosses]
    beta: str  # what beta is in this loss
    reference: bool = False
    tokens: bool = False  # always; else only when asked to average
    true_rewards: bool = False
    kl: bool = False

    @property
    def defaults(self) -> dict[str, float | bool]:
        """The loss's own parameters with their defaults."""
        keywords = inspect.signature(self.function).parameters.values()
        return {k.name: k.default for k in keywords if k.name not in ("batch", "beta")}


PULL = "strength of the pull to the reference"
LOSSES = {
    "dpo": Loss(dpo, PULL, reference=True),
    "ipo": Loss(ipo, PULL + " (tau); the target margin is 1 / (2 beta)", reference=True),
    "rpo_squared": Loss(rpo_squared, PULL, reference=True, true_rewards=True),
    "rpo_forward_kl": Loss(rpo_forward_kl, PULL, reference=True, true_rewards=True),
    "rpo_backward_kl": Loss(rpo_backward_kl, PULL, reference=True, true_rewards=True),
    "simpo": Loss(simpo, "scale of the reward, a mean log-probability", tokens=True),
    "orpo": Loss(orpo, "weight of the odds ratio (lambda)", tokens=True),
    "kto": Loss(kto, PULL, reference=True, kl=True),
}

# Lowest and highest value of each number, and whether the lowest itself is allowed.
RANGES = {
    "beta": (0.0, math.inf, False),
    "label_smoothing": (0.0, 0.5, True),
    "eta": (0.0, math.inf, False),
    "gamma": (0.0, math.inf, True),
    "desirable_weight": (0.0, math.inf, False),
    "undesirable_weight": (0.0, math.inf, False),
}


def preference_loss(
    name: str, batch: PreferenceBatch, *, beta: float, **parameters: float | bool
) -> PreferenceLosses:
    """The loss ``name`` of ``LOSSES`` of a batch; ``parameters`` are those of that loss.

    Raises :class:`InputError` with one sentence for a name or a parameter that there is not, a
    value out of range, and a batch that lacks what the loss rests on.
    """
    if name not in LOSSES:
        raise InputError(f"there is no preference loss {name!r}; there are: {', '.join(LOSSES)}")
    loss = LOSSES[name]
    for key, value in {"beta": beta, **parameters}.items():
        _check_parameter(name, key, value)
    if loss.reference:
        _require(name, batch, ("reference_chosen", "reference_rejected"))
    if loss.tokens or parameters.get("average", loss.defaults.get("average", False)):
        _require(name, batch, ("chosen_tokens", "rejected_tokens"))
    if loss.true_rewards:
        _require(name, batch, ("true_reward_chosen", "true_reward_rejected"))
    if loss.kl:
        _require(name, batch, ("kl",))
    return loss.function(batch, beta=beta, **parameters)


def sequence_log_probabilities(logits: Any, labels: Any, rows: Any, count: int) -> Any:
    """Summed log-probability of each sequence's labels.

    ``logits`` is ``float [labels, vocabulary]``, ``labels`` ``int64 [labels]``, and
    ``rows`` names the sequence of each label (``int64 [labels]``, below ``count``).
    Returns ``float32 [count]``.
    """
    each = -functional.cross_entropy(logits.float(), labels, reduction="none")
    return torch.zeros(count, dtype=torch.float32, device=each.device).index_add(0, rows, each)


def _check_parameter(loss: str, key: str, value: float | bool) -> None:
    own = LOSSES[loss].defaults
    if key != "beta" and key not in own:
        owners = ", ".join(name for name in LOSSES if key in LOSSES[name].defaults) or "no preference loss"
        raise InputError(
            f"the preference loss {loss} takes no {key}, {owners} does; {loss} takes: {', '.join(['beta', *own])}"
        )
    if key == "average":
        if not isinstance(value, bool):
            raise InputError(f"{key} of the preference loss {loss} must be true or false, not {value!r}")
        return
    low, high, inclusive = RANGES[key]
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and (low < value or (inclusive and low == value)) and value <= high):
        bound = f"{'at least' if inclusive else 'above'} {low:g}"
        bound += f" and at most {high:g}" if math.isfinite(high) else ""
        raise InputError(f"{key} of the preference loss {loss} must be a number {bound}, not {value!r}")


def _require(loss: str, batch: PreferenceBatch, fields: Iterable[str]) -> None:
    missing = [field for field in fields if getattr(batch, field) is None]
    if missing:
        raise InputError(f"the preference loss {loss} needs {' and '.join(missing)}, which the batch lacks")


def _log_ratios(batch: PreferenceBatch, average: bool) -> tuple[Any, Any]:
    """Chosen and rejected log-ratios, of whole answers or averaged over their tokens."""
    chosen = batch.policy_chosen - batch.reference_chosen
    rejected = batch.policy_rejected - batch.reference_rejected
    if average:
        return chosen / batch.chosen_tokens, rejected / batch.rejected_tokens
    return chosen, rejected


def _token_means(batch: PreferenceBatch) -> tuple[Any, Any]:
    """The policy's mean log-probability of a token, chosen and rejected."""
    return batch.policy_chosen / batch.chosen_tokens, batch.policy_rejected / batch.rejected_tokens


def _reward_margins(
    batch: PreferenceBatch, beta: float, eta: float, average: bool
) -> tuple[Any, Any, Any, Any]:
    """Implicit rewards of both sides, their margin, and the given one."""
    chosen, rejected = (beta * ratio for ratio in _log_ratios(batch, average))
    return chosen, rejected, chosen - rejected, eta * (batch.true_reward_chosen - batch.true_reward_rejected)


def _bernoulli_kl(first: Any, second: Any) -> Any:
    """``KL(Bernoulli(sigmoid(first)) || Bernoulli(sigmoid(second)))`` in nats, from the logits."""
    yes = torch.sigmoid(first) * (functional.logsigmoid(first) - functional.logsigmoid(second))
    no = torch.sigmoid(-first) * (functional.logsigmoid(-first) - functional.logsigmoid(-second))
    return yes + no


def _log_odds(log_probability: Any) -> Any:
    """``log(P / (1 - P))`` of ``log P``.

    ``log(1 - exp(x))`` is taken the way that does not cancel on either side of ``-log 2`` (Maechler
    2012, "Accurately computing log(1 - exp(-|a|))").  A P of 1 has infinite odds and is taken for
    the next P below it, where both ways are finite: a nan in the one that is not chosen would
    reach the gradient as nan * 0.
    """
    x = log_probability.clamp(max=-torch.finfo(log_probability.dtype).eps)
    small, large = torch.log1p(-torch.exp(x)), torch.log(-torch.expm1(x))
    return x - torch.where(x < -math.log(2), small, large)


def _made(losses: Any, chosen_rewards: Any, rejected_rewards: Any) -> PreferenceLosses:
    return PreferenceLosses(losses, chosen_rewards.detach(), rejected_rewards.detach())
