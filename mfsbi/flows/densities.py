"""What a flow is as a latent density, whether it is a bijection to the standard normal or a `Density` by itself."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Generator, Tensor

from mfsbi.blocks import rows_at_work
from mfsbi.flows.flow import Bijection, Density, Flow

__all__ = ["EveryPair", "Pairing", "log_normal", "log_prob_of", "pairing_of", "sample_of"]


def log_normal(base: Tensor) -> Tensor:
    """Return log N(base; 0, I), shape `(*)`, for rows of shape `(*, d)`."""
    return -0.5 * base.square().sum(-1) - 0.5 * base.shape[-1] * math.log(2 * math.pi)


def log_prob_of(flow: Bijection | Density, u: Tensor, theta: Tensor | None = None) -> Tensor:
    """Return log p(u|theta), shape `(*)`.

    Arguments:
        flow: a density, or a bijection u -> N(0, I)
        u: shape `(*, d)`
        theta: shape `(*, parameter)`, if the flow takes any
    """
    if not isinstance(flow, Bijection):
        return flow.log_prob(u, theta)
    base, log_det = flow.forward_and_log_det(u, theta)
    return log_det + log_normal(base)


Pairing: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""log p(u|theta) of points that stay, in sets, as a function of theta.

It takes theta of some of the sets, shape `(some, k, parameter)`, and the numbers of these sets, shape `(some,)`, and
returns log p(u_aj|theta_ak) of each theta with each point of its set, shape `(some, k, points)`. What depends on the
points alone is computed once, and what depends on theta alone once for all points of a set.
"""


@dataclass(frozen=True)
class EveryPair:
    """A pairing that evaluates the density of every pair, for densities of which no part can be computed once.

    Arguments:
        log_prob: (points, theta) -> log p, shapes `(*, d)`, `(*, parameter)` and `(*)`
        points: shape `(sets, points, d)`
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    points: Tensor

    def __call__(self, theta: Tensor, which: Tensor) -> Tensor:
        """Return log p of each pair, shape `(some, k, points)`."""
        points = self.points[which][:, None].expand(-1, theta.shape[1], -1, -1)
        return self.log_prob(points, theta[:, :, None].expand(*points.shape[:-1], -1))


@dataclass(frozen=True)
class _FlowPairs:
    """A pairing of a flow whose first layers do not meet theta: the points have passed them.

    The next layer is told theta once for all points of a set if it can be.

    Arguments:
        flow: to the standard normal
        first: number of the first layer left
        columns: what comes into it, shape `(d, sets, points)`
        log_det: of the layers before it, shape `(sets, points)`
    """

    flow: Flow
    first: int
    columns: Tensor
    log_det: Tensor

    @classmethod
    def of(cls, flow: Flow, u: Tensor) -> "_FlowPairs":
        """Return that of points, shape `(sets, points, d)`."""
        met = [getattr(layer, "meets_theta", flow.parameter_dim > 0) for layer in flow.layers]
        first = met.index(True) if True in met else len(met)
        parts = []
        for rows in u.flatten(0, 1).split(rows_at_work(u.shape[-1])):
            y, log_det = rows.T.contiguous(), u.new_zeros(len(rows))
            for layer in flow.layers[:first]:
                y, change = layer(y, y.new_zeros(0, y.shape[1]))
                log_det = log_det + change
            parts.append((y, log_det))
        y, log_det = (torch.cat(part, -1) for part in zip(*parts, strict=True))
        return cls(flow, first, y.unflatten(1, u.shape[:-1]), log_det.view(u.shape[:-1]))

    def __call__(self, theta: Tensor, which: Tensor) -> Tensor:
        y, at = self.columns[:, which, None], theta.movedim(-1, 0)[..., None]
        shape, log_det = torch.Size([*theta.shape[:2], y.shape[-1]]), self.log_det[which, None]
        rest = list(self.flow.layers[self.first :])
        if rest and hasattr(rest[0], "meets_theta"):
            y, change = rest.pop(0)(y, at)
            log_det = log_det + change
        y, at = (each.expand(-1, *shape).flatten(1) for each in (y, at))
        log_det = log_det.expand(shape).flatten()
        for layer in rest:
            y, change = layer(y, at)
            log_det = log_det + change
        return (log_det + log_normal(y.T)).view(shape)


def pairing_of(flow: Bijection | Density, u: Tensor) -> Pairing:
    """Return log p(u|theta) of fixed points as a function of theta.

    Arguments:
        flow: a density, or a bijection u -> N(0, I)
        u: shape `(sets, points, d)`
    """
    if hasattr(flow, "pairing"):
        return cast(Pairing, flow.pairing(u))
    return _FlowPairs.of(flow, u) if isinstance(flow, Flow) else EveryPair(partial(log_prob_of, flow), u)


def sample_of(flow: Bijection | Density, theta: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw one u for each row of theta, shape `(*, d)`.

    Arguments:
        flow: a density, or a bijection u -> N(0, I)
        theta: shape `(*, parameter)`
        generator: of the device of theta; torch's own if not given
    """
    if not isinstance(flow, Bijection):
        return flow.sample(theta, generator)
    shape = *theta.shape[:-1], flow.features
    return flow.inverse(torch.randn(shape, generator=generator, dtype=theta.dtype, device=theta.device), theta)
