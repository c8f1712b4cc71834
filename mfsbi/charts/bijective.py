"""Charts cut out of a bijection of data space; `mfsbi.charts` has the derivation."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.charts.abstract import AbstractChart, ChartConfig, Normals, Split, charted
from mfsbi.charts.wrapped import WrappedChart
from mfsbi.checks import require_sizes
from mfsbi.flows import Bijection, FlowConfig, built
from mfsbi.networks import ResidualNetwork
from mfsbi.types import Coordinates, Data, Directions, Parameters, Tangents

__all__ = ["CutFlow", "EncoderChart", "FlowChart", "WithEncoder"]


class FlowChart(AbstractChart):
    """The first n coordinates of a bijection: decode = f . Pad, encode = Proj . f^-1.

    Arguments:
        flow: the bijection x -> (u, v) of R^d, that is f^-1
        manifold_dim: n
        theta: what the flow is given besides, if it depends on theta; see `at`
    """

    def __init__(self, flow: Bijection, manifold_dim: int, theta: Tensor | None = None) -> None:
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
        return self.flow.forward_and_log_det(x, self._theta())[0][..., : self.manifold_dim]

    def split(self, x: Data) -> Split:
        """Return u, v, shape `(*, data - manifold)`, and log|det d(u, v)/dx|, shape `(*)`."""
        y, log_det = self.flow.forward_and_log_det(x, self._theta())
        return Split(y[..., : self.manifold_dim], y[..., self.manifold_dim :], log_det)

    def merge(self, u: Coordinates, v: Tensor) -> Data:
        """Return the x that `split` makes u and v of, shape `(*, data)`."""
        return self.flow.inverse(torch.cat([u, v], dim=-1), self._theta())

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return J, or J times k directions, in closed form if the flow carries tangents and else in forward mode."""
        carried = getattr(self.flow, "inverse_with_tangents", None)
        if carried is None:
            return super().tangents(u, directions)
        if directions is None:
            directions = torch.eye(self.manifold_dim, dtype=u.dtype, device=u.device).expand(*u.shape, -1)
        padded = functional.pad(directions, (0, 0, 0, self.data_dim - self.manifold_dim))
        return carried(self._pad(u), padded, self._theta())[1]

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


class EncoderChart(WrappedChart):
    """A chart to decode and a network of its own to encode, encode = e.

    The network adds to the plain projection on the first n coordinates, so that both maps start consistent.

    Arguments:
        chart: the chart whose `decode` is used
        encoder: a network from R^d to R^n
    """

    def __init__(self, chart: AbstractChart, encoder: nn.Module) -> None:
        super().__init__(chart, chart.data_dim)
        self.encoder = encoder

    def around(self, chart: AbstractChart) -> "EncoderChart":
        """Return the same encoder with another chart."""
        return EncoderChart(chart, self.encoder)

    def decode(self, u: Coordinates) -> Data:
        """Return chart.decode(u)."""
        return self.chart.decode(u)

    def encode(self, x: Data) -> Coordinates:
        """Return x_1..n + e(x)."""
        return x[..., : self.manifold_dim] + self.encoder(x)

    def measure(self, x: Data) -> None:
        """Let the chart inside measure x."""
        self.chart.measure(x)

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return chart.tangents(u, directions)."""
        return self.chart.tangents(u, directions)

    def normals(self, u: Coordinates) -> Normals | None:
        """Return chart.normals(u)."""
        return self.chart.normals(u)


@dataclass(frozen=True)
class CutFlow(ChartConfig):
    """A `FlowChart`.

    Arguments:
        flow: the kind of bijection
        graph: whether u and v are the flow's first masks, so that its first layer makes any graph v = g(u); if not,
            its layers mix all coordinates
    """

    flow: FlowConfig
    graph: bool = True

    def build(self, data_dim: int, manifold_dim: int, parameters: int = 0) -> FlowChart:
        """Return the chart."""
        return FlowChart(built(self.flow, data_dim, parameters, manifold_dim if self.graph else None), manifold_dim)


@dataclass(frozen=True)
class WithEncoder(ChartConfig):
    """An `EncoderChart` whose encoder is a `ResidualNetwork`.

    Arguments:
        chart: what decodes
        width: units in each layer of the encoder
        blocks: residual blocks of the encoder, two layers each
    """

    chart: ChartConfig
    width: int = 100
    blocks: int = 5

    def __post_init__(self) -> None:
        require_sizes(self)

    def build(self, data_dim: int, manifold_dim: int, parameters: int = 0) -> EncoderChart:
        """Return the chart."""
        encoder = ResidualNetwork(data_dim, manifold_dim, self.width, self.blocks)
        return EncoderChart(charted(self.chart, data_dim, manifold_dim, parameters), encoder)
