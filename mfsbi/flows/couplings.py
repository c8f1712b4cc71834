"""Couplings and stacks of them; `mfsbi.flows` has the derivation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mfsbi.flows.flow import LayerStack
from mfsbi.flows.splines import spline, spline_inverse, spline_inverse_with_gradient
from mfsbi.networks import Conditioner

__all__ = ["AffineCoupling", "AffineCouplings", "SplineCoupling", "SplineCouplings"]

LARGEST_LOG_SCALE = 2.0
"""Of an affine coupling; near its start the bound is not felt."""


@dataclass(frozen=True)
class AffineCouplings(LayerStack):
    """A stack of affine couplings: cheap and smooth, for charts; the arguments are those of `LayerStack`.

    Masks are the coordinates below `cut` and the others in turn. Without a cut they are half the coordinates, and move
    along a random order, so that every coordinate meets every other.
    """

    sharpness: float = 0.5

    def stack(self, features: int, parameters: int, cut: int | None) -> Iterator[nn.Module]:
        """Yield the couplings."""
        return (AffineCoupling(keep, parameters, self) for keep in _masks(features, self.layers, cut))


@dataclass(frozen=True)
class SplineCouplings(LayerStack):
    """A stack of spline couplings: any density on an interval, for latent densities and ambient flows.

    Masks are those of `AffineCouplings`.

    Arguments:
        layers, width, depth, sharpness, theta_sharpness, lu: as in `LayerStack`
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

    def stack(self, features: int, parameters: int, cut: int | None) -> Iterator[nn.Module]:
        """Yield the couplings."""
        return (SplineCoupling(keep, parameters, self) for keep in _masks(features, self.layers, cut))


