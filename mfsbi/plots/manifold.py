"""Manifolds: clouds of points on them and off them, and how many dimensions they have."""

from collections.abc import Mapping, Sequence

import numpy as np
from mpl_toolkits.mplot3d import Axes3D
from numpy.typing import NDArray

from mfsbi.plots.figure import MODEL, OFF, TRUTH, Array, Figure

__all__ = ["clouds", "dimension_scan", "outliers", "planes", "surface"]


def surface(truth: Array, generated: Array, observed: Array, projected: Array) -> Figure:
    """Return a figure of a surface in three dimensions: samples of truth and model, and points drawn onto it.

    Arguments:
        truth: points of the true surface, shape `(rows, 3)`
        generated: samples of the model, shape `(rows, 3)`
        observed: points off the surface, shape `(points, 3)`
        projected: where the model projects them, shape `(points, 3)`
    """
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    titles = "simulator", "model", "points off the manifold, projected"
    spaces = [_space(figure, (1, 3, number), title, truth) for number, title in enumerate(titles, start=1)]
    for axes, cloud, color, size in (
        (spaces[0], truth, TRUTH, 3.0),
        (spaces[1], generated, MODEL, 3.0),
        (spaces[2], generated, MODEL, 0.6),
        (spaces[2], observed, OFF, 14.0),
        (spaces[2], projected, "k", 14.0),
    ):
        shown = cloud[_inside(cloud, truth)]
        axes.scatter(*shown.T, s=size, color=color, linewidths=0, alpha=0.6 if size < 5 else 1.0)
    for start, end in zip(observed, projected, strict=True):
        spaces[2].plot(*np.stack([start, end]).T, color=OFF, linewidth=1.0)
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
    first = next(iter(points.values()))
    values = np.concatenate(list(colours.values()))
    scale = dict(zip(("vmin", "vmax"), np.quantile(values[np.isfinite(values)], [0.02, 0.98]), strict=True))
    panels = []
    for number, (title, cloud) in enumerate(points.items(), start=1):
        axes, shown = _space(figure, (lines, columns, number), title, first), _inside(cloud, first)
        paint = {"c": colours[title][shown], "cmap": "viridis", **scale} if title in colours else {"color": TRUTH}
        drawn = axes.scatter(*cloud[shown].T, s=3.0, linewidths=0, alpha=0.7, **paint)
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
        limits = (-reach, reach)
        axes.set(title=title, xlim=limits, ylim=limits, aspect="equal", xlabel="$x_0$", ylabel="$x_1$")
        figure.colorbar(drawn, ax=axes, label=label, shrink=0.7)
    return figure


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


def outliers(scores: Mapping[str, Array], p_values: Mapping[str, Array]) -> Figure:
    """Return histograms of reconstruction distances and of their p-values, for up to three kinds of points.

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


def _space(figure: Figure, place: tuple[int, int, int], title: str, cloud: Array) -> Axes3D:
    """Return axes in three dimensions within the limits of a cloud, at a place (lines, columns, number)."""
    axes: Axes3D = figure.add_subplot(*place, projection="3d")
    axes.view_init(elev=28, azim=-60)
    axes.set_box_aspect(None, zoom=0.8)
    x, y, z = _limits(cloud).T
    axes.set(xlim=x, ylim=y, zlim=z, xlabel="$x_0$", ylabel="$x_1$", zlabel="$x_2$")
    axes.set_title(title, y=0.94)
    return axes


def _limits(cloud: Array) -> Array:
    """Return what holds all but the outermost points along each axis, shape `(2, axes)`."""
    return np.quantile(cloud, [0.002, 0.998], axis=0)


def _inside(points: Array, cloud: Array) -> NDArray[np.bool_]:
    """Return which points are within the limits of a cloud; matplotlib does not clip in three dimensions."""
    lower, upper = _limits(cloud)
    return ((points >= lower) & (points <= upper)).all(axis=1)
