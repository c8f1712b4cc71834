"""Charts around charts: data standardised, turned, bent or shifted first; `mfsbi.charts` has the derivation."""

from abc import abstractmethod

from torch import Tensor, nn

from mfsbi.charts.abstract import AbstractChart, Normals, Split
from mfsbi.charts.linear import LinearCoordinates
from mfsbi.checks import require_last_axis
from mfsbi.types import Coordinates, Data, Directions, Parameters, Scalars, Tangents
from mfsbi.warp import Warp

__all__ = ["Standardized", "Warped", "WrappedChart"]


class WrappedChart(AbstractChart):
    """A chart that uses another one; it depends on theta if that does.

    Arguments:
        chart: the chart inside
        data_dim: d of the data outside
    """

    def __init__(self, chart: AbstractChart, data_dim: int) -> None:
        super().__init__(data_dim, chart.manifold_dim)
        self.chart = chart

    @abstractmethod
    def around(self, chart: AbstractChart) -> AbstractChart:
        """Return the same, with the same weights, around another chart."""

    @property
    def conditional(self) -> bool:
        """Whether the chart inside depends on theta."""
        return self.chart.conditional

    def at(self, theta: Parameters) -> AbstractChart:
        """Return the chart for these theta, shape `(*, parameter)`, with the same weights."""
        return self.around(self.chart.at(theta)) if self.conditional else self


