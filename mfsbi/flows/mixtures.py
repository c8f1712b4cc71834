r"""Autoregressive mixtures of normals: densities that are smooth to all orders, in u and in theta.

Coordinates are bent, z = h(u), by a few affine couplings that do not depend on theta. Then each one is a mixture of K
normals, given those before it in an order and theta,

    p(u|theta) = |det dh/du| prod_i  sum_k w_ik N(z_i; a_i + b_i m_ik, (b_i s_ik)^2),

    (w, m, s)_i = network(z_1, ..., z_{i-1}, theta),    (a, b)_i = network(theta),

normalised by construction: the autoregressive density of Uria et al. (RNADE, arXiv:1306.0186) with the masked network
of `mfsbi.networks`. One pass gives the density, d of them a draw. There is no spline, hence no knot that an
observation crosses as theta moves: the likelihood has no kinks, and its gradients serve Hamiltonian samplers.

Bends are for coordinates that a chart has found: it bends them as it pleases, and a law that is simple in other ones is
then simple again.

What theta says reaches each coordinate in two ways, by the masked network and by a network of theta alone, which also
moves and widens a mixture as a whole, by a(theta) and b(theta). The units of a masked network are dealt out to the
coordinates, so that the first ones have few; where coordinates follow theta independently of each other they need none
of it.

Masked networks see c(z) = z / (1 + (z/5)^4)^(1/4), which is z within some spreads and bounded: one far value says no
more to the others than that it is far.

**Start.** With `start="linear"` each coordinate begins at the mean of a linear regression on theta and on the c(z) of
those before it, with the spread of what is left: the exact density where all is linear and normal, from which training
departs only as far as held-out rows like it. It is fitted by iterated weights, those of Student's t with five degrees
of freedom, so that heavy tails do not rule it, and with a ridge for theta and one for u that maximise their evidence
(MacKay, Neural Comput. 4 (1992) 415), so that few rows do not bend it. Regressions on forty neighbours cost more than
they bring where coordinates are alike given theta; with `start="normal"` there is none.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor, nn

from mfsbi.blocks import rows_at_work
from mfsbi.checks import require_sizes
from mfsbi.flows.couplings import AffineCouplings
from mfsbi.flows.densities import Pairing
from mfsbi.flows.flow import FlowConfig
from mfsbi.networks import MaskedConditioner, perceptron

__all__ = ["AutoregressiveMixture", "AutoregressiveMixtures"]

FAR = 5.0
"""Spreads beyond which networks see a coordinate as far."""

APART = 0.3
"""Distance of the outermost normals from the middle of a mixture at its start, in its spreads."""

LARGEST_LOG_WIDTH = 7.0
"""Of a normal; near its start the bound is not felt."""

FREEDOM = 5.0
"""Degrees of freedom of the errors of a regression."""

OF_NORMAL = 1.1674
"""Spread of a normal law of which a Student's t with that freedom and scale 1 is the likeliest."""

NEIGHBOURS = 64
"""Coordinates before that a regression takes account of, at most: those with the largest correlations."""

ENOUGH = 10_000
"""Rows to fit a regression to, at most."""

ROUNDS = 12
"""Of weights and ridges, in a regression."""


@dataclass(frozen=True)
class AutoregressiveMixtures(FlowConfig):
    """An `AutoregressiveMixture` in a random order of coordinates: for latent densities, since it has no inverse.

    Arguments:
        components: K, normals of each coordinate
        width: units in each hidden layer
        depth: hidden layers of the masked network
        start: "normal", or "linear" in theta and the coordinates before
        bends: affine couplings, of two hidden layers; none for a single coordinate

    Raises:
        ValueError: if a number is not positive, that of bends negative, or there is no such start
    """

    components: int = 4
    width: int = 64
    depth: int = 3
    start: Literal["normal", "linear"] = "normal"
    bends: int = 4

    def __post_init__(self) -> None:
        require_sizes(self, or_zero={"bends"})
        if self.start not in ("normal", "linear"):
            raise ValueError(f"`start` should be 'normal' or 'linear'; got {self.start!r}.")

    def build(self, features: int, parameters: int = 0, _cut: int | None = None) -> "AutoregressiveMixture":
        """Return a density that starts as nearly standard normal, with weights and order from torch's generator."""
        return AutoregressiveMixture(features, parameters, self)


