r"""Stacked densities: several learned side by side, and the mixture of them that held-out rows find likeliest.

    p(u|theta) = sum_k w_k p_k(u|theta),    w = argmax  sum_j log sum_k w_k p_k(u_j|theta_j)

(Yao et al., Bayesian Anal. 13 (2018) 917). No kind of density is best for every simulator, and which one is shows only
once they have learned. The maximum is concave and is found by a few steps of expectation-maximisation; two rows' worth
of prior, the same for all members, keep weights from vanishing where held-out rows are few. Members that err
independently err less together: their mean density is closer to the truth than they are.

Each member learns by its own likelihood, as long and no longer than it gains by it: a phase that trains a stacked
density is run once for each (`mfsbi.train.schedules.unfolded`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Generator, Tensor, nn

from mfsbi.blocks import rows_at_work
from mfsbi.checks import require_kind
from mfsbi.flows.densities import Pairing, log_prob_of, pairing_of, sample_of
from mfsbi.flows.flow import Bijection, Density, FlowConfig, density_of

__all__ = ["Stacked", "StackedDensity"]

STEPS = 300
"""Of expectation-maximisation."""

PRIOR = 2.0
"""Held-out rows that count as shared by all members alike."""


@dataclass(frozen=True)
class Stacked(FlowConfig):
    """A `StackedDensity`: for latent densities.

    Arguments:
        members: two or more kinds of flows or densities

    Raises:
        TypeError: if a member is none, or stacked itself
        ValueError: if there are fewer than two
    """

    members: tuple[FlowConfig, ...]

    def __post_init__(self) -> None:
        require_kind("Stacked.members", self.members, tuple, "a tuple of flows (`FlowConfig`)")
        for member in self.members:
            require_kind("Stacked.members", member, FlowConfig, "a tuple of flows (`FlowConfig`)")
            if isinstance(member, Stacked):
                raise TypeError("`Stacked.members` should not be stacked themselves: list the members of that one too.")
        if len(self.members) < 2:
            raise ValueError(f"`Stacked.members` should be at least 2; got {len(self.members)}.")

    def build(self, features: int, parameters: int = 0, _cut: int | None = None) -> "StackedDensity":
        """Return the mixture, with equal weights; weights of members come from torch's generator."""
        return StackedDensity([density_of(member, features, parameters) for member in self.members])


class StackedDensity(nn.Module):
    """A mixture of densities. While a member is in training mode, the density is that member's.

    Arguments:
        members: of the same features and parameters
    """

    def __init__(self, members: list[Bijection | Density]) -> None:
        super().__init__()
        self.members = cast(Sequence[Any], nn.ModuleList(cast(list[nn.Module], members)))
        self.weights = nn.Buffer(torch.full((len(members),), 1 / len(members)))
        self.features, self.parameter_dim = members[0].features, members[0].parameter_dim

    def __repr__(self) -> str:
        return f"StackedDensity({', '.join(map(repr, self.members))})"

    def log_prob(self, u: Tensor, theta: Tensor | None = None) -> Tensor:
        """Return log p(u|theta), shape `(*)`: of the members in training, in the mean, or of the mixture if none is."""
        learning = [member for member in self.members if member.training]
        if learning:
            return torch.stack([log_prob_of(member, u, theta) for member in learning]).mean(0)
        return (self._each(u, theta) + self.weights.log().view(-1, *[1] * (u.ndim - 1))).logsumexp(0)

    def pairing(self, u: Tensor) -> Pairing:
        """Return log p(u|theta) of fixed points, shape `(sets, points, d)`, by the mixture."""
        return _StackedPairing(self, [pairing_of(member, u) for member in self.members])

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one u for each row of theta, shape `(*, d)`, from a member drawn by its weight."""
        rows = theta.reshape(math.prod(theta.shape[:-1]), theta.shape[-1])
        which = torch.multinomial(self.weights, len(rows), replacement=True, generator=generator)
        u = rows.new_zeros(len(rows), self.features)
        for number, member in enumerate(self.members):
            own = (which == number).nonzero()[:, 0]
            if len(own):
                u[own] = sample_of(member, rows[own], generator)
        return u.view(*theta.shape[:-1], self.features)

    def measure(self, u: Tensor, theta: Tensor) -> None:
        """Let members in training take what they begin with from rows; arguments are those of `settle`."""
        for member in self.members:
            if member.training and hasattr(member, "measure"):
                member.measure(u, theta)

    @torch.no_grad()
    def settle(self, u: Tensor, theta: Tensor) -> None:
        """Weigh the members by held-out rows.

        Arguments:
            u: standardised coordinates, shape `(rows, d)`
            theta: standardised, shape `(rows, parameter)`

        Raises:
            ArithmeticError: if a member is NaN at one of them
        """
        for member in self.members:
            if hasattr(member, "settle"):
                member.settle(u, theta)
        rows, share = rows_at_work(self.features), 1 / len(self.members)
        chunks = zip(u.split(rows), theta.split(rows), strict=True)
        log_prob = torch.cat([self._each(*chunk) for chunk in chunks], 1).double()
        if log_prob.isnan().any():
            wrong = log_prob.isnan().any(1).nonzero()[:, 0].tolist()
            raise ArithmeticError(
                f"Members {wrong} of a stacked density, counted from 0, are NaN at held-out rows, so that the mixture "
                "would be, too: train again with a lower `learning_rate`, or leave them out."
            )
        log_prob = log_prob[:, log_prob.isfinite().any(0)]  # a row that no member allows says nothing of them
        weights = torch.full((len(self.members),), share).to(log_prob)
        for _ in range(STEPS):
            told = (log_prob + weights.log()[:, None]).softmax(0).sum(1)
            weights = (told + PRIOR * share) / (log_prob.shape[1] + PRIOR)
        self.weights.copy_(weights)

    def _each(self, u: Tensor, theta: Tensor | None) -> Tensor:
        """Return the log densities of the members, shape `(members, *)`."""
        return torch.stack([log_prob_of(member, u, theta) for member in self.members])


@dataclass(frozen=True)
class _StackedPairing:
    """log p(u|theta) of fixed points by a mixture, given that by each member."""

    density: StackedDensity
    members: list[Pairing]

    def __call__(self, theta: Tensor, which: Tensor) -> Tensor:
        each = torch.stack([member(theta, which) for member in self.members])
        return (each + self.density.weights.log().view(-1, 1, 1, 1)).logsumexp(0)