class _Coupling(nn.Module, ABC):
    """What couplings share: which coordinates are kept and moved, and the network that decides how.

    Arguments:
        keep: shape `(d,)`, of booleans; with a single coordinate nothing is kept, and the map depends on `theta` alone
        parameters: the number of parameters `theta`
        numbers: that the network gives for each moved coordinate
        settings: the size of the network
    """

    def __init__(self, keep: Tensor, parameters: int, numbers: int, settings: LayerStack) -> None:
        super().__init__()
        kept, moved = (mask.nonzero()[:, 0].to(torch.get_default_device()) for mask in (keep, ~keep))
        self.kept, self.moved = nn.Buffer(kept), nn.Buffer(moved)
        self.back = nn.Buffer(torch.cat([kept, moved]).argsort())
        self.outputs = numbers, len(moved)
        sharpness = [settings.sharpness] * len(kept) + [settings.theta_sharpness] * parameters
        self.network = Conditioner(sharpness, math.prod(self.outputs), settings.width, settings.depth)

    @abstractmethod
    def move(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moved coordinates y_b and log dy_b/dx_b, given what the network says."""

    @abstractmethod
    def move_back(self, y: Tensor, raw: Tensor) -> Tensor:
        """Return x_b."""

    @abstractmethod
    def move_back_with_tangents(self, y: Tensor, dy: Tensor, hidden: Tensor, dhidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_b, shape `(moved, rows)`, and its tangents dx_b, shape `(rows, n, moved)`.

        Arguments:
            y: y_b, shape `(moved, rows)`
            dy: its tangents, shape `(rows, n, moved)`
            hidden: the network's last hidden layer, shape `(width, rows)`
            dhidden: its tangents, shape `(rows, n, width)`
        """

    def forward(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(d, rows)`, and log|det dy/dx|, shape `(rows,)`."""
        kept = x[self.kept]
        y, log_slope = self.move(x[self.moved], self._raw(self.network(torch.cat([kept, theta]))))
        return torch.cat([kept, y])[self.back], log_slope.sum(0)

    def inverse(self, y: Tensor, theta: Tensor) -> Tensor:
        """Return x, shape `(d, rows)`."""
        kept = y[self.kept]
        x = self.move_back(y[self.moved], self._raw(self.network(torch.cat([kept, theta]))))
        return torch.cat([kept, x])[self.back]

    def inverse_with_tangents(self, y: Tensor, tangents: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, shape `(d, rows)`, and its tangents, shape `(rows, n, d)` like those of y."""
        kept, dkept = y[self.kept], tangents[..., self.kept]
        hidden, dhidden = self.network.hidden_with_tangents(torch.cat([kept, theta]), dkept)
        x, dx = self.move_back_with_tangents(y[self.moved], tangents[..., self.moved], hidden, dhidden)
        return torch.cat([kept, x])[self.back], torch.cat([dkept, dx], dim=-1)[..., self.back]

    def _raw(self, said: Tensor) -> Tensor:
        """Return what the network said, shape `(numbers, moved, rows)`."""
        return said.view(*self.outputs, -1)


class AffineCoupling(_Coupling):
    """A coupling that keeps the coordinates where `keep` is true and scales and shifts the others.

    Arguments:
        keep: shape `(d,)`, of booleans
        parameters: the number of parameters `theta`
        settings: the size of the network
    """

    def __init__(self, keep: Tensor, parameters: int, settings: AffineCouplings) -> None:
        super().__init__(keep, parameters, 2, settings)

    def move(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return exp(a) x + b and a, with a bounded."""
        log_scale = _bounded(raw[0])
        return torch.addcmul(raw[1], x, log_scale.exp()), log_scale

    def move_back(self, y: Tensor, raw: Tensor) -> Tensor:
        """Return exp(-a) (y - b)."""
        return (y - raw[1]) * (-_bounded(raw[0])).exp()

    def move_back_with_tangents(self, y: Tensor, dy: Tensor, hidden: Tensor, dhidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_b and exp(-a) (dy_b - db) - x_b da."""
        raw, shift = self._raw(self.network.last(hidden))
        draw, dshift = functional.linear(dhidden, self.network.last.weight).unflatten(-1, self.outputs).unbind(-2)
        log_scale = _bounded(raw)
        shrink = (-log_scale).exp()
        x = (y - shift) * shrink
        dlog_scale = draw * (1 - (log_scale / LARGEST_LOG_SCALE).square()).T.unsqueeze(1)
        return x, (dy - dshift) * shrink.T.unsqueeze(1) - x.T.unsqueeze(1) * dlog_scale


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

    def move(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Return s(x) and log s'(x)."""
        return spline(x, raw, self.bound)

    def move_back(self, y: Tensor, raw: Tensor) -> Tensor:
        """Return x with s(x) = y."""
        return spline_inverse(y, raw, self.bound)[0]

    def move_back_with_tangents(self, y: Tensor, dy: Tensor, hidden: Tensor, dhidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_b and (dy_b - G . dnetwork) / s'(x_b); G meets the last weights before it meets the tangents."""
        x, log_slope, by_raw = spline_inverse_with_gradient(y, self._raw(self.network.last(hidden)), self.bound)
        weights = self.network.last.weight.view(*self.outputs, -1)
        by_hidden = torch.bmm(by_raw.permute(1, 2, 0), weights.transpose(0, 1))  # (moved, rows, hidden)
        return x, (dy - dhidden @ by_hidden.permute(1, 2, 0)) * (-log_slope).exp().T.unsqueeze(1)


def _bounded(raw: Tensor) -> Tensor:
    """Return a log scale between -2 and 2, equal to `raw` near zero: no layer stretches by more than e^2."""
    return LARGEST_LOG_SCALE * (raw / LARGEST_LOG_SCALE).tanh()


def _masks(features: int, layers: int, cut: int | None) -> Iterator[Tensor]:
    """Yield a mask for each layer, each followed by its complement: the coordinates below `cut`, or a moving window.

    The window, half the coordinates wide, moves along a random order and so gives every coordinate its turn on either
    side; masks drawn independently may repeat a split. A single coordinate is moved by every layer. Masks are on the
    processor, where their values are known even if the flow is on torch's meta device.
    """
    half, cut = features // 2, 0 if features == 1 else cut
    order = torch.randperm(features, device="cpu") if cut is None else torch.arange(features, device="cpu")
    for layer in range(layers):
        start = (layer // 2) * half
        window = torch.arange(start, start + half, device="cpu") if cut is None else torch.arange(cut, device="cpu")
        mask = torch.zeros(features, dtype=torch.bool, device="cpu")
        mask[order[window % features]] = True
        yield ~mask if layer % 2 and features > 1 else mask
