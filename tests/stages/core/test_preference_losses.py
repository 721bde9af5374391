"""The preference losses against their formulas, at known points, at their limits and at extremes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.engines.automodel.preference_losses import (
    LOSSES,
    RANGES,
    PreferenceBatch,
    bradley_terry,
    kto_answers,
    mismatched_kl,
    preference_loss,
    sequence_log_probabilities,
)
from pipeline.stages.step import InputError

BETA = 0.3
LOG_2 = math.log(2)
POLICY = ("policy_chosen", "policy_rejected")


def batch(pairs: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> PreferenceBatch:
    """Random log-probabilities of answers of 1 to 12 tokens, rewards of either order, a KL above 0."""
    made = np.random.default_rng(seed)
    tokens = made.integers(1, 12, (2, pairs))
    policy, reference = -tokens * made.uniform(0.05, 2.0, (2, 2, pairs))
    rows = (*policy, *reference, *tokens, *made.normal(0, 2, (2, pairs)))
    return PreferenceBatch(
        *(torch.tensor(row, dtype=dtype) for row in rows), kl=torch.tensor(0.7, dtype=dtype)
    )


def margins_of(*margins: float, dtype: torch.dtype = torch.float32) -> PreferenceBatch:
    """Pairs of one token a side whose chosen answer alone carries the margin over the reference."""
    chosen = torch.tensor(margins, dtype=dtype)
    zero, one = torch.zeros_like(chosen), torch.ones_like(chosen)
    return PreferenceBatch(chosen, zero, zero, zero, one, one, zero, zero, kl=torch.zeros((), dtype=dtype))


# --------------------------------------------------------------------- from the formulas, in NumPy


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def ratios(b: dict[str, Any], average: bool = False) -> tuple[Any, Any]:
    chosen = b["policy_chosen"] - b["reference_chosen"]
    rejected = b["policy_rejected"] - b["reference_rejected"]
    return (chosen / b["chosen_tokens"], rejected / b["rejected_tokens"]) if average else (chosen, rejected)


def by_dpo(b: dict[str, Any], beta: float, label_smoothing: float = 0.0, average: bool = False) -> Any:
    chosen, rejected = ratios(b, average)
    right = sigmoid(beta * (chosen - rejected))
    return -(1 - label_smoothing) * np.log(right) - label_smoothing * np.log(1 - right)


def by_ipo(b: dict[str, Any], beta: float, average: bool = True) -> Any:
    chosen, rejected = ratios(b, average)
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def by_rpo(kind: str) -> Callable[..., Any]:
    def loss(b: dict[str, Any], beta: float, eta: float = 1.0, average: bool = False) -> Any:
        chosen, rejected = ratios(b, average)
        implicit = beta * chosen - beta * rejected
        given = eta * (b["true_reward_chosen"] - b["true_reward_rejected"])
        if kind == "squared":
            return (implicit - given) ** 2
        p, q = sigmoid(implicit), sigmoid(given)
        if kind == "backward":
            p, q = q, p
        return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))

    return loss


def by_simpo(b: dict[str, Any], beta: float, gamma: float = 0.5) -> Any:
    chosen = beta / b["chosen_tokens"] * b["policy_chosen"]
    rejected = beta / b["rejected_tokens"] * b["policy_rejected"]
    return -np.log(sigmoid(chosen - rejected - gamma))


def by_orpo(b: dict[str, Any], beta: float) -> Any:
    chosen = np.exp(b["policy_chosen"] / b["chosen_tokens"])
    rejected = np.exp(b["policy_rejected"] / b["rejected_tokens"])
    odds_ratio = (chosen / (1 - chosen)) / (rejected / (1 - rejected))
    return -np.log(chosen) - beta * np.log(sigmoid(np.log(odds_ratio)))


def by_kto(
    b: dict[str, Any], beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0
) -> Any:
    chosen, rejected = ratios(b)
    reference_point = max(0.0, float(b["kl"]))
    good = desirable_weight * (1 - sigmoid(beta * (chosen - reference_point)))
    bad = undesirable_weight * (1 - sigmoid(beta * (reference_point - rejected)))
    return (good + bad) / 2


FORMULAS = {
    "dpo": by_dpo,
    "ipo": by_ipo,
    "rpo_squared": by_rpo("squared"),
    "rpo_forward_kl": by_rpo("forward"),
    "rpo_backward_kl": by_rpo("backward"),
    "simpo": by_simpo,
    "orpo": by_orpo,
    "kto": by_kto,
}
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in LOSSES),
    ("dpo", {"label_smoothing": 0.2}),
    ("dpo", {"average": True}),
    ("dpo", {"label_smoothing": 0.1, "average": True}),
    ("ipo", {"average": False}),
    ("rpo_squared", {"eta": 0.5, "average": True}),
    ("rpo_forward_kl", {"eta": 0.5}),
    ("rpo_backward_kl", {"eta": 2.0, "average": True}),
    ("simpo", {"gamma": 1.4}),
    ("kto", {"desirable_weight": 1.3, "undesirable_weight": 0.8}),
]


def test_the_recipes_settings_are_those_that_the_losses_take() -> None:
    from pipeline.schema import Align
    from pipeline.schema.training import LOSS_SETTINGS

    assert {name: set(own) for name, own in LOSS_SETTINGS.items()} == {
        name: set(loss.defaults) for name, loss in LOSSES.items()
    }
    for loss in LOSSES.values():
        for name, value in loss.defaults.items():
            assert getattr(Align(), name) in (value, None)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_a_loss_is_its_formula(name: str, options: dict[str, Any]) -> None:
    for seed in range(5):
        given = batch(seed=seed)
        plain = {field.name: getattr(given, field.name).numpy() for field in dataclasses.fields(given)}
        made = preference_loss(name, given, beta=BETA, **options)
        np.testing.assert_allclose(
            made.losses, FORMULAS[name](plain, BETA, **options), rtol=1e-11, atol=1e-14
        )
    defaults = LOSSES[name].defaults
    torch.testing.assert_close(  # written out, the defaults change nothing
        preference_loss(name, given, beta=BETA, **{**defaults, **options}).losses, made.losses, rtol=0, atol=0
    )


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_gradients_are_those_of_the_loss(name: str, options: dict[str, Any]) -> None:
    given = batch(pairs=4)

    def losses(chosen: Any, rejected: Any) -> Any:
        pairs = dataclasses.replace(given, policy_chosen=chosen, policy_rejected=rejected)
        return preference_loss(name, pairs, beta=BETA, **options).losses

    sides = [getattr(given, side).clone().requires_grad_() for side in POLICY]
    assert torch.autograd.gradcheck(losses, sides)


def test_what_a_loss_rests_on_is_what_it_reads() -> None:
    """Without gradient to, and without a value for, anything but what the table says."""
    fields = {
        "reference": ("reference_chosen", "reference_rejected"),
        "tokens": ("chosen_tokens", "rejected_tokens"),
        "true_rewards": ("true_reward_chosen", "true_reward_rejected"),
        "kl": ("kl",),
    }
    for name, loss in LOSSES.items():
        for need, names in fields.items():
            lacking = dataclasses.replace(batch(), **dict.fromkeys(names))
            if getattr(loss, need) or (need == "tokens" and loss.defaults.get("average")):
                with pytest.raises(InputError, match=f"{name} needs {names[0]}"):
                    preference_loss(name, lacking, beta=BETA)
            else:
                assert preference_loss(name, lacking, beta=BETA).losses.shape == (6,)


# ---------------------------------------------------------------------------- known points, limits


def test_dpo_at_known_points() -> None:
    assert preference_loss("dpo", margins_of(0.0), beta=BETA).losses.item() == pytest.approx(LOG_2)
    zero = torch.zeros(1)
    pairs = PreferenceBatch(zero + 2, zero - 1, zero, zero)  # margin 3
    made = preference_loss("dpo", pairs, beta=0.5)
    assert made.losses.item() == pytest.approx(math.log1p(math.exp(-1.5)), rel=1e-6)
    assert (made.chosen_rewards.item(), made.rejected_rewards.item()) == (1.0, -0.5)
    smoothed = preference_loss("dpo", pairs, beta=0.5, label_smoothing=0.25).losses.item()
    assert smoothed == pytest.approx(0.75 * made.losses.item() + 0.25 * math.log1p(math.exp(1.5)), rel=1e-6)
    policy = torch.zeros(2, requires_grad=True)
    preference_loss("dpo", PreferenceBatch(policy[:1], policy[1:], zero, zero), beta=0.3).losses.backward()
    assert policy.grad.tolist() == pytest.approx([-0.15, 0.15])


def test_labels_as_likely_wrong_as_right_make_dpo_symmetric() -> None:
    found = [
        preference_loss(
            "dpo", margins_of(*margins, dtype=torch.float64), beta=BETA, label_smoothing=0.5
        ).losses
        for margins in ((0.5, 3.0, 20.0), (-0.5, -3.0, -20.0))
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)
    assert (found[0] > LOG_2).all()


@pytest.mark.parametrize("average", [True, False])
def test_ipo_has_its_optimum_at_half_the_inverse_of_beta(average: bool) -> None:
    best = 1 / (2 * BETA)
    around = [best - 0.01, best, best + 0.01]
    pairs = margins_of(*around, dtype=torch.float64)
    if average:  # five tokens: the same mean
        pairs = dataclasses.replace(
            pairs, policy_chosen=pairs.policy_chosen * 5, chosen_tokens=pairs.chosen_tokens * 5
        )
    below, at, above = preference_loss("ipo", pairs, beta=BETA, average=average).losses.tolist()
    assert at == pytest.approx(0, abs=1e-20)
    assert min(below, above) == pytest.approx(1e-4)


@pytest.mark.parametrize("name", ["rpo_squared", "rpo_forward_kl", "rpo_backward_kl"])
def test_rpo_rests_where_the_implicit_margin_is_the_given_one(name: str) -> None:
    eta, margin = 0.5, 2.4
    pairs = margins_of(margin, margin + 1, margin - 1, dtype=torch.float64)
    pairs.policy_chosen.requires_grad_()
    pairs = dataclasses.replace(
        pairs, true_reward_chosen=torch.full((3,), margin * BETA / eta, dtype=torch.float64)
    )
    losses = preference_loss(name, pairs, beta=BETA, eta=eta).losses
    losses.sum().backward()
    at, over, under = pairs.policy_chosen.grad.tolist()
    assert losses[0].item() == pytest.approx(0, abs=1e-15)
    assert at == pytest.approx(0, abs=1e-15)
    assert losses[1] > 1e-3
    assert losses[2] > 1e-3
    assert under < -1e-3 < 1e-3 < over


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.5])
def test_rpo_backward_is_conservative_dpo_less_the_entropy_of_the_labels(wrong: float) -> None:
    """Where the rewards' gap is the log-odds of a label being right."""
    pairs = batch()
    gap = math.log((1 - wrong) / wrong) if wrong else 1e3
    pairs = dataclasses.replace(pairs, true_reward_chosen=pairs.true_reward_rejected + gap)
    entropy = -sum(p * math.log(p) for p in (wrong, 1 - wrong) if p)
    found = preference_loss("rpo_backward_kl", pairs, beta=BETA).losses
    wanted = preference_loss("dpo", pairs, beta=BETA, label_smoothing=wrong).losses - entropy
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_kto_clamps_its_reference_point_and_gives_it_no_gradient() -> None:
    policy, reference = torch.tensor([-9.0, -7.0], requires_grad=True), torch.tensor([-6.0, -6.0])
    kl = mismatched_kl(policy, reference)
    assert kl.item() == -2
    assert not kl.requires_grad
    desirable = torch.tensor([True, False])
    ratio = torch.tensor([1.0, -2.0])
    found = kto_answers(ratio, desirable, kl, beta=1.0, undesirable_weight=2.0)
    assert found.tolist() == pytest.approx([1 / (1 + math.e), 2 / (1 + math.exp(2))])
    reference_point = torch.tensor(0.5, requires_grad=True)
    ratio.requires_grad_()
    kto_answers(ratio, desirable, reference_point, beta=1.0).sum().backward()
    assert reference_point.grad is None
    assert ratio.grad[0] < 0 < ratio.grad[1]


