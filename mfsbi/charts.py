r"""Charts: where the manifold lies in data space.

A chart is a pair of maps between coordinates u in R^n and points x in R^d,

    decode: u -> x (injective),    encode: x -> u,    encode(decode(u)) = u on the manifold,

and `project = decode . encode` sends any point of data space to the manifold. Two learned charts are here,
both with decode = f . Pad: append d - n zeros to u and apply a bijection f of R^d (a `Flow`), so that the
manifold is the image of a coordinate plane and has no creases.

* `FlowChart` inverts f and keeps the first n coordinates: encode = Proj . f^-1 (M-flow, arXiv:2003.13913 §2.2).
* `EncoderChart` learns encode as a network of its own (M_e-flow, ibid.).

Data come with units and spreads; `Standardized` wraps a chart of the standardised data. Being itself a chart, it
has the right volume factor without bookkeeping. It may also turn the axes: a flow starts as the identity,
so the manifold coordinates begin as the first n axes of its frame, and a frame whose first axes run along
the manifold is most of the way there.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from mfsbi import density
from mfsbi.flows import Flow
from mfsbi.types import Coordinates, Data, Directions, Scalars, Tangents

__all__ = ["AbstractChart", "AmbientChart", "EncoderChart", "FlowChart", "Normals", "ResidualNetwork", "Standardized"]

BLOCK = 2048
"""Rows whose tangents are at work at a time: at d = 40 and n = 14 some 50 MiB."""

EXTRA_PASSES = 3
"""How many tangents the passes cost that normals need besides one for each v. Measured with 500 rows: at d = 40, ten
affine couplings, they take 0.82, 0.42, 0.10 of the time of tangents for n = 24, 30, 38; at d = 3, n = 2, 2.4 times."""


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
        """Return the coordinates of the point that x is projected to, shape `(*, manifold)`."""

    def project(self, x: Data) -> Data:
        """Return decode(encode(x)), the point of the manifold that stands for x, shape `(*, data)`."""
        return self.decode(self.encode(x))

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

    def normals(self, u: Coordinates) -> Normals | None:  # noqa: ARG002 - most charts have none
        """Return the complement of the tangents at u, or None for a chart that is not half of a bijection."""
        return None

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return 1/2 log det J^T J at u, shape `(*)`, from tangents or from normals if those cost less.

        See `mfsbi.density`; rows are worked on in blocks, so that memory stays bounded when no gradient is asked for.

        Raises:
            ArithmeticError: if the chart is singular or not finite at a point; the message names the row
        """
        blocks = u.reshape(-1, u.shape[-1]).split(BLOCK)
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


class AmbientChart(AbstractChart):
    """All of data space as its own manifold: u is x standardised, x = mean + std * u.

    Arguments:
        mean: shape `(data,)`
        std: shape `(data,)`, positive
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__(len(mean), len(mean))
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def decode(self, u: Coordinates) -> Data:
        """Return mean + std * u."""
        return self.mean + self.std * u

    def encode(self, x: Data) -> Coordinates:
        """Return (x - mean) / std."""
        return (x - self.mean) / self.std

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return sum_i log std_i, the same at every u, shape `(*)`."""
        return self.std.log().sum().expand(u.shape[:-1])


class FlowChart(AbstractChart):
    """The first n coordinates of a bijection: decode = f . Pad, encode = Proj . f^-1.

    Arguments:
        flow: the bijection x -> (u, v) of R^d, that is f^-1
        manifold_dim: n
    """

    def __init__(self, flow: Flow, manifold_dim: int) -> None:
        super().__init__(flow.features, manifold_dim)
        self.flow = flow

    def decode(self, u: Coordinates) -> Data:
        """Return f(u, v = 0)."""
        return self.flow.inverse(self._pad(u))

    def encode(self, x: Data) -> Coordinates:
        """Return the first n coordinates of f^-1(x)."""
        return self.flow(x)[..., : self.manifold_dim]

    def tangents(self, u: Coordinates, directions: Directions | None = None) -> Tangents:
        """Return J, or J times k directions, carried through the layers in closed form."""
        if directions is None:
            directions = torch.eye(self.manifold_dim, dtype=u.dtype, device=u.device).expand(*u.shape, -1)
        padded = functional.pad(directions, (0, 0, 0, self.data_dim - self.manifold_dim))
        return self.flow.inverse_with_tangents(self._pad(u), padded)[1]

    def normals(self, u: Coordinates) -> Normals:
        """Return V = dv/dx and log|det d(u, v)/dx| at u, one reverse pass for each v."""

        def off_the_manifold(x: Tensor) -> tuple[Tensor, Tensor]:
            y, log_det = self.flow.forward_and_log_det(x)
            return y[..., self.manifold_dim :], log_det

        v, pull, log_det = torch.func.vjp(off_the_manifold, self.decode(u), has_aux=True)  # type: ignore[misc]
        axes = torch.eye(v.shape[-1], dtype=v.dtype, device=v.device)
        return Normals(torch.stack([pull(axis.expand_as(v))[0] for axis in axes], dim=-2), log_det)

    def _pad(self, u: Tensor) -> Tensor:
        return functional.pad(u, (0, self.data_dim - self.manifold_dim))


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

    def decode(self, u: Coordinates) -> Data:
        """Return mean + std * (axes @ chart.decode(u))."""
        return self.mean + self.std * (self.chart.decode(u) @ self.axes.T)

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

    def _to_frame(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std @ self.axes


class ResidualNetwork(nn.Module):
    """A multilayer perceptron whose blocks add to their input; its last layer starts at zero.

    Arguments:
        features_in: width of the input
        features_out: width of the output
        width: units of each hidden layer
        blocks: residual blocks, two layers each
    """

    def __init__(self, features_in: int, features_out: int, width: int = 100, blocks: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(features_in, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks)
        )
        self.last = nn.Linear(width, features_out)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the network's output, shape `(*, features_out)`."""
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return self.last(y)
