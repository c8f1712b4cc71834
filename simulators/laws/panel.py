"""The laws of the panel; `simulators.laws` says what they are."""

import torch
from torch import Generator, Tensor
from torch.distributions import (
    Beta,
    Categorical,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Poisson,
    StudentT,
    TransformedDistribution,
    Uniform,
)

from simulators.laws.distributions import Bend, Both, Counter, Noisy, Ordered, SinhArcsinh
from simulators.laws.law import FIXED_SEED, Law, Lifted

__all__ = ["LAWS", "law"]


def law(name: str = "banana", factor: int = 1) -> Law | Lifted:
    """Return a law by name, lifted if it is to have some times as many features.

    Arguments:
        name: as in `LAWS`
        factor: how many times as many features

    Raises:
        ValueError: if there is no such law
    """
    if name not in LAWS:
        raise ValueError(f"`name` should be one of {sorted(LAWS)}; got {name!r}.")
    return LAWS[name] if factor == 1 else Lifted(LAWS[name], factor)


def _fixed(*shape: int) -> Tensor:
    """Return standard normal numbers that are always the same."""
    return torch.randn(*shape, generator=Generator().manual_seed(FIXED_SEED), dtype=torch.float64)


def _each(law: Distribution) -> Distribution:
    """Return a law of several features that are independent."""
    return Independent(law, 1, validate_args=False)


def _normal_prior(parameters: int) -> Distribution:
    return Independent(Normal(torch.zeros(parameters), 1.0), 1)


def _box(parameters: int) -> Distribution:
    return Independent(Uniform(-torch.ones(parameters), torch.ones(parameters)), 1)


def _linear(theta: Tensor) -> Distribution:
    factor = torch.eye(10, dtype=theta.dtype) + 0.2 * _fixed(10, 10).tril(-1).to(theta)
    return MultivariateNormal(theta @ _fixed(10, 10).to(theta) / 3, scale_tril=0.5 * factor, validate_args=False)


def _banana(theta: Tensor) -> Distribution:
    return TransformedDistribution(_each(Normal(theta, 0.3)), [Bend()], validate_args=False)


def _modes(theta: Tensor) -> Distribution:
    both = _each(Normal(torch.stack([theta, -theta], -2), 0.25))
    return MixtureSameFamily(Categorical(theta.new_ones(*theta.shape[:-1], 2)), both, validate_args=False)


def _mixture(theta: Tensor) -> Distribution:
    first, second = theta.unbind(-1)
    corners = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]).to(theta)
    centres = corners + torch.stack([first, second, first * second], -1).unsqueeze(-2)
    shares = Categorical(logits=torch.stack([first, second, -first - second], -1))
    return MixtureSameFamily(shares, _each(Normal(centres, 0.35)), validate_args=False)


def _heteroscedastic(theta: Tensor) -> Distribution:
    waves = (theta @ _fixed(3, 10).to(theta) + torch.arange(10).to(theta)).sin()
    return _each(Normal(2 * waves[..., :5], (waves[..., 5:] - 1).exp()))


def _queue(theta: Tensor) -> Distribution:
    gap, length, regular = theta.unbind(-1)
    gaps = Exponential((0.5 * gap).exp().unsqueeze(-1).expand(*gap.shape, 5))
    shape = (1.5 + regular).exp().unsqueeze(-1).expand(*gap.shape, 5)
    services = Gamma(shape, shape / (0.5 * length).exp().unsqueeze(-1))
    return TransformedDistribution(Both(gaps, services), [Counter()], validate_args=False)


def _ordered(theta: Tensor) -> Distribution:
    location, scale, skew, tail = theta.unsqueeze(-2).unbind(-1)
    bend = SinhArcsinh(location, (0.5 * scale).exp(), 0.7 * skew, (0.3 * tail).exp())
    eight = Normal(theta.new_zeros(*theta.shape[:-1], 8), 1.0)
    return Ordered(_each(TransformedDistribution(eight, [bend], validate_args=False)))


def _glm(theta: Tensor) -> Distribution:
    mean = (0.5 * theta @ _fixed(5, 10).to(theta)).exp()
    return _each(Gamma(4.0 * torch.ones_like(mean), 4.0 / mean))


def _student(theta: Tensor) -> Distribution:
    location, scale, tail = theta.unsqueeze(-2).unbind(-1)
    places = torch.linspace(-1, 1, 5).to(theta)
    freedom = 3.0 * (0.7 * tail).exp()
    return _each(StudentT(freedom.expand(*theta.shape[:-1], 5), location * places + location, (0.5 * scale).exp()))


def _shares(theta: Tensor) -> Distribution:
    logits = theta[..., :2] @ _fixed(2, 4).to(theta)
    size = (1.5 + theta[..., 2:]).exp()
    return _each(Beta(size * logits.sigmoid() + 0.5, size * (-logits).sigmoid() + 0.5))


def _spectrum(theta: Tensor) -> Distribution:
    height, tilt, phase, damping, floor = theta.unsqueeze(-2).unbind(-1)
    bands = torch.linspace(0.05, 1.0, 40).to(theta)
    waves = 1 + 0.4 * (20 * bands * (1 + 0.1 * phase)).cos() * (-bands * (1 + 0.5 * damping)).exp()
    power = (0.3 * height + 0.5 * tilt * (bands - 0.4)).exp() * waves * (-bands.square() * (1 + 0.3 * damping)).exp()
    power = power + 0.2 * (0.5 * floor).exp()
    return _each(Normal(power, 0.02 + power * (0.15 / (1 + 10 * bands)) + 0.05 * bands.square()))


def _counts(theta: Tensor) -> Distribution:
    height, place, background = theta.unsqueeze(-2).unbind(-1)
    bins = torch.linspace(-1, 1, 20).to(theta)
    peak = (2.0 + 0.7 * height).exp() * (-0.5 * ((bins - 0.6 * place) / 0.2).square()).exp()
    return Noisy(_each(Poisson(peak + (1 + 0.5 * background).exp(), validate_args=False)))


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law("linear", _normal_prior(10), _linear),
        Law("banana", _normal_prior(2), _banana),
        Law("modes", _normal_prior(2), _modes),
        Law("mixture", _box(2), _mixture),
        Law("heteroscedastic", _box(3), _heteroscedastic),
        Law("queue", _box(3), _queue),
        Law("ordered", _box(4), _ordered),
        Law("glm", _normal_prior(5), _glm),
        Law("student", _box(3), _student),
        Law("shares", _normal_prior(3), _shares, fraction=True),
        Law("spectrum", _box(5), _spectrum),
        Law("counts", _box(3), _counts),
    )
}
"""Laws by name."""