class AutoregressiveMixture(nn.Module):
    """A density of R^d whose coordinates, once bent, are mixtures of normals, given theta and those before.

    Arguments:
        features: d
        parameters: the number of parameters `theta`
        settings: components, the size of the network, the start, and bends
    """

    def __init__(self, features: int, parameters: int, settings: AutoregressiveMixtures) -> None:
        super().__init__()
        self.features, self.parameter_dim, self.linear = features, parameters, settings.start == "linear"
        bends = AffineCouplings(layers=settings.bends or 1, width=settings.width, depth=2)
        self.bends = bends.build(features) if settings.bends and features > 1 else None
        self.order = nn.Buffer(torch.randperm(features))
        rank, numbers = self.order.argsort(), 3 * settings.components
        self.outputs = 3, settings.components, features
        self.network = MaskedConditioner(rank, parameters, numbers, settings.width, settings.depth, (1.0, 1.0))
        sizes = [parameters, settings.width, settings.width, (numbers + 2) * features]
        self.of_theta = perceptron(sizes, nn.SiLU) if parameters else None
        self.offset = nn.Parameter(_spread_out(settings.components)[..., None].repeat(1, 1, features))
        self.log_scale = nn.Parameter(torch.zeros(features))
        self.shift = nn.Parameter(torch.zeros(features))
        self.slope = nn.Parameter(torch.zeros(features, features if self.linear else 0))
        self.theta_slope = nn.Parameter(torch.zeros(features, parameters))
        self.theta_log_slope = nn.Parameter(torch.zeros(features, parameters))
        self.before = nn.Buffer(rank < rank[:, None])
        if self.of_theta is not None:
            for weight in self.of_theta[-1].parameters():
                nn.init.zeros_(weight)

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.parameters())
        return f"AutoregressiveMixture(features={self.features}, theta={self.parameter_dim}, weights={weights:,})"

    def log_prob(self, u: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return log p(u|theta), shape `(*)`, for u of shape `(*, d)` and theta of shape `(*, parameter)`."""
        bent, log_det = self._bent(u)
        columns = bent.reshape(math.prod(u.shape[:-1]), self.features).T.contiguous()
        return self._log_prob(columns, self._columns(u, theta)).view(u.shape[:-1]) + log_det

    def pairing(self, u: Tensor) -> Pairing:
        """Return log p(u|theta) of fixed points, shape `(sets, points, d)`."""
        rows = u.flatten(0, -2).split(rows_at_work(self.features))
        bent, log_det = (torch.cat(part) for part in zip(*map(self._bent, rows), strict=True))
        bent, log_det = bent.view(u.shape), log_det.view(u.shape[:-1])
        return _MixturePairing(self, bent.movedim(-1, 0).contiguous(), log_det)

    def _bent(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return h(u) and log|det dh/du|."""
        return (u, u.new_zeros(u.shape[:-1])) if self.bends is None else self.bends.forward_and_log_det(u)

    def _log_prob(self, columns: Tensor, theta: Tensor) -> Tensor:
        """Return the log density of bent coordinates, shape `(*)`, those of columns and theta broadcast.

        Arguments:
            columns: shape `(d, *)`
            theta: shape `(parameter, *)`
        """
        seen, told = _bounded(columns), self.network.told(theta)
        raw, shift, log_scale = self._of_theta(theta)
        raw = raw + self.network(seen, told).unflatten(0, self.outputs)
        if self.linear:
            shift = shift + ((self.slope * self.before) @ seen.flatten(1)).view_as(seen)
        z = (columns - shift) * (-log_scale).exp()
        log_weight, mean, log_width = raw[0].log_softmax(0), raw[1], _limited(raw[2])
        e = (z - mean) * (-log_width).exp()
        each = (log_weight - log_width - 0.5 * e.square()).logsumexp(0) - log_scale - 0.5 * math.log(2 * math.pi)
        return each.sum(0)

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one u for each row of theta, shape `(*, d)`; theta has shape `(*, parameter)`."""
        rows = math.prod(theta.shape[:-1])
        columns = theta.reshape(rows, theta.shape[-1]).T.contiguous()
        raw, shift, log_scale = self._of_theta(columns)
        noise = torch.randn(rows, self.features, generator=generator, dtype=raw.dtype, device=raw.device).T
        pick = torch.rand(rows, self.features, generator=generator, dtype=raw.dtype, device=raw.device).T
        told, slope = self.network.told(columns), self.slope * self.before if self.linear else None
        drawn, seen = [raw.new_zeros(rows)] * self.features, raw.new_zeros(self.features, rows)
        for i in self.order.tolist():
            own = self.network.outputs_of(i, self.network.last_hidden(seen, told)).view((*raw.shape[:2], rows))
            log_weight, mean, log_width = own + raw[:, :, i]
            chosen = (log_weight.softmax(0).cumsum(0) < pick[i]).sum(0).clamp(max=len(mean) - 1)[None]
            z = (mean + noise[i] * _limited(log_width).exp()).gather(0, chosen)[0]
            middle = shift[i] + slope[i] @ seen if slope is not None else shift[i]
            drawn[i] = middle + z * log_scale[i].exp()
            seen = seen.index_copy(0, self.order.new_tensor([i]), _bounded(drawn[i])[None])
        bent = torch.stack(drawn, -1).view(*theta.shape[:-1], self.features)
        return bent if self.bends is None else self.bends.inverse(bent)

    @torch.no_grad()
    def measure(self, u: Tensor, theta: Tensor) -> None:
        """Begin at a linear regression of the coordinates as they are bent by then, if that is the start.

        Arguments:
            u: standardised coordinates, shape `(rows, d)`
            theta: standardised, shape `(rows, parameter)`
        """
        if not self.linear:
            return
        u = u[:ENOUGH] if self.bends is None else self.bends(u[:ENOUGH])
        rows, p = u.double(), theta.shape[1]
        seen, told = _bounded(rows), theta[:ENOUGH].double()
        likeness = seen.T.corrcoef().reshape(self.features, self.features).abs()
        for place, i in enumerate(self.order.tolist()):
            earlier = self.order[:place]
            earlier = earlier[likeness[i, earlier].topk(min(place, NEIGHBOURS)).indices]
            fit = _regression(rows[:, i], told, seen[:, earlier])
            self.shift[i], self.log_scale[i] = fit.shift, _unlimited(fit.log_scale)
            self.theta_slope[i], self.theta_log_slope[i], self.slope[i] = fit.slopes[:p].to(u), 0.0, 0.0
            self.slope[i, earlier] = fit.slopes[p:].to(u)

    def _of_theta(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what theta alone says: logits, means and log widths, `(3, K, d, *)`, shift and log scale."""
        shape, theta = theta.shape[1:], theta.flatten(1)
        rows = theta.shape[1]
        raw = self.offset[..., None].expand(*self.outputs, rows)
        shift = self.shift[:, None] + self.theta_slope @ theta
        log_scale = self.log_scale[:, None] + self.theta_log_slope @ theta
        if self.of_theta is not None:
            told = self.of_theta(theta.T).T.view(2 + math.prod(self.outputs[:2]), self.features, rows)
            raw = raw + told[:-2].view(*self.outputs, rows)
            shift, log_scale = shift + told[-2], log_scale + told[-1]
        each = raw, shift, _limited(log_scale)
        return each if len(shape) == 1 else cast(Any, tuple(part.unflatten(-1, shape) for part in each))

    def _columns(self, u: Tensor, theta: Tensor | None) -> Tensor:
        """Return theta in columns, one for each row of u; without parameters an array without rows."""
        if theta is None:
            return u.new_zeros(0, math.prod(u.shape[:-1]))
        rows = math.prod(u.shape[:-1])
        return theta.expand(*u.shape[:-1], theta.shape[-1]).reshape(rows, theta.shape[-1]).T.contiguous()


@dataclass(frozen=True)
class _MixturePairing:
    """log p(u|theta) of fixed points, bent beforehand, shape `(d, sets, points)`."""

    density: AutoregressiveMixture
    columns: Tensor
    log_det: Tensor

    def __call__(self, theta: Tensor, which: Tensor) -> Tensor:
        columns, at = self.columns[:, which, None], theta.movedim(-1, 0)[..., None]
        return self.density._log_prob(columns, at) + self.log_det[which, None]


@dataclass(frozen=True)
class _Regression:
    """A linear regression: the mean at zero, the slopes, and the log of the spread of what is left."""

    shift: Tensor
    slopes: Tensor
    log_scale: Tensor


def _regression(values: Tensor, theta: Tensor, earlier: Tensor) -> _Regression:
    """Return the regression of values, shape `(rows,)`, on theta and on other columns, robust and with ridges.

    The ridge of each of the two blocks is s^2 / t^2, s the spread of what is left and t that of the block's slopes, of
    which EM finds the likeliest.
    """
    rows, p = len(values), theta.shape[1]
    design = torch.cat([theta, earlier, torch.ones_like(values[:, None])], 1)
    blocks = [block for block in (slice(0, p), slice(p, design.shape[1] - 1)) if block.start < block.stop]
    weight, scale, spreads = torch.ones_like(values), values.std(), [1.0] * len(blocks)
    for _ in range(ROUNDS):
        ridge = torch.zeros_like(design[0])
        for block, spread in zip(blocks, spreads, strict=True):
            ridge[block] = scale.square() / spread
        weighted = design * weight[:, None]
        gram = weighted.T @ design
        inverse = torch.linalg.inv(gram + ridge.clamp(min=1e-9 * rows).diag())
        slopes = inverse @ (weighted.T @ values)
        left, known = values - design @ slopes, (inverse * gram).sum()
        weight = (FREEDOM + 1) / (FREEDOM + left.square() / scale.square())
        scale = ((weight * left.square()).sum() / (rows - known).clamp(min=1)).sqrt().clamp(min=1e-6)
        second = slopes.square() + inverse.diagonal() * scale.square()
        spreads = [max(float(second[block].mean()), 1e-8) for block in blocks]
    return _Regression(slopes[-1], slopes[:-1], (OF_NORMAL * scale).log())


def _bounded(u: Tensor) -> Tensor:
    """Return u / (1 + (u/5)^4)^(1/4): what networks see of a coordinate."""
    return u / (1 + (u / FAR).square().square()).sqrt().sqrt()


def _limited(raw: Tensor) -> Tensor:
    """Return the log of a width, between -7 and 7, and equal to `raw` near zero."""
    return LARGEST_LOG_WIDTH * (raw / LARGEST_LOG_WIDTH).tanh()


def _unlimited(log_width: Tensor) -> Tensor:
    """Return the `raw` of a log width."""
    return LARGEST_LOG_WIDTH * (log_width / LARGEST_LOG_WIDTH).clamp(-0.98, 0.98).atanh()


def _spread_out(components: int) -> Tensor:
    """Return logits, means and log widths of a mixture with mean 0 and variance 1, shape `(3, K)`, its parts apart.

    Parts that are alike would stay so.
    """
    means = torch.linspace(-APART, APART, components) if components > 1 else torch.zeros(1)
    width = 0.5 * torch.log1p(-means.square().mean())
    return torch.stack([torch.zeros(components), means, width.expand(components)])
