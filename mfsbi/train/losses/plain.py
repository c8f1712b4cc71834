r"""What a loss is, and the losses that need nothing but x and theta.

A loss gives one number for each row, and a training minimises their mean:

    reconstruction = |x - project(x)|^2, in standardised units     moves the chart
    robust_reconstruction = its root, rounded off near zero         moves the chart, less ruled by far rows
    latent_nll     = -log p(u|theta), at fixed coordinates u        moves the latent density
    joint          = 1000 reconstruction + latent_nll               moves both, each by its own term
    nll            = -log p(x|theta) in data space                  moves both: pseudo-invertible encoders
    joint_nll      = 1000 reconstruction - log p(x|theta)           moves both: simultaneous training, a cautionary tale

Likelihood alone cannot find a manifold: if the manifold crosses the data instead of following them, all data are
projected to one place, where the density grows without bound. So the chart learns from reconstruction and the density
from likelihood (Brehmer & Cranmer, arXiv:2003.13913, §2.3). In `joint` the coordinates are detached for that reason;
its weight matters only to what looks at the sum: early stopping, and the clipping of gradients. In `joint_nll` they are
not, and likelihood pulls the chart towards places where the data are dense.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from torch import Tensor, nn

from mfsbi.models import AbstractModel, AmbientModel, DensityModel, ManifoldModel
from mfsbi.train.data import Batch

__all__ = [
    "RECONSTRUCTION_WEIGHT",
    "AbstractLoss",
    "Kind",
    "Loss",
    "as_loss",
    "joint",
    "joint_nll",
    "latent_nll",
    "nll",
    "reconstruction",
    "robust_reconstruction",
]

Loss = Callable[[Any, Batch], Tensor]
"""(model, batch) -> (rows,): what a `Phase` takes, an `AbstractLoss` or any function with a `__name__`."""


class Kind(Enum):
    """What a loss measures, by which a training knows how to treat it."""

    DISTANCE = auto()
    """Distances of x from the manifold, not in nats: theta has no part in it, and so joint scores do not join it."""
    LIKELIHOOD = auto()
    """-log p(x|theta) in data space and nothing else: a chart that it moves need not reconstruct."""
    DENSITY = auto()
    """-log p of coordinates, in nats, with or without reconstruction."""
    RATIO = auto()
    """The cross-entropy of a ratio."""
    UNKNOWN = auto()
    """That of a function from outside; its chart is judged by reconstruction, and its values are taken for nats."""


class AbstractLoss(ABC):
    """A loss as a value: callable, and it knows what it measures and what a checkpoint has to keep of it.

    Attributes:
        weight: of the joint score, if one was given
    """

    weight: float | None = None

    @property
    @abstractmethod
    def kind(self) -> Kind:
        """What it measures."""

    @property
    @abstractmethod
    def __name__(self) -> str:
        """What the record of a training calls it."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each row, shape `(rows,)`."""

    @property
    def origin(self) -> object:
        """What computes it; a checkpoint tells trainings apart by it."""
        return self

    def adapted(self, _model: nn.Module, _held_out: Batch) -> "AbstractLoss":
        """Return the loss with its settings as held-out rows have them for the present model.

        A training asks whenever it judges by held-out rows, and takes what is returned for the loss from then on.

        Arguments:
            _model: in training, without gradients
            _held_out: the rows to judge by, `paired`
        """
        return self

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint keeps, by name."""
        return {}

    def restored(self, _state: Mapping[str, Tensor]) -> "AbstractLoss":
        """Return the loss with the tensors of a checkpoint, which may hold those of others as well."""
        return self


@dataclass(frozen=True)
class FunctionLoss(AbstractLoss):
    """A function of a model and a batch as a loss, with the docstring of the function.

    Arguments:
        function: (model, batch) -> (rows,)
        kind: what it measures
    """

    function: Loss
    kind: Kind = Kind.UNKNOWN

    def __post_init__(self) -> None:
        given = {name: getattr(self.function, name, None) for name in ("__module__", "__doc__")}
        vars(self).update(given, __wrapped__=self.function)

    def __repr__(self) -> str:
        return self.__name__

    def __reduce__(self) -> str | tuple[Any, ...]:
        """Let pickle find by name what has the name of its function, which pickle would look for there."""
        named = getattr(sys.modules.get(self.__module__), self.__name__, None)
        return self.__name__ if named is self else (FunctionLoss, (self.function, self.kind))

    @property
    def __name__(self) -> str:
        return str(getattr(self.function, "__name__", self.function))

    @property
    def origin(self) -> object:
        """The function."""
        return self.function

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each row, shape `(rows,)`."""
        return self.function(model, batch)


