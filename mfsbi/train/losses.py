r"""Losses: one number for each row, from a model and a batch.

    reconstruction = |x - project(x)|^2, in standardised units     moves the chart
    latent_nll     = -log p(u|theta), at fixed coordinates u        moves the latent density
    joint          = 1000 reconstruction + latent_nll               moves both, each by its own term
    nll            = -log p(x|theta) in data space                  moves both: pseudo-invertible encoders
    joint_nll      = 1000 reconstruction - log p(x|theta)           moves both: simultaneous training, a cautionary tale

Likelihood alone cannot find a manifold: one that crosses the data instead of following them projects all of them to
one place, where the density grows without bound. So the chart learns from reconstruction and the density from
likelihood (Brehmer & Cranmer, arXiv:2003.13913, §2.3). In `joint` the coordinates are detached for that
reason; its weight matters only to what looks at the sum: early stopping, and the clipping of gradients. In `joint_nll`
they are not, and likelihood pulls the chart towards places where the data are dense.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mfsbi.models import AbstractModel, AmbientModel, DensityModel, ManifoldModel
from mfsbi.train.data import Batch

__all__ = ["RECONSTRUCTION_WEIGHT", "Loss", "joint", "joint_nll", "latent_nll", "nll", "reconstruction"]

Loss = Callable[[Any, Batch], Tensor]
"""(model, batch) -> (rows,)"""

RECONSTRUCTION_WEIGHT = 1000.0
"""Nats for a squared distance of one standard deviation; the paper's setting for the polynomial surface."""


def reconstruction(model: AbstractModel, batch: Batch) -> Tensor:
    """Return |x - project(x)|^2 in standardised units, shape `(rows,)`."""
    return model.chart_at(batch.theta).squared_distance(batch.x)


def latent_nll(model: AbstractModel, batch: Batch) -> Tensor:
    """Return -log p(u|theta) in nats, shape `(rows,)`; the batch must carry u, or the chart gives it, held fixed."""
    u = model.encode(batch.x, batch.theta).detach() if batch.u is None else batch.u
    return -model.latent.log_prob(u, batch.theta)


def nll(model: AbstractModel, batch: Batch) -> Tensor:
    """Return -log p(x|theta) in nats, shape `(rows,)`; for models of data space, where likelihood alone will do.

    Raises:
        TypeError: if the model has no density of x, or one on a manifold that is to be learned
    """
    learns = any(weight.requires_grad for weight in model.chart.parameters())
    if not isinstance(model, DensityModel) or (learns and not isinstance(model, AmbientModel)):
        raise TypeError(
            f"Likelihood alone cannot find the manifold of a {type(model).__name__}: "
            "train it by `sequential`, or `alternating`."
        )
    return -model.log_prob(batch.x, batch.theta)


def joint_nll(model: ManifoldModel, batch: Batch) -> Tensor:
    """Return reconstruction and likelihood on the manifold, with the volume's gradient by one tangent, `(rows,)`."""
    chart = model.chart_at(batch.theta)
    u = chart.encode(batch.x)
    density = model.latent.log_prob(u, batch.theta) - chart.noisy_log_volume(u)
    return RECONSTRUCTION_WEIGHT * chart.squared_distance(batch.x) - density


def joint(model: AbstractModel, batch: Batch) -> Tensor:
    """Return what trainers with one optimiser minimise, shape `(rows,)`.

    That is reconstruction and latent likelihood, or for an `AmbientModel` the likelihood of x.
    """
    if isinstance(model, AmbientModel):
        return nll(model, batch)
    return RECONSTRUCTION_WEIGHT * reconstruction(model, batch) + latent_nll(model, batch)
