"""Charts cut out of a bijection of data space; `mfsbi.charts` has the derivation."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.charts.abstract import AbstractChart, Normals
from mfsbi.checks import require_last_axis
from mfsbi.flows import Flow
from mfsbi.types import Coordinates, Data, Directions, Parameters, Scalars, Tangents

__all__ = ["EncoderChart", "FlowChart", "Split", "Standardized"]


class Split(NamedTuple):
    """What a bijection x -> (u, v) makes of x: coordinates on and off the manifold, and log|det d(u, v)/dx|."""

    u: Tensor
    v: Tensor
    log_det: Tensor


class FlowChart(AbstractChart):
    """The first n coordinates of a bijection: decode = f . Pad, encode = Proj . f^-1.

    Arguments:
        flow: the bijection x -> (u, v) of R^d, that is f^-1
        manifold_dim: n
        theta: what the flow is given besides, if it depends on theta; see `at`
    """

    def __init__(self, flow: Flow, manifold_dim: int, theta: Tensor | None = None) -> None:
        super().__init__(flow.features, manifold_dim)
        self.flow = flow
        self.theta = theta

    @property
    def conditional(self) -> bool:
        """Whether the flow takes theta."""
        return self.flow.parameter_dim > 0

    def at(self, theta: Parameters) -> "FlowChart":
        """Return the chart for these theta, shape `(*, parameter)`, with the same weights."""
        return FlowChart(self.flow, self.manifold_dim, theta) if self.conditional else self

    def decode(self, u: Coordinates) -> Data:
        """Return f(u, v = 0)."""
        return self.flow.inverse(self._pad(u), self._theta())

    def encode(self, x: Data) -> Coordinates:
        """Return the first n coordinates of f^-1(x)."""
        return self.flow(x, self._theta())[..., : self.manifold_dim]

    def split(self, x: Data) -> Split:
        """Return u, v, shape `(*, data - manifold)`, and log|det d(u, v)/dx|, shape `(*)`."""
        y, log_det = self.flow.forward_and_log_det(x, self._theta())
        return Split(y[..., : self.manifold_dim], y[..., self.manifold_dim :], log_det)

    def merge(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the x that `split` makes u and v of, shape `(*, data)`."""
        return self.flow.inverse(torch.cat([u, v], dim=-1), self._theta())

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return J, or J times k directions, carried through the layers in closed form."""
        if directions is None:
            directions = torch.eye(self.manifold_dim, dtype=u.dtype, device=u.device).expand(*u.shape, -1)
        padded = functional.pad(directions, (0, 0, 0, self.data_dim - self.manifold_dim))
        return self.flow.inverse_with_tangents(self._pad(u), padded, self._theta())[1]

    def normals(self, u: Coordinates) -> Normals:
        """Return V = dv/dx and log|det d(u, v)/dx| at u, one reverse pass for each v."""

        def off_the_manifold(x: Tensor) -> tuple[Tensor, Tensor]:
            split = self.split(x)
            return split.v, split.log_det

        v, pull, log_det = torch.func.vjp(off_the_manifold, self.decode(u), has_aux=True)  # type: ignore[misc]
        axes = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        return Normals(torch.stack([pull(axis.expand_as(v))[0] for axis in axes], dim=-2), log_det)

    def _pad(self, u: Tensor) -> Tensor:
        return functional.pad(u, (0, self.data_dim - self.manifold_dim))

    def _theta(self) -> Tensor | None:
        if self.conditional and self.theta is None:
            raise ValueError("This chart depends on theta: call `chart.at(theta)` first, or pass `theta` to the model.")
        return self.theta


class EncoderChart(AbstractChart):
    """A chart to decode and a network of its own to encode, encode = e.

    The network adds to the plain projection on the first n coordinates, so that both maps start consistent.

    Arguments:
        chart: the chart whose `decode` is used
        encoder: a network from R^d to R^n
    """

    def __init__(self, chart: AbstractChart, encoder: nn.Module) -> None:
        super().__init__(chart.data_dim, chart.manifold_dim)
        self.chart = chart
        self.encoder = encoder

    @property
    def conditional(self) -> bool:
        """Whether the wrapped chart depends on theta."""
        return self.chart.conditional

    def at(self, theta: Parameters) -> "EncoderChart":
        """Return the chart for these theta, shape `(*, parameter)`, with the same weights."""
        return EncoderChart(self.chart.at(theta), self.encoder) if self.conditional else self

    def decode(self, u: Coordinates) -> Data:
        """Return chart.decode(u)."""
        return self.chart.decode(u)

    def encode(self, x: Data) -> Coordinates:
        """Return x_1..n + e(x)."""
        return x[..., : self.manifold_dim] + self.encoder(x)

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return chart.tangents(u, directions)."""
        return self.chart.tangents(u, directions)

    def normals(self, u: Coordinates) -> Normals | None:
        """Return chart.normals(u)."""
        return self.chart.normals(u)


