r"""Losses: one number for each row, from a model and a batch.

    reconstruction = |x - project(x)|^2, in standardised units     moves the chart
    latent_nll     = -log p(u|theta), at fixed coordinates u        moves the latent density
    joint          = 1000 reconstruction + latent_nll               moves both, each by its own term

Likelihood alone cannot find a manifold: one that crosses the data instead of following them projects all of them to
one place, where the density grows without bound. So the chart learns from reconstruction and the density from
likelihood (Brehmer & Cranmer, arXiv:2003.13913, §2.3). In `joint` the coordinates are detached for that
reason; its weight matters only to what looks at the sum: early stopping, and the clipping of gradients.
"""

from collections.abc import Callable

from torch import Tensor

from mfsbi.models import ManifoldModel
from mfsbi.train.data import Batch

__all__ = ["RECONSTRUCTION_WEIGHT", "Loss", "joint", "latent_nll", "reconstruction"]

Loss = Callable[[ManifoldModel, Batch], Tensor]

RECONSTRUCTION_WEIGHT = 1000.0
"""Nats for a squared distance of one standard deviation; the paper's setting for the polynomial surface."""


def reconstruction(model: ManifoldModel, batch: Batch) -> Tensor:
    """Return |x - project(x)|^2 in standardised units, shape `(rows,)`."""
    return model.chart.squared_distance(batch.x)


def latent_nll(model: ManifoldModel, batch: Batch) -> Tensor:
    """Return -log p(u|theta) in nats, shape `(rows,)`; the batch must carry u, or the chart gives it, held fixed."""
    u = model.chart.encode(batch.x).detach() if batch.u is None else batch.u
    return -model.latent.log_prob(u, batch.theta)


def joint(model: ManifoldModel, batch: Batch) -> Tensor:
    """Return reconstruction and latent likelihood in one loss for trainers with one optimiser, shape `(rows,)`."""
    return RECONSTRUCTION_WEIGHT * reconstruction(model, batch) + latent_nll(model, batch)
