"""Profile likelihood ratios with critical values: a curve of one parameter, contours of two."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from mfsbi.plots.figure import COLOURS, MODEL, OFF, Figure

__all__ = ["profile", "profile_regions"]

STYLES = "--", "-", ":", "-."
"""Of critical values, in the order in which they are given."""

HEADROOM = 1.6
"""Of the highest critical value, up to which q is shown."""


def profile(
    psi: ArrayLike,
    q: ArrayLike,
    critical: Mapping[str, ArrayLike],
    intervals: Mapping[str, Sequence[tuple[float, float]]],
    name: str = "theta",
) -> Figure:
    """Return q(psi) of one parameter with critical values, and the intervals that they give as bars below zero.

        plots.profile(
            found.axes[0],
            found.q,
            {"chi-squared, 95 %": found.critical(0.95), "Neyman, 95 %": belt.on_grid(0.95)},
            {"chi-squared, 95 %": found.intervals(0.95), "Neyman, 95 %": belt.intervals(0.95)},
        )

    Arguments:
        psi: grid, shape `(points,)`; all of these may be arrays or tensors
        q: on it, shape `(points,)`
        critical: critical values of each kind on the grid, shape `(points,)`
        intervals: (low, high) of each piece, for each of the same kinds
        name: of the parameter
    """
    psi, q = np.asarray(psi), np.asarray(q)
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(psi, q, color=MODEL, linewidth=1.6, label="q")
    limits = {kind: np.asarray(values) for kind, values in critical.items()}
    top = HEADROOM * max(float(values.max()) for values in limits.values())
    step = 0.05 * top
    for number, (kind, values) in enumerate(limits.items()):
        colour, style = COLOURS[1 + number % (len(COLOURS) - 1)], STYLES[number % len(STYLES)]
        axes.plot(psi, values, color=colour, linestyle=style, linewidth=1.2, label=kind)
        for low, high in intervals[kind]:
            height = -(number + 1) * step
            axes.plot([low, high], [height, height], color=colour, linewidth=4.0, solid_capstyle="butt")
    axes.axhline(0, color="0.85", linewidth=0.8, zorder=0)
    axes.set(xlabel=name, ylabel="q", xlim=(psi.min(), psi.max()), ylim=(-(len(critical) + 1) * step, top))
    axes.set_yticks([tick for tick in axes.get_yticks() if 0 <= tick <= top])
    axes.legend(frameon=False)
    return figure


def profile_regions(
    psi: Sequence[ArrayLike],
    q: ArrayLike,
    critical: Mapping[str, ArrayLike],
    best: ArrayLike,
    names: tuple[str, str] = ("theta_0", "theta_1"),
) -> Figure:
    """Return the regions of two parameters in which q is below critical values, with the best of all points.

    Arguments:
        psi: grid of each, shapes `(m,)` and `(n,)`; all of these may be arrays or tensors
        q: on the grid, shape `(m, n)`
        critical: critical values of each kind on the grid, shape `(m, n)`
        best: the point of maximum likelihood, two values
        names: of the parameters
    """
    first, second = map(np.asarray, psi)
    roots = np.sqrt(np.asarray(q))
    figure = Figure(figsize=(4.8, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (kind, values) in enumerate(critical.items()):
        colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
        limit = np.sqrt(np.asarray(values))
        axes.contour(
            first,
            second,
            np.clip(roots - limit, None, limit.max()).T,
            levels=[0.0],
            colors=[colour],
            linestyles=[style],
        )
        axes.plot([], [], color=colour, linestyle=style, label=kind)
    axes.plot(*np.asarray(best)[:, None], "+", color=OFF, markersize=9.0)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.legend(frameon=False)
    return figure
