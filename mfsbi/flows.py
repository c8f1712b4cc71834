r"""Conditional bijections: the moving parts of charts and latent densities.

A flow is a bijection ``y = f(x; theta)`` of R^d, composed of layers. A coupling keeps one half of the coordinates,
feeds it (with ``theta``) to a small network and moves the other half, one coordinate at a time, by a monotonic map
whose parameters the network gives:

    y_a = x_a,    y_b = s(x_b; network(x_a, theta)),    log|det df/dx| = sum_b log s'(x_b).

The map ``s`` is a rational-quadratic spline with ``bins`` pieces on [-bound, bound] and the identity outside
(Durkan et al., arXiv:1906.04032), so a flow is defined, smooth enough and finite on all of R^d.

Every flow built here **starts as the identity**: the last layer of each network is zero. Charts depend on it.
A chart cuts the coordinates after the flow, so whatever stands between the layers decides which directions of
data space the manifold coordinates begin with; random permutations, as in the original code, draw that choice
by lot. Here layers come in pairs, a mask and its complement, which mixes coordinates and moves none.

**Layout.** Inside a flow, rows are columns: arrays have shape `(coordinates, rows)`. Choosing coordinates copies
contiguous memory then, and the networks write the splines' parameters in the order `mfsbi.splines` wants them.

**Tangents.** A layer carries n tangents along with the point in closed form. For the inverse of a coupling, with G the
derivative of s by what the network says (one backward pass through the spline alone, whatever n),

    dx_a = dy_a,    dx_b = (dy_b - G . dnetwork/dx_a . dx_a) / s'(x_b).

G meets the network's last weights before it meets the tangents: that layer is the largest, and n tangents do not
go through it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.checks import require_positive, require_positive_integer
from mfsbi.splines import spline, spline_inverse
from mfsbi.types import Data, Parameters, Scalars, Tangents

__all__ = ["Conditioner", "Couplings", "Flow", "Layer", "Linear", "SplineCoupling"]


class Layer(Protocol):
    """What a flow is made of; arrays have shape `(coordinates, rows)`, tangents `(rows, n, coordinates)`."""

    def __call__(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log|det dy/dx|, shape `(rows,)` or one for all rows."""

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x."""

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and its tangents, given those of y; for layers without theta."""


class Flow(nn.Module):
    """A conditional bijection y = f(x; theta) of R^d.

    Arguments:
        layers: first to act first, each a `Layer`
        features: d, the number of coordinates
        parameters: the number of parameters `theta` that condition it, 0 for none

    Example:
        >>> flow = Couplings(layers=2).build(features=3, parameters=1)
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

    def inverse_with_tangents(self, y: Data, tangents: Tangents) -> tuple[Data, Tangents]:
        """Return x with f(x) = y, shape `(*, d)`, and the tangents dx of it, for a flow without theta.

        Arguments:
            y: shape `(*, d)`
            tangents: dy, n of them, shape `(*, d, n)`
        """
        x, vectors = _columns(y), tangents.mT.reshape(-1, *tangents.mT.shape[-2:])
        for layer in reversed(self.layers):
            x, vectors = layer.inverse_with_tangents(x, vectors)
        return x.T.reshape(y.shape), vectors.mT.reshape(tangents.shape)

    def _theta(self, x: Tensor, theta: Tensor | None) -> Tensor:
        """Return theta in columns, one for each row of x; without parameters an array without rows."""
        if theta is None:
            return x.new_zeros(0, x[..., 0].numel())
        return _columns(theta.expand(*x.shape[:-1], theta.shape[-1]))


@dataclass(frozen=True)
class Couplings:
    """A stack of spline couplings, to be built once the dimensions are known.

    Arguments:
        layers: number of couplings
        bins: pieces of each spline
        bound: half-width B of the interval [-B, B] the splines act on, in standardised units
        width: units in each hidden layer of the networks
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network; above 1 it finds features that are much narrower than
            a standard deviation sooner
        lu: put a learned linear layer (LU-decomposed) before each coupling; worth it when d is large

    Raises:
        ValueError: if a number is not positive
    """

    layers: int = 5
    bins: int = 10
    bound: float = 6.0
    width: int = 100
    depth: int = 2
    sharpness: float = 1.0
    lu: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "bins", "width", "depth"):
            require_positive_integer(f"Couplings.{name}", getattr(self, name))
        for name in ("bound", "sharpness"):
            require_positive(f"Couplings.{name}", getattr(self, name))

    def build(self, features: int, parameters: int = 0) -> Flow:
        """Return the identity flow of R^features, ready to be trained; its weights come from torch's generator."""
        layers: list[nn.Module] = []
        for keep in _masks(features, self.layers):
            layers += [Linear(features)] if self.lu else []
            layers.append(SplineCoupling(keep, parameters, self))
        return Flow(layers, features, parameters)


