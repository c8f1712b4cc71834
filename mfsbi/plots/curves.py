"""Numbers as curves and bars: how a training went, and several models side by side."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np

from mfsbi.plots.figure import COLOURS, MODEL, OFF, Figure

__all__ = ["bars", "scaling", "training_curves"]


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
    panels = np.ravel(figure.subplots(1, len(losses), squeeze=False))
    for axes, (name, (training, validation)) in zip(panels, losses.items(), strict=True):
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


def bars(groups: Mapping[str, Mapping[str, float]], label: str, name: str) -> Figure:
    """Return a group of bars for each name, one bar for each of its parts, on a logarithmic axis.

    Arguments:
        groups: for each group the height of each bar; all groups have the same bars
        label: what the heights are
        name: what the groups are
    """
    figure = Figure(figsize=(1.6 + 1.1 * len(groups), 3.4), layout="constrained")
    axes = figure.subplots()
    parts = list(next(iter(groups.values())))
    width = 0.8 / len(parts)
    for number, (part, color) in enumerate(zip(parts, cycle(COLOURS), strict=False)):
        heights = [group[part] for group in groups.values()]
        places = np.arange(len(groups)) + (number - (len(parts) - 1) / 2) * width
        axes.bar(places, heights, width, color=color, label=part)
    axes.set_xticks(np.arange(len(groups)), list(groups))
    axes.set(ylabel=label, xlabel=name, yscale="log")
    axes.legend(frameon=False)
    return figure


def scaling(plain: Mapping[str, Mapping[int, float]], golden: Mapping[str, Mapping[int, float]], label: str) -> Figure:
    """Return how a value falls with the number of simulations, with joint scores (full lines) and without (dashed).

    Arguments:
        plain: for each model the value by the number of simulations; the same name has the same colour in both
        golden: the same with joint scores
        label: what the values are
    """
    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    colours = dict(zip(dict.fromkeys([*golden, *plain]), cycle(COLOURS), strict=False))
    for lines, style, what in ((golden, "o-", ", joint scores"), (plain, "o--", "")):
        for name, values in lines.items():
            axes.plot(*zip(*sorted(values.items()), strict=True), style, color=colours[name], label=f"{name}{what}")
    axes.set(xlabel="simulations", ylabel=label, xscale="log", yscale="log")
    axes.legend(frameon=False, fontsize="small")
    return figure
