"""Posteriors: of one parameter against the exact one, by several samplers, of pairs of parameters, and calibration."""

import warnings
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from mfsbi.plots.figure import MODEL, OFF, TRUTH, Array, Figure

__all__ = ["calibration", "corner", "posterior_against_truth", "posteriors", "roads"]


def posterior_against_truth(
    theta: Array, exact: Array, model: Array, draws: Array, true_theta: float, name: str = "theta"
) -> Figure:
    """Return the exact posterior of one parameter, the model's, and a histogram of draws.

    Arguments:
        theta: grid, shape `(points,)`
        exact: density of the exact posterior on it, shape `(points,)`
        model: density of the model's posterior on it, shape `(points,)`
        draws: of the posterior, shape `(draws,)`
        true_theta: the value the observations were simulated with
        name: of the parameter
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    ends = theta.min(), theta.max()
    axes.hist(draws, bins=30, range=ends, density=True, color=MODEL, alpha=0.25, label="draws")
    axes.plot(theta, model, color=MODEL, label="model")
    axes.plot(theta, exact, color=TRUTH, linestyle="--", label="exact")
    axes.axvline(true_theta, color=OFF, linewidth=1.0, label="true value")
    axes.set(xlabel=name, ylabel="posterior density", xlim=ends)
    axes.legend(frameon=False)
    return figure


def posteriors(theta: Array, exact: Array, models: Mapping[str, Array], name: str = "theta") -> Figure:
    """Return the exact posterior of one parameter and those of several models.

    Arguments:
        theta: grid, shape `(points,)`
        exact: density of the exact posterior on it, shape `(points,)`
        models: densities of the models' posteriors on it, each of shape `(points,)`
        name: of the parameter
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for title, density in models.items():
        axes.plot(theta, density, label=title, linewidth=1.3)
    axes.plot(theta, exact, color=TRUTH, linestyle="--", linewidth=2.0, label="exact")
    axes.set(xlabel=name, ylabel="posterior density", xlim=(theta.min(), theta.max()))
    axes.legend(frameon=False)
    return figure


def roads(draws: Mapping[str, Array], theta: Array, density: Array, name: str = "theta") -> Figure:
    """Return a histogram of each sampler's draws on the posterior they should follow, and their intervals side by side.

    Lines of the right panel are central intervals of 50 % and 95 %, grey ones those of the posterior itself.

    Arguments:
        draws: of one parameter by each sampler, shape `(rows,)`
        theta: regular grid, shape `(points,)`
        density: of the posterior on it, shape `(points,)`
        name: of the parameter
    """
    lines = -(-len(draws) // 3)
    figure = Figure(figsize=(11.5, 2.4 * lines + 0.4), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(2.2, 1))
    left, right = halves
    panels = np.ravel(left.subplots(lines, 3, sharex=True, sharey=True))
    ends = theta.min(), theta.max()
    level = np.cumsum(density) / np.sum(density)
    quantiles = np.array([0.025, 0.25, 0.5, 0.75, 0.975])
    forest = right.subplots()
    for value in np.interp(quantiles, level, theta):
        forest.axvline(value, color="0.85", linewidth=1.0, zorder=0)
    for number, (title, values) in enumerate(draws.items()):
        axes = panels[number]
        axes.hist(values, bins=40, range=ends, density=True, color=MODEL, alpha=0.5)
        axes.plot(theta, density, color=TRUTH, linewidth=1.2)
        axes.set(title=title, xlabel=name, ylabel="density", xlim=ends)
        axes.yaxis.label.set_visible(number % 3 == 0)
        axes.xaxis.label.set_visible(number + 3 >= len(draws))
        low, lower, middle, upper, high = np.quantile(values, quantiles)
        forest.plot([low, high], [number, number], color=MODEL, linewidth=1.2)
        forest.plot([lower, upper], [number, number], color=MODEL, linewidth=4.0)
        forest.plot(middle, number, "o", color="white", markersize=4.0)
    for panel in panels[len(draws) :]:
        panel.remove()
    forest.set_yticks(range(len(draws)), list(draws))
    forest.invert_yaxis()
    forest.set(xlabel=name, ylabel="sampler")
    return figure


def corner(posteriors: Mapping[str, ArrayLike], names: Sequence[str], truth: ArrayLike | None = None) -> Figure:
    """Return densities of each parameter, and of each pair the regions that hold 50 % (full) and 90 % (dashed).

    Arguments:
        posteriors: draws of each posterior, shape `(rows, parameter)`, more rows than parameters; arrays or tensors
        names: of the parameters
        truth: where a line is drawn, shape `(parameter,)`

    Raises:
        ValueError: if draws do not have a column for each name, or two names are the same
    """
    tables = {title: np.asarray(draws) for title, draws in posteriors.items()}
    for title, table in tables.items():
        if len(set(names)) < len(names) or table.shape[1:] != (len(names),):
            raise ValueError(
                f"`names` should be one for each parameter, no two the same; got {list(names)} for draws {title!r} of "
                f"shape {table.shape}."
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # ArviZ announces its next version
        import corner as library  # noqa: PLC0415 - it imports ArviZ, which takes seconds

    every = np.concatenate(list(tables.values()))
    limits = [_ends(column) for column in every.T]
    figure = Figure(figsize=(2.1 * len(names) + 1.3,) * 2)  # panels of two inches and the library's margins
    for (title, draws), color in zip(tables.items(), cycle((MODEL, OFF, "C2", "C4")), strict=False):
        library.corner(
            draws,
            bins=60,
            range=limits,
            weights=np.full(len(draws), 1 / len(draws)),
            color=color,
            labels=list(names),
            levels=(0.5, 0.9),
            smooth=1.2,
            smooth1d=1.2,
            plot_datapoints=False,
            plot_density=False,
            no_fill_contours=True,
            quiet=True,
            hist_kwargs={"label": title},
            contour_kwargs={"linestyles": ["--", "-"]},
            fig=figure,
        )
    panels = dict(zip(np.ndindex(len(names), len(names)), figure.axes, strict=True))
    for row, column in zip(*np.tril_indices(len(names)), strict=True):
        axes = panels[row, column]
        if row == column:
            axes.set_ylim(0, 1.1 * max(np.max(line.get_ydata()) for line in axes.get_lines()))
        if truth is not None:
            axes.axvline(np.asarray(truth)[column], color=TRUTH, linewidth=0.8)
        if truth is not None and row != column:
            axes.axhline(np.asarray(truth)[row], color=TRUTH, linewidth=0.8)
    panels[0, 0].set_ylabel("density")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="upper right", frameon=False)
    return figure


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


def _ends(values: Array) -> tuple[float, float]:
    """Return what holds all but the outermost draws; around a constant an interval of any width."""
    low, high = np.quantile(values, [0.002, 0.998])
    return (low, high) if low < high else (low - 0.5, high + 0.5)
