"""What a flow is, how one is asked for, and flows made of layers; `mfsbi.flows` has the derivation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from mfsbi.checks import require_kind, require_sizes
from mfsbi.types import Data, Parameters, Scalars, Tangents

__all__ = ["Bijection", "Density", "Flow", "FlowConfig", "Layer", "LayerStack", "Linear", "built", "density_of"]


@runtime_checkable
class Bijection(Protocol):
    """What charts and densities ask of a flow: a bijection y = f(x; theta) of R^d, any `nn.Module` with these methods.

    It may have `inverse_with_tangents(y, tangents, theta)`, which returns x and its tangents, shape `(*, d, k)`, given
    those of y; where it has none, tangents are taken in forward mode (`mfsbi.density.tangents`).

    Arguments:
        features: d
        parameter_dim: the number of parameters `theta` that condition it, 0 for none
    """

    features: int
    parameter_dim: int

    def forward_and_log_det(self, x: Data, theta: Parameters | None = None) -> tuple[Data, Scalars]:
        """Return y = f(x; theta), shape `(*, d)`, and log|det df/dx|, shape `(*)`."""

    def inverse(self, y: Data, theta: Parameters | None = None) -> Data:
        """Return x with f(x; theta) = y, shape `(*, d)`."""


@runtime_checkable
class Density(Protocol):
    """What a latent density may be besides a bijection to the standard normal: any `nn.Module` with these methods.

    Charts cannot use it. It may have `measure(u, theta)`, which takes from standardised rows what it begins with, and
    `settle(u, theta)`, which takes from held-out rows what it ends with. It may also have `pairing(u)`, a quick
    `mfsbi.flows.densities.Pairing`.

    Arguments:
        features: d
        parameter_dim: the number of parameters `theta` that condition it, 0 for none
    """

    features: int
    parameter_dim: int

    def log_prob(self, u: Data, theta: Parameters | None = None) -> Scalars:
        """Return log p(u|theta), shape `(*)`."""

    def sample(self, theta: Parameters, generator: Generator | None = None) -> Data:
        """Draw one u for each row of theta, shape `(*, d)`."""


class FlowConfig(ABC):
    """A kind of flow with its settings, to be built once the dimensions are known.

    Subclass it as a frozen dataclass to bring a flow of your own: its fields, numbers, words, tuples or other configs,
    are what files record. `build` should leave values of tensors alone (no `.item()`, `.tolist()` or `nonzero` without
    `device="cpu"`), since files are measured on torch's meta device before anything is allocated.
    """

    @abstractmethod
    def build(self, features: int, parameters: int = 0, cut: int | None = None) -> nn.Module:
        """Return a `Bijection` of R^features, at best the identity, with weights from torch's generator.

        For latent densities alone it may be a `Density`.

        Arguments:
            features: d
            parameters: the number of parameters `theta` that condition it
            cut: a chart will keep the first `cut` coordinates and set the others to zero; None if all are alike
        """


def density_of(config: FlowConfig, features: int, parameters: int = 0) -> Bijection | Density:
    """Return what a config builds for a latent density.

    Raises:
        TypeError: if it is no flow and no density of these dimensions
    """
    flow: Any = config.build(features, parameters)
    _require_flow(config, flow, (features, parameters), Bijection | Density)
    return cast(Bijection | Density, flow)


def built(config: FlowConfig, features: int, parameters: int = 0, cut: int | None = None) -> Bijection:
    """Return what a config builds for a chart.

    Raises:
        TypeError: if it is no flow of these dimensions
    """
    flow: Any = config.build(features, parameters, cut)
    _require_flow(config, flow, (features, parameters), Bijection)
    return cast(Bijection, flow)


def _require_flow(config: FlowConfig, flow: object, dims: tuple[int, int], kind: type | UnionType) -> None:
    """Raise TypeError unless a flow is a module of a kind with so many features and parameters."""
    made = f"{type(config).__name__}.build(...)"
    methods = "`Bijection`, which a chart needs" if kind is Bijection else "`Bijection` or of `Density`"
    for each, wanted in ((nn.Module, "a torch module"), (kind, f"a flow with the methods of {methods}")):
        require_kind(made, flow, each, wanted)
    found: Any = flow
    if (found.features, found.parameter_dim) != dims:
        raise TypeError(
            f"`{type(config).__name__}.build({dims[0]}, {dims[1]})` should return a flow of so many features and "
            f"parameters; it has {found.features} and {found.parameter_dim}."
        )


class Layer(Protocol):
    """What a flow is made of; arrays have shape `(coordinates, rows)`, tangents `(rows, n, coordinates)`.

    A layer may say whether it `meets_theta`; one that does say it takes points and theta that are to be broadcast.
    """

    def __call__(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log|det dy/dx|, shape `(rows,)` or one for all rows."""

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x."""

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and its tangents, given those of y, at fixed theta."""


