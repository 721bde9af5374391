"""The law of a user's own runs: both analyses, intervals, errors on runs left out, predictions of runs held out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from pipeline.plan.quantity import Quantity, given
from pipeline.plan.scaling import isoflop, leave_out, support
from pipeline.plan.scaling.fit import Fit, fit
from pipeline.plan.scaling.intervals import Draws, draw
from pipeline.plan.scaling.laws import Optimum, parametric_optimum
from pipeline.plan.scaling.objective import Array, Design, predict
from pipeline.plan.scaling.runs import Runs

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Prediction:
    """A held-out run: its measured loss, and what the law says of it with its interval."""

    name: str
    flops: float
    measured: float
    predicted: float
    interval: Interval

    @property
    def error(self) -> float:
        """(predicted - measured) / measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Own:
    """What the runs say.  ``intervals`` are of the coefficients and of both exponents over compute; ``band_means`` says how."""

    file: str
    runs: Runs
    held_out: Runs
    fit: Fit
    draws: Draws | None
    isoflop: isoflop.IsoFlop
    intervals: dict[str, Interval]
    errors: tuple[leave_out.Error, ...]
    predictions: tuple[Prediction, ...]
    band_means: str

    def optima(self, flops: Quantity) -> tuple[Optimum, ...]:
        """The compute-optimal points of both analyses, as far as there are any."""
        found = []
        if min(self.fit.law.alpha, self.fit.law.beta) > 0:
            found.append(self._parametric(flops))
        if self.isoflop.tokens is not None and self.isoflop.loss is not None:
            found.append(self._isoflop(flops))
        return tuple(found)

    def warnings(self, flops: Quantity | None) -> list[str]:
        """Where the runs do not carry what is asked of them."""
        told = [*support.of_runs(self.runs, self.isoflop), *support.of_fit(self.fit)]
        if flops is not None:
            told += support.of_extrapolation(self.runs, flops.value)
            for each in self.optima(flops):
                told += support.of_bands({f"parameters by {each.law}": each.parameters_band})
        return told

    def _parametric(self, flops: Quantity) -> Optimum:
        source = f"fitted to {len(self.runs)} runs of {self.file}"
        found = parametric_optimum("your runs, parametric", self.fit.law, flops, source)
        if self.draws is None:
            return replace(found, band_means=self.band_means)
        design, k = self.fit.design, self.fit.law.per_token
        sizes = self.draws.interval(lambda theta: optima(theta, design, flops.value, k)[:, 0])
        tokens = self.draws.interval(lambda theta: optima(theta, design, flops.value, k)[:, 1])
        return replace(found, parameters_band=sizes, tokens_band=tokens, band_means=self.band_means)

    def _isoflop(self, flops: Quantity) -> Optimum:
        both = self.isoflop
        assert both.tokens is not None
        assert both.loss is not None
        source = f"minima of {len(both.counting)} parabolas over {self.file}"
        coefficient, exponent = (
            given("A", both.tokens.coefficient, "", source),
            given("alpha", both.tokens.exponent, "", source),
        )
        n, d = both.optimum(flops.value)
        tokens = Quantity("tokens", d, "token", "A C^alpha", (flops, coefficient, exponent), source)
        per = given("FLOP per parameter and token", both.per_token, "", "median of the runs")
        parameters = Quantity("parameters", n, "parameter", "C / (k D)", (flops, per, tokens), source)
        constants = (
            given("loss coefficient", both.loss.coefficient, "", source),
            given("loss exponent", both.loss.exponent, "", source),
        )
        loss = Quantity(
            "loss",
            both.loss.at(flops.value),
            "nat/token",
            "coefficient C^exponent",
            (flops, *constants),
            source,
        )
        made = Optimum(
            "your runs, IsoFLOP",
            parameters,
            tokens,
            loss,
            band_means=self.band_means,
            note="its loss is a power law without a constant term: optimistic far beyond the runs",
        )
        if both.draws is None or not np.isfinite(both.draws).all(axis=1).mean() > 1 - 0.02:
            return made
        logs = both.draws[:, 0] + both.draws[:, 1] * math.log(flops.value)
        low, high = (float(np.exp(end)) for end in np.nanquantile(logs, _ends(self.draws)))
        sizes = (flops.value / (both.per_token * high), flops.value / (both.per_token * low))
        return replace(made, parameters_band=sizes, tokens_band=(low, high))


