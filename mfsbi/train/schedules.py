"""Training schemes as data: lists of phases.

A phase says which loss moves which parts of a model for how many passes over the data. Both schemes of the paper
that avoid the volume term in training are here (Brehmer & Cranmer, arXiv:2003.13913, §2.3):

    sequential    M M M M ... D D D D    first the manifold, then the density on it
    alternating   M D M D M D ...        one pass each, repeated

and `density_only` for models whose chart is given. `epochs` counts passes over the data, M and D together, so that
schemes with the same number cost about the same. A phase whose parts have nothing to train is passed over.
"""

from typing import NamedTuple

from mfsbi.train.losses import Loss, latent_nll, reconstruction

__all__ = ["CHART_RATE", "Phase", "Schedule", "alternating", "density_only", "sequential"]


class Phase(NamedTuple):
    """A stretch of training.

    Arguments:
        loss: what is minimised, (model, batch) -> (rows,)
        trains: the parts it moves, of "chart" and "latent"
        epochs: passes over the data
        rate: factor on the learning rate; phases that train the same parts share that of the first
        rows: rows per step; those of the settings if None
    """

    loss: Loss
    trains: tuple[str, ...]
    epochs: int
    rate: float = 1.0
    rows: int | None = None


Schedule = list[Phase]

CHART_RATE = 0.5
"""Charts want smaller steps than densities: on the polynomial surface with 1,800 steps of 500 rows, a peak of 5e-3
folded the chart for good in one of six runs (reconstruction error 0.2); at half of it the same seed reached 0.009."""


def sequential(epochs: int = 50) -> Schedule:
    """Return half the epochs for the chart, then half for the density on it.

    Raises:
        ValueError: if epochs is below 2, one pass for each part
    """
    passes = _passes_for_each_part(epochs)
    return [Phase(reconstruction, ("chart",), passes, CHART_RATE), Phase(latent_nll, ("latent",), epochs - passes)]


def alternating(epochs: int = 50) -> Schedule:
    """Return one pass for the chart and one for the density in turn, `epochs` in all; it does not stop early.

    Raises:
        ValueError: if epochs is below 2, one pass for each part
    """
    return [phase._replace(epochs=1) for phase in sequential(2)] * _passes_for_each_part(epochs)


def density_only(epochs: int = 50) -> Schedule:
    """Return all epochs for the density, for a chart that is given.

    Raises:
        ValueError: if epochs is below 1
    """
    if epochs < 1:
        raise ValueError(f"`epochs` should be at least 1; got {epochs}.")
    return [Phase(latent_nll, ("latent",), epochs)]


def _passes_for_each_part(epochs: int) -> int:
    if epochs < 2:
        raise ValueError(f"`epochs` should be at least 2, one pass over the data for each part; got {epochs}.")
    return epochs // 2
