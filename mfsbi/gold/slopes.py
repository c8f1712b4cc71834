r"""Check that log probabilities of a program change with theta as autograd says, with all values held fixed.

A small step h away the log probability must rise by what the gradients t and t' at both ends foretell,

    log p(x, z|theta + h) - log p(x, z|theta) = h . (t + t') / 2 + O(h^3),

which fails whatever the reason for which autograd and the program are at odds. Each row's step is made to change the
log probability by ten times the cube root of the machine's precision, where rounding and curvature err alike, and may
err by as much again: 0.0006 of the change in float64, half of it in float32, but in half of the rows by no more than a
fifth of that. A kink, such as Laplace's, may lie within a step, but hardly within all of three that shrink.

A small step meets a **jump** in few rows, if in any: that of u ~ U(0, 1), x ~ N(1[u < theta], 1) at theta = u. The
gradient knows nothing of it, and so the joint score is not the score on average. It is looked for on the whole way to
other parameters, in up to a thousand rows. The way is halved again and again, and the half is kept whose ends foretell
its rise the worse. There what is smooth soon rises as foretold; a kink by what the steeper end allows; a jump by
itself. Where numbers are rounded, all places jump a little: a jump should be ten times as high as what is found in
steps beside it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mfsbi.gold.runs import Run, Tolerance, gradient
from mfsbi.types import ProgramError

__all__ = ["require_finite_slopes", "require_gradient", "require_no_jump"]

HALVINGS, JUMP_ROWS = 20, 1000
BESIDE = (1, 4, 16, 64, 256)  # steps of these sizes, to either side
TIMES_NOISE = 10


class _Ends(NamedTuple):
    """What is known of the log probability at theta, a row each; `scale` is the size of the numbers it is a sum of."""

    theta: Tensor
    log_prob: Tensor
    slope: Tensor
    scale: Tensor


def require_finite_slopes(run: Run) -> None:
    """Raise ProgramError if the gradient of a site's log probability is NaN or infinite."""
    if torch.isfinite(run.score()).all():
        return
    for name, site in run.sites.items():
        bad = ~torch.isfinite(gradient(site.log_prob, run.theta)).all(1)
        if bad.any():
            row = int(bad.nonzero()[0])
            raise ProgramError(
                f"The log probability of site {name!r} should have a finite gradient; autograd finds NaN or infinity "
                f"in {int(bad.sum())} of {len(bad)} rows, the first of them row {row}, {run.theta[row].tolist()}. "
                "A root or a logarithm at zero? `torch.where` passes on NaN of the branch that it does not choose: "
                "choose its argument first, `torch.where(a > 0, a, 1.0).sqrt()`."
            )
    raise ProgramError("The joint score should be finite; the gradients of its sites add up to NaN or infinity.")


def require_gradient(again: Callable[..., Run], run: Run, towards: Tensor) -> None:
    """Raise ProgramError if autograd does not know how the density changes with theta.

    Arguments:
        again: runs the program at other theta on held values
        run: where gold is wanted
        towards: other parameters, shape `(rows, parameter)`
    """
    here, way = _ends(run), towards - run.theta.detach()
    rounding, slope = _rounding(here), (here.slope * way).abs().sum(1, keepdim=True)
    far, off = (torch.ones(len(run.theta), dtype=torch.bool, device=run.theta.device) for _ in range(2))
    for shrunk in (1.0, 0.3, 0.1):  # steps by which log probabilities change by `_budget` times this
        near = (here.theta + shrunk * _budget(way) * way / slope.clamp(min=1)).requires_grad_()
        there = again(near, held=run, where="a small step away")
        ends = _ends(there)
        error, foretold = _error(here, ends), 10 * _budget(near) * _foretold(here, ends).abs().sum(1)
        far &= ~(error <= foretold + rounding)
        off &= ~(error <= 0.2 * foretold + rounding)
        if far.double().mean() <= Tolerance.of(near.dtype).faults and off.double().mean() <= 0.5:
            return
    _refuse_gradient(run, there)