def as_loss(loss: Loss) -> AbstractLoss:
    """Return a loss of any form as a value; a function from outside is of unknown kind.

    Arguments:
        loss: an `AbstractLoss`, which is returned as it is, or a function (model, batch) -> (rows,)
    """
    return loss if isinstance(loss, AbstractLoss) else FunctionLoss(loss)


CORE = 0.01
"""Distance, in standard deviations, below which robust reconstruction is quadratic."""

RECONSTRUCTION_WEIGHT = 1000.0
"""Nats for a squared distance of one standard deviation; the paper's setting for the polynomial surface."""


@partial(FunctionLoss, kind=Kind.DISTANCE)
def reconstruction(model: AbstractModel, batch: Batch) -> Tensor:
    """Return |x - project(x)|^2 in standardised units, shape `(rows,)`.

    Arguments:
        model: whose chart is judged; one that depends on theta is taken at that of each row
        batch: with x of shape `(rows, data)`; theta is looked at by conditional charts alone
    """
    return model.chart_at(batch.theta).squared_distance(batch.x)


@partial(FunctionLoss, kind=Kind.DISTANCE)
def robust_reconstruction(model: AbstractModel, batch: Batch) -> Tensor:
    """Return (|x - project(x)|^2 + 0.01^2)^1/2 in standardised units, shape `(rows,)`.

    Use it where features have heavy tails: squares are ruled by the few rows there (`notebooks/measurements.md`).
    """
    return (reconstruction(model, batch) + CORE**2).sqrt()


@partial(FunctionLoss, kind=Kind.DENSITY)
def latent_nll(model: AbstractModel, batch: Batch) -> Tensor:
    """Return -log p(u|theta) in nats, shape `(rows,)`; u is the batch's or else the chart's, and held fixed.

    Arguments:
        model: whose latent density is trained
        batch: with u, shape `(rows, manifold)`, where the chart stands still; x is encoded without gradients otherwise
    """
    u = model.encode(batch.x, batch.theta).detach() if batch.u is None else batch.u
    return -model.latent.log_prob(u, batch.theta)


@partial(FunctionLoss, kind=Kind.LIKELIHOOD)
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


@partial(FunctionLoss, kind=Kind.DENSITY)
def joint_nll(model: ManifoldModel, batch: Batch) -> Tensor:
    """Return reconstruction and likelihood on the manifold, with the volume's gradient by one tangent, `(rows,)`.

    The tangent is drawn from torch's generator, so that the gradient is noisy, but right in the mean.

    Arguments:
        model: both parts of which are trained
        batch: with x of shape `(rows, data)` and theta of shape `(rows, parameter)`
    """
    chart = model.chart_at(batch.theta)
    u = chart.encode(batch.x)
    density = model.latent.log_prob(u, batch.theta) - chart.noisy_log_volume(u)
    return RECONSTRUCTION_WEIGHT * chart.squared_distance(batch.x) - density


@partial(FunctionLoss, kind=Kind.DENSITY)
def joint(model: AbstractModel, batch: Batch) -> Tensor:
    """Return what trainers with one optimiser minimise, shape `(rows,)`.

    That is reconstruction and latent likelihood, or for an `AmbientModel` the likelihood of x.
    """
    if isinstance(model, AmbientModel):
        return nll(model, batch)
    return RECONSTRUCTION_WEIGHT * reconstruction(model, batch) + latent_nll(model, batch)