class Standardized(AbstractChart):
    """A chart of data space in a better frame: x = mean + std * (axes @ y), with y from the wrapped chart.

    Arguments:
        chart: a chart of the standardised data y
        mean: shape `(data,)`
        std: shape `(data,)`, positive
        axes: an orthogonal matrix, shape `(data, data)`, whose columns are the frame; the identity if not given
    """

    mean: Tensor
    std: Tensor
    axes: Tensor

    def __init__(self, chart: AbstractChart, mean: Tensor, std: Tensor, axes: Tensor | None = None) -> None:
        super().__init__(chart.data_dim, chart.manifold_dim)
        self.chart = chart
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.register_buffer("axes", torch.eye(len(mean), dtype=mean.dtype) if axes is None else axes)

    @property
    def conditional(self) -> bool:
        """Whether the wrapped chart depends on theta."""
        return self.chart.conditional

    def at(self, theta: Parameters) -> "Standardized":
        """Return the chart for these theta, shape `(*, parameter)`, with the same weights."""
        return Standardized(self.chart.at(theta), self.mean, self.std, self.axes) if self.conditional else self

    def decode(self, u: Coordinates) -> Data:
        """Return mean + std * (axes @ chart.decode(u))."""
        return self._from_frame(self.chart.decode(u))

    def encode(self, x: Data) -> Coordinates:
        """Return chart.encode(axes^T @ ((x - mean) / std))."""
        return self.chart.encode(self._to_frame(x))

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return std * (axes @ chart.tangents(u, directions))."""
        return self.std.unsqueeze(-1) * (self.axes @ self.chart.tangents(u, directions))

    def normals(self, u: Coordinates) -> Normals | None:
        """Return those of the wrapped chart in the frame of the data: V @ axes^T / std, log|det| - sum_i log std_i."""
        normals = self.chart.normals(u)
        if normals is None:
            return None
        return Normals(normals.rows @ self.axes.T / self.std, normals.log_det - self.std.log().sum())

    def squared_distance(self, x: Data) -> Scalars:
        """Return |x - project(x)|^2 in standardised units, shape `(*)`, so that every feature counts."""
        return self.chart.squared_distance(self._to_frame(x))

    def split(self, x: Data) -> Split:
        """Return the split of a wrapped `FlowChart`, with log|det d(u, v)/dx| in the units of x."""
        u, v, log_det = self._flow_chart().split(self._to_frame(x))
        return Split(u, v, log_det - self.std.log().sum())

    def merge(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the x that `split` makes u and v of, shape `(*, data)`."""
        return self._from_frame(self._flow_chart().merge(u, v))

    def _flow_chart(self) -> FlowChart:
        if not isinstance(self.chart, FlowChart):
            raise TypeError(f"Only a chart that is half of a bijection can be split; got {self.chart!r}.")
        return self.chart

    def _from_frame(self, y: Tensor) -> Tensor:
        return self.mean + self.std * (y @ self.axes.T)

    def _to_frame(self, x: Tensor) -> Tensor:
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return (x - self.mean) / self.std @ self.axes