def require_no_jump(again: Callable[..., Run], run: Run, towards: Tensor) -> None:
    """Raise ProgramError if the density of a site jumps on the way to other parameters.

    Arguments:
        again: runs the program at other theta on held values
        run: where gold is wanted
        towards: other parameters, shape `(rows, parameter)`
    """
    rows = torch.arange(0, len(run.theta), -(-len(run.theta) // JUMP_ROWS), device=run.theta.device)
    held = run.of_rows(rows)

    def at(theta: Tensor) -> _Ends:
        return _ends(again(theta.detach().requires_grad_(), held=held, where="on the way to another theta"))

    left, right = at(run.theta[rows]), at(towards[rows])
    for _ in range(HALVINGS):
        if not _jumps(left, right, slack=0.0).any():
            return
        middle = at((left.theta + right.theta) / 2)
        first = _error(left, middle) > _error(middle, right)
        left, right = _choose(first, left, middle), _choose(first, middle, right)
    jumps = _jumps(left, right, slack=1.0)
    if jumps.any():
        step, noise = right.theta - left.theta, torch.zeros_like(left.scale)
        for size in BESIDE:
            below, above = at(left.theta - size * step), at(right.theta + size * step)
            noise = torch.maximum(noise, torch.maximum(_error(below, left), _error(right, above)))
        jumps &= _error(left, right) > TIMES_NOISE * noise
    if jumps.any():
        row = int(jumps.nonzero()[0])
        rises = (right.log_prob - left.log_prob)[row]
        site = int(rises.abs().argmax())
        raise ProgramError(
            f"The log probability of site {list(run.sites)[site]!r} should be continuous in theta; with all values "
            f"held it jumps by {float(rises[site]):.3g} at theta = {left.theta[row].tolist()}, and somewhere in "
            f"{int(jumps.sum())} of {len(rows)} rows. Where theta is compared with a value, `value < theta`, the joint "
            'score is not the score on average: draw the outcome instead, `pyro.sample("k", dist.Bernoulli(...))`.'
        )


def _ends(run: Run) -> _Ends:
    """Return what a run knows of its log probability."""
    log_prob = torch.stack([site.log_prob for site in run.sites.values()], -1).detach()
    scale = torch.stack([1 + site.log_prob.detach().abs() + site.size() for site in run.sites.values()]).sum(0)
    return _Ends(run.theta.detach(), log_prob, run.score(), scale)


def _error(left: _Ends, right: _Ends) -> Tensor:
    """Return by how much the rise is another than the slopes at both ends foretell, shape `(rows,)`."""
    return ((right.log_prob - left.log_prob).sum(1) - _foretold(left, right).sum(1)).abs()


def _foretold(left: _Ends, right: _Ends) -> Tensor:
    """Return how much each parameter's change should change the log probability, shape `(rows, parameter)`."""
    return 0.5 * (left.slope + right.slope) * (right.theta - left.theta)


def _rounding(here: _Ends) -> Tensor:
    """Return how much of a difference may be rounding, shape `(rows,)`."""
    return torch.finfo(here.theta.dtype).eps * (20 * here.scale + 4 * (here.slope * here.theta).abs().sum(1))


def _jumps(left: _Ends, right: _Ends, slack: float) -> Tensor:
    """Return the rows with a rise beyond rounding, and beyond `slack` times what a kink between slopes explains."""
    step = right.theta - left.theta
    kink = 0.5 * ((left.slope * step).sum(1).abs() + (right.slope * step).sum(1).abs())
    return _error(left, right) > Tolerance.of(step.dtype).jump + slack * kink + _rounding(left) + _rounding(right)


def _choose(first: Tensor, ours: _Ends, theirs: _Ends) -> _Ends:
    """Return ours in the rows that are told to be first, theirs in the others."""
    return _Ends(*(torch.where(first.view(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(ours, theirs, strict=True)))


def _budget(like: Tensor) -> float:
    """Return the change of a log probability at which rounding and curvature err alike, times ten."""
    return 10 * torch.finfo(like.dtype).eps ** (1 / 3)


def _refuse_gradient(run: Run, near: Run) -> None:
    """Raise ProgramError naming the site whose log probability rises the least as its gradients foretell."""
    step = (near.theta - run.theta).detach()
    rises, foretold = {}, {}
    for name, site in run.sites.items():
        there = near.sites[name].log_prob
        rises[name] = (there - site.log_prob).detach()
        foretold[name] = (0.5 * (gradient(site.log_prob, run.theta) + gradient(there, near.theta)) * step).sum(1)
    name = max(rises, key=lambda name: float((rises[name] - foretold[name]).abs().sum()))
    row = int((rises[name] - foretold[name]).abs().argmax())
    raise ProgramError(
        f"The log probability of site {name!r} should change with theta as its gradient says; a small step of theta in "
        f"row {row} changes it by {float(rises[name][row]):.3g} where the gradient says "
        f"{float(foretold[name][row]):.3g}. Theta enters by a way that autograd does not see (`detach`, `item`, numpy, "
        "a lower precision), or a value kept from another run has a gradient of its own. Theta in float64 makes this "
        "check sharp."
    )
