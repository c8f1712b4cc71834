"""A linear-Gaussian model whose data lie on a plane or a curved surface in six dimensions, with its exact posterior."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

DATA_DIM = 6
SPREAD = 0.3**0.5
SHIFT = -1.0


@dataclass(frozen=True)
class LinearGaussian:
    """theta ~ N(0, 1), u ~ N(theta - 1, 0.3), and x = A u, plus B sin u on the curved surface.

    As x determines u, n observations leave theta ~ N(n (mean u + 1)/(n + 0.3), 0.3/(n + 0.3)) in every coordinate.
    """

    dim: int
    curved: bool = False

    @property
    def prior(self) -> MultivariateNormal:
        return MultivariateNormal(torch.zeros(self.dim), torch.eye(self.dim))

    def simulate(self, theta: Tensor) -> Tensor:
        return self.embed(theta + SHIFT + SPREAD * torch.randn_like(theta))

    def embed(self, u: Tensor) -> Tensor:
        """Return the points with these coordinates; the columns of A and B are all orthonormal."""
        generator = torch.Generator().manual_seed(self.dim)
        across, bent = torch.linalg.qr(torch.randn(DATA_DIM, DATA_DIM, generator=generator)).Q.split(3, dim=1)
        x = u @ across[:, : self.dim].T
        return x + (1.5 * u).sin() @ bent[:, : self.dim].T if self.curved else x

    def observed(self, events: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return mean u and x of shape `(events, 6)`, of events that share one theta of the prior."""
        generator = torch.Generator().manual_seed(seed)
        theta = torch.randn(self.dim, generator=generator)
        u = theta + SHIFT + SPREAD * torch.randn(events, self.dim, generator=generator)
        return u.mean(0), self.embed(u)

    def posterior(self, mean: Tensor, events: int) -> MultivariateNormal:
        """Return the exact posterior given the mean of so many u."""
        variance = SPREAD**2 / (events + SPREAD**2)
        return MultivariateNormal(events * (mean - SHIFT) / (events + SPREAD**2), variance * torch.eye(self.dim))
