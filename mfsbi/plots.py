"""Figures: arrays in, matplotlib figures out.

Figures are made without pyplot, so drawing one opens no window and changes no global state; a notebook shows what a
cell returns. Truth is drawn in dark grey and dashed, the model in colour.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from mfsbi.figures import Figure

__all__ = [
    "bars",
    "calibration",
    "clouds",
    "dimension_scan",
    "outliers",
    "planes",
    "posterior_against_truth",
    "posteriors",
    "scaling",
    "surface",
    "training_curves",
]

TRUTH = "#3b3b3b"
MODEL = "#0b7285"
OFF = "#d9480f"

Array = NDArray[np.floating]


def training_curves(
    losses: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    courses: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Figure:
    """Return a panel for each loss: training and validation against the epochs that minimised it.

    Arguments:
        losses: for each loss the values of (training, validation), as `History.of` returns them; losses that are
            positive and fall by more than a factor of ten get a logarithmic axis
        courses: for some of them (epochs, training losses) within epochs, as `History.course` returns them; for large
            sets of data, of which there are few epochs
    """
    figure = Figure(figsize=(4.6 * len(losses), 3.4), layout="constrained")
    for axes, (name, (training, validation)) in zip(
        np.ravel(figure.subplots(1, len(losses), squeeze=False)), losses.items(), strict=True
    ):
        epochs = np.arange(1, len(training) + 1)
        within, course = (courses or {}).get(name, (epochs, training))
        axes.plot(within, course, color=MODEL, marker=".", label="training")
        axes.plot(epochs, validation, color=OFF, marker="." if len(validation) > 1 else "o", label="validation")
        axes.xaxis.get_major_locator().set_params(integer=True)
        if 0 < 10 * min(*course, *validation) < max(*course, *validation):
            axes.set_yscale("log")
        axes.set(xlabel="epoch", ylabel=name.replace("_", " "))
        axes.legend(frameon=False)
    return figure


def surface(truth: Array, generated: Array, observed: Array, projected: Array) -> Figure:
    """Return a figure of a surface in three dimensions: samples of truth and model, and points drawn onto it.

    Arguments:
        truth: points of the true surface, shape `(rows, 3)`
        generated: samples of the model, shape `(rows, 3)`
        observed: points off the surface, shape `(points, 3)`
        projected: where the model projects them, shape `(points, 3)`
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    limits = [np.quantile(truth[:, axis], [0.002, 0.998]) for axis in range(3)]
    panels = (
        ("simulator", ((truth, TRUTH, 3.0),)),
        ("model", ((generated, MODEL, 3.0),)),
        (
            "points off the manifold, projected",
            ((generated, MODEL, 0.6), (observed, OFF, 14.0), (projected, "k", 14.0)),
        ),
    )
    for number, (title, clouds) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, 3, number, projection="3d")
        axes.view_init(elev=28, azim=-60)
        axes.set_box_aspect(None, zoom=0.8)
        for cloud, color, size in clouds:
            axes.scatter(*_inside(cloud, limits).T, s=size, color=color, linewidths=0, alpha=0.6 if size < 5 else 1.0)
        axes.set(xlim=limits[0], ylim=limits[1], zlim=limits[2], xlabel="$x_0$", ylabel="$x_1$", zlabel="$x_2$")
        axes.set_title(title, y=0.94)
    for start, end in zip(observed, projected, strict=True):
        axes.plot(*np.stack([start, end]).T, color=OFF, linewidth=1.0)
    return figure


def posterior_against_truth(
    theta: Array, exact: Array, model: Array, draws: Array, true_theta: float, name: str = "theta"
) -> Figure:
    """Return the exact posterior of one parameter, the model's, and a histogram of MCMC draws.

    Arguments:
        theta: grid, shape `(points,)`
        exact: density of the exact posterior on it, shape `(points,)`
        model: density of the model's posterior on it, shape `(points,)`
        draws: MCMC draws, shape `(draws,)`
        true_theta: the value the observations were simulated with
        name: of the parameter
    """
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    ends = theta.min(), theta.max()
    axes.hist(draws, bins=60, range=ends, density=True, color=MODEL, alpha=0.25, label="MCMC draws")
    axes.plot(theta, model, color=MODEL, label="model")
    axes.plot(theta, exact, color=TRUTH, linestyle="--", label="exact")
    axes.axvline(true_theta, color=OFF, linewidth=1.0, label="true value")
    axes.set(xlabel=name, ylabel="posterior density", xlim=(theta.min(), theta.max()))
    axes.legend(frameon=False)
    return figure


def _inside(points: Array, limits: Sequence[Array]) -> Array:
    """Return the points within the limits; matplotlib does not clip in three dimensions."""
    lower, upper = np.array(limits).T
    return points[((points >= lower) & (points <= upper)).all(axis=1)]


