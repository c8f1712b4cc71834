"""Autoregressive splines and stacks of them; `mfsbi.flows` has the derivation."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.checks import require_positive, require_positive_integer
from mfsbi.flows.couplings import Affine, Couplings
from mfsbi.flows.flow import Flow, Linear
from mfsbi.flows.splines import spline, spline_inverse, spline_inverse_with_gradient

__all__ = ["AutoregressiveSpline", "AutoregressiveSplines"]


@dataclass(frozen=True)
class AutoregressiveSplines(Couplings):
    """A stack of autoregressive splines: densities of ten dimensions and more, which couplings learn slowly.

    Theta enters the last layer alone, whose network is wider: joint scores are then learned sooner, and better, than by
    layers that all meet theta (`notebooks/measurements.md`).

    Its inverse, and so each draw, takes d times as long as its density. Charts need the inverse: take couplings there.

    Arguments:
        layers: number of layers; every second one goes through the coordinates in the opposite order
        width: units in each hidden layer of the networks that do not meet theta
        theta_width: units in each hidden layer of the last network, which does
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network
        theta_sharpness: largest factor on the first weights that meet theta; units have all factors from 1 to this
        lu: put a learned linear layer before each layer
        bins: pieces of each spline
        bound: half-width B of the interval [-B, B] the splines act on, in standardised units
        shuffle: go through the coordinates in a random order; in theirs, the later ones told by the earlier, if not

    Raises:
        ValueError: if a number is not positive
    """

    layers: int = 3
    width: int = 64
    theta_width: int = 192
    sharpness: float = 3.0
    theta_sharpness: float = 10.0
    bins: int = 5
    bound: float = 6.0
    shuffle: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integer("AutoregressiveSplines.theta_width", self.theta_width)
        require_positive_integer("AutoregressiveSplines.bins", self.bins)
        require_positive("AutoregressiveSplines.bound", self.bound)

    def build(self, features: int, parameters: int = 0, cut: int | None = None) -> Flow:  # noqa: ARG002 - of charts
        """Return the identity flow of R^features; its weights come from torch's generator, and so does a random order.

        Arguments:
            features: d
            parameters: the number of parameters `theta` that condition it
            cut: of no consequence
        """
        order = torch.randperm(features) if self.shuffle else torch.arange(features)
        layers: list[nn.Module] = []
        for number in range(self.layers):
            layers += [Linear(features)] if self.lu else []
            last = number == self.layers - 1
            layers.append(self.coupling(order.flip(0) if number % 2 else order, parameters if last else 0))
        return Flow(layers, features, parameters)

    def coupling(self, keep: Tensor, parameters: int) -> nn.Module:
        """Return one layer that goes through the coordinates in the order `keep`."""
        return AutoregressiveSpline(keep, parameters, replace(self, width=self.theta_width) if parameters else self)


class AutoregressiveSpline(nn.Module):
    """A layer that moves each coordinate by a spline, given those before it in an order, and theta.

    Arguments:
        order: a permutation of the d coordinates, first first
        parameters: the number of parameters `theta`
        settings: bins, bound and the size of the network
    """

    order: Tensor

    def __init__(self, order: Tensor, parameters: int, settings: AutoregressiveSplines) -> None:
        super().__init__()
        self.register_buffer("order", order)
        self.bound = float(settings.bound)
        self.outputs = 3 * settings.bins - 1, len(order)
        self.network = MaskedConditioner(order.argsort(), parameters, self.outputs[0], settings)

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, rows)`, and log|det dy/dx|, shape `(rows,)`."""
        y, log_slope = spline(x, self._raw(x, self.network.told(theta)), self.bound)
        return y, log_slope.sum(0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x, shape `(d, rows)`, one coordinate after the other."""
        x, told = torch.zeros_like(y), self.network.told(theta)
        for i in self.order.tolist():
            found, _ = spline_inverse(y[i, None], self._raw(x, told)[:, i, None], self.bound)
            x = torch.cat([x[:i], found, x[i + 1 :]])
        return x

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        x, dx, told = torch.zeros_like(y), torch.zeros_like(tangents), self.network.told(theta)
        for i in self.order.tolist():
            hidden, dhidden = self.network.hidden_with_tangents(x, told, dx)
            raw = self.network.last(hidden).view(*self.outputs, -1)[:, i, None]
            draw = functional.linear(dhidden, self.network.last.matrix).unflatten(-1, self.outputs)[..., i]
            found, log_slope, by_raw = spline_inverse_with_gradient(y[i, None], raw, self.bound)
            along = (draw * by_raw[:, 0].T[:, None]).sum(-1)
            moved = (tangents[..., i] - along) * (-log_slope[0]).exp()[:, None]
            x = torch.cat([x[:i], found, x[i + 1 :]])
            dx = torch.cat([dx[..., :i], moved[..., None], dx[..., i + 1 :]], dim=-1)
        return x, dx

    def _raw(self, x: Tensor, told: "Told") -> Tensor:
        """Return what the network says, shape `(numbers, d, rows)`."""
        return self.network(x, told).view(*self.outputs, -1)


class Told(NamedTuple):
    """What a conditioner is told of theta, shapes `(width, rows)`, or `(1, 1)` where there are no parameters.

    Arguments:
        shifts: added to each hidden layer
        gates: 1 + g
    """

    shifts: list[Tensor]
    gates: Tensor


class MaskedConditioner(nn.Module):
    """A masked network that tells each coordinate of those before it, and of theta; it starts as zero.

    Hidden unit j sees the coordinates of rank below its level, j d // width (Germain et al., arXiv:1502.03509), and the
    numbers for a coordinate come from units whose level is no higher than its rank. Theta goes through a network of its
    own, to features h(theta), which meet those of x in two ways. The last hidden layer but one is *gated*, its units
    multiplied by 1 + g(h): a sum of products of features of x and of theta is what log p often is, and learned sooner
    so than from theta beside x. And all units are *shifted* before their activation, by a(h): where along theta
    something happens may then depend on x, which would take many products (`notebooks/measurements.md`).

    The first units of h are bounded, by tanh, and of all sharpnesses: theta far out does no more than theta nearby, and
    what happens within a tenth of theta's spread is seen. Unbounded ones did more until training broke down.

    Arguments:
        rank: of each coordinate in the order, shape `(d,)`
        parameters: the number of parameters `theta`
        numbers: that go out for each coordinate
        settings: the size of the network
    """

    def __init__(self, rank: Tensor, parameters: int, numbers: int, settings: AutoregressiveSplines) -> None:
        super().__init__()
        width, depth, features = settings.width, settings.depth, len(rank)
        level = torch.arange(width) * features // width
        inner = level <= level[:, None]
        self.gated = max(0, depth - 2)  # the hidden layer whose units are
        first = Affine(features, width, rank < level[:, None])
        self.hidden = nn.ModuleList([first, *(Affine(width, width, inner) for _ in range(depth - 1))])
        self.last = Affine(width, numbers * features, (level <= rank[:, None]).repeat(numbers, 1))
        sizes = [parameters, width, width] if parameters else []
        self.features = nn.ModuleList(Affine(*pair) for pair in pairwise(sizes))
        self.gate = Affine(width, width) if parameters else None
        self.shifts = nn.ModuleList(Affine(width, width) for _ in range(depth if parameters else 0))
        with torch.no_grad():
            factors = torch.logspace(0, math.log10(settings.theta_sharpness), width)[:, None]
            for weight in first.parameters():
                weight.mul_(settings.sharpness)
            for weight in [weight for layer in self.features[:1] for weight in layer.parameters()]:
                weight.mul_(factors)
            for weight in self.last.parameters():
                weight.zero_()

    def told(self, theta: Tensor) -> Told:
        """Return what the hidden layers are told of theta, shape `(parameters, rows)`."""
        if self.gate is None:
            return Told([theta.new_zeros(1, 1)] * len(self.hidden), theta.new_ones(1, 1))
        first, second = self.features
        features = functional.silu(second(first(theta).tanh()))
        return Told([shift(features) for shift in self.shifts], 1 + self.gate(features))

    def forward(self, x: Tensor, told: Told) -> Tensor:
        """Return the outputs, shape `(numbers d, rows)`, for x of shape `(d, rows)`."""
        for number, (layer, shift) in enumerate(zip(self.hidden, told.shifts, strict=True)):
            x = functional.silu(layer(x) + shift)
            x = x * told.gates if number == self.gated else x
        return self.last(x)

    def hidden_with_tangents(self, x: Tensor, told: Told, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden layer, shape `(width, rows)`, and its tangents at fixed theta, `(rows, n, width)`.

        Arguments:
            x: shape `(d, rows)`
            told: of theta
            tangents: dx, shape `(rows, n, d)`
        """
        for number, (layer, shift) in enumerate(zip(self.hidden, told.shifts, strict=True)):
            x = layer(x) + shift
            slope = x.sigmoid()
            through = functional.linear(tangents, cast(Affine, layer).matrix)
            tangents = through * (slope * (1 + x * (1 - slope))).T.unsqueeze(1)
            x = x * slope
            if number == self.gated:
                x, tangents = x * told.gates, tangents * told.gates.T.unsqueeze(1)
        return x, tangents
