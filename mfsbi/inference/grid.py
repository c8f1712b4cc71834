r"""Posteriors on a grid: exact up to the spacing, for one to three parameters.

On a regular grid of cells of volume V, the normalised posterior is

    p(theta_i) = exp(l_i) / (V sum_k exp(l_k)),    l = log likelihood + log prior up to a constant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["GridPosterior", "grid_posterior"]


@dataclass(frozen=True)
class GridPosterior:
    """A normalised density on a regular grid.

    Arguments:
        theta: the points, shape `(points, parameter)`
        probability: the mass of the cell around each point, summing to one, shape `(points,)`
        cell: volume of a cell
    """

    theta: Tensor
    probability: Tensor
    cell: float

    @property
    def density(self) -> Tensor:
        """p(theta|x) at the points, shape `(points,)`."""
        return self.probability / self.cell

    @property
    def mean(self) -> Tensor:
        """Posterior mean, shape `(parameter,)`."""
        return self.probability @ self.theta

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation, shape `(parameter,)`."""
        return (self.probability @ (self.theta - self.mean).square()).sqrt()


def grid_posterior(
    potential: Callable[[Tensor], Tensor], low: Sequence[float], high: Sequence[float], points: int = 1001
) -> GridPosterior:
    """Return the normalised posterior on the midpoints of a regular grid.

    Arguments:
        potential: theta of shape `(rows, parameter)` -> log posterior up to a constant, shape `(rows,)`
        low: lower end of each parameter
        high: upper end of each parameter
        points: cells along each parameter

    Raises:
        ValueError: if there are no or more than three parameters, or the potential is NaN or nowhere finite

    Example:
        >>> grid = grid_posterior(lambda theta: -theta.square().sum(-1) / 2, [-6], [6])
        >>> grid.mean.abs().item() < 1e-6, round(grid.std.item(), 4)
        (True, 1.0)
    """
    if len(low) != len(high) or not 1 <= len(low) <= 3:
        raise ValueError(
            f"`low` and `high` should have the same 1 to 3 entries; got {len(low)} and {len(high)}. "
            "Beyond three parameters a grid is too large: sample with MCMC."
        )
    edges = [torch.linspace(a, b, points + 1, dtype=torch.float64) for a, b in zip(low, high, strict=True)]
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    theta = torch.cartesian_prod(*middles).reshape(-1, len(low))
    with torch.no_grad():
        log_prob = potential(theta.to(torch.get_default_dtype())).double().cpu()
    if torch.isnan(log_prob).any() or not torch.isfinite(log_prob).any():
        raise ValueError(
            "`potential` should be a number at every theta and above -inf at some; it was not on this grid."
        )
    cell = float(torch.tensor([edge[1] - edge[0] for edge in edges]).prod())
    return GridPosterior(theta, log_prob.softmax(0), cell)
