"""Charts that are no bijection of data space; `mfsbi.charts` has the derivation."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.charts.abstract import AbstractChart, ChartConfig
from mfsbi.checks import require_last_axis, require_sizes
from mfsbi.networks import ResidualNetwork
from mfsbi.types import Coordinates, Data, Scalars

__all__ = ["Ambient", "AmbientChart", "Autoencoder", "AutoencoderChart", "Prescribed", "PrescribedChart"]

Function = Callable[[Tensor], Tensor]


class AmbientChart(AbstractChart):
    """All of data space as its own manifold: u is x.

    Arguments:
        data_dim: d
    """

    def __init__(self, data_dim: int) -> None:
        super().__init__(data_dim, data_dim)

    def decode(self, u: Coordinates) -> Data:
        """Return u."""
        return u

    def encode(self, x: Data) -> Coordinates:
        """Return x."""
        return x

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return zeros, shape `(*)`."""
        return u.new_zeros(u.shape[:-1])


class AutoencoderChart(AbstractChart):
    """A chart of two networks: each adds to the plain map between u and the first n coordinates.

    Its manifold need not be free of creases, and encode(decode(u)) = u only as far as it was trained.

    Arguments:
        decoder: a network from R^n to R^d
        encoder: a network from R^d to R^n
        data_dim: d
        manifold_dim: n
    """

    def __init__(self, decoder: nn.Module, encoder: nn.Module, data_dim: int, manifold_dim: int) -> None:
        super().__init__(data_dim, manifold_dim)
        self.decoder = decoder
        self.encoder = encoder

    def decode(self, u: Coordinates) -> Data:
        """Return (u, 0) + decoder(u)."""
        return functional.pad(u, (0, self.data_dim - self.manifold_dim)) + self.decoder(u)

    def encode(self, x: Data) -> Coordinates:
        """Return x_1..n + encoder(x)."""
        return x[..., : self.manifold_dim] + self.encoder(x)


class PrescribedChart(AbstractChart):
    """A chart of two given functions, with coordinates standardised: decode(u) = g(mean + std * u).

    The mean and spread of the coordinates, shape `(manifold,)`, are 0 and 1 until `measure` takes them from data.

    Arguments:
        functions: (g, its inverse), each treating rows on their own; g must be differentiable by torch
        data_dim: d
        manifold_dim: n
    """

    def __init__(self, functions: tuple[Function, Function], data_dim: int, manifold_dim: int) -> None:
        super().__init__(data_dim, manifold_dim)
        self.functions = functions
        self.mean: Tensor = nn.Buffer(torch.zeros(manifold_dim))
        self.std: Tensor = nn.Buffer(torch.ones(manifold_dim))

    def decode(self, u: Coordinates) -> Data:
        """Return g(mean + std * u)."""
        return self.functions[0](self.mean + self.std * u)

    def encode(self, x: Data) -> Coordinates:
        """Return (g^-1(x) - mean) / std."""
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return (self.functions[1](x) - self.mean) / self.std

    def measure(self, x: Data) -> None:
        """Take mean and spread of the coordinates of x, shape `(rows, data)`."""
        u = self.functions[1](x)
        self.mean, self.std = u.mean(0), u.std(0)


@dataclass(frozen=True)
class Ambient(ChartConfig):
    """An `AmbientChart`."""

    def build(self, data_dim: int, _manifold_dim: int, _parameters: int = 0) -> AmbientChart:
        """Return the chart."""
        return AmbientChart(data_dim)


@dataclass(frozen=True)
class Autoencoder(ChartConfig):
    """An `AutoencoderChart` of two `ResidualNetwork`s.

    Arguments:
        width: units in each layer
        blocks: residual blocks of each network, two layers each
    """

    width: int = 100
    blocks: int = 5

    def __post_init__(self) -> None:
        require_sizes(self)

    def build(self, data_dim: int, manifold_dim: int, _parameters: int = 0) -> AutoencoderChart:
        """Return the chart."""
        decoder = ResidualNetwork(manifold_dim, data_dim, self.width, self.blocks)
        encoder = ResidualNetwork(data_dim, manifold_dim, self.width, self.blocks)
        return AutoencoderChart(decoder, encoder, data_dim, manifold_dim)


@dataclass(frozen=True)
class Prescribed(ChartConfig):
    """A `PrescribedChart`, to be told the spread of its coordinates by `measure`.

    Arguments:
        decode: g
        encode: its inverse on the manifold
    """

    decode: Function
    encode: Function

    def build(self, data_dim: int, manifold_dim: int, _parameters: int = 0) -> PrescribedChart:
        """Return the chart."""
        return PrescribedChart((self.decode, self.encode), data_dim, manifold_dim)
