"""Small networks: what flows, charts, ratios and regressions of scores learn with.

Flows keep their rows as columns, arrays of shape `(features, rows)` (`mfsbi.flows`); `Affine` and both conditioners do
so too, and they carry tangents at fixed theta along in closed form. For the activation silu(x) = x s, s = 1/(1 + e^-x),

    d silu(x) = s (1 + x (1 - s)) dx.

`perceptron` and `ResidualNetwork` take rows of shape `(*, features)`.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Affine", "Conditioner", "MaskedConditioner", "ResidualNetwork", "Told", "perceptron"]


def perceptron(sizes: Sequence[int], activation: Callable[[], nn.Module], sharpness: float = 1.0) -> nn.Sequential:
    """Return linear layers with an activation between them.

    Arguments:
        sizes: features that come in, units of each hidden layer, features that go out
        activation: such as `nn.SiLU`
        sharpness: factor on the first weights
    """
    first, *others = (nn.Linear(*pair) for pair in pairwise(sizes))
    _scale(first, sharpness)
    return nn.Sequential(first, *(layer for other in others for layer in (activation(), other)))


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
        _zero(self.last)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output, shape `(*, features_out)`."""
        y = self.first(x)
        for block in self.blocks:
            y = y + block(y)
        return self.last(y)


class Affine(nn.Module):
    """An affine map of columns, y = W x + b for x of shape `(features, *)`; for no features, b itself.

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
        """Return y, shape `(outputs, *)`."""
        y = torch.addmm(self.bias, self.matrix, x if x.ndim == 2 else x.flatten(1))
        return y if x.ndim == 2 else y.view(-1, *x.shape[1:])


class Conditioner(nn.Module):
    """A multilayer perceptron with SiLU activations on columns; it starts as zero.

    Arguments:
        sharpness: a factor on the first weights of each feature that comes in; there may be no features
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
        _zero(self.last)

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
            x, tangents = _silu_with_tangents(layer(x), tangents, layer.matrix[:, : tangents.shape[-1]])
        return x, tangents


class Told(NamedTuple):
    """What a masked conditioner is told of theta, shapes `(width, rows)`, or `(1, 1)` where there are no parameters.

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
    multiplied by 1 + g(h): log p is often a sum of products of features of x and of theta, and the network learns such
    sums sooner than if theta came in beside x. And all units are *shifted* before their activation, by a(h): where
    along theta something happens may then depend on x, which would take many products (`notebooks/measurements.md`).

    The first units of h are bounded, by tanh, and of all sharpnesses: theta far out does no more than theta nearby, so
    that training stays stable, and what happens within a tenth of theta's spread is seen.

    Arguments:
        rank: of each coordinate in the order, shape `(d,)`
        parameters: the number of parameters `theta`
        numbers: that go out for each coordinate
        width: units in each hidden layer
        depth: hidden layers
        sharpness: factors on the first weights, of x and at most of theta
    """

    def __init__(
        self, rank: Tensor, parameters: int, numbers: int, width: int, depth: int, sharpness: tuple[float, float]
    ) -> None:
        super().__init__()
        self.coordinates = features = len(rank)
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
        _scale(first, sharpness[0])
        for layer in self.features[:1]:
            _scale(layer, torch.logspace(0, math.log10(sharpness[1]), width)[:, None])
        _zero(self.last)

    def told(self, theta: Tensor) -> Told:
        """Return what the hidden layers are told of theta, shape `(parameters, *)`."""
        if self.gate is None:
            one = theta.new_ones(1, *[1] * (theta.ndim - 1))
            return Told([0 * one] * len(self.hidden), one)
        first, second = self.features
        features = functional.silu(second(first(theta).tanh()))
        return Told([shift(features) for shift in self.shifts], 1 + self.gate(features))

    def forward(self, x: Tensor, told: Told) -> Tensor:
        """Return the outputs, shape `(numbers d, *)`, for x of shape `(d, *)`; x and theta may be broadcast."""
        return self.last(self.last_hidden(x, told))

    def last_hidden(self, x: Tensor, told: Told) -> Tensor:
        """Return the last hidden layer, shape `(width, *)`, for x of shape `(d, *)`."""
        for number, (layer, shift) in enumerate(zip(self.hidden, told.shifts, strict=True)):
            x = functional.silu(layer(x) + shift)
            x = x * told.gates if number == self.gated else x
        return x

    def outputs_of(self, coordinate: int, hidden: Tensor) -> Tensor:
        """Return the outputs for one coordinate, shape `(numbers, rows)`, given the last hidden layer."""
        own = slice(coordinate, None, self.coordinates)
        return self.last.matrix[own] @ hidden + self.last.bias[own]

    def hidden_with_tangents(self, x: Tensor, told: Told, tangents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last hidden layer, shape `(width, rows)`, and its tangents at fixed theta, `(rows, n, width)`.

        Arguments:
            x: shape `(d, rows)`
            told: of theta
            tangents: dx, shape `(rows, n, d)`
        """
        for number, (layer, shift) in enumerate(zip(self.hidden, told.shifts, strict=True)):
            x, tangents = _silu_with_tangents(layer(x) + shift, tangents, cast(Affine, layer).matrix)
            if number == self.gated:
                x, tangents = x * told.gates, tangents * told.gates.T.unsqueeze(1)
        return x, tangents


def _silu_with_tangents(x: Tensor, tangents: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return silu(x) of columns x, and its tangents, shape `(rows, n, features)`, where those of x are W dy."""
    gate = x.sigmoid()
    tangents = functional.linear(tangents, matrix) * (gate * (1 + x * (1 - gate))).T.unsqueeze(1)
    return x * gate, tangents


@torch.no_grad()
def _scale(layer: nn.Module, factors: Tensor | float) -> None:
    """Multiply all weights of a layer by a factor, or by one for each unit, shape `(width, 1)`."""
    for weight in layer.parameters():
        weight.mul_(factors)


@torch.no_grad()
def _zero(layer: nn.Module) -> None:
    """Set all weights of a layer to zero."""
    for weight in layer.parameters():
        weight.zero_()
