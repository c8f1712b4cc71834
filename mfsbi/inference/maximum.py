r"""Maxima of many log likelihoods at once, within the support of a prior.

A projected quasi-Newton ascent for every row of a batch, each with a curvature B of its own, in units of the prior's
spread: the step d solves B d = gradient for the parameters that are free to move (those at a bound with the gradient
pointing out of it rest; Bertsekas, SIAM J. Control Optim. 20 (1982) 221), is cut to one spread and clamped to the
bounds, so that a maximum may lie on an edge, and is taken if the likelihood grows by a part of what the gradient
promised (Armijo), shortened to a quarter if not. B follows gradients by the rule of Broyden, Fletcher, Goldfarb and
Shanno, where they show a maximum (Nocedal & Wright, Numerical Optimization, chapter 6). A row rests once a step
promises less than `GAIN` nats. Optimisers of scipy and torch take one function at a time; a grid of profile
likelihoods, or an ensemble of toys, is thousands, of a few parameters each, and one call of a network evaluates all.

An ascent finds the maximum that its start lies below; starts are the caller's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfsbi.blocks import rows_at_work

__all__ = ["Likelihood", "Maxima", "Support", "maximise"]

GAIN = 1e-5
"""Nats that another step has to promise."""

FIRST = 0.1
"""Length of the first step, in spreads of the prior."""

MOST = 200
"""Steps."""

ARMIJO = 1e-4
"""Share of what the gradient promises by which the likelihood has to grow."""

SHORTEST = 1e-6
"""Share of a step below which the likelihood does not grow along it but for rounding."""


class Likelihood(NamedTuple):
    """log p(x_i1, ..., x_im|theta), up to a constant, of sets of events.

    Arguments:
        log_prob: theta of shape `(rows, parameter)` and the number of a set for each, shape `(rows,)` -> shape
            `(rows,)`, differentiable by theta
        events: m, of each set
    """

    log_prob: Callable[[Tensor, Tensor], Tensor]
    events: int

    def at(self, theta: Tensor, sets: Tensor) -> Tensor:
        """Return the values without gradients, in float64 and on the processor, shape `(rows,)`."""
        with torch.no_grad():
            return torch.cat([self.log_prob(*part).double().cpu() for part in self._blocks(theta, sets)])

    def with_gradient(self, theta: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values, shape `(rows,)`, and their gradients by theta, shape `(rows, parameter)`."""
        values, slopes = [], []
        for rows, numbers in self._blocks(theta, sets):
            with torch.enable_grad():
                leaf = rows.detach().requires_grad_()
                value = self.log_prob(leaf, numbers)
                slopes.append(torch.autograd.grad(value.sum(), leaf)[0].double().cpu())
            values.append(value.detach().double().cpu())
        return torch.cat(values), torch.cat(slopes)

    def _blocks(self, theta: Tensor, sets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        rows = max(1, rows_at_work(theta.shape[1]) // self.events)
        return zip(theta.split(rows), sets.split(rows), strict=True)


class Support(NamedTuple):
    """Where theta may be.

    Arguments:
        low: lower end of each parameter, shape `(parameter,)`
        high: upper end of each parameter, shape `(parameter,)`
        draws: of the prior, from which searches begin, shape `(rows, parameter)`
        spread: of each parameter, a length in which to measure steps, shape `(parameter,)`
    """

    low: Tensor
    high: Tensor
    draws: Tensor
    spread: Tensor


class Maxima(NamedTuple):
    """Where ascents ended.

    Arguments:
        theta: shape `(rows, parameter)`
        value: the log likelihood there, shape `(rows,)`
        found: whether they came to rest, shape `(rows,)`
    """

    theta: Tensor
    value: Tensor
    found: Tensor


def maximise(likelihood: Likelihood, sets: Tensor, start: Tensor, free: Sequence[int], support: Support) -> Maxima:
    """Return the maximum over some parameters that is reached from each start.

    Arguments:
        likelihood: of the sets
        sets: number of the set of each row, shape `(rows,)`
        start: within the bounds, shape `(rows, parameter)`
        free: indices of the parameters to move; the others stay as they are
        support: bounds and units of the parameters
    """
    ascents = _Ascents(likelihood, sets, start, free, support)
    moving = torch.isfinite(ascents.value)
    for _ in range(MOST):
        rows = moving.nonzero().flatten()
        if len(rows) == 0:
            break
        moving[rows] = ascents.advance(rows)
    return Maxima(ascents.theta, ascents.value, ~moving)


class _Ascents:
    """Where all rows are, with gradients and curvatures in units of the prior's spread."""

    def __init__(
        self, likelihood: Likelihood, sets: Tensor, start: Tensor, free: Sequence[int], support: Support
    ) -> None:
        self.likelihood, self.sets, self.theta, self.free = likelihood, sets, start.double().clone(), list(free)
        self.low, self.high, self.unit = (each[self.free] for each in (support.low, support.high, support.spread))
        self.value, self.slope = self._evaluated(self.theta, sets)
        steepest = self.slope.abs().amax(-1).clamp(min=GAIN)
        self.curvature = (steepest / FIRST)[:, None, None] * torch.eye(len(self.free), dtype=torch.float64)
        self.share = torch.ones(len(start), dtype=torch.float64)
        self.fresh = torch.ones(len(start), dtype=torch.bool)

    def advance(self, rows: Tensor) -> Tensor:
        """Take a step in some rows and return which of them have to go on."""
        move = self._step(rows)
        promised = (self.slope[rows] * move).sum(-1)
        worth = promised > GAIN * self.share[rows]
        rows, move, promised = rows[worth], move[worth], promised[worth]
        going = worth.clone()
        if len(rows) == 0:
            return going
        theta = self.theta[rows].clone()
        theta[:, self.free] = (theta[:, self.free] + move * self.unit).clamp(self.low, self.high)
        value, slope = self._evaluated(theta, self.sets[rows])
        better = value >= self.value[rows] + ARMIJO * promised
        taken = rows[better]
        self._learn(taken, move[better], slope[better])
        self.theta[taken], self.value[taken], self.slope[taken] = theta[better], value[better], slope[better]
        self.share[rows] = torch.where(better, 1.0, self.share[rows] / 4)
        going[worth] = self.share[rows] > SHORTEST
        return going

    def _step(self, rows: Tensor) -> Tensor:
        """Return the next step, up the hill and within the bounds, shape `(rows, free)`."""
        theta, slope, curvature = self.theta[rows][:, self.free], self.slope[rows], self.curvature[rows]
        resting = ((theta <= self.low) & (slope < 0)) | ((theta >= self.high) & (slope > 0))
        slope = slope.masked_fill(resting, 0.0)
        plain = torch.diagonal(curvature, dim1=-2, dim2=-1)
        reduced = curvature.masked_fill(resting[:, :, None] | resting[:, None, :], 0.0)
        reduced = reduced + torch.diag_embed(plain * resting)

        def bounded(step: Tensor) -> Tensor:
            step = self.share[rows, None] * step
            step = step / step.abs().amax(-1, keepdim=True).clamp(min=1.0)
            return ((theta + step * self.unit).clamp(self.low, self.high) - theta) / self.unit

        step = bounded(torch.linalg.solve(reduced, slope[..., None])[..., 0])
        uphill = (step * slope).sum(-1) > 0  # a step cut by bounds may lead down
        return torch.where(uphill[:, None], step, bounded(slope / plain))

    def _learn(self, rows: Tensor, move: Tensor, slope: Tensor) -> None:
        """Update curvatures by how gradients changed, where they fell along a step that was taken."""
        change = self.slope[rows] - slope
        bend = (move * change).sum(-1)
        sure = bend > 1e-8 * move.square().sum(-1)
        rows, move, change, bend = rows[sure], move[sure], change[sure], bend[sure]
        eye = torch.eye(len(self.free), dtype=torch.float64)
        first = (change.square().sum(-1) / bend)[:, None, None] * eye
        known = torch.where(self.fresh[rows, None, None], first, self.curvature[rows])
        along = (known @ move[..., None])[..., 0]
        self.curvature[rows] = (
            known
            - along[:, :, None] * along[:, None, :] / (move * along).sum(-1)[:, None, None]
            + change[:, :, None] * change[:, None, :] / bend[:, None, None]
        )
        self.fresh[rows] = False

    def _evaluated(self, theta: Tensor, sets: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = self.likelihood.with_gradient(theta, sets)
        return value, slope[:, self.free] * self.unit