class Flow(nn.Module):
    """A conditional bijection y = f(x; theta) of R^d.

    Arguments:
        layers: first to act first, each a `Layer`
        features: d, the number of coordinates
        parameters: the number of parameters `theta` that condition it, 0 for none

    Example:
        >>> from mfsbi.flows import SplineCouplings
        >>> flow = SplineCouplings(layers=2).build(features=3, parameters=1)
        >>> x, theta = torch.randn(5, 3), torch.zeros(5, 1)
        >>> y, log_det = flow.forward_and_log_det(x, theta)
        >>> bool(torch.allclose(flow.inverse(y, theta), x, atol=1e-5)), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(self, layers: Iterable[nn.Module], features: int, parameters: int = 0) -> None:
        super().__init__()
        self.layers = cast(Sequence[Layer], nn.ModuleList(layers))
        self.features = features
        self.parameter_dim = parameters

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.parameters())
        layers = len(self.layers)
        return f"Flow(features={self.features}, theta={self.parameter_dim}, layers={layers}, weights={weights:,})"

    def forward(self, x: Data, theta: Parameters | None = None) -> Data:
        """Return y = f(x; theta), shape `(*, d)`."""
        return self.forward_and_log_det(x, theta)[0]

    def forward_and_log_det(self, x: Data, theta: Parameters | None = None) -> tuple[Data, Scalars]:
        """Return y = f(x; theta), shape `(*, d)`, and log|det df/dx|, shape `(*)`."""
        y, columns = _columns(x), self._theta(x, theta)
        log_det = y.new_zeros(())
        for layer in self.layers:
            y, change = layer(y, columns)
            log_det = log_det + change
        return y.T.reshape(x.shape), log_det.expand(y.shape[1]).reshape(x.shape[:-1])

    def inverse(self, y: Data, theta: Parameters | None = None) -> Data:
        """Return x with f(x; theta) = y, shape `(*, d)`."""
        x, columns = _columns(y), self._theta(y, theta)
        for layer in reversed(self.layers):
            x = layer.inverse(x, columns)
        return x.T.reshape(y.shape)

    def inverse_with_tangents(
        self, y: Data, tangents: Tangents, theta: Parameters | None = None
    ) -> tuple[Data, Tangents]:
        """Return x with f(x; theta) = y, shape `(*, d)`, and the tangents dx of it at fixed theta.

        Arguments:
            y: shape `(*, d)`
            tangents: dy, n of them, shape `(*, d, n)`
            theta: shape `(*, parameter)`, if the flow takes any
        """
        columns = self._theta(y, theta)
        x, vectors = _columns(y), tangents.mT.reshape(-1, *tangents.mT.shape[-2:])
        for layer in reversed(self.layers):
            x, vectors = layer.inverse_with_tangents(x, vectors, columns)
        return x.T.reshape(y.shape), vectors.mT.reshape(tangents.shape)

    def _theta(self, x: Tensor, theta: Tensor | None) -> Tensor:
        """Return theta in columns, one for each row of x; without parameters an array without rows."""
        if theta is None:
            return x.new_zeros(0, x[..., 0].numel())
        return _columns(theta.expand(*x.shape[:-1], theta.shape[-1]))


@dataclass(frozen=True)
class LayerStack(FlowConfig):
    """What stacks of layers with networks have in common: their size.

    Arguments:
        layers: number of layers
        width: units in each hidden layer of the networks
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network; above 1 it finds features that are much narrower than
            a standard deviation sooner
        theta_sharpness: factor on the first weights that meet theta; below 1 what is learned begins smooth in theta,
            and fewer simulations teach it
        lu: put a learned linear layer (LU-decomposed) before each layer; worth it when d is large

    Raises:
        ValueError: if a number is not positive
    """

    layers: int = 6
    width: int = 64
    depth: int = 3
    sharpness: float = 2.0
    theta_sharpness: float = 0.15
    lu: bool = False

    def __post_init__(self) -> None:
        require_sizes(self)

    @abstractmethod
    def stack(self, features: int, parameters: int, cut: int | None) -> Iterator[nn.Module]:
        """Yield the layers of a flow, first to act first, but for linear ones."""

    def build(self, features: int, parameters: int = 0, cut: int | None = None) -> Flow:
        """Return the identity flow of R^features; its weights, and orders, come from torch's generator."""
        layers: list[nn.Module] = []
        for layer in self.stack(features, parameters, cut):
            layers += [Linear(features), layer] if self.lu else [layer]
        return Flow(layers, features, parameters)


class Linear(nn.Module):
    """The linear layer y = L U x of R^d, with L unit lower and U upper triangular; it starts as the identity.

    The diagonal of U is exp(log_diagonal): the layer cannot become singular.
    """

    meets_theta = False

    def __init__(self, features: int) -> None:
        super().__init__()
        self.triangles = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, _theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, rows)`, and log|det dy/dx|, the same for all rows."""
        lower, upper = self._factors()
        return lower @ (upper @ x), self.log_diagonal.sum()

    def inverse(self, y: Tensor, _theta: Tensor | None = None) -> Tensor:
        """Return x, shape `(d, rows)`."""
        lower, upper = self._factors()
        y = torch.linalg.solve_triangular(lower, y, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, y, upper=True)

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, _theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        inverse = self.inverse(torch.eye(len(y), dtype=y.dtype, device=y.device))
        return self.inverse(y), functional.linear(tangents, inverse)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.triangles.tril(-1) + torch.eye(len(self.triangles)).to(self.triangles)
        return lower, self.triangles.triu(1) + self.log_diagonal.exp().diag()


def _columns(x: Tensor) -> Tensor:
    """Return rows of any batch shape as an array of shape `(features, rows)`."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).T.contiguous()