@pytest.mark.parametrize("name", LOSSES)
def test_a_better_chosen_answer_lowers_the_loss(name: str) -> None:
    """Near the start: down the gradient the chosen answer gains and the rejected one loses."""
    pairs = batch(seed=3)
    near = torch.linspace(-0.2, 0.2, 6).double()
    pairs = dataclasses.replace(
        pairs,
        policy_chosen=(pairs.reference_chosen + near).requires_grad_(),
        policy_rejected=(pairs.reference_rejected - near).requires_grad_(),
        true_reward_chosen=pairs.true_reward_rejected + 3,
    )
    made = preference_loss(name, pairs, beta=BETA)
    made.losses.sum().backward()
    assert (pairs.policy_chosen.grad < 0).all()
    assert (pairs.policy_rejected.grad > 0).all()
    assert not made.losses.isnan().any()
    assert not made.chosen_rewards.requires_grad
    assert not made.rejected_rewards.requires_grad


def test_length_decides_only_where_the_mean_is_taken() -> None:
    """Twice the tokens at the same log-probability a token."""
    one = batch()
    doubled = dataclasses.replace(
        one, **{f.name: 2 * getattr(one, f.name) for f in dataclasses.fields(one)[:6]}
    )
    for name, options in OPTIONS:
        same = options.get("average", LOSSES[name].defaults.get("average", LOSSES[name].tokens))
        first, second = (preference_loss(name, b, beta=BETA, **options).losses for b in (one, doubled))
        assert torch.allclose(first, second, rtol=1e-12) == same


