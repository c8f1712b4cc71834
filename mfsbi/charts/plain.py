"""Charts that are no bijection of data space; `mfsbi.charts` has the derivation."""

from collections.abc import Callable

from torch import Generator, Tensor, nn
from torch.nn import functional

from mfsbi.charts.abstract import AbstractChart
from mfsbi.checks import require_last_axis
from mfsbi.types import Coordinates, Data, Scalars

__all__ = ["AmbientChart", "AutoencoderChart", "PrescribedChart", "ResidualNetwork"]

Function = Callable[[Tensor], Tensor]


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
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return (x - self.mean) / self.std

    def log_volume(self, u: Coordinates) -> Scalars:
        """Return sum_i log std_i, the same at every u, shape `(*)`."""
        return self.std.log().sum().expand(u.shape[:-1])

    def noisy_log_volume(self, u: Coordinates, generator: Generator | None = None) -> Scalars:  # noqa: ARG002
        """Return the log-volume, which has no gradient, shape `(*)`."""
        return self.log_volume(u)


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

    Arguments:
        functions: (g, its inverse), each treating rows on their own; g must be differentiable by torch
        data_dim: d
        mean: of the coordinates, shape `(manifold,)`
        std: of the coordinates, shape `(manifold,)`, positive
    """

    mean: Tensor
    std: Tensor

    def __init__(self, functions: tuple[Function, Function], data_dim: int, mean: Tensor, std: Tensor) -> None:
        super().__init__(data_dim, len(mean))
        self.functions = functions
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def decode(self, u: Coordinates) -> Data:
        """Return g(mean + std * u)."""
        return self.functions[0](self.mean + self.std * u)

    def encode(self, x: Data) -> Coordinates:
        """Return (g^-1(x) - mean) / std."""
        require_last_axis("x", x, self.data_dim, "the data the model was trained on")
        return (self.functions[1](x) - self.mean) / self.std


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
