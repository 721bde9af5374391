"""The objective of the parametric fit: Huber losses of log-loss residuals, for many coefficients at once.

Hoffmann et al. 2022, section 3.3: delta = 1e-3, and the prediction in log-sum-exp form, log L = log(exp(a - alpha log N) +
exp(b - beta log D) + exp(e)).  Losses are summed and scaled, never averaged: with the mean, L-BFGS stops before it has converged
(Besiroglu et al. 2024, section 3).  log N and log D are centred, which takes most of the correlation out of (a, alpha) and (b, beta).

``theta`` is (a, b, e, alpha, beta) of the centred form throughout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.plan.scaling.laws import FLOP_PER_TOKEN, Parametric

Array = NDArray[np.float64]

DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3
PARAMETERS = 5
SCALE = 1 / DELTA  # brings the objective to the order of the residuals


@dataclass(frozen=True)
class Design:
    """Runs as the fit sees them: centred log N and log D, and log L."""

    n: Array
    d: Array
    y: Array
    mean_n: float
    mean_d: float

    @classmethod
    def of(cls, parameters: Array, tokens: Array, loss: Array) -> Design:
        """From parameters, tokens and loss (nats a token), each ``[runs]``."""
        n, d = np.log(parameters), np.log(tokens)
        mean_n, mean_d = float(n.mean()), float(d.mean())
        return cls(n - mean_n, d - mean_d, np.log(loss), mean_n, mean_d)

    def law(self, theta: Array, per_token: float = FLOP_PER_TOKEN) -> Parametric:
        """The law that a ``theta`` stands for."""
        a, b, e, alpha, beta = (float(value) for value in theta)
        return Parametric(
            math.exp(e),
            math.exp(min(a + alpha * self.mean_n, 700)),
            math.exp(min(b + beta * self.mean_d, 700)),
            alpha,
            beta,
            per_token,
        )


def predict(theta: Array, design: Design) -> tuple[Array, Array]:
    """log L ``[B, runs]`` of each theta ``[B, 5]``, and the shares ``[B, 3, runs]`` of N's, D's and E's term in it."""
    terms = np.stack(
        [
            theta[:, 0:1] - theta[:, 3:4] * design.n,
            theta[:, 1:2] - theta[:, 4:5] * design.d,
            np.broadcast_to(theta[:, 2:3], (len(theta), len(design.n))),
        ],
        axis=1,
    )
    largest = terms.max(axis=1, keepdims=True)
    shares = np.exp(terms - largest)
    total = shares.sum(axis=1, keepdims=True)
    return (largest + np.log(total))[:, 0], shares / total


def slopes(shares: Array, design: Design) -> Array:
    """d log L / d theta ``[B, 5, runs]``, from the shares of :func:`predict`."""
    return np.concatenate([shares, -shares[:, 0:1] * design.n, -shares[:, 1:2] * design.d], axis=1)


def huber(residuals: Array) -> Array:
    """r^2/2 below DELTA, and a straight line beyond (Huber 1964)."""
    size = np.abs(residuals)
    return np.where(size <= DELTA, 0.5 * residuals**2, DELTA * (size - 0.5 * DELTA))


def objective(theta: Array, design: Design) -> tuple[float, Array]:
    """The scaled sum of Huber losses of log-loss residuals, and its gradient ``[5]``."""
    fitted, shares = predict(theta[None], design)
    residuals = (fitted - design.y)[0]
    gradient = slopes(shares, design)[0] @ np.clip(residuals, -DELTA, DELTA)
    return SCALE * float(huber(residuals).sum()), SCALE * gradient
