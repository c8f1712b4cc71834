r"""A law of x given theta with an exact density, plain and on a curved manifold.

A law is a torch distribution of x for each theta, so that its density, its score and its draws are torch's.

**Lifted.** `Lifted(law)` puts x on a curved manifold of some times as many features, by a fixed smooth map:

    y = Q (z, h(z)),    z = (x - m) / s,    h_k(z) = sin(w_k z + b_k),

with Q orthogonal and m, s of fixed draws of the law. The manifold is the graph of h; its volume factor is
1/2 log det(1 + H^T H) - sum_i log s_i with H = dh/dz, exactly, and its coordinates are the first features of Q^T y.

Quantities have no units.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution

from simulators.base import Gold, generator_from, reference_for, require_last_axis

__all__ = ["FIXED_SEED", "Law", "Lifted"]

FIXED_SEED = 29
"""Of the numbers that define a law and of the map that lifts it."""

ROWS = 20_000
"""Draws that a lift is standardised by."""


@dataclass(frozen=True)
class Law:
    """A law of x given theta.

    Arguments:
        name: of the law
        prior: of theta, event shape `(parameter,)`
        given: theta of shape `(*, parameter)` -> distribution of batch shape `(*)` and event shape `(data,)`
        fraction: whether x lies between 0 and 1, which rounding must not reach
    """

    name: str
    prior: Distribution
    given: Callable[[Tensor], Distribution]
    fraction: bool = False

    def __repr__(self) -> str:
        return f"Law({self.name!r}, data_dim={self.data_dim}, parameters={len(self.parameter_names)})"

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """A name for each parameter: theta_0 and so on."""
        return tuple(f"theta_{number}" for number in range(self.prior.event_shape[0]))

    @property
    def data_dim(self) -> int:
        """The number of features."""
        return self.given(torch.zeros(len(self.parameter_names), dtype=torch.float64)).event_shape[0]

    def simulate(self, theta: Tensor, *, seed: int | Generator | None = None) -> Tensor:
        """Draw one x for each row of theta, shape `(*, data)`.

        Arguments:
            theta: shape `(*, parameter)`
            seed: an integer or a generator for a repeatable draw; a random one if not given

        Raises:
            ValueError: if theta has another number of parameters or is not finite
        """
        require_last_axis("theta", theta, len(self.parameter_names))
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            number = torch.randint(2**62, (), generator=generator_from(seed))
            torch.default_generator.manual_seed(int(number))
            x, least = self.given(theta.double()).sample().to(theta.dtype), torch.finfo(theta.dtype).eps
            return x.clamp(least, 1 - least) if self.fraction else x

    def simulate_with_gold(
        self, theta: Tensor, *, theta_ref: Tensor | None = None, seed: int | Generator | None = None
    ) -> Gold:
        """Draw the x of `simulate` with their score and log ratio, which are the joint ones: there are no latents.

        Arguments:
            theta: shape `(*, parameter)`
            theta_ref: the other side of the ratio, broadcast to the shape of theta; 0 if not given
            seed: an integer or a generator for a repeatable draw; a random one if not given
        """
        return _golden(self, theta, theta_ref, seed)

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return log p(x|theta), shape `(*)`; theta of shape `(*, parameter)` is broadcast against x, `(*, data)`."""
        require_last_axis("x", x, self.data_dim)
        return self.given(theta.double()).log_prob(x.double()).to(x.dtype)

    def score(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return d/dtheta log p(x|theta), shape `(*, parameter)`; theta and x have a row for each other."""
        with torch.enable_grad():
            at = theta.detach().double().requires_grad_()
            return torch.autograd.grad(self.given(at).log_prob(x.double()).sum(), at)[0].to(x.dtype)


class Lifted:
    """A law whose x lies on a curved manifold in more features.

    Arguments:
        law: of the coordinates
        factor: how many times as many features
        bend: wave number of the map, in spreads of the law's features

    Raises:
        ValueError: if the factor is not above 1
    """

    def __init__(self, law: Law, factor: int = 4, bend: float = 1.0) -> None:
        if factor < 2:
            raise ValueError(f"`factor` should be at least 2 for there to be a manifold; got {factor}.")
        self.law, self.factor = law, factor
        self.prior, self.parameter_names = law.prior, law.parameter_names
        self.manifold_dim = law.data_dim
        self.data_dim = factor * law.data_dim
        generator = Generator().manual_seed(FIXED_SEED)
        draw = torch.randn(self.data_dim, self.data_dim, generator=generator, dtype=torch.float64)
        self._turn = torch.linalg.qr(draw)[0]
        codimension = self.data_dim - self.manifold_dim
        waves = torch.randn(codimension, self.manifold_dim, generator=generator, dtype=torch.float64)
        self._waves = bend * waves / math.sqrt(self.manifold_dim)
        self._phases = 2 * math.pi * torch.rand(codimension, generator=generator, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(FIXED_SEED)
            theta = self.prior.sample((ROWS,)).double()
        x = law.simulate(theta, seed=FIXED_SEED)
        ends = x.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=x.dtype), 0)  # heavy tails have no spread
        self._middle, self._spread = ends[1], (ends[2] - ends[0]) / 2

    def __repr__(self) -> str:
        return f"Lifted({self.law!r}, factor={self.factor})"

    def simulate(self, theta: Tensor, *, seed: int | Generator | None = None) -> Tensor:
        """Draw one point of the manifold for each row of theta, shape `(*, data)`; arguments as for the law."""
        return self.decode(self.law.simulate(theta.double(), seed=seed)).to(theta.dtype)

    def simulate_with_gold(
        self, theta: Tensor, *, theta_ref: Tensor | None = None, seed: int | Generator | None = None
    ) -> Gold:
        """Draw the points of `simulate` with their gold, as the law has it."""
        return _golden(self, theta, theta_ref, seed)

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return log p(x|theta) with respect to the surface measure, shape `(*)`, x taken to lie on the manifold."""
        u = self.encode(x.double())
        return (self.law.log_prob(u, theta.double()) - self.log_volume(u)).to(x.dtype)

    def score(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return d/dtheta log p(x|theta), shape `(*, parameter)`, that of the law."""
        return self.law.score(self.encode(x.double()), theta).to(x.dtype)

    def decode(self, u: Tensor) -> Tensor:
        """Return the point of the manifold whose coordinates are the features u of the law, shape `(*, data)`."""
        z = (u - self._middle) / self._spread
        return torch.cat([z, self._height(z)], -1) @ self._turn.T

    def encode(self, x: Tensor) -> Tensor:
        """Return the features of the law, shape `(*, manifold)`."""
        require_last_axis("x", x, self.data_dim)
        z = x.double() @ self._turn[:, : self.manifold_dim]
        return (self._middle + self._spread * z).to(x.dtype)

    def vertical_distance(self, x: Tensor) -> Tensor:
        """Return the distance of x to the point of the manifold with its coordinates, shape `(*)`."""
        return (x.double() - self.decode(self.encode(x.double()))).norm(dim=-1).to(x.dtype)

    def log_volume(self, u: Tensor) -> Tensor:
        """Return the log-volume of a cell du of the law's features on the manifold, shape `(*)`."""
        z = (u - self._middle) / self._spread
        slopes = (z @ self._waves.T + self._phases).cos().unsqueeze(-1) * self._waves
        metric = torch.eye(self.manifold_dim, dtype=z.dtype) + slopes.mT @ slopes
        return 0.5 * torch.logdet(metric) - self._spread.log().sum()

    def _height(self, z: Tensor) -> Tensor:
        return (z @ self._waves.T + self._phases).sin()


def _golden(law: Law | Lifted, theta: Tensor, theta_ref: Tensor | None, seed: int | Generator | None) -> Gold:
    """Return draws with their score and log ratio."""
    x, other = law.simulate(theta, seed=seed), reference_for(theta, theta_ref)
    return Gold(x, law.score(x, theta), law.log_prob(x, theta) - law.log_prob(x, other))
