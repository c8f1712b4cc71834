"""Distributions and maps of theirs that torch does not have, for laws."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, constraints

__all__ = ["Bend", "Both", "Counter", "Noisy", "Ordered", "SinhArcsinh"]


class Bend(Transform):
    """(x_1, x_2) -> (x_1, x_2 + x_1^2), which keeps areas."""

    domain = codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        return torch.stack([x[..., 0], x[..., 1] + x[..., 0].square()], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.stack([y[..., 0], y[..., 1] - y[..., 0].square()], -1)

    def log_abs_det_jacobian(self, x: Tensor, _y: Tensor) -> Tensor:
        """Return zeros, shape `(*)`."""
        return torch.zeros_like(x[..., 0])


class Counter(Transform):
    """(gaps between arrivals, times of service) -> (gaps, times between departures) at one counter.

    A service begins when its customer is there and the one before has left: d_i = max(a_i, d_{i-1}) + s_i.
    """

    domain = codomain = constraints.real_vector
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        gaps, services = x.chunk(2, -1)
        arrivals, before, left = gaps.cumsum(-1), torch.zeros_like(gaps[..., 0]), []
        for number in range(gaps.shape[-1]):
            after = torch.maximum(arrivals[..., number], before) + services[..., number]
            left.append(after - before)
            before = after
        return torch.cat([gaps, torch.stack(left, -1)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        gaps, between = y.chunk(2, -1)
        after = between.cumsum(-1)
        services = after - torch.maximum(gaps.cumsum(-1), after - between)
        return torch.cat([gaps, services], -1)

    def log_abs_det_jacobian(self, x: Tensor, _y: Tensor) -> Tensor:
        """Return zeros, shape `(*)`: each departure moves as its service does."""
        return torch.zeros_like(x[..., 0])


class SinhArcsinh(Transform):
    """z -> location + scale sinh((arsinh z + skew) / tail) (Jones & Pewsey, Biometrika 96 (2009) 761)."""

    domain = codomain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, location: Tensor, scale: Tensor, skew: Tensor, tail: Tensor) -> None:
        super().__init__()
        self.location, self.scale, self.skew, self.tail = location, scale, skew, tail

    def _call(self, x: Tensor) -> Tensor:
        return self.location + self.scale * ((x.asinh() + self.skew) / self.tail).sinh()

    def _inverse(self, y: Tensor) -> Tensor:
        return (((y - self.location) / self.scale).asinh() * self.tail - self.skew).sinh()

    def log_abs_det_jacobian(self, x: Tensor, _y: Tensor) -> Tensor:
        """Return the log slope, shape `(*)`."""
        grown = ((x.asinh() + self.skew) / self.tail).cosh()
        return (self.scale / self.tail * grown).log() - 0.5 * torch.log1p(x.square())


class Ordered(Distribution):
    """Sorted draws of a law that are independent of each other, event shape `(draws,)`."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's

    def __init__(self, law: Distribution) -> None:
        self.law = law
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]  # torch.Size is a tuple
        """Return draws, shape `(*sample_shape, *, draws)`."""
        return self.law.sample(torch.Size(sample_shape)).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log(n! prod_i p(x_i)), shape `(*)`."""
        return self.law.log_prob(value) + math.lgamma(self.event_shape[0] + 1)


class Noisy(Distribution):
    """Whole numbers k with uniform noise on (0, 1) added; the density at x is the probability of floor(x)."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's

    def __init__(self, law: Distribution) -> None:
        self.law = law
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]  # torch.Size is a tuple
        """Return draws, shape `(*sample_shape, *, data)`."""
        counts = self.law.sample(torch.Size(sample_shape))
        return counts + torch.rand_like(counts)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(floor(x)), shape `(*)`."""
        return self.law.log_prob(value.floor())


class Both(Distribution):
    """Two laws of independent features, one after the other, event shape `(data,)`."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - torch's
    support = constraints.real_vector

    def __init__(self, first: Distribution, second: Distribution) -> None:
        self.first, self.second = first, second
        *batch, features = first.batch_shape
        super().__init__(torch.Size(batch), torch.Size([2 * features]), validate_args=False)

    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:  # type: ignore[override]  # torch.Size is a tuple
        """Return draws, shape `(*sample_shape, *, data)`."""
        shape = torch.Size(sample_shape)
        return torch.cat([self.first.sample(shape), self.second.sample(shape)], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, shape `(*)`; minus infinity where a time is not positive."""
        inside = (value > 0).all(-1)
        parts = value.clamp(min=1e-12).chunk(2, -1)
        total = sum(law.log_prob(part).sum(-1) for law, part in zip((self.first, self.second), parts, strict=True))
        return torch.where(inside, total, -math.inf)
