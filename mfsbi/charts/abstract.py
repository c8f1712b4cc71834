"""What every chart can do, and how one is asked for; `mfsbi.charts` has the derivation."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from mfsbi import density
from mfsbi.blocks import rows_at_work
from mfsbi.checks import require_kind
from mfsbi.types import Coordinates, Data, Directions, Parameters, Scalars, Tangents

__all__ = ["AbstractChart", "ChartConfig", "Normals", "Split", "charted"]

EXTRA_PASSES = 3
"""How many tangents the passes cost that normals need besides one for each v. Measured with 500 rows: at d = 40, ten
affine couplings, they take 0.82, 0.42, 0.10 of the time of tangents for n = 24, 30, 38; at d = 3, n = 2, 2.4 times."""


class Split(NamedTuple):
    """What a bijection x -> (u, v) makes of x.

    Arguments:
        u: coordinates on the manifold, shape `(*, manifold)`
        v: coordinates off it, shape `(*, data - manifold)`
        log_det: log|det d(u, v)/dx|, shape `(*)`
    """

    u: Tensor
    v: Tensor
    log_det: Tensor


class Normals(NamedTuple):
    """What a chart that is half of a bijection x -> (u, v) knows about its complement.

    Arguments:
        rows: V = dv/dx, shape `(*, data - manifold, data)`
        log_det: log|det d(u, v)/dx|, shape `(*)`
    """

    rows: Tensor
    log_det: Tensor


class AbstractChart(nn.Module, ABC):
    """Coordinates u on a manifold of data space: `decode` and `encode` are all a chart must know.

    Arguments:
        data_dim: d, dimensions of data space
        manifold_dim: n, dimensions of the manifold
    """

    def __init__(self, data_dim: int, manifold_dim: int) -> None:
        super().__init__()
        self.data_dim = data_dim
        self.manifold_dim = manifold_dim

    def __repr__(self) -> str:
        return f"{type(self).__name__}(data_dim={self.data_dim}, manifold_dim={self.manifold_dim})"

    @abstractmethod
    def decode(self, u: Coordinates) -> Data:
        """Return the point x = g(u) of the manifold, shape `(*, data)`."""

    @abstractmethod
    def encode(self, x: Data) -> Coordinates:
        """Return the coordinates of the point of the manifold whose density x has, shape `(*, manifold)`."""

    @property
    def conditional(self) -> bool:
        """Whether the manifold depends on theta; `at(theta)` is then a chart."""
        return False

    def at(self, _theta: Parameters) -> "AbstractChart":
        """Return the chart for these theta, one for each row of u or x that comes after, or one for all."""
        return self

    def project(self, x: Data) -> Data:
        """Return decode(encode(x)), the point of the manifold that stands for x, shape `(*, data)`."""
        return self.decode(self.encode(x))

    def straightened(self, x: Data) -> Data:
        """Return x as a frame of means and spreads suits it: bent or shifted where it needs that, shape `(*, data)`."""
        return x

    def measure(self, x: Data) -> None:
        """Take from data what the chart has to know of them before training; most charts take nothing."""

    def squared_distance(self, x: Data) -> Scalars:
        """Return |x - project(x)|^2 in the units the chart was built in, shape `(*)`: what reconstruction minimises."""
        return (x - self.project(x)).square().sum(-1)

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return J = d decode / d u, shape `(*, data, manifold)`, or J times k directions, shape `(*, data, k)`.

        Arguments:
            u: coordinates, shape `(*, manifold)`
            directions: shape `(*, manifold, k)`; the coordinate axes if not given
        """
        return density.tangents(self.decode, u, directions)

    def normals(self, _u: Coordinates) -> Normals | None:
        """Return the complement of the tangents at u, or None for a chart that is not half of a bijection."""
        return None

    def split(self, _x: Data) -> Split:
        """Return u, v, and log|det d(u, v)/dx| of a chart that is half of a bijection.

        Raises:
            TypeError: if it is not
        """
        raise TypeError(f"Only a chart that is half of a bijection can be split; got {self!r}.")

    def merge(self, _u: Coordinates, _v: Tensor) -> Data:
        """Return the x that `split` makes u and v of, shape `(*, data)`."""
        raise TypeError(f"Only a chart that is half of a bijection can be split; got {self!r}.")

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return 1/2 log det J^T J at u, shape `(*)`, from tangents or from normals if those cost less.

        See `mfsbi.density`; rows are worked on in blocks, so that memory stays bounded when no gradient is asked for.

        Raises:
            ArithmeticError: if the chart is singular or not finite at a point; the message names the row
        """
        if self.conditional:  # theta has rows of its own
            return density.require_volume(self._block_log_volume(u))
        blocks = u.reshape(-1, u.shape[-1]).split(rows_at_work(self.data_dim, self.manifold_dim))
        volume = torch.cat([self._block_log_volume(block) for block in blocks])
        return density.require_volume(volume.reshape(u.shape[:-1]))

    def noisy_log_volume(self, u: Coordinates, generator: Generator | None = None) -> Scalars:
        """Return the log-volume with an unbiased estimate of its gradient for the cost of one tangent, shape `(*)`.

        Arguments:
            u: coordinates, shape `(*, manifold)`
            generator: of the random signs; torch's own if not given

        Raises:
            ArithmeticError: if the chart is singular or not finite at a point; the message names the row
        """
        if self.manifold_dim == self.data_dim:  # no more than a sum of log slopes
            return self.log_volume(u)
        signs = torch.randint(2, u.shape, generator=generator, device=u.device).to(u.dtype) * 2 - 1
        with torch.no_grad():
            jacobian = self.tangents(u)
        return density.noisy_log_volume(jacobian, self.tangents(u, signs.unsqueeze(-1)).squeeze(-1), signs)

    def _block_log_volume(self, u: Tensor) -> Tensor:
        codimension = self.data_dim - self.manifold_dim
        normals = self.normals(u) if codimension + EXTRA_PASSES < self.manifold_dim else None
        if normals is None:
            return density.unchecked_log_volume(self.tangents(u))
        return density.unchecked_log_volume(normals.rows.mT) - normals.log_det


class ChartConfig(ABC):
    """A kind of chart with its settings, to be built once the dimensions are known.

    Subclass it as a frozen dataclass to bring a chart of your own; what `mfsbi.flows.FlowConfig` says of fields and of
    `build` holds here too.
    """

    @abstractmethod
    def build(self, data_dim: int, manifold_dim: int, parameters: int = 0) -> AbstractChart:
        """Return a chart of standardised data, with weights from torch's generator.

        At best it starts as the plane of the first n coordinates: these are the principal axes of the data, or features
        that the user named (`mfsbi.charts.frames`).

        Arguments:
            data_dim: d
            manifold_dim: n
            parameters: the number of parameters `theta` that the manifold depends on, 0 unless the spec has a
                conditional chart; the chart's `at` then takes them, standardised
        """


def charted(config: ChartConfig, data_dim: int, manifold_dim: int, parameters: int = 0) -> AbstractChart:
    """Return what a config builds.

    Raises:
        TypeError: if it is no chart of these dimensions
    """
    chart = config.build(data_dim, manifold_dim, parameters)
    require_kind(f"{type(config).__name__}.build(...)", chart, AbstractChart, "a chart, a subclass of `AbstractChart`")
    if (chart.data_dim, chart.manifold_dim) != (data_dim, manifold_dim):
        raise TypeError(
            f"`{type(config).__name__}.build({data_dim}, {manifold_dim})` should return a chart of so many features "
            f"and coordinates; it has {chart.data_dim} and {chart.manifold_dim}."
        )
    return chart
