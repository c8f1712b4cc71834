"""A chart of features that were bent or shifted; `mfsbi.warp` says when that helps."""

from torch import Generator, Tensor

from mfsbi.charts.abstract import AbstractChart, Normals
from mfsbi.charts.bijective import FlowChart, Split, Standardized
from mfsbi.checks import require_last_axis
from mfsbi.types import Coordinates, Data, Directions, Parameters, Scalars, Tangents
from mfsbi.warp import Warp

__all__ = ["Warped"]


class Warped(AbstractChart):
    """A chart of data space by a chart of w(x), an elementwise map: x = w^-1(chart.decode(u)).

    Arguments:
        chart: a chart of w(x)
        warp: w
    """

    def __init__(self, chart: AbstractChart, warp: Warp) -> None:
        super().__init__(chart.data_dim, chart.manifold_dim)
        self.chart = chart
        self.warp = warp

    @property
    def conditional(self) -> bool:
        """Whether the wrapped chart depends on theta."""
        return self.chart.conditional

    def at(self, theta: Parameters) -> "Warped":
        """Return the chart for these theta, shape `(*, parameter)`, with the same weights."""
        return Warped(self.chart.at(theta), self.warp) if self.conditional else self

    def straightened(self, x: Data) -> Data:
        """Return w(x)."""
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return self.warp(x)

    def decode(self, u: Coordinates) -> Data:
        """Return w^-1(chart.decode(u))."""
        return self.warp.inverse(self.chart.decode(u))

    def encode(self, x: Data) -> Coordinates:
        """Return chart.encode(w(x))."""
        return self.chart.encode(self.straightened(x))

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return J, or J times k directions: those of the wrapped chart times dx/dw."""
        unit = (-self.warp.log_slope_at(self.chart.decode(u))).exp()
        return unit.unsqueeze(-1) * self.chart.tangents(u, directions)

    def normals(self, u: Coordinates) -> Normals | None:
        """Return those of the wrapped chart in the units of x: V dw/dx, and log|det| + sum_i log dw_i/dx_i."""
        normals = self.chart.normals(u)
        if normals is None:
            return None
        log_slope = self.warp.log_slope_at(self.chart.decode(u))
        return Normals(normals.rows * log_slope.exp().unsqueeze(-2), normals.log_det + log_slope.sum(-1))

    def squared_distance(self, x: Data) -> Scalars:
        """Return |w(x) - w(project(x))|^2 in standardised units, shape `(*)`, so that every feature counts."""
        return self.chart.squared_distance(self.straightened(x))

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return 1/2 log det J^T J at u, shape `(*)`; a sum where the chart fills data space.

        Raises:
            ArithmeticError: if the chart is singular or not finite at a point; the message names the row
        """
        if self.manifold_dim < self.data_dim:
            return super().log_volume(u)
        return self.chart.log_volume(u) - self.warp.log_slope_at(self.chart.decode(u)).sum(-1)

    def noisy_log_volume(self, u: Coordinates, generator: Generator | None = None) -> Scalars:
        """Return the log-volume with an unbiased estimate of its gradient, shape `(*)`."""
        if self.manifold_dim < self.data_dim:
            return super().noisy_log_volume(u, generator)
        return self.log_volume(u)

    def split(self, x: Data) -> Split:
        """Return the split of a wrapped chart that is half of a bijection, with log|det d(u, v)/dx|."""
        u, v, log_det = self._half().split(self.straightened(x))
        return Split(u, v, log_det + self.warp.log_slope(x).sum(-1))

    def merge(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the x that `split` makes u and v of, shape `(*, data)`."""
        return self.warp.inverse(self._half().merge(u, v))

    def _half(self) -> FlowChart | Standardized:
        if not isinstance(self.chart, FlowChart | Standardized):
            raise TypeError(f"Only a chart that is half of a bijection can be split; got {self.chart!r}.")
        return self.chart
