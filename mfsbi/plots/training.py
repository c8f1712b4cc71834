"""How a training went."""

from collections.abc import Mapping, Sequence

import numpy as np

from mfsbi.plots.figure import MODEL, OFF, Figure

__all__ = ["training_curves"]


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