def dimension_scan(
    dims: Sequence[int], errors: Sequence[float], standard_errors: Sequence[float], spread: float
) -> Figure:
    """Return the held-out reconstruction error against the number of dimensions of the manifold.

    Arguments:
        dims: numbers of dimensions
        errors: root mean squares in standardised units
        standard_errors: theirs
        spread: the same without any manifold
    """
    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(dims, errors, standard_errors, color=MODEL, marker="o", capsize=3)
    axes.axhline(spread, color=TRUTH, linestyle="--", linewidth=1.0, label="spread of the data")
    axes.axhline(0.1 * spread, color=OFF, linewidth=1.0, label="a tenth of it")
    axes.set_xticks(list(dims))
    axes.set(xlabel="dimensions of the manifold", ylabel="reconstruction error", yscale="log")
    axes.legend(frameon=False)
    return figure


def clouds(
    points: Mapping[str, Array], colours: Mapping[str, Array], label: str = "distance to the manifold"
) -> Figure:
    """Return a panel for each cloud in three dimensions, all within the limits of the first.

    Arguments:
        points: clouds, each of shape `(rows, 3)`
        colours: a value for each point of some clouds, shape `(rows,)`; others are grey
        label: what the values are
    """
    columns = min(3, len(points))
    lines = -(-len(points) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.9 * lines), layout="constrained")
    limits = [np.quantile(next(iter(points.values()))[:, axis], [0.002, 0.998]) for axis in range(3)]
    values = np.concatenate(list(colours.values()))
    scale = dict(zip(("vmin", "vmax"), np.quantile(values[np.isfinite(values)], [0.02, 0.98]), strict=True))
    panels = []
    for number, (title, cloud) in enumerate(points.items(), start=1):
        axes = figure.add_subplot(lines, columns, number, projection="3d")
        axes.view_init(elev=28, azim=-60)
        axes.set_box_aspect(None, zoom=0.8)
        inside = ((cloud >= np.array(limits)[:, 0]) & (cloud <= np.array(limits)[:, 1])).all(axis=1)
        paint = {"c": colours[title][inside], "cmap": "viridis", **scale} if title in colours else {"color": TRUTH}
        drawn = axes.scatter(*cloud[inside].T, s=3.0, linewidths=0, alpha=0.7, **paint)
        axes.set(xlim=limits[0], ylim=limits[1], zlim=limits[2], xlabel="$x_0$", ylabel="$x_1$", zlabel="$x_2$")
        axes.set_title(title, y=0.94)
        panels += [drawn] if title in colours else []
    figure.colorbar(panels[-1], ax=figure.axes, label=label, shrink=0.6)
    return figure


def planes(points: Mapping[str, Array], colours: Mapping[str, Array], label: str = "log density") -> Figure:
    """Return a panel for each cloud in the plane, coloured by a value for each point, within the limits of the first.

    Arguments:
        points: clouds, each of shape `(rows, 2)`
        colours: a value for each point, shape `(rows,)`
        label: what the values are
    """
    figure = Figure(figsize=(3.1 * len(points), 3.3), layout="constrained")
    reach = 1.15 * np.abs(next(iter(points.values()))).max()
    for axes, (title, cloud) in zip(np.ravel(figure.subplots(1, len(points))), points.items(), strict=True):
        low, high = np.quantile(colours[title], [0.02, 0.98])
        drawn = axes.scatter(*cloud.T, c=colours[title], s=4.0, linewidths=0, cmap="viridis", vmin=low, vmax=high)
        axes.set(
            title=title, xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="$x_0$", ylabel="$x_1$"
        )
        figure.colorbar(drawn, ax=axes, label=label, shrink=0.7)
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
    level = np.cumsum(density) / np.sum(density)
    quantiles = np.array([0.025, 0.25, 0.5, 0.75, 0.975])
    forest = right.subplots()
    for value in np.interp(quantiles, level, theta):
        forest.axvline(value, color="0.85", linewidth=1.0, zorder=0)
    for number, (title, values) in enumerate(draws.items()):
        panels[number].hist(values, bins=40, range=(theta.min(), theta.max()), density=True, color=MODEL, alpha=0.5)
        panels[number].plot(theta, density, color=TRUTH, linewidth=1.2)
        panels[number].set(title=title, xlabel=name, ylabel="density", xlim=(theta.min(), theta.max()))
        panels[number].yaxis.label.set_visible(number % 3 == 0)
        panels[number].xaxis.label.set_visible(number + 3 >= len(draws))
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


