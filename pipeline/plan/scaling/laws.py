"""Published scaling laws, and the model and token count that each holds best for a budget.

C is training compute in FLOP, N parameters, D training tokens, C = 6 N D (Kaplan et al. 2020, section 2.1).

Hoffmann et al. 2022 ("Chinchilla"), arXiv 2203.15556
    approach 3, equation 2: L(N, D) = E + A/N^alpha + B/D^beta, whose optimum at given C is closed (equation 4):
    N = G (C/6)^a, D = (C/6)^b / G, G = (alpha A / (beta B))^(1/(alpha+beta)), a = beta/(alpha+beta), b = 1 - a;
    approaches 1 and 2: N ~ C^0.50 and C^0.49 (Table 2), the level of approach 1 from Table 3.
Besiroglu et al. 2024, arXiv 2404.10102: approach 3 fitted anew to the points of Hoffmann's figure.
Dubey et al. 2024 ("Llama 3"), section 3.2.1: D = A C^alpha over the minima of IsoFLOP parabolas.
Kaplan et al. 2020, arXiv 2001.08361, Table 6: N = 1.3e9 (C / PF-day)^0.73, N without embeddings.

Bands are central 80% intervals unless :attr:`Optimum.band_means` says otherwise.  Where a paper prints an interval of the exponent only,
the level counts as known at the geometric centre of Hoffmann's IsoFLOP budgets (6e18 to 3e21 FLOP).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.plan.quantity import Quantity, given

FLOP_PER_TOKEN = 6.0  # and parameter, forward and backward
PF_DAY = 1e15 * 86400
CENTRE = math.sqrt(6e18 * 3e21)
RANGE = (6e18, 1e22)  # FLOP of the IsoFLOP budgets of Hoffmann et al. and Llama 3
NORMAL_90 = 1.2815515655446004  # quantile: a central 80% interval is +- this many standard errors

HOFFMANN = "Hoffmann et al. 2022, arXiv 2203.15556"
BESIROGLU = "Besiroglu et al. 2024, arXiv 2404.10102"
LLAMA3 = "Dubey et al. 2024 (Llama 3), section 3.2.1"
KAPLAN = "Kaplan et al. 2020, arXiv 2001.08361, Table 6"
SIX = given("FLOP per parameter and token", FLOP_PER_TOKEN, "", "Kaplan et al. 2020, section 2.1")

# Hoffmann et al. 2022, Table 3 (approach 1): parameters, FLOP, tokens, as printed.
TABLE_3 = (
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (280e9, 9.90e24, 5.9e12),
    (520e9, 3.43e25, 11.0e12),
    (1e12, 1.27e26, 21.2e12),
    (10e12, 1.30e28, 216.2e12),
)
GOPHER = TABLE_3[3]  # the row of Gopher's own budget, which sets the level


@dataclass(frozen=True)
class Parametric:
    """L(N, D) = E + A/N^alpha + B/D^beta, in nats a token; ``per_token`` FLOP a parameter and token."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float
    per_token: float = FLOP_PER_TOKEN

    def loss(self, parameters: float, tokens: float) -> float:
        """Loss in nats a token."""
        return float(self.e + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens of the lowest loss at this compute (Hoffmann et al. 2022, equation 4).

        Raises ``ValueError`` where the law has none: an exponent or a coefficient that is not positive.
        """
        if not (min(self.alpha, self.beta, self.a, self.b) > 0):
            raise ValueError("a law whose loss does not fall with both size and data has no optimum")
        both = self.alpha + self.beta
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / both)
        share = flops / self.per_token
        return g * share ** (self.beta / both), share ** (self.alpha / both) / g

    def coefficients(self, source: str) -> tuple[Quantity, ...]:
        """E, A, B, alpha and beta as quantities."""
        values = {"E": self.e, "A": self.a, "B": self.b, "alpha": self.alpha, "beta": self.beta}
        return tuple(given(name, value, "", source) for name, value in values.items())


@dataclass(frozen=True)
class Optimum:
    """A compute-optimal point: quantities, and (low, high) of each where there is a band."""

    law: str
    parameters: Quantity
    tokens: Quantity
    loss: Quantity | None = None
    parameters_band: tuple[float, float] | None = None
    tokens_band: tuple[float, float] | None = None
    band_means: str = ""
    note: str = ""

    @property
    def ratio(self) -> Quantity:
        """Tokens a parameter."""
        value = self.tokens.value / self.parameters.value
        return Quantity(
            "tokens per parameter", value, "", "tokens / parameters", (self.tokens, self.parameters)
        )


def parametric_optimum(title: str, law: Parametric, flops: Quantity, source: str, note: str = "") -> Optimum:
    """The closed-form optimum of a parametric law, with its derivation."""
    n, d = law.optimum(flops.value)
    inputs = (flops, *law.coefficients(source))
    per = f"{law.per_token:.4g}"
    big_g = Quantity(
        "G",
        (law.alpha * law.a / (law.beta * law.b)) ** (1 / (law.alpha + law.beta)),
        "",
        "(alpha A / (beta B))^(1/(alpha+beta))",
        inputs[2:],
        f"{HOFFMANN}, equation 4",
    )
    parameters = Quantity(
        "parameters", n, "parameter", f"G (C/{per})^(beta/(alpha+beta))", (flops, big_g), source
    )
    tokens = Quantity("tokens", d, "token", f"(C/{per})^(alpha/(alpha+beta)) / G", (flops, big_g), source)
    loss = Quantity(
        "loss",
        law.loss(n, d),
        "nat/token",
        "E + A/N^alpha + B/D^beta",
        (parameters, tokens, *inputs[1:]),
        source,
    )
    return Optimum(title, parameters, tokens, loss, note=note)


HOFFMANN_ROUNDED = Parametric(1.69, 406.4, 410.7, 0.34, 0.28)
HOFFMANN_UNROUNDED = Parametric(
    math.exp(0.5267228), math.exp(6.0073404), math.exp(6.0179186), 0.33917084, 0.28490966
)
BESIROGLU_FIT = Parametric(1.8172, 482.01, 2085.43, 0.3478, 0.3658)


def published(flops: Quantity) -> tuple[Optimum, ...]:
    """The compute-optimal point of every published law, the replication first."""
    laws: tuple[Callable[[Quantity], Optimum], ...] = (
        besiroglu,
        hoffmann_unrounded,
        hoffmann_rounded,
        approach_1,
        approach_2,
        llama3,
        kaplan,
    )
    return tuple(law(flops) for law in laws)


def outside(flops: Quantity) -> str | None:
    """How far a budget lies outside of what the published laws were fitted to, in words; None inside."""
    low, high = RANGE
    if low <= flops.value <= high:
        return None
    factor = low / flops.value if flops.value < low else flops.value / high
    side = "below" if flops.value < low else "above"
    return f"{flops} is a factor of {factor:,.3g} {side} the budgets that the published laws were fitted to ({low:.0e} to {high:.0e} FLOP)"


def besiroglu(flops: Quantity) -> Optimum:
    """Besiroglu et al.'s replication of approach 3; N's exponent is 0.5126 with a standard error of 0.02."""
    found = parametric_optimum("Besiroglu et al. (replication)", BESIROGLU_FIT, flops, BESIROGLU)
    half = NORMAL_90 * 0.02
    band = _off(flops, found.parameters.value, -half, half)
    return _banded(found, flops, band, "80%, from the exponent's standard error")


def hoffmann_unrounded(flops: Quantity) -> Optimum:
    """Approach 3 with the constants of the paper's TeX source."""
    note = (
        "no band: the printed interval of the exponent (0.454, 0.455) would take 600,000 runs and misses the "
        f"law's own 0.4565 [{BESIROGLU}]"
    )
    source = f"{HOFFMANN}, approach 3, constants of the TeX source"
    return parametric_optimum("Hoffmann et al. approach 3", HOFFMANN_UNROUNDED, flops, source, note)


def hoffmann_rounded(flops: Quantity) -> Optimum:
    """Approach 3 with the constants as printed; its band is what their rounding alone leaves open."""
    found = parametric_optimum(
        "Hoffmann et al. as printed", HOFFMANN_ROUNDED, flops, f"{HOFFMANN}, equation 10", "rounded constants"
    )
    corners = [
        Parametric(1.69, a, b, alpha, beta).optimum(flops.value)[0]
        for a, b, alpha, beta in itertools.product(
            (406.35, 406.45), (410.65, 410.75), (0.335, 0.345), (0.275, 0.285)
        )
    ]
    return _banded(found, flops, (min(corners), max(corners)), "rounding of the printed constants alone")


def approach_1(flops: Quantity) -> Optimum:
    """N ~ C^0.50 through Table 3's row of Gopher's budget (67B at 5.76e23 FLOP)."""
    n_ref, c_ref, _ = GOPHER
    source = f"{HOFFMANN}, Tables 2 and 3"
    return _by_exponent(
        "Hoffmann et al. approach 1",
        flops,
        (n_ref, c_ref),
        0.50,
        (0.488, 0.502),
        source,
        "training-curve envelope",
    )


def approach_2(flops: Quantity) -> Optimum:
    """N ~ C^0.49; Table 2 prints the exponent, and the level is approach 1's at the centre of the budgets."""
    n_ref, c_ref, _ = GOPHER
    level = n_ref * math.sqrt(CENTRE / c_ref)
    note = "IsoFLOP profiles; only the exponent is printed: the level is approach 1's at the centre of the budgets"
    source = f"{HOFFMANN}, Table 2"
    return _by_exponent(
        "Hoffmann et al. approach 2", flops, (level, CENTRE), 0.49, (0.462, 0.534), source, note
    )


def llama3(flops: Quantity) -> Optimum:
    """D = 0.29 C^0.53 as printed; the band is what the rounding of the two numbers leaves open."""
    coefficient, exponent = given("A", 0.29, "", LLAMA3), given("alpha", 0.53, "", LLAMA3)
    value = coefficient.value * flops.value**exponent.value
    tokens = Quantity("tokens", value, "token", "A C^alpha", (flops, coefficient, exponent), LLAMA3)
    parameters = Quantity(
        "parameters", flops.value / (6 * value), "parameter", "C / (6 D)", (flops, SIX, tokens), LLAMA3
    )
    ends = [a * flops.value**x for a in (0.285, 0.295) for x in (0.525, 0.535)]
    low, high = min(ends), max(ends)
    note = (
        "the pair (0.53, 0.29) is printed rounded: at 3.8e25 FLOP it gives 10.46T tokens, and not the 16.55T (402B "
        "parameters) that the paper states, for which alpha would have to be 0.5378"
    )
    return Optimum(
        "Llama 3 IsoFLOP",
        parameters,
        tokens,
        parameters_band=(flops.value / (6 * high), flops.value / (6 * low)),
        tokens_band=(low, high),
        band_means="rounding of the printed pair alone",
        note=note,
    )


def kaplan(flops: Quantity) -> Optimum:
    """Kaplan et al.'s allocation, for comparison: it gives models too much and data too little."""
    days = Quantity(
        "compute in PF-days", flops.value / PF_DAY, "", "C / 8.64e19", (flops,), "1e15 FLOP/s for a day"
    )
    level, exponent = given("N_e", 1.3e9, "parameter", KAPLAN), given("p_N", 0.73, "", KAPLAN)
    n = level.value * days.value**exponent.value
    parameters = Quantity("parameters", n, "parameter", "N_e (C/PF-day)^p_N", (level, days, exponent), KAPLAN)
    tokens = Quantity("tokens", flops.value / (6 * n), "token", "C / (6 N)", (flops, SIX, parameters), KAPLAN)
    note = "for comparison: parameters without embeddings, one learning-rate schedule for all lengths"
    return Optimum("Kaplan et al.", parameters, tokens, note=note)


def _by_exponent(
    title: str,
    flops: Quantity,
    level: tuple[float, float],
    exponent: float,
    interval: tuple[float, float],
    source: str,
    note: str,
) -> Optimum:
    """N = reference N (C / reference C)^exponent, ``level`` being the reference's N and C."""
    n_ref, c_ref = level
    reference = (
        given("reference parameters", n_ref, "parameter", source),
        given("reference compute", c_ref, "FLOP", source),
        given("exponent", exponent, "", source),
    )
    n = n_ref * (flops.value / c_ref) ** exponent
    parameters = Quantity(
        "parameters", n, "parameter", "reference N (C / reference C)^exponent", (flops, *reference), source
    )
    tokens = Quantity("tokens", flops.value / (6 * n), "token", "C / (6 N)", (flops, SIX, parameters), source)
    found = Optimum(title, parameters, tokens, note=note)
    low, high = (end - exponent for end in interval)
    return _banded(found, flops, _off(flops, n, low, high), "80%, from the exponent's printed interval")


def _off(flops: Quantity, n: float, low: float, high: float) -> tuple[float, float]:
    """Where N lies when its exponent is off by ``low`` to ``high`` and its level is known at the centre."""
    ends = [n * (flops.value / CENTRE) ** end for end in (low, high)]
    return min(ends), max(ends)


def _banded(found: Optimum, flops: Quantity, band: tuple[float, float], means: str) -> Optimum:
    """With a band of parameters, and of the tokens that the budget leaves them."""
    low, high = band
    tokens = (flops.value / (6 * high), flops.value / (6 * low))
    return replace(found, parameters_band=band, tokens_band=tokens, band_means=means)