def study(file: str, runs: Runs, held_out: Runs, kind: str, level: float, draws: int, seed: int) -> Own:
    """Fit both laws to the runs.  Raises :class:`UserError` where there are too few."""
    fitted = fit(runs.parameters, runs.tokens, runs.loss, per_token=runs.per_token)
    drawn = draw(fitted, kind, level, draws, seed)
    intervals: dict[str, Interval] = {}
    if drawn is not None:
        design = fitted.design
        intervals = {
            "A": drawn.interval(lambda theta: np.exp(theta[:, 0] + theta[:, 3] * design.mean_n)),
            "B": drawn.interval(lambda theta: np.exp(theta[:, 1] + theta[:, 4] * design.mean_d)),
            "E": drawn.interval(lambda theta: np.exp(theta[:, 2])),
            "alpha": drawn.interval(lambda theta: theta[:, 3]),
            "beta": drawn.interval(lambda theta: theta[:, 4]),
            "exponent of N over C": drawn.interval(lambda theta: theta[:, 4] / (theta[:, 3] + theta[:, 4])),
        }
    return Own(
        file,
        runs,
        held_out,
        fitted,
        drawn,
        isoflop.analyse(runs, draws, seed),
        intervals,
        tuple(leave_out.errors(runs)),
        tuple(_predictions(fitted, drawn, held_out)),
        f"{level:.0%}, {kind} bootstrap of {draws} draws" if drawn else "no interval: no degree of freedom",
    )


def optima(theta: Array, design: Design, flops: float, per_token: float) -> Array:
    """Compute-optimal parameters and tokens ``[B, 2]`` of many laws; NaN where an exponent is not positive."""
    alpha, beta = (np.where(theta[:, place] > 0, theta[:, place], np.nan) for place in (3, 4))
    log_a = theta[:, 0] + alpha * design.mean_n
    log_b = theta[:, 1] + beta * design.mean_d
    log_g = (np.log(alpha / beta) + log_a - log_b) / (alpha + beta)
    share = math.log(flops / per_token)
    sizes = log_g + beta / (alpha + beta) * share
    found: Array = np.exp(np.stack([sizes, share - sizes], axis=1))
    return found


def losses(theta: Array, design: Design, parameters: Array, tokens: Array) -> Array:
    """Loss ``[B, points]`` of many laws at these points."""
    n, d = np.log(parameters) - design.mean_n, np.log(tokens) - design.mean_d
    logs, _ = predict(theta, replace(design, n=n, d=d, y=np.zeros_like(n)))
    found: Array = np.exp(logs)
    return found


def _predictions(fitted: Fit, drawn: Draws | None, held_out: Runs) -> list[Prediction]:
    """Predictions of runs that the fit has not seen; their intervals hold one run's own noise, too."""
    found = []
    rng = np.random.default_rng(1234)
    for row, name in enumerate(held_out.names):
        n, d = held_out.parameters[row : row + 1], held_out.tokens[row : row + 1]
        interval: Interval = None
        if drawn is not None:
            noise = fitted.noise * rng.standard_normal(len(drawn.theta))
            seen = losses(drawn.theta, fitted.design, n, d)[:, 0] * np.exp(noise)
            low, high = np.nanquantile(seen, _ends(drawn))
            interval = (float(low), float(high))
        predicted = fitted.law.loss(float(n[0]), float(d[0]))
        found.append(
            Prediction(name, float(held_out.flops[row]), float(held_out.loss[row]), predicted, interval)
        )
    return found


def _ends(drawn: Draws | None) -> tuple[float, float]:
    level = drawn.level if drawn is not None else 0.9
    return (1 - level) / 2, (1 + level) / 2
