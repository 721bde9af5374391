"""The model that is cheapest over its whole life: training and serving together, at a quality that is held fixed.

Sardana et al. 2024 (arXiv 2401.00448).  With the loss law ``L(N, D) = E + A/N^alpha + B/D^beta`` and a target loss
``l``, a model of ``N`` parameters needs ``D(N) = (B / (l - E - A/N^alpha))^(1/beta)`` tokens.  Its whole cost is::

    6 N D(N) c_tr + 2 N (D_in c_in + D_out c_out)

with ``c`` = 1 to count FLOP, or the money that one *useful* FLOP costs: price of a GPU second / (peak x MFU).
Setting the derivative by N to zero leaves one equation in one unknown, without a closed form::

    1 - alpha A N^-alpha / (beta (l - E - A N^-alpha)) + (D_in c_in + D_out c_out) / (3 c_tr D(N)) = 0

Its left side falls without bound as N nears the smallest model that can reach the loss with endless data, and is not
negative at the compute-optimal model, so the optimum lies between and is found by bracketing.

Limits: the law is an extrapolation where tokens per parameter are far above those that it was fitted on (the paper's
section 5 finds that it then overestimates what further tokens give); attention and memory traffic are in the MFU only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.scaling.budget import LEAST_PARAMETERS, MOST_PARAMETERS
from pipeline.plan.scaling.laws import BESIROGLU, BESIROGLU_FIT, HOFFMANN, HOFFMANN_UNROUNDED, Parametric

PAPER = "Sardana et al. 2024, arXiv 2401.00448"
HOUR = 3600.0
ROUNDING = 1e-6  # of a size that is worked out from its own loss


@dataclass(frozen=True)
class Law:
    """A loss law with what serving asks of it: tokens for a loss, and sizes that are compute-optimal."""

    name: str
    terms: Parametric
    source: str

    def tokens(self, parameters: float, loss: float) -> float:
        """Tokens that a model of this size needs for ``loss``; infinite where it cannot reach it."""
        left = loss - self.terms.e - self.of_size(parameters)
        try:
            return math.pow(self.terms.b / left, 1 / self.terms.beta) if left > 0 else math.inf
        except OverflowError:
            return math.inf

    def of_size(self, parameters: float) -> float:
        """The part of the loss that a larger model would take away."""
        return self.terms.a * math.pow(parameters, -self.terms.alpha)

    def smallest(self, loss: float) -> float:
        """The size that reaches ``loss`` with endless data only."""
        return math.pow(self.terms.a / (loss - self.terms.e), 1 / self.terms.alpha)

    def balanced_tokens(self, parameters: float) -> float:
        """Tokens with which this size is compute-optimal: ``alpha A N^-alpha = beta B D^-beta``."""
        terms = self.terms
        return math.pow(terms.beta * terms.b / (terms.alpha * self.of_size(parameters)), 1 / terms.beta)

    def balanced_parameters(self, loss: float) -> float:
        """Size of the compute-optimal model of ``loss``: there both terms stand in the ratio beta : alpha."""
        terms = self.terms
        of_size = (loss - terms.e) * terms.beta / (terms.alpha + terms.beta)
        return math.pow(terms.a / of_size, 1 / terms.alpha)


LAWS = {
    law.name: law
    for law in (
        Law(
            "sardana",
            Parametric(1.69, 406.4, 410.7, 0.336, 0.283),
            f"Hoffmann et al. 2022, approach 3, as used by {PAPER}",
        ),
        Law("hoffmann", HOFFMANN_UNROUNDED, f"{HOFFMANN}, approach 3, unrounded"),
        Law("besiroglu", BESIROGLU_FIT, BESIROGLU),
    )
}


@dataclass(frozen=True)
class Rates:
    """What one FLOP of each kind costs: 1 to count FLOP, or money (:func:`money_rate`)."""

    train: Quantity
    input: Quantity
    output: Quantity
    unit: str


_ONE = given("cost of a FLOP", 1.0, "FLOP/FLOP", "FLOP are counted, not money")
COUNT = Rates(_ONE, _ONE, _ONE, "FLOP")


def money_rate(name: str, hourly: Quantity, peak: Quantity, mfu: Quantity) -> Quantity:
    """USD for one useful FLOP: price of a GPU hour / (3600 s x peak x MFU)."""
    value = hourly.value / (HOUR * peak.value * mfu.value)
    return Quantity(
        name, value, "USD/FLOP", "hourly price / (3600 s x peak x MFU)", (hourly, peak, mfu), PAPER
    )


@dataclass(frozen=True)
class Optimum:
    """The cheapest model of a quality for a demand, beside the compute-optimal one of the same quality."""

    demand: Quantity
    parameters: Quantity
    tokens: Quantity
    cost: Quantity
    plain_parameters: Quantity
    plain_tokens: Quantity
    plain_cost: Quantity
    data_ratio: Quantity
    saving: Quantity


def cheapest(law: Law, loss: Quantity, asked: Quantity, answered: Quantity, rates: Rates) -> Optimum:
    """The size and tokens that minimise training + serving for ``loss``, with so many input and output tokens served.

    Raises :class:`UserError` when no model of the law reaches the loss, or one of a size beyond all reason.
    """
    from scipy.optimize import brentq

    if not law.terms.e < loss.value:
        raise UserError(
            f"a loss of {loss.value:g} is at or below the irreducible {law.terms.e:g} of the law {law.name}; "
            "no model reaches it: ask for a higher one"
        )
    _check_size(law, loss.value)
    served = asked.value * rates.input.value + answered.value * rates.output.value
    plain = law.balanced_parameters(loss.value)

    def slope(log_size: float) -> float:
        size = math.exp(log_size)
        left = loss.value - law.terms.e - law.of_size(size)
        return (
            1
            - law.terms.alpha * law.of_size(size) / (law.terms.beta * left)
            + served / (3 * rates.train.value * law.tokens(size, loss.value))
        )

    # The lower end is nudged off the pole; at 1e-9 above it the second term is of the order of -1e9.
    low, high = math.log(law.smallest(loss.value)) + 1e-9, math.log(plain)
    # So little served that rounding hides what it adds at the upper end moves nothing.
    size = (
        plain
        if slope(high) <= 0 or served == 0
        else math.exp(brentq(slope, low, high, xtol=1e-13, rtol=1e-13))
    )
    return _told(law, loss, asked, answered, rates, size, plain)


def _check_size(law: Law, loss: float) -> None:
    """Raise :class:`UserError` for a loss whose compute-optimal model is smaller or larger than any that makes sense."""
    try:
        size = law.balanced_parameters(loss)
        inside = LEAST_PARAMETERS * (1 - ROUNDING) <= size <= MOST_PARAMETERS * (1 + ROUNDING)
        highest, lowest = (quality_of(law, size).value for size in (LEAST_PARAMETERS, MOST_PARAMETERS))
    except (OverflowError, ValueError, ZeroDivisionError):
        raise UserError(
            f"with these constants the law {law.name} gives no numbers for models of {LEAST_PARAMETERS:g} to "
            f"{MOST_PARAMETERS:g} parameters: check A, B and the exponents"
        ) from None
    if not inside:
        raise UserError(
            f"a loss of {loss:.9g}: the law {law.name} is asked from {lowest:.6g} to {highest:.6g}, the losses of compute-optimal "
            f"models of {MOST_PARAMETERS:g} to {LEAST_PARAMETERS:g} parameters"
        )


def _told(
    law: Law, loss: Quantity, asked: Quantity, answered: Quantity, rates: Rates, size: float, plain: float
) -> Optimum:
    demand = Quantity(
        "demand", asked.value + answered.value, "token", "input + output tokens served", (asked, answered)
    )
    constants = law.terms.coefficients(law.source)
    needs = "(B / (loss - E - A/N^alpha))^(1/beta)"

    def cost(name: str, parameters: Quantity, tokens: Quantity) -> Quantity:
        training = 6 * parameters.value * tokens.value * rates.train.value
        serving = (
            2 * parameters.value * (asked.value * rates.input.value + answered.value * rates.output.value)
        )
        parts = (
            Quantity(
                "training", training, rates.unit, "6 N D c_tr", (parameters, tokens, rates.train), PAPER
            ),
            Quantity(
                "serving",
                serving,
                rates.unit,
                "2 N (D_in c_in + D_out c_out)",
                (parameters, asked, answered, rates.input, rates.output),
                PAPER,
            ),
        )
        return Quantity(name, training + serving, rates.unit, "training + serving", parts, PAPER)

    best = Quantity(
        "parameters",
        size,
        "parameter",
        "the N at which the derivative of the cost is zero",
        (loss, demand, *constants),
        PAPER,
    )
    tokens = Quantity(
        "training tokens", law.tokens(size, loss.value), "token", needs, (loss, best, *constants), law.source
    )
    usual = Quantity(
        "compute-optimal parameters",
        plain,
        "parameter",
        "(A (alpha + beta) / ((loss - E) beta))^(1/alpha)",
        (loss, *constants),
        law.source,
    )
    usual_tokens = Quantity(
        "compute-optimal tokens",
        law.tokens(plain, loss.value),
        "token",
        needs,
        (loss, usual, *constants),
        law.source,
    )
    whole = cost("cost", best, tokens)
    usual_cost = cost("cost of the compute-optimal", usual, usual_tokens)
    ratio = Quantity(
        "data ratio",
        tokens.value / usual_tokens.value,
        "",
        "training tokens / compute-optimal tokens",
        (tokens, usual_tokens),
    )
    saving = Quantity(
        "saving",
        100 * (1 - whole.value / usual_cost.value),
        "%",
        "100 x (1 - cost / cost of the compute-optimal)",
        (whole, usual_cost),
    )
    return Optimum(demand, best, tokens, whole, usual, usual_tokens, usual_cost, ratio, saving)


def quality_of(law: Law, parameters: float) -> Quantity:
    """The loss of a compute-optimal model of this size."""
    size = given("parameters of the compute-optimal model", parameters, "parameter", "asked for")
    tokens = law.balanced_tokens(parameters)
    data = Quantity(
        "its tokens", tokens, "token", "(beta B N^alpha / (alpha A))^(1/beta)", (size,), law.source
    )
    return Quantity(
        "loss", law.terms.loss(parameters, tokens), "", "E + A/N^alpha + B/D^beta", (size, data), law.source
    )


def quality_at(law: Law, flops: float) -> Quantity:
    """The loss of the compute-optimal model of a training budget."""
    budget = given("training budget", flops, "FLOP", "asked for")
    return Quantity(
        "loss",
        law.terms.loss(*law.terms.optimum(flops)),
        "",
        "E + A/N^alpha + B/D^beta at N = G (C/6)^(beta/(alpha+beta))",
        (budget,),
        law.source,
    )
