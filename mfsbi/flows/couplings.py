"""Couplings and stacks of them; `mfsbi.flows` has the derivation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.checks import require_positive, require_positive_integer
from mfsbi.flows.flow import Flow, Linear
from mfsbi.flows.splines import spline, spline_inverse, spline_inverse_with_gradient

__all__ = [
    "Affine",
    "AffineCoupling",
    "AffineCouplings",
    "Conditioner",
    "Couplings",
    "SplineCoupling",
    "SplineCouplings",
]

LARGEST_LOG_SCALE = 2.0
"""Of an affine coupling; near its start the bound is not felt."""


@dataclass(frozen=True)
class Couplings(ABC):
    """A stack of couplings, to be built once the dimensions are known; what all kinds have in common.

    Arguments:
        layers: number of couplings
        width: units in each hidden layer of the networks
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network; above 1 it finds features that are much narrower than
            a standard deviation sooner
        theta_sharpness: factor on the first weights that meet theta; below 1 what is learned begins smooth in theta,
            and fewer simulations teach it
        lu: put a learned linear layer (LU-decomposed) before each coupling; worth it when d is large

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
        for name in ("layers", "width", "depth"):
            require_positive_integer(f"{type(self).__name__}.{name}", getattr(self, name))
        for name in ("sharpness", "theta_sharpness"):
            require_positive(f"{type(self).__name__}.{name}", getattr(self, name))

    @abstractmethod
    def coupling(self, keep: Tensor, parameters: int) -> nn.Module:
        """Return one coupling that keeps the coordinates where `keep`, shape `(d,)`, is true."""

    def build(self, features: int, parameters: int = 0, cut: int | None = None) -> Flow:
        """Return the identity flow of R^features, ready to be trained; its weights come from torch's generator.

        Arguments:
            features: d
            parameters: the number of parameters `theta` that condition it
            cut: the masks are the first `cut` coordinates and the others in turn; if not given they move along a random
                order, so that every coordinate meets every other
        """
        layers: list[nn.Module] = []
        for keep in _masks(features, self.layers, cut):
            layers += [Linear(features)] if self.lu else []
            layers.append(self.coupling(keep, parameters))
        return Flow(layers, features, parameters)


@dataclass(frozen=True)
class AffineCouplings(Couplings):
    """A stack of affine couplings: cheap and smooth, for charts; the arguments are those of `Couplings`."""

    def coupling(self, keep: Tensor, parameters: int) -> nn.Module:
        """Return one affine coupling."""
        return AffineCoupling(keep, parameters, self)


@dataclass(frozen=True)
class SplineCouplings(Couplings):
    """A stack of spline couplings: any density on an interval, for latent densities and ambient flows.

    Arguments:
        layers: number of couplings
        width: units in each hidden layer of the networks
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network
        theta_sharpness: factor on the first weights that meet theta
        lu: put a learned linear layer before each coupling
        bins: pieces of each spline
        bound: half-width B of the interval [-B, B] the splines act on, in standardised units

    Raises:
        ValueError: if a number is not positive
    """

    layers: int = 5
    width: int = 100
    sharpness: float = 1.0
    bins: int = 10
    bound: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integer("SplineCouplings.bins", self.bins)
        require_positive("SplineCouplings.bound", self.bound)

    def coupling(self, keep: Tensor, parameters: int) -> nn.Module:
        """Return one spline coupling."""
        return SplineCoupling(keep, parameters, self)


class _Coupling(nn.Module):
    """What couplings share: which coordinates are kept and moved, and the network that decides how.

    Arguments:
        keep: shape `(d,)`, of booleans; with a single coordinate nothing is kept, and the map depends on `theta` alone
        parameters: the number of parameters `theta`
        numbers: that the network gives for each moved coordinate
        settings: the size of the network
    """

    kept: Tensor
    moved: Tensor
    back: Tensor

    def __init__(self, keep: Tensor, parameters: int, numbers: int, settings: Couplings) -> None:
        super().__init__()
        kept, moved = keep.nonzero()[:, 0], (~keep).nonzero()[:, 0]
        self.register_buffer("kept", kept)
        self.register_buffer("moved", moved)
        self.register_buffer("back", torch.cat([kept, moved]).argsort())
        self.outputs = numbers, len(moved)
        sharpness = [settings.sharpness] * len(kept) + [settings.theta_sharpness] * parameters
        self.network = Conditioner(sharpness, math.prod(self.outputs), settings.width, settings.depth)

    def _raw(self, kept: Tensor, theta: Tensor) -> Tensor:
        """Return what the network says, shape `(numbers, moved, rows)`."""
        return self.network(torch.cat([kept, theta])).view(*self.outputs, -1)


