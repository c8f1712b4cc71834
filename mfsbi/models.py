r"""Models: a chart and a latent density, and the space in which probability is counted.

A point x of data space has coordinates u = encode(x), and these have a density p(u|theta). The density of x depends
on the space it is counted in:

| model            | space          | log p(x given theta)                                                    |
|------------------|----------------|-------------------------------------------------------------------------|
| `ManifoldModel`  | the manifold   | log p(u|theta) - 1/2 log det J^T J, J = d decode/du, at the projection of x |
| `AmbientModel`   | all of R^d     | log p(u|theta) + log N(v; 0, eps^2 I) + log|det d(u, v)/dx|              |
| `LatentModel`    | coordinates    | none                                                                    |

The first is a density with respect to the surface measure (Brehmer & Cranmer, arXiv:2003.13913, eq. 5): how far x lies
from the manifold is told by `distance` and never mixed into it. The second is that of a pseudo-invertible encoder
(ibid., §2.2), whose manifold has a thickness eps. An autoencoder has no density of x; its p(u|theta) serves instead.

A chart that does not depend on theta makes everything but the first term a constant of theta: posteriors need
p(u|theta) alone, for coordinates that are computed once.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from mfsbi.charts import AbstractChart, Warped
from mfsbi.flows import Bijection, Density
from mfsbi.flows.densities import Pairing, log_normal, log_prob_of, pairing_of, sample_of
from mfsbi.types import Coordinates, Data, Parameters, Scalars
from mfsbi.warp import ThetaScale, Warp, as_data

__all__ = ["AbstractModel", "AmbientModel", "DensityModel", "Latent", "LatentModel", "ManifoldModel", "Placed"]


CLOSE = 0.1
"""How far the mean and the log of the spread of coordinates may be from zero before they are standardised anew."""

NARROW = 1e-4, 0.1
"""Coordinates are sheared if their least variance in any direction is between these; below, they obey a constraint."""


class Latent(ThetaScale):
    """A conditional density p(u|theta) of the coordinates on the manifold.

    Reconstruction does not fix the scale of u, and a chart may end with coordinates of any size; so they are
    standardised as theta is, by a mean and a spread that training measures (`measure`). Where they are so correlated
    that some direction has less than a tenth of the variance, each is first replaced by the residual of a linear
    regression on those before it, y_i = u_i - sum_(j<i) b_ij u_j, a shear of determinant one: a flow takes long to
    learn that a coordinate hardly differs from a sum of others. Unlike a rotation to principal axes, a shear keeps
    coordinates that are simple by themselves as they are (`notebooks/measurements.md`).

    Arguments:
        flow: the bijection u -> ũ given theta, to the standard normal, or a density of u given theta
        theta_mean, theta_std, theta_warp: theta is standardised before it reaches the flow; see `ThetaScale`
    """

    def __init__(
        self, flow: Bijection | Density, theta_mean: Tensor, theta_std: Tensor, theta_warp: Warp | None = None
    ) -> None:
        super().__init__(theta_mean, theta_std, theta_warp)
        self.flow = flow
        self.u_mean = nn.Buffer(torch.zeros(flow.features, dtype=theta_mean.dtype))
        self.u_std = nn.Buffer(torch.ones(flow.features, dtype=theta_mean.dtype))
        self.u_shear = nn.Buffer(torch.eye(flow.features, dtype=theta_mean.dtype))

    def __repr__(self) -> str:
        return f"Latent({self.flow!r})"

    def log_prob(self, u: Coordinates, theta: Parameters) -> Scalars:
        """Return log p(u|theta), shape `(*)`, in nats and with respect to the measure du.

        Arguments:
            u: coordinates, not standardised, shape `(*, manifold)`
            theta: in its own units, shape `(*, parameter)`

        Raises:
            ValueError: if theta has another number of parameters
        """
        return log_prob_of(self.flow, self._scaled(u), self.standardize(theta)) - self.u_std.log().sum()

    def pairing(self, u: Tensor) -> Pairing:
        """Return log p(u|theta) of fixed points as a function of theta in its own units.

        Arguments:
            u: coordinates, not standardised, shape `(sets, points, manifold)`
        """
        return _LatentPairing(self, pairing_of(self.flow, self._scaled(u)))

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one u for each row of theta, shape `(*, manifold)`.

        Arguments:
            theta: in its own units, shape `(*, parameter)`
            generator: of the weights' device; torch's own if not given
        """
        y = self.u_std * sample_of(self.flow, self.standardize(theta), generator)
        rows = y.reshape(-1, self.flow.features)
        u = torch.linalg.solve_triangular(self.u_shear, rows, upper=True, left=False, unitriangular=True)
        return self.u_mean + u.view_as(y)

    @property
    def scaling(self) -> tuple[Tensor, Tensor, Tensor]:
        """What u is standardised by: mean, spreads after the shear, shape `(n,)`, and the shear, `(n, n)`."""
        return self.u_mean, self.u_std, self.u_shear

    def measure(self, u: Tensor) -> None:
        """Standardise by the mean and spreads of u, unless the present ones do within a tenth.

        A `Density` is not given sheared coordinates: what is left of a regression is mostly noise where coordinates
        follow each other closely, and its networks learn more from the coordinates themselves.

        Arguments:
            u: shape `(rows, n)`
        """
        y, sheared = self._scaled(u).double(), isinstance(self.flow, Bijection)
        std = y.std(0)
        fits = (y.mean(0) / std).abs().max() <= CLOSE and std.log().abs().max() <= CLOSE
        if (std > 0).all() and std.isfinite().all() and (not fits or (sheared and _is_narrow(y))):
            self.set_scaling(*_scaling_of(u.double(), sheared=sheared))

    def begin(self, u: Tensor, theta: Tensor) -> None:
        """Let a `Density` begin with what it measures, if it measures anything.

        Arguments:
            u: shape `(rows, n)`
            theta: in its own units, shape `(rows, parameter)`
        """
        if hasattr(self.flow, "measure"):
            self.flow.measure(self._scaled(u), self.standardize(theta))

    def settle(self, u: Tensor, theta: Tensor) -> None:
        """Let a `Density` take from held-out rows what it ends with.

        Arguments:
            u: shape `(rows, n)`
            theta: in its own units, shape `(rows, parameter)`
        """
        if hasattr(self.flow, "settle"):
            self.flow.settle(self._scaled(u), self.standardize(theta))

    def set_scaling(self, mean: Tensor, std: Tensor, shear: Tensor) -> None:
        """Standardise u by these from now on; they are copied.

        Arguments:
            mean: of u, shape `(n,)`
            std: spreads after the shear, shape `(n,)`, positive
            shear: upper triangular with ones on the diagonal, shape `(n, n)`
        """
        for old, new in zip(self.scaling, (mean, std, shear), strict=True):
            old.copy_(new)

    def _scaled(self, u: Tensor) -> Tensor:
        """Return u sheared and standardised, shape `(*, n)`."""
        return (u - self.u_mean) @ self.u_shear / self.u_std


