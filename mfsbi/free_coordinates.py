"""The ways theta -> y of `mfsbi.plugin.parameter_prior`, y in R^k: what they are put together from."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Independent,
    IndependentTransform,
    TransformedDistribution,
    biject_to,
    constraints,
)
from torch.distributions.transforms import Transform

from mfsbi.types import Prior

__all__ = ["Unconstrained", "way_to"]

QUARTILES = 1.349
"""Between the quartiles of a standard normal."""


def way_to(inner: Prior, draws: Tensor) -> Transform:
    """Return a bijection y -> theta onto the support of a distribution, or one onto R^k if none is known.

    Arguments:
        inner: the distribution
        draws: of it, shape `(rows, parameter)`, by which a bijection is judged
    """
    with suppress(Exception):  # whatever torch raises for a support it has no bijection of
        way = _bijection(inner, draws)
        if way is not None and _is_good(way, draws.to(torch.get_default_dtype())):
            return way
    return _standardising(draws)


class Unconstrained(Transform):
    """The way theta -> y of independent parts, in the type of what it is given.

    Arguments:
        ways: bijections y -> theta of each part
        sizes: parameters of each part
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, ways: Sequence[Transform], sizes: Sequence[int]) -> None:
        super().__init__()
        self.ways, self.sizes = list(ways), list(sizes)
        self.free = [int(way.inverse_shape(torch.Size([size]))[0]) for way, size in zip(ways, sizes, strict=True)]

    def _call(self, theta: Tensor) -> Tensor:
        parts = zip(self.ways, theta.split(self.sizes, dim=-1), strict=True)
        return torch.cat([way.inv(part).to(theta) for way, part in parts], dim=-1)

    def _inverse(self, y: Tensor) -> Tensor:
        parts = zip(self.ways, y.split(self.free, dim=-1), strict=True)
        return torch.cat([way(part).to(y) for way, part in parts], dim=-1)

    def log_abs_det_jacobian(self, theta: Tensor, y: Tensor) -> Tensor:
        """Return log |det dy/dtheta|, shape `(*)`."""
        parts = zip(self.ways, theta.split(self.sizes, dim=-1), y.split(self.free, dim=-1), strict=True)
        return torch.stack([-_log_det(way, free, part).to(y) for way, part, free in parts]).sum(0)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of y for a shape of theta."""
        return torch.Size([*shape[:-1], sum(self.free)])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of theta for a shape of y."""
        return torch.Size([*shape[:-1], sum(self.sizes)])


def _log_det(way: Transform, y: Tensor, theta: Tensor) -> Tensor:
    """Return log |det dtheta/dy| summed over all parameters, shape `(*)`."""
    value = way.log_abs_det_jacobian(y, theta)
    return value if value.ndim < y.ndim else value.sum(-1)


def _bijection(inner: Prior, draws: Tensor) -> Transform | None:
    """Return y -> theta by what is known of a distribution, or None if nothing is."""
    if isinstance(inner, Independent):
        return _bijection(inner.base_dist, draws)
    if isinstance(inner, TransformedDistribution) and all(each.bijective for each in inner.transforms):
        for transform in reversed(inner.transforms):
            draws = transform.inv(draws)
        base = _bijection(inner.base_dist, draws)
        return None if base is None else ComposeTransform([base, *inner.transforms])
    for name in {"prior", "_prior"} & set(vars(inner)):  # sbi's wrappers
        return _bijection(getattr(inner, name), draws)
    support = cast(Any, inner).support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if getattr(support, "is_discrete", False):
        return None
    if support is constraints.real or support is constraints.real_vector:
        return _standardising(draws)
    return biject_to(support)


def _standardising(draws: Tensor) -> Transform:
    """Return y -> theta by median and quartiles of draws, shape `(rows, size)`."""
    low, middle, high = torch.quantile(draws.double(), draws.new_tensor([0.25, 0.5, 0.75]).double(), dim=0)
    scale = (high - low) / QUARTILES
    scale = scale.where(scale > 0, draws.double().std(0))
    kind = torch.get_default_dtype()
    return IndependentTransform(AffineTransform(middle.to(kind), scale.where(scale > 0, 1.0).to(kind)), 1)


def _is_good(way: Transform, theta: Tensor) -> bool:
    """Return whether draws survive the way to y and back, with a finite log-determinant."""
    y = way.inv(theta)
    back, log_det = way(y), _log_det(way, y, theta)
    close = (back - theta).abs() <= 1e-3 * theta.abs() + 1e-5 * theta.std(0)
    return bool(close.float().mean() > 0.99) and log_det.shape == (len(theta),) and bool(torch.isfinite(log_det).all())
