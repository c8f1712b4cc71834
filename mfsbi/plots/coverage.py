"""Whether posteriors are calibrated: ranks of the truth, and how often their regions cover it."""

from collections.abc import Mapping

import numpy as np
from scipy import stats

from mfsbi.plots.figure import MODEL, OFF, TRUTH, Array, Figure

__all__ = ["calibration"]


def calibration(ranks: Mapping[str, Array], coverage: Mapping[str, Array]) -> Figure:
    """Return how far ranks are from uniform, and coverage against credibility; inside the grey band is chance.

    The band holds nineteen of twenty curves that are right, at all points of the curve at once (the quantile of
    Kolmogorov's statistic).

    Arguments:
        ranks: the rank of the truth in each data set, shape `(sets,)`, by the parameter's name
        coverage: the smallest credibility whose region holds the truth, shape `(sets,)`, by the kind of region
    """
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    sets = len(next(iter(ranks.values())))
    grid, width = np.linspace(0, 1, 201), float(stats.kstwo.ppf(0.95, sets))
    left.axhspan(-width, width, color="0.9")
    left.axhline(0, color=TRUTH, linestyle="--")
    right.fill_between(grid, np.clip(grid - width, 0, 1), np.clip(grid + width, 0, 1), color="0.9", linewidth=0)
    right.plot(grid, grid, color=TRUTH, linestyle="--")
    for number, (name, values) in enumerate(ranks.items()):
        left.plot(grid, _share_below(values, grid) - grid, color=MODEL if number == 0 else f"C{number}", label=name)
    for colour, (name, values) in zip((MODEL, OFF, "C2", "C4"), coverage.items(), strict=False):
        right.plot(grid, _share_below(values, grid), color=colour, label=name)
    left.set(xlabel="rank of the truth", ylabel="share of data sets below, minus rank")
    right.set(xlabel="credibility", ylabel="how often the region holds the truth", aspect="equal")
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.legend(frameon=False, loc="best")
    return figure


def _share_below(values: Array, at: Array) -> Array:
    """Return the share of values that are at most `at`."""
    return np.searchsorted(np.sort(values), at, side="right") / len(values)