@dataclass(frozen=True)
class _LatentPairing:
    """log p(u|theta) of fixed coordinates, given that of standardised ones."""

    latent: Latent
    standardised: Pairing

    def __call__(self, theta: Tensor, which: Tensor) -> Tensor:
        return self.standardised(self.latent.standardize(theta), which) - self.latent.u_std.log().sum()


def _is_narrow(u: Tensor) -> bool:
    """Return whether coordinates of unit variance vary by less than a tenth of it, but not zero, in some direction."""
    least = float(torch.linalg.eigvalsh(torch.corrcoef(u.T))[0]) if u.shape[1] > 1 else 1.0
    return NARROW[0] < least < NARROW[1]


def _scaling_of(u: Tensor, *, sheared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, spreads and shear of u, shape `(rows, n)`; the shear is the identity unless u is narrow."""
    mean, identity = u.mean(0), torch.eye(u.shape[1]).to(u)
    shear = identity
    if sheared and _is_narrow(u):
        root = torch.linalg.cholesky(torch.cov(u.T))  # u = root z has independent z, and so has y = u shear
        shear = torch.linalg.solve_triangular(root / root.diagonal(), identity, upper=False, unitriangular=True).T
    return mean, ((u - mean) @ shear).std(0), shear


class Placed(NamedTuple):
    """Where a point lies: its coordinates u, and what log p(x|theta) has besides log p(u|theta)."""

    u: Tensor
    log_factor: Tensor


class AbstractModel(nn.Module, ABC):
    """A manifold and the density on it, called with tensors of any device; results are where the weights are.

    Arguments:
        chart: where the manifold lies
        latent: how probability lies on it
    """

    def __init__(self, chart: AbstractChart, latent: Latent) -> None:
        super().__init__()
        self.chart = chart
        self.latent = latent

    def __repr__(self) -> str:
        return f"{type(self).__name__}(chart={self.chart!r}, latent={self.latent!r})"

    def chart_at(self, theta: Parameters | None) -> AbstractChart:
        """Return the chart, for these theta if it depends on them.

        Raises:
            ValueError: if it does and none came
        """
        if not self.chart.conditional:
            return self.chart
        if theta is None:
            raise ValueError("The manifold of this model depends on theta: pass `theta`.")
        return self.chart.at(self.latent.standardize(theta))

    def encode(self, x: Data, theta: Parameters | None = None) -> Coordinates:
        """Return the coordinates of the point of the manifold whose density x has, shape `(*, manifold)`.

        That is the point which x is projected to; with linear coordinates (`mfsbi.charts.linear`) the one which shares
        those of x, another one off the manifold.

        Arguments:
            x: shape `(*, data)`
            theta: needed if the chart depends on it

        Raises:
            ValueError: if it is needed and did not come, or x has another number of features
        """
        return self.chart_at(theta).encode(self._here(x))

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one x for each row of theta, shape `(*, data)`; a generator has to be one of the weights' device."""
        return self.chart_at(theta).decode(self.latent.sample(theta, generator))

    def project(self, x: Data, theta: Parameters | None = None) -> Data:
        """Return the point of the manifold that stands for x, shape `(*, data)`: x without its noise.

        Arguments:
            x: shape `(*, data)`
            theta: needed if the chart depends on it

        Raises:
            ValueError: if it is needed and did not come
        """
        return self.chart_at(theta).project(self._here(x))

    def distance(self, x: Data, theta: Parameters | None = None) -> Scalars:
        """Return |x - project(x, theta)|, the reconstruction distance, in the units of x, shape `(*)`."""
        x = self._here(x)
        return (x - self.project(x, theta)).norm(dim=-1)

    def as_data(self, x: Tensor) -> Tensor:
        """Return x in the type of the weights and where they are; with all its digits where an offset needs them.

        Raises:
            ValueError: if it needs them and x does not have them
        """
        warp = self.chart.warp if isinstance(self.chart, Warped) else None
        return as_data(x, self.latent.theta_mean, warp)

    def _here(self, value: Tensor) -> Tensor:
        """Return a tensor where the weights are."""
        return value.to(self.latent.theta_mean.device)


class DensityModel(AbstractModel):
    """A model with a density of x."""

    @abstractmethod
    def place(self, x: Data, theta: Parameters | None = None) -> Placed:
        """Return the coordinates of x and what log p(x|theta) has besides log p(u|theta), shape `(*)`.

        Arguments:
            x: shape `(*, data)`
            theta: needed if the chart depends on it
        """

    def log_prob(self, x: Data, theta: Parameters) -> Scalars:
        """Return log p(x|theta), shape `(*)`, in nats and with respect to the measure of the model's space.

        Arguments:
            x: in its own units, shape `(*, data)`
            theta: in its own units, shape `(*, parameter)`

        Raises:
            ArithmeticError: if the chart is singular at a point
        """
        placed = self.place(self._here(x), theta)
        return self.latent.log_prob(placed.u, theta) + placed.log_factor


class ManifoldModel(DensityModel):
    """A density on a manifold: M-flow, M_e-flow, a given manifold, and with `AmbientChart` an ordinary flow."""

    def place(self, x: Data, theta: Parameters | None = None) -> Placed:
        """Return u of the projection of x, and -1/2 log det J^T J there; the density is of the surface measure."""
        chart = self.chart_at(theta)
        u = chart.encode(x)
        return Placed(u, -chart.log_volume(u))


class AmbientModel(DensityModel):
    """A density in all of data space around a manifold of thickness eps: a pseudo-invertible encoder.

    Arguments:
        chart: half of a bijection, one that has a `split`
        latent: the density of u
        epsilon: standard deviation of v, the coordinates off the manifold
    """

    def __init__(self, chart: AbstractChart, latent: Latent, epsilon: float) -> None:
        super().__init__(chart, latent)
        self.epsilon = epsilon

    def place(self, x: Data, theta: Parameters | None = None) -> Placed:
        """Return u, and log N(v; 0, eps^2 I) + log|det d(u, v)/dx|."""
        u, v, log_det = self.chart_at(theta).split(x)
        return Placed(u, log_det + log_normal(v / self.epsilon) - v.shape[-1] * math.log(self.epsilon))

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one x for each row of theta, shape `(*, data)`, off the manifold by eps."""
        u = self.latent.sample(theta, generator)
        v = self.epsilon * _normal(u, self.chart.data_dim - self.chart.manifold_dim, generator)
        return self.chart_at(theta).merge(u, v)


class LatentModel(AbstractModel):
    """A model without a density of x: an autoencoder with a density of its coordinates."""


def _normal(like: Tensor, features: int, generator: Generator | None) -> Tensor:
    """Draw standard normal numbers, `features` for each row of a tensor, where it is and in its type."""
    return torch.randn(*like.shape[:-1], features, generator=generator, dtype=like.dtype, device=like.device)
