"""What every simulator needs: a source of randomness that touches nobody else's, and argument checks."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Uniform

__all__ = ["Gold", "KnownManifold", "generator_from", "reference_for", "require_last_axis"]


class Gold(NamedTuple):
    """Simulations with what the simulator knows of each run, latents z included.

    Arguments:
        x: features, shape `(*, data)`
        joint_score: t(x, z|theta) = d/dtheta log p(x, z|theta), shape `(*, parameter)`
        joint_log_ratio: log r(x, z|theta, theta_ref) = log p(x, z|theta) - log p(x, z|theta_ref), shape `(*)`
    """

    x: Tensor
    joint_score: Tensor
    joint_log_ratio: Tensor


class KnownManifold(ABC):
    """Points x of a known manifold with a density p(x|theta) on it, theta uniform on (-1, 1)^parameter.

    Everything is computed in float64 and returned in the type of the arguments. Every method raises ValueError if a
    shape is wrong, a value is not finite, or theta has no density.
    """

    data_dim: int
    manifold_dim: int
    parameter_dim: int
    tolerance: float

    @property
    def prior(self) -> Distribution:
        """The uniform prior of theta on (-1, 1)^parameter, event shape `(parameter,)`."""
        ends = torch.ones(self.parameter_dim)
        return Independent(Uniform(-ends, ends), 1)

    def simulate(self, theta: Tensor, *, seed: int | Generator | None = None) -> Tensor:
        """Draw one point of the manifold for each row of theta, shape `(*, data)`.

        Arguments:
            theta: shape `(*, parameter)`
            seed: an integer or a generator for a repeatable draw; a random one if not given
        """
        require_last_axis("theta", theta, self.parameter_dim)
        return self.decode(self._draw(theta, generator_from(seed))).to(theta.dtype)

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return log p(x|theta) with respect to the surface measure, shape `(*)`; -inf off the manifold.

        Arguments:
            x: shape `(*, data)`
            theta: shape `(*, parameter)`, broadcast against x
        """
        require_last_axis("x", x, self.data_dim)
        require_last_axis("theta", theta, self.parameter_dim)
        return torch.where(self._is_on(x), self._log_density(x, theta), -math.inf).to(x.dtype)

    def out_of_distribution(self, rows: int, *, seed: int | Generator | None = None, noise: float = 0.1) -> Tensor:
        """Draw points near but off the manifold: x at theta = 0 plus noise * N(0, I), shape `(rows, data)`."""
        generator = generator_from(seed)
        x = self.simulate(torch.zeros(rows, self.parameter_dim), seed=generator)
        return x + noise * torch.randn(x.shape, generator=generator)

    @abstractmethod
    def decode(self, u: Tensor) -> Tensor:
        """Return the point of the manifold with coordinates u, shape `(*, data)`."""

    @abstractmethod
    def _draw(self, theta: Tensor, generator: Generator) -> Tensor:
        """Return coordinates of a point for each row of theta, shape `(*, manifold)`, in float64."""

    @abstractmethod
    def _is_on(self, x: Tensor) -> Tensor:
        """Return whether x lies on the manifold within the tolerance, shape `(*)`."""

    @abstractmethod
    def _log_density(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return log p(x|theta), x taken to lie on the manifold, shape `(*)`, in float64."""


def generator_from(seed: int | Generator | None) -> Generator:
    """Return a torch generator: a given one as it is, a seeded one, or a freshly and randomly seeded one."""
    if isinstance(seed, Generator):
        return seed
    generator = Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def require_last_axis(name: str, value: Tensor, size: int) -> None:
    """Raise ValueError unless the last axis of `value` has `size` entries and all of them are finite."""
    if value.ndim == 0 or value.shape[-1] != size:
        raise ValueError(f"`{name}` should have {size} features on its last axis; got shape {tuple(value.shape)}.")
    if not torch.isfinite(value).all():
        raise ValueError(f"`{name}` should be finite; got NaN or infinity.")


def reference_for(theta: Tensor, theta_ref: Tensor | None) -> Tensor:
    """Return the reference of a log ratio in the shape of theta, zeros if none is given.

    Raises:
        ValueError: if it does not broadcast to that shape or is not finite
    """
    if theta_ref is None:
        return torch.zeros_like(theta)
    require_last_axis("theta_ref", theta_ref, theta.shape[-1])
    try:
        return theta_ref.expand_as(theta)
    except RuntimeError as error:
        raise ValueError(
            f"`theta_ref` should broadcast to the shape of theta, {tuple(theta.shape)}; got {tuple(theta_ref.shape)}."
        ) from error