# ------------------------------------------------------------------------------------- extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_extreme_margins_stay_finite(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Also certain answers (probability 1), for which odds are infinite; values and gradients."""
    sides = [(-1e4, 0.0), (0.0, -1e4), (0.0, 0.0), (-1e4, -1e4), (-1e-9, -20.0), (-20.0, -1e-9)]
    chosen, rejected = (
        torch.tensor(side, dtype=dtype, requires_grad=True) for side in zip(*sides, strict=True)
    )
    zero, one = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
    gap = torch.tensor([1e4, -1e4, 0, 3, -3, 1e4], dtype=dtype)
    for kl in (0.0, 1e4, -1e4):
        pairs = PreferenceBatch(
            chosen, rejected, zero, zero, one, one, gap, zero, kl=torch.tensor(kl, dtype=dtype)
        )
        made = preference_loss(name, pairs, beta=1.0, **options)
        found = torch.autograd.grad(made.losses.sum(), (chosen, rejected))
        for tensor in (made.losses, made.chosen_rewards, made.rejected_rewards, *found):
            assert torch.isfinite(tensor).all(), tensor


def test_a_hopeless_pair_still_pulls() -> None:
    """The log-sigmoid of a margin of -1e4 has its full slope; a plain log(sigmoid) would be infinite."""
    pairs = margins_of(-1e4)
    pairs.policy_chosen.requires_grad_()
    made = preference_loss("dpo", pairs, beta=BETA)
    made.losses.backward()
    assert made.losses.item() == pytest.approx(BETA * 1e4)
    assert pairs.policy_chosen.grad.item() == pytest.approx(-BETA)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "beta", "options", "words"),
    [
        ("dopo", BETA, {}, "there is no preference loss 'dopo'; there are: dpo, ipo, rpo_squared"),
        (
            "dpo",
            BETA,
            {"gamma": 1.0},
            "dpo takes no gamma, simpo does; dpo takes: beta, label_smoothing, average",
        ),
        ("ipo", BETA, {"label_smoothing": 0.1}, "ipo takes no label_smoothing, dpo does"),
        ("orpo", BETA, {"wieght": 1.0}, "orpo takes no wieght, no preference loss does; orpo takes: beta"),
        ("dpo", 0.0, {}, "beta of the preference loss dpo must be a number above 0, not 0.0"),
        ("dpo", math.nan, {}, "beta .* must be a number above 0, not nan"),
        ("kto", math.inf, {}, "beta .* must be a number above 0, not inf"),
        ("dpo", BETA, {"label_smoothing": 0.6}, "must be a number at least 0 and at most 0.5, not 0.6"),
        ("dpo", BETA, {"average": 1}, "average of the preference loss dpo must be true or false, not 1"),
        ("simpo", BETA, {"gamma": -0.1}, "gamma of the preference loss simpo must be a number at least 0"),
        ("rpo_squared", BETA, {"eta": True}, "eta .* must be a number above 0, not True"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    name: str, beta: float, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        preference_loss(name, batch(), beta=beta, **options)


def test_averaging_needs_lengths_and_every_parameter_has_a_range() -> None:
    lacking = dataclasses.replace(batch(), chosen_tokens=None)
    with pytest.raises(InputError, match="dpo needs chosen_tokens, which the batch lacks"):
        preference_loss("dpo", lacking, beta=BETA, average=True)
    assert preference_loss("ipo", lacking, beta=BETA, average=False).losses.shape == (6,)
    assert {key for loss in LOSSES.values() for key in loss.defaults} == set(RANGES) - {"beta"} | {"average"}


# ------------------------------------------------------------------- reward model, log-probabilities


def test_bradley_terry_is_the_negative_log_likelihood_of_the_choice() -> None:
    chosen = torch.tensor([1.0, -2.0, 1e4, -1e4], requires_grad=True)
    rejected = torch.tensor([0.5, 1.0, -1e4, 1e4])
    losses = bradley_terry(chosen, rejected)
    wanted = [-math.log(1 / (1 + math.exp(-0.5))), -math.log(1 / (1 + math.exp(3))), 0.0, 2e4]
    assert losses.tolist() == pytest.approx(wanted, rel=1e-6)
    losses.sum().backward()
    slopes = [-1 / (1 + math.exp(0.5)), -1 / (1 + math.exp(-3)), 0.0, -1.0]
    assert chosen.grad.tolist() == pytest.approx(slopes, rel=1e-6)
    margin = bradley_terry(chosen[:1], rejected[:1], torch.tensor([0.5]))
    assert margin.item() == pytest.approx(LOG_2)


def test_sequence_log_probabilities_sum_by_row() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]))
    found = sequence_log_probabilities(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), 2)
    torch.testing.assert_close(found, torch.log(torch.tensor([0.375, 0.1])))
