"""Autoregressive splines and stacks of them; `mfsbi.flows` has the derivation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.checks import require_positive, require_positive_integer
from mfsbi.flows.couplings import Conditioner, Couplings
from mfsbi.flows.flow import Flow, Linear
from mfsbi.flows.splines import spline, spline_inverse, spline_inverse_with_gradient

__all__ = ["AutoregressiveSpline", "AutoregressiveSplines"]


@dataclass(frozen=True)
class AutoregressiveSplines(Couplings):
    """A stack of autoregressive splines: densities of ten dimensions and more, which couplings learn slowly.

    Its inverse, and so each draw, takes d times as long as its density. Charts need the inverse: take couplings there.

    Arguments:
        layers: number of layers; every second one goes through the coordinates in the opposite order
        width: units in each hidden layer of the networks
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network
        theta_sharpness: factor on the first weights that meet theta
        lu: put a learned linear layer before each layer
        bins: pieces of each spline
        bound: half-width B of the interval [-B, B] the splines act on, in standardised units

    Raises:
        ValueError: if a number is not positive
    """

    layers: int = 2
    width: int = 128
    bins: int = 5
    bound: float = 6.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integer("AutoregressiveSplines.bins", self.bins)
        require_positive("AutoregressiveSplines.bound", self.bound)

    def build(self, features: int, parameters: int = 0, cut: int | None = None) -> Flow:  # noqa: ARG002 - of charts
        """Return the identity flow of R^features; its order of coordinates and its weights come from torch's generator.

        Arguments:
            features: d
            parameters: the number of parameters `theta` that condition it
            cut: of no consequence
        """
        order = torch.randperm(features)
        layers: list[nn.Module] = []
        for number in range(self.layers):
            layers += [Linear(features)] if self.lu else []
            layers.append(self.coupling(order.flip(0) if number % 2 else order, parameters))
        return Flow(layers, features, parameters)

    def coupling(self, keep: Tensor, parameters: int) -> nn.Module:
        """Return one layer that goes through the coordinates in the order `keep`."""
        return AutoregressiveSpline(keep, parameters, self)


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
        sharpness = [settings.sharpness] * len(order) + [settings.theta_sharpness] * parameters
        masks = _masks(order.argsort(), parameters, self.outputs[0], settings)
        self.network = Conditioner(sharpness, math.prod(self.outputs), settings.width, settings.depth, masks)

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, rows)`, and log|det dy/dx|, shape `(rows,)`."""
        y, log_slope = spline(x, self._raw(x, theta), self.bound)
        return y, log_slope.sum(0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x, shape `(d, rows)`, one coordinate after the other."""
        x = torch.zeros_like(y)
        for i in self.order.tolist():
            found, _ = spline_inverse(y[i, None], self._raw(x, theta)[:, i, None], self.bound)
            x = torch.cat([x[:i], found, x[i + 1 :]])
        return x

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        x, dx = torch.zeros_like(y), torch.zeros_like(tangents)
        for i in self.order.tolist():
            hidden, dhidden = self.network.hidden_with_tangents(torch.cat([x, theta]), dx)
            raw = self.network.last(hidden).view(*self.outputs, -1)[:, i, None]
            draw = functional.linear(dhidden, self.network.last.matrix).unflatten(-1, self.outputs)[..., i]
            found, log_slope, by_raw = spline_inverse_with_gradient(y[i, None], raw, self.bound)
            along = (draw * by_raw[:, 0].T[:, None]).sum(-1)
            moved = (tangents[..., i] - along) * (-log_slope[0]).exp()[:, None]
            x = torch.cat([x[:i], found, x[i + 1 :]])
            dx = torch.cat([dx[..., :i], moved[..., None], dx[..., i + 1 :]], dim=-1)
        return x, dx

    def _raw(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return what the network says, shape `(numbers, d, rows)`."""
        return self.network(torch.cat([x, theta])).view(*self.outputs, -1)


def _masks(rank: Tensor, parameters: int, numbers: int, settings: AutoregressiveSplines) -> list[Tensor]:
    """Return which weights a network has that tells each coordinate only of those before it.

    Hidden unit j sees the coordinates of rank below its level, j d // width, and theta (Germain et al.,
    arXiv:1502.03509); the numbers for a coordinate come from units whose level is no higher than its rank.
    """
    level = torch.arange(settings.width) * len(rank) // settings.width
    first = torch.cat([rank < level[:, None], torch.ones(settings.width, parameters, dtype=torch.bool)], dim=1)
    inner = level <= level[:, None]
    last = (level <= rank[:, None]).repeat(numbers, 1)
    return [first, *[inner] * (settings.depth - 1), last]