class AffineCoupling(_Coupling):
    """A coupling that keeps the coordinates where `keep` is true and scales and shifts the others.

    Arguments:
        keep: shape `(d,)`, of booleans
        parameters: the number of parameters `theta`
        settings: the size of the network
    """

    def __init__(self, keep: Tensor, parameters: int, settings: Couplings) -> None:
        super().__init__(keep, parameters, 2, settings)

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, rows)`, and log|det dy/dx|, shape `(rows,)`."""
        kept = x[self.kept]
        raw, shift = self._raw(kept, theta)
        log_scale = _bounded(raw)
        y = torch.addcmul(shift, x[self.moved], log_scale.exp())
        return torch.cat([kept, y])[self.back], log_scale.sum(0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x, shape `(d, rows)`."""
        kept = y[self.kept]
        raw, shift = self._raw(kept, theta)
        x = (y[self.moved] - shift) * (-_bounded(raw)).exp()
        return torch.cat([kept, x])[self.back]

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        kept, dkept = y[self.kept], tangents[..., self.kept]
        hidden, dhidden = self.network.hidden_with_tangents(torch.cat([kept, theta]), dkept)
        raw, shift = self.network.last(hidden).view(*self.outputs, -1)
        draw, dshift = functional.linear(dhidden, self.network.last.weight).unflatten(-1, self.outputs).unbind(-2)
        log_scale = _bounded(raw)
        shrink = (-log_scale).exp()
        x = (y[self.moved] - shift) * shrink
        dlog_scale = draw * (1 - (log_scale / LARGEST_LOG_SCALE).square()).T.unsqueeze(1)
        dx = (tangents[..., self.moved] - dshift) * shrink.T.unsqueeze(1) - x.T.unsqueeze(1) * dlog_scale
        return torch.cat([kept, x])[self.back], torch.cat([dkept, dx], dim=-1)[..., self.back]


class SplineCoupling(_Coupling):
    """A coupling that keeps the coordinates where `keep` is true and moves the others by splines.

    Arguments:
        keep: shape `(d,)`, of booleans
        parameters: the number of parameters `theta`
        settings: bins, bound and the size of the network
    """

    def __init__(self, keep: Tensor, parameters: int, settings: SplineCouplings) -> None:
        super().__init__(keep, parameters, 3 * settings.bins - 1, settings)
        self.bound = float(settings.bound)

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

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        kept, dkept = y[self.kept], tangents[..., self.kept]
        hidden, dhidden = self.network.hidden_with_tangents(torch.cat([kept, theta]), dkept)
        raw = self.network.last(hidden).view(*self.outputs, -1)
        x, log_slope, by_raw = spline_inverse_with_gradient(y[self.moved], raw, self.bound)
        weights = self.network.last.weight.view(*self.outputs, -1)
        by_hidden = torch.bmm(by_raw.permute(1, 2, 0), weights.transpose(0, 1))  # (moved, rows, hidden)
        dx = (tangents[..., self.moved] - dhidden @ by_hidden.permute(1, 2, 0)) * (-log_slope).exp().T.unsqueeze(1)
        return torch.cat([kept, x])[self.back], torch.cat([dkept, dx], dim=-1)[..., self.back]


class Conditioner(nn.Module):
    """A multilayer perceptron with SiLU activations on arrays of shape `(features, rows)`; it starts as zero.

    Arguments:
        sharpness: a factor on the first weights of each feature that comes in; none is allowed
        outputs: features that go out
        width: units in each hidden layer
        depth: hidden layers
    """

    def __init__(self, sharpness: Sequence[float], outputs: int, width: int, depth: int) -> None:
        super().__init__()
        sizes = [len(sharpness), *[width] * depth] if sharpness else [0]
        self.hidden = cast(Sequence[Affine], nn.ModuleList(Affine(*pair) for pair in pairwise(sizes)))
        self.last = Affine(sizes[-1], outputs)
        with torch.no_grad():
            for layer in self.hidden[:1]:
                layer.weight.mul_(torch.tensor(sharpness))
                layer.bias.mul_(max(sharpness))
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
            tangents: dx of the first inputs, shape `(rows, n, first inputs)`; the others stay fixed
        """
        for layer in self.hidden:
            x = layer(x)
            gate = x.sigmoid()
            tangents = functional.linear(tangents, layer.matrix[:, : tangents.shape[-1]]) * (
                gate * (1 + x * (1 - gate))
            ).T.unsqueeze(1)
            x = x * gate
        return x, tangents


class Affine(nn.Module):
    """An affine map of columns, y = W x + b for x of shape `(features, rows)`; for no features, b itself.

    Arguments:
        inputs: features that come in
        outputs: features that go out
        mask: which weights there are, booleans of shape `(outputs, inputs)`; all if not given
    """

    mask: Tensor | None

    def __init__(self, inputs: int, outputs: int, mask: Tensor | None = None) -> None:
        super().__init__()
        scale = max(inputs, 1) ** -0.5
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-scale, scale))
        self.bias = nn.Parameter(torch.empty(outputs, 1).uniform_(-scale, scale))
        self.register_buffer("mask", mask)

    @property
    def matrix(self) -> Tensor:
        """W, without the weights that a mask takes out."""
        return self.weight if self.mask is None else self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        """Return y, shape `(outputs, rows)`."""
        return torch.addmm(self.bias, self.matrix, x)


def _bounded(raw: Tensor) -> Tensor:
    """Return a log scale between -2 and 2, equal to `raw` near zero: no layer stretches by more than e^2."""
    return LARGEST_LOG_SCALE * (raw / LARGEST_LOG_SCALE).tanh()


def _masks(features: int, layers: int, cut: int | None = None) -> list[Tensor]:
    """Return a mask for each layer, each followed by its complement: the coordinates below `cut`, or a moving window.

    The window, half the coordinates wide, moves along a random order and so gives every coordinate its turn on either
    side; masks drawn independently may repeat a split. A single coordinate is moved by every layer.
    """
    if features == 1:
        return [torch.zeros(1, dtype=torch.bool)] * layers
    if cut is not None:
        below = torch.arange(features) < cut
        return [~below if layer % 2 else below for layer in range(layers)]
    order, half = torch.randperm(features), features // 2
    masks = []
    for layer in range(layers):
        start = (layer // 2) * half
        window = torch.zeros(features, dtype=torch.bool)
        window[order[torch.arange(start, start + half) % features]] = True
        masks.append(~window if layer % 2 else window)
    return masks