class MappedChart(WrappedChart):
    """A chart of x = w(y) by a chart of y: what is the same for every injective map w."""

    @abstractmethod
    def outward(self, y: Tensor) -> Data:
        """Return x = w(y), shape `(*, data)`."""

    @abstractmethod
    def inward(self, x: Data) -> Tensor:
        """Return y, or that of the nearest point of the form w(y), shape `(*, data inside)`."""

    @abstractmethod
    def log_growth(self, y: Tensor) -> Scalars:
        """Return log|det dw/dy|, shape `(*)`, for a map onto all of data space."""

    def decode(self, u: Coordinates) -> Data:
        """Return w(chart.decode(u))."""
        return self.outward(self.chart.decode(u))

    def encode(self, x: Data) -> Coordinates:
        """Return the coordinates of y."""
        return self.chart.encode(self.inward(x))

    def project(self, x: Data) -> Data:
        """Return w of the point of the manifold that stands for y, shape `(*, data)`."""
        return self.outward(self.chart.project(self.inward(x)))

    def measure(self, x: Data) -> None:
        """Let the chart inside measure y."""
        self.chart.measure(self.inward(x))

    def squared_distance(self, x: Data) -> Scalars:
        """Return that of y, shape `(*)`: in standardised units, so that every feature counts."""
        return self.chart.squared_distance(self.inward(x))

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return 1/2 log det J^T J at u, shape `(*)`; a sum of log slopes where the chart fills data space.

        Raises:
            ArithmeticError: if the chart is singular or not finite at a point; the message names the row
        """
        if self.manifold_dim < self.data_dim:
            return super().log_volume(u)
        return self.chart.log_volume(u) + self.log_growth(self.chart.decode(u))

    def merge(self, u: Coordinates, v: Tensor) -> Data:
        """Return the x that `split` makes u and v of, shape `(*, data)`."""
        return self.outward(self.chart.merge(u, v))


class Standardized(MappedChart):
    """A chart of data space in a better frame: x = mean + std * (axes @ y), with y from the wrapped chart.

    With r < d axes, orthonormal, x is in their span and what data have beside it is dropped: `encode` projects on them.
    `squared_distance` counts what is dropped, and the log-volume stays exact, since it is that of the tangents. There
    are no normals then, and no split.

    Coordinates may be linear functions of y in place of those of the wrapped chart, once `linear` has been given some
    (`mfsbi.charts.linear`). A point off the manifold then has those of its own y, and its density is that of the point
    of the manifold which shares them; `project` and `squared_distance` take the wrapped chart's point, which is nearer.

    Arguments:
        chart: a chart of y, of d features or of r
        mean: shape `(data,)`
        std: shape `(data,)`, positive
        axes: orthonormal columns, shape `(data, data)` or `(data, r)`; None for those of the features
    """

    axes: Tensor | None

    def __init__(self, chart: AbstractChart, mean: Tensor, std: Tensor, axes: Tensor | None = None) -> None:
        super().__init__(chart, len(mean))
        self.mean, self.std = nn.Buffer(mean), nn.Buffer(std)
        self.register_buffer("axes", axes)
        self.linear = LinearCoordinates(chart.data_dim, chart.manifold_dim)

    def around(self, chart: AbstractChart) -> "Standardized":
        """Return the same frame around another chart."""
        frame = Standardized(chart, self.mean, self.std, self.axes)
        frame.linear = self.linear
        return frame

    @property
    def truncated(self) -> bool:
        """Whether there are fewer axes than features."""
        return self.chart.data_dim < self.data_dim

    def outward(self, y: Tensor) -> Data:
        """Return mean + std * (axes @ y)."""
        return self.mean + self.std * (y if self.axes is None else y @ self.axes.T)

    def inward(self, x: Data) -> Tensor:
        """Return axes^T @ ((x - mean) / std)."""
        z = self._standardised(x)
        return z if self.axes is None else z @ self.axes

    def encode(self, x: Data) -> Coordinates:
        """Return the coordinates of y: those of the chart inside, or linear ones."""
        y = self.inward(x)
        return self.linear.of(y) if self.linear.given else self.chart.encode(y)

    def decode(self, u: Coordinates) -> Data:
        """Return mean + std * (axes @ chart.decode(u))."""
        return self.outward(self.chart.decode(self._within(u)))

    def log_growth(self, y: Tensor) -> Scalars:
        """Return sum_i log std_i, the same everywhere, shape `(*)`."""
        return self.std.log().sum().expand(y.shape[:-1])

    def squared_distance(self, x: Data) -> Scalars:
        """Return |x - project(x)|^2 in standardised units, shape `(*)`, so that every feature counts."""
        near = self.chart.squared_distance(self.inward(x))
        if self.axes is None or not self.truncated:
            return near
        z = self._standardised(x)
        return near + (z - z @ self.axes @ self.axes.T).square().sum(-1)

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return std * (axes @ chart.tangents(u, directions))."""
        if self.linear.given:
            tangents = self.linear.turned(self.chart.tangents(self._within(u)))
            tangents = tangents if directions is None else tangents @ directions
        else:
            tangents = self.chart.tangents(u, directions)
        return self.std.unsqueeze(-1) * (tangents if self.axes is None else self.axes @ tangents)

    def normals(self, u: Coordinates) -> Normals | None:
        """Return those of the wrapped chart in the frame of the data: V @ axes^T / std, log|det| - sum_i log std_i."""
        normals = None if self.truncated or self.linear.given else self.chart.normals(u)
        if normals is None:
            return None
        rows = normals.rows if self.axes is None else normals.rows @ self.axes.T
        return Normals(rows / self.std, normals.log_det - self.std.log().sum())

    def split(self, x: Data) -> Split:
        """Return the split of the wrapped chart, with log|det d(u, v)/dx| in the units of x.

        Raises:
            TypeError: if that is not half of a bijection, there are fewer axes than features, or coordinates are linear
        """
        if self.linear.given:
            raise TypeError(f"{self!r} has no split: its coordinates are linear, and not half of a bijection.")
        if self.truncated:
            raise TypeError(f"{self!r} has no split: it drops what data have beside {self.chart.data_dim} axes.")
        u, v, log_det = self.chart.split(self.inward(x))
        return Split(u, v, log_det - self.std.log().sum())

    def _within(self, u: Tensor) -> Tensor:
        """Return the coordinates of the chart inside."""
        return self.linear.within(self.chart, u) if self.linear.given else u

    def _standardised(self, x: Tensor) -> Tensor:
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return (x - self.mean) / self.std


class Warped(MappedChart):
    """A chart of data space by a chart of y = w(x), an elementwise map; `mfsbi.warp` says when that helps.

    Arguments:
        chart: a chart of y
        warp: w
    """

    def __init__(self, chart: AbstractChart, warp: Warp) -> None:
        super().__init__(chart, chart.data_dim)
        self.warp = warp

    def around(self, chart: AbstractChart) -> "Warped":
        """Return the same map around another chart."""
        return Warped(chart, self.warp)

    def straightened(self, x: Data) -> Data:
        """Return w(x)."""
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return self.warp(x)

    def outward(self, y: Tensor) -> Data:
        """Return w^-1(y)."""
        return self.warp.inverse(y)

    def inward(self, x: Data) -> Tensor:
        """Return w(x)."""
        return self.straightened(x)

    def log_growth(self, y: Tensor) -> Scalars:
        """Return sum_i log dx_i/dw_i, shape `(*)`."""
        return -self.warp.log_slope_at(y).sum(-1)

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

    def split(self, x: Data) -> Split:
        """Return the split of the wrapped chart, with log|det d(u, v)/dx|."""
        u, v, log_det = self.chart.split(self.inward(x))
        return Split(u, v, log_det + self.warp.log_slope(x).sum(-1))
