"""Draws of a posterior on a grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from mfsbi.checks import require_positive_integer
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.grid import grid_posterior, warn_of_grid
from mfsbi.inference.samplers import Problem
from mfsbi.plugin.parameter_prior import parameter_prior
from mfsbi.plugin.samplers.of_sbi import CHAINS
from mfsbi.priors import bounds_of
from mfsbi.seeds import seeded

__all__ = ["Grid"]

POINTS = {1: 1000, 2: 300, 3: 60}
"""Along each of so many parameters."""


@dataclass(frozen=True)
class Grid:
    """Cells drawn by their probability, and a point within each.

    Arguments:
        bounds: (low, high) of each parameter; those of the prior if None
        points: along each parameter; 1,000 for one, 300 for two and 60 for three if None

    Raises:
        ValueError: if points is not a positive integer
    """

    bounds: Sequence[Sequence[float]] | None = None
    points: int | None = None

    def __post_init__(self) -> None:
        if self.points is not None:
            require_positive_integer("points", self.points)

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return the draws in four chains.

        Raises:
            ValueError: if bounds do not fit the parameters, the prior has none, there are more than three parameters,
                or they sum to one
        """
        problem.require_continuous("grid")
        prior, count = parameter_prior(problem.prior), problem.parameters
        if len(problem.transform(prior.somewhere)[0]) < count:
            raise ValueError("A grid cannot cover parameters that sum to one: take another sampler, such as slice.")
        pairs = [pair for part in prior.parts for pair in bounds_of(part.inner)] if self.bounds is None else self.bounds
        if len(pairs) != count or not all(len(pair) == 2 and -inf < pair[0] < pair[1] < inf for pair in pairs):
            raise ValueError(
                f"`bounds` should be {count} finite pairs (low, high) with low < high, one for each parameter; "
                f"got {pairs}."
            )
        low, high = zip(*pairs, strict=True)
        points = self.points or POINTS.get(count, 1)

        def inside(theta: Tensor) -> Tensor:
            return prior.inside(theta.to(prior.device)).cpu()

        grid = grid_posterior(problem.log_prob, low, high, points)
        warn_of_grid(grid, low, high, inside)
        width = (torch.tensor(high, dtype=torch.float64) - torch.tensor(low, dtype=torch.float64)) / points
        with seeded(seed):
            cells = grid.theta[torch.multinomial(grid.probability, CHAINS * draws, replacement=True)]
            theta = (cells + width * (torch.rand_like(cells) - 0.5)).to(torch.get_default_dtype())
        theta = torch.where(inside(theta)[:, None], theta, cells.to(theta))  # a cell may reach over the edge
        return problem.chains(theta.view(CHAINS, draws, -1), Info("grid", markov=False))
