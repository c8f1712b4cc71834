r"""Posteriors on a grid: exact up to the spacing, for one to three parameters.

On a regular grid of cells of volume V, the normalised posterior is

    p(theta_i) = exp(l_i) / (V sum_k exp(l_k)),    l = log likelihood + log prior up to a constant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mfsbi.checks import warn

__all__ = ["GridPosterior", "grid_posterior", "warn_of_grid"]

CUT = 0.01
"""Share of its maximum that a marginal may still have at a bound inside the prior."""

FEWEST_CELLS = 4.0
"""Effective number of cells, 1 / sum p^2, that a posterior should fill; a Gaussian fills 3.5 standard deviations."""


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


def warn_of_grid(
    grid: GridPosterior, low: Sequence[float], high: Sequence[float], possible: Callable[[Tensor], Tensor]
) -> None:
    """Warn if bounds cut off a part of the posterior, or cells are as wide as it.

    Arguments:
        grid: the posterior
        low: lower end of each parameter
        high: upper end of each parameter
        possible: theta of shape `(rows, parameter)` -> whether the prior has rows there, shape `(rows,)`
    """
    points = round(len(grid.probability) ** (1 / len(low)))
    table = grid.probability.view([points] * len(low))
    for i, ends in enumerate(zip(low, high, strict=True)):
        marginal = table.sum([axis for axis in range(len(low)) if axis != i]) if len(low) > 1 else table
        if 1 / float(marginal.square().sum()) < min(FEWEST_CELLS, points / 2):
            warn(
                f"The grid is too coarse: the posterior of parameter {i} fills about "
                f"{1 / float(marginal.square().sum()):.1f} of its {points} cells, so that draws are wider than it. "
                "Narrow `bounds`, or raise `points`.",
            )
        width = (ends[1] - ends[0]) / points
        for end, cell, step in ((ends[0], 0, -width), (ends[1], points - 1, width)):
            face = table.select(i, cell).flatten()
            beyond = grid.theta.view(*table.shape, -1).select(i, cell).reshape(len(face), -1)[face.argmax()].clone()
            beyond[i] += step
            if marginal[cell] > CUT * marginal.max() and bool(possible(beyond[None].to(torch.get_default_dtype()))):
                warn(
                    f"`bounds` cut off a part of the posterior: that of parameter {i} is still "
                    f"{float(marginal[cell] / marginal.max()):.2g} of its maximum at {end:.4g}. Move that bound out.",
                )


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
