"""The fit of :mod:`~pipeline.plan.scaling.objective` for hundreds of resamples at once.

A bootstrap of L-BFGS runs one after the other would take minutes.  From the fitted law every resample is a small step
away, and iteratively reweighted least squares (Holland and Welsch 1977; the weight of a Huber residual is min(1, delta/|r|)) with
Levenberg's damping takes it there in tens of vectorised iterations.  A test holds the results to L-BFGS.
"""

from __future__ import annotations

import numpy as np

from pipeline.plan.scaling.objective import DELTA, PARAMETERS, Array, Design, huber, predict, slopes

ITERATIONS = 40
LARGEST_STEP = 1.0  # of a coefficient, in log or exponent


def refit(start: Array, design: Design, y: Array, weights: Array, iterations: int = ITERATIONS) -> Array:
    """Coefficients ``theta [B, 5]`` for log-losses ``y [B, runs]`` in which run ``j`` counts ``weights [B, runs]`` times.

    ``start``: where each of them begins ``[B, 5]``, or one theta ``[5]`` for all, that of the fit to all runs.
    """
    theta = np.array(np.broadcast_to(start, (len(y), PARAMETERS)))
    fitted, shares = predict(theta, design)
    residuals, slope = fitted - y, slopes(shares, design)
    value = (weights * huber(residuals)).sum(axis=1)
    damping = np.full(len(y), 1e-3)
    diagonal = range(PARAMETERS)
    for _ in range(iterations):
        pull = weights * np.minimum(1, DELTA / np.maximum(np.abs(residuals), 1e-12))
        weighted = slope * pull[:, None]
        curvature = weighted @ slope.transpose(0, 2, 1)
        gradient = weighted @ residuals[:, :, None]
        scale = np.einsum("bii->bi", curvature)
        curvature[:, diagonal, diagonal] += damping[:, None] * scale + 1e-14
        step = np.clip(np.linalg.solve(curvature, gradient)[:, :, 0], -LARGEST_STEP, LARGEST_STEP)
        tried = theta - step
        fitted, shares = predict(tried, design)
        new = fitted - y
        reached = (weights * huber(new)).sum(axis=1)
        better = reached <= value
        theta = np.where(better[:, None], tried, theta)
        residuals = np.where(better[:, None], new, residuals)
        slope = np.where(better[:, None, None], slopes(shares, design), slope)
        value = np.where(better, reached, value)
        damping = np.clip(np.where(better, 0.3 * damping, 10 * damping), 1e-9, 1e6)
    return theta
