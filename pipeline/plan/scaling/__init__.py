"""Scaling laws for training: what a budget buys, and what a user's own small runs say about it.

commands.py    the verbs ``lifecycle scale train | sweep | collect | forecast``
laws.py        published laws and their compute-optimal points
fit.py         L(N, D) = E + A/N^alpha + B/D^beta, fitted to runs (Huber, L-BFGS)
many.py        the same fit for hundreds of resamples at once
intervals.py   bootstrap intervals: parametric, percentile, BCa
isoflop.py     a parabola a budget, and a power law over the minima
leave_out.py   errors on runs that the fit has not seen
support.py     warnings where runs do not carry a conclusion
table.py       CSV files of runs and points, with errors by file and line
runs.py        a user's runs as columns
budget.py      FLOP from FLOP, GPU-hours or money
train.py       ``scale train``
own.py         the law of a user's own runs
show.py        tables and JSON
plot.py        its picture
picture.py     saving pictures, those of serving as well
sizes.py       model shapes of about so many parameters
corpus.py      how much text a recipe has
sweep.py       ``scale sweep``: the recipes of an IsoFLOP sweep
recipes.py     a recipe file from settings
collect.py     ``scale collect``: what those recipes measured, as runs.csv
downstream.py  loss to task accuracy: two fits
forecast.py    ``scale forecast``, and forecast_plot.py its picture
"""