class SplineCoupling(nn.Module):
    """A coupling that keeps the coordinates where `keep` is true and moves the others by splines.

    With a single coordinate there is nothing to keep: the spline then depends on `theta` alone.

    Arguments:
        keep: shape `(d,)`, of booleans
        parameters: the number of parameters `theta`
        settings: bins, bound and the size of the network
    """

    kept: Tensor
    moved: Tensor
    back: Tensor

    def __init__(self, keep: Tensor, parameters: int, settings: Couplings) -> None:
        super().__init__()
        kept, moved = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
        self.register_buffer("kept", kept)
        self.register_buffer("moved", moved)
        self.register_buffer("back", torch.cat([kept, moved]).argsort())
        self.bound = float(settings.bound)
        self.outputs = 3 * settings.bins - 1, len(moved)
        inputs = len(kept) + parameters
        self.network = Conditioner(inputs, math.prod(self.outputs), settings.width, settings.depth, settings.sharpness)

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, rows)`, and log|det dy/dx|, shape `(rows,)`."""
        kept = x[self.kept]
        y, log_slope = spline(x[self.moved], self._raw(kept, theta), self.bound)
        return torch.cat([kept, y])[self.back], log_slope.sum(0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x, shape `(d, rows)`."""
        kept = y[self.kept]
        x, _ = spline_inverse(y[self.moved], self._raw(kept, theta), self.bound)
        return torch.cat([kept, x])[self.back]

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        kept, dkept = y[self.kept], tangents[..., self.kept]
        hidden, dhidden = self.network.hidden_with_tangents(kept, dkept)
        raw = self.network.last(hidden).view(*self.outputs, -1)
        x, log_slope = spline_inverse(y[self.moved], raw, self.bound)
        pull = torch.func.vjp(lambda numbers: spline(x, numbers, self.bound)[0], raw)[1]
        (by_raw,) = pull(torch.ones_like(x))
        weights = self.network.last.weight.view(*self.outputs, -1)
        by_hidden = torch.bmm(by_raw.permute(1, 2, 0), weights.transpose(0, 1))  # (moved, rows, hidden)
        dx = (tangents[..., self.moved] - dhidden @ by_hidden.permute(1, 2, 0)) * (-log_slope).exp().T.unsqueeze(1)
        return torch.cat([kept, x])[self.back], torch.cat([dkept, dx], dim=-1)[..., self.back]

    def _raw(self, kept: Tensor, theta: Tensor) -> Tensor:
        return self.network(torch.cat([kept, theta])).view(*self.outputs, -1)


class Conditioner(nn.Module):
    """A multilayer perceptron with SiLU activations on arrays of shape `(features, rows)`; it starts as zero.

    Arguments:
        inputs: features that come in; none is allowed
        outputs: features that go out
        width: units in each hidden layer
        depth: hidden layers
        sharpness: factor on the first weights
    """

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, sharpness: float) -> None:
        super().__init__()
        sizes = [inputs, *[width] * depth] if inputs else [0]
        self.hidden = cast(Sequence[_Affine], nn.ModuleList(_Affine(*pair) for pair in pairwise(sizes)))
        self.last = _Affine(sizes[-1], outputs)
        with torch.no_grad():
            for layer in self.hidden[:1]:
                for weight in layer.parameters():
                    weight.mul_(sharpness)
            for weight in self.last.parameters():
                weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs, shape `(outputs, rows)`."""
        for layer in self.hidden:
            x = functional.silu(layer(x))
        return self.last(x)

    def hidden_with_tangents(self, x: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden layer, shape `(width, rows)`, and its tangents, shape `(rows, n, width)`.

        Arguments:
            x: shape `(inputs, rows)`
            tangents: dx, shape `(rows, n, inputs)`
        """
        for layer in self.hidden:
            x = layer(x)
            gate = x.sigmoid()
            tangents = functional.linear(tangents, layer.weight) * (gate * (1 + x * (1 - gate))).T.unsqueeze(1)
            x = x * gate
        return x, tangents


class Linear(nn.Module):
    """The linear layer y = L U x of R^d, with L unit lower and U upper triangular; it starts as the identity.

    The diagonal of U is exp(log_diagonal): the layer cannot become singular.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.triangles = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002 - a layer's signature
        """Return y, shape `(d, rows)`, and log|det dy/dx|, the same for all rows."""
        lower, upper = self._factors()
        return lower @ (upper @ x), self.log_diagonal.sum()

    def inverse(self, y: Tensor, theta: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return x, shape `(d, rows)`."""
        lower, upper = self._factors()
        y = torch.linalg.solve_triangular(lower, y, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, y, upper=True)

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        inverse = self.inverse(torch.eye(len(y), dtype=y.dtype, device=y.device))
        return self.inverse(y), functional.linear(tangents, inverse)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = self.triangles.tril(-1) + torch.eye(len(self.triangles)).to(self.triangles)
        return lower, self.triangles.triu(1) + self.log_diagonal.exp().diag()


class _Affine(nn.Module):
    """An affine map of columns, y = W x + b for x of shape `(features, rows)`; for no features, b itself."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        scale = max(inputs, 1) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.empty(outputs, 1).uniform_(-scale, scale))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, self.weight, x)


def _columns(x: Tensor) -> Tensor:
    """Return rows of any batch shape as an array of shape `(features, rows)`."""
    return x.reshape(-1, x.shape[-1]).T.contiguous()


def _masks(features: int, layers: int) -> list[Tensor]:
    """Return a mask of half the coordinates for each layer: a window moving along a random order, and its complement.

    The moving window gives every coordinate its turn on either side; masks drawn independently may repeat a split.
    A single coordinate is moved by every layer.
    """
    if features == 1:
        return [torch.zeros(1, dtype=torch.bool)] * layers
    order, half = torch.randperm(features), features // 2
    masks = []
    for layer in range(layers):
        start = (layer // 2) * half
        window = torch.zeros(features, dtype=torch.bool)
        window[order[torch.arange(start, start + half) % features]] = True
        masks.append(~window if layer % 2 else window)
    return masks