def corner(posteriors: Mapping[str, Array], names: Sequence[str], truth: Array | None = None) -> Figure:
    """Return densities of each parameter, and of each pair the regions that hold 50 % and 90 %.

    Arguments:
        posteriors: draws of each posterior, shape `(rows, parameter)`
        names: of the parameters
        truth: where a line is drawn, shape `(parameter,)`
    """
    count = len(names)
    figure = Figure(figsize=(2.3 * count + 0.8, 2.2 * count + 0.6), layout="constrained")
    grid: Any = figure.subplots(count, count, squeeze=False, sharex="col")
    every = np.concatenate(list(posteriors.values()))
    low, high = np.quantile(every, 0.002, axis=0), np.quantile(every, 0.998, axis=0)
    edges = [np.linspace(a, b, 61) for a, b in zip(low, high, strict=True)]
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    for number, (title, draws) in enumerate(posteriors.items()):
        color = (MODEL, OFF, "C2", "C4")[number % 4]
        for row, column in zip(*np.tril_indices(count), strict=True):
            if row == column:
                height = gaussian_filter1d(np.histogram(draws[:, row], edges[row], density=True)[0], 1.2)
                grid[row, row].plot(middles[row], height, color=color, label=title)
                continue
            share = gaussian_filter(
                np.histogram2d(draws[:, row], draws[:, column], (edges[row], edges[column]))[0], 1.2
            )
            order = np.sort(share, axis=None)[::-1]
            levels = [order[np.searchsorted(np.cumsum(order), part * order.sum())] for part in (0.9, 0.5)]
            grid[row, column].contour(
                middles[column], middles[row], share, levels=levels, colors=color, linestyles=["--", "-"]
            )
    for row, column in np.ndindex(count, count):
        axes = grid[row, column]
        if column > row:
            axes.remove()
            continue
        axes.set(xlabel=names[column], ylabel="density" if row == column else names[row])
        axes.xaxis.label.set_visible(row == count - 1)
        if truth is not None:
            axes.axvline(truth[column], color=TRUTH, linewidth=0.8)
        if truth is not None and row != column:
            axes.axhline(truth[row], color=TRUTH, linewidth=0.8)
    grid[0, 0].legend(frameon=False, fontsize="small")
    return figure


def outliers(scores: Mapping[str, Array], p_values: Mapping[str, Array]) -> Figure:
    """Return histograms of reconstruction distances and of their p-values, for several kinds of points.

    Arguments:
        scores: positive distances of each kind, shape `(rows,)`
        p_values: of the same points, shape `(rows,)`
    """
    figure = Figure(figsize=(9.2, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    every = np.concatenate(list(scores.values()))
    edges = np.geomspace(max(every.min(), 1e-3 * np.median(every)), every.max(), 50)
    for (name, score), color in zip(scores.items(), (MODEL, OFF, TRUTH), strict=False):
        left.hist(score, bins=edges, alpha=0.5, color=color, label=name)
        right.hist(p_values[name], bins=np.linspace(0, 1, 21), alpha=0.5, color=color, label=name)
    left.set(xscale="log", xlabel="reconstruction distance", ylabel="points")
    right.set(xlabel="p-value", ylabel="points", xlim=(0, 1))
    right.legend(frameon=False)
    return figure


def bars(groups: Mapping[str, Mapping[str, float]], label: str, name: str) -> Figure:
    """Return a group of bars for each name, one bar for each of its parts.

    Arguments:
        groups: for each group the height of each bar; all groups have the same bars
        label: what the heights are
        name: what the groups are
    """
    figure = Figure(figsize=(1.6 + 1.1 * len(groups), 3.4), layout="constrained")
    axes = figure.subplots()
    parts = list(next(iter(groups.values())))
    width = 0.8 / len(parts)
    for number, (part, color) in enumerate(zip(parts, (MODEL, OFF, TRUTH, "#868e96"), strict=False)):
        heights = [group[part] for group in groups.values()]
        places = np.arange(len(groups)) + (number - (len(parts) - 1) / 2) * width
        axes.bar(places, heights, width, color=color, label=part)
    axes.set_xticks(np.arange(len(groups)), list(groups))
    axes.set(ylabel=label, xlabel=name, yscale="log")
    axes.legend(frameon=False)
    return figure


def scaling(plain: Mapping[str, Mapping[int, float]], golden: Mapping[str, Mapping[int, float]], label: str) -> Figure:
    """Return what each number of simulations teaches, with joint scores (full lines) and without (dashed).

    Arguments:
        plain: for each model the value by the number of simulations; the same name has the same colour in both
        golden: the same with joint scores
        label: what the values are
    """
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys([*golden, *plain]))
    colours = dict(zip(names, cycle((MODEL, OFF, TRUTH, "#868e96", "C4", "C2")), strict=False))
    for lines, style, what in ((golden, "o-", ", joint scores"), (plain, "o--", "")):
        for name, values in lines.items():
            axes.plot(*zip(*sorted(values.items()), strict=True), style, color=colours[name], label=f"{name}{what}")
    axes.set(xlabel="simulations", ylabel=label, xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize="small")
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
