"""Autoregressive splines and stacks of them; `mfsbi.flows` has the derivation."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.flows.flow import LayerStack
from mfsbi.flows.splines import spline, spline_inverse, spline_inverse_with_gradient
from mfsbi.networks import MaskedConditioner, Told

__all__ = ["AutoregressiveSpline", "AutoregressiveSplines"]


@dataclass(frozen=True)
class AutoregressiveSplines(LayerStack):
    """A stack of autoregressive splines: densities of ten dimensions and more, which couplings learn slowly.

    Every second layer goes through the coordinates in the opposite order. Theta enters the last layer alone, whose
    network is wider: joint scores are then learned sooner, and better, than by layers that all meet theta
    (`notebooks/measurements.md`).

    Its inverse, and so each draw, takes d times as long as its density. Charts need the inverse: take couplings there.

    Arguments:
        layers, depth, sharpness, lu: as in `LayerStack`
        width: units in each hidden layer of the networks that do not meet theta
        theta_width: units in each hidden layer of the last network, which does
        theta_sharpness: largest factor on the first weights that meet theta; units have all factors from 1 to this
        bins: pieces of each spline
        bound: half-width B of the interval [-B, B] the splines act on, in standardised units
        shuffle: go through the coordinates in a random order; if not, in their own

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

    def stack(self, features: int, parameters: int, _cut: int | None) -> Iterator[nn.Module]:
        """Yield the layers, each in the opposite order of the one before it."""
        order = torch.randperm(features) if self.shuffle else torch.arange(features)
        for number in range(self.layers):
            told = parameters if number == self.layers - 1 else 0
            yield AutoregressiveSpline(order.flip(0) if number % 2 else order, told, self)


class AutoregressiveSpline(nn.Module):
    """A layer that moves each coordinate by a spline, given those before it in an order, and theta.

    Arguments:
        order: a permutation of the d coordinates, first first
        parameters: the number of parameters `theta`
        settings: bins, bound and the size of the network
    """

    def __init__(self, order: Tensor, parameters: int, settings: AutoregressiveSplines) -> None:
        super().__init__()
        self.order = nn.Buffer(order)
        self.bound = float(settings.bound)
        self.outputs = 3 * settings.bins - 1, len(order)
        width = settings.theta_width if parameters else settings.width
        sharpness, rank = (settings.sharpness, settings.theta_sharpness), order.argsort()
        self.network = MaskedConditioner(rank, parameters, self.outputs[0], width, settings.depth, sharpness)

    @property
    def meets_theta(self) -> bool:
        """Whether theta conditions the layer."""
        return self.network.gate is not None

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, *)`, and log|det dy/dx|, shape `(*)`; those of x and theta may be broadcast."""
        raw = self._raw(x, self.network.told(theta))
        y, log_slope = spline(x.expand(raw.shape[1:]), raw, self.bound)
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

    def _raw(self, x: Tensor, told: Told) -> Tensor:
        """Return what the network says, shape `(numbers, d, *)`."""
        return self.network(x, told).unflatten(0, self.outputs)
