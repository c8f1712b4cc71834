r"""The search for the maxima that a likelihood ratio compares: over all parameters, and over nuisance parameters alone.

**On a grid** every point starts from the likeliest of some draws of the prior and of the maxima over all parameters,
whose psi is replaced by its own. Then each tries the nu_hat of its neighbours, and climbs on where one is better, until
none is: a ridge that the draws missed at one point is found from the next. The draws are those that the support
brings, so that equal arguments give equal results.

**Of toys** there are thousands, and q is wanted at the psi that they were simulated at alone. The search over all
parameters starts from the likeliest of draws of the prior and the truth; where two modes are about equally high, and
the lower one is taken, little is lost. That over nuisance parameters starts from the truth or from where the first one
ended.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import warn
from mfsbi.inference.maximum import Likelihood, Maxima, Support, maximise
from mfsbi.inference.profile import ProfileLikelihood

__all__ = ["likelihood_ratios", "profile_likelihood"]

STARTS = 4
"""Ascents to the maximum over all parameters, from the likeliest draws of the prior."""

TRIED, TRIED_BY_TOYS = 24, 12
"""Draws of the prior that are tried at each point of the grid, and for each toy."""

TAKEN = 2
"""The likeliest of them, from which ascents begin at each point of the grid."""

AT_ONCE = 128
"""Points of the grid."""

BETTER = 1e-3
"""Nats by which a neighbour's nuisance parameters have to be better to be taken."""

SWEEPS = 200
"""Over the grid at most, in which neighbours are asked."""


def profile_likelihood(
    likelihood: Likelihood,
    support: Support,
    axes: Mapping[int, Tensor],
    names: Sequence[str],
    *,
    show_progress_bars: bool = False,
) -> ProfileLikelihood:
    """Return the profile likelihood ratio of one set of events.

    Arguments:
        likelihood: of the set, number 0; -inf outside the support
        support: where maxima are looked for, with draws to begin from
        axes: the grid, for the index of each parameter of interest its values, shape `(points,)`
        names: of all parameters
        show_progress_bars: whether to show a bar over the grid

    Raises:
        ValueError: if the log likelihood is NaN at a point, or -inf at all draws of the prior

    Example:
        >>> def log_prob(theta, sets):  # of x = 0.5 with a standard deviation of 0.1
        ...     return -((0.5 - theta[:, 0]) / 0.1) ** 2 / 2
        >>> zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        >>> support = Support(zero, one, torch.rand(50, 1), one)
        >>> grid = {0: torch.linspace(0, 1, 101, dtype=torch.float64)}
        >>> print(profile_likelihood(Likelihood(log_prob, 1), support, grid, ["mass"]))
        maximum likelihood of 1 event at mass = 0.5
        mass in [0.3999, 0.6001] at 68.3 % by Wilks's theorem
        mass in [0.304, 0.696] at 95 % by Wilks's theorem
    """
    everything = range(len(support.low))
    optima = _optima(likelihood, support)
    points = _Points(likelihood, support, axes, optima.theta[0])
    if points.nuisances:
        candidates = torch.cat([optima.theta, support.draws[:TRIED].double()])
        parts = torch.arange(len(points.theta)).split(AT_ONCE)
        for part in tqdm(parts, disable=not show_progress_bars, desc="profile likelihood", leave=False):
            points.climb_from(candidates, part)
        points.ask_neighbours()
    top = points.theta[points.value.argmax()]
    last = maximise(likelihood, torch.zeros(1).long(), top[None], everything, support)
    theta = torch.cat([top[None], optima.theta, last.theta])
    value = torch.cat([points.value.amax()[None], optima.value, last.value])
    highest = value.amax()
    shape = [len(axis) for axis in axes.values()]
    return ProfileLikelihood(
        axes=tuple(axes.values()),
        theta=points.theta.view(*shape, -1),
        q=2 * (highest - points.value).view(shape),
        best=theta[value.argmax()],
        log_likelihood=float(highest),
        parameters=tuple(axes),
        names=tuple(names),
        events=likelihood.events,
        support=support,
    )


def likelihood_ratios(
    likelihood: Likelihood, count: int, theta: Tensor, parameters: Sequence[int], support: Support
) -> Tensor:
    """Return q of many sets of events, at the psi they were simulated at, shape `(count,)`.

    Arguments:
        likelihood: of the sets; -inf outside the support
        count: of the sets
        theta: they were simulated at, shape `(parameter,)`
        parameters: indices of the parameters of interest
        support: where maxima are looked for, with draws to begin from

    Raises:
        ValueError: if a log likelihood is NaN
    """
    theta = theta.double()
    everything = range(len(theta))
    nuisances = [i for i in everything if i not in parameters]
    sets = torch.arange(count)
    candidates = torch.cat([theta[None], support.draws[:TRIED_BY_TOYS].double()])
    rows = candidates.expand(count, -1, -1)
    table = _values(likelihood, rows.flatten(0, 1), sets.repeat_interleave(len(candidates))).view(count, -1)
    overall = maximise(likelihood, sets, candidates[table.argmax(1)], everything, support)
    at_truth = table[:, 0]
    if nuisances:
        moved = overall.theta.clone()
        moved[:, list(parameters)] = theta[list(parameters)]
        start = torch.where((_values(likelihood, moved, sets) > at_truth)[:, None], moved, theta)
        at_truth = maximise(likelihood, sets, start, nuisances, support).value
    return 2 * (torch.maximum(overall.value, at_truth) - at_truth)


class _Points:
    """The grid as rows of theta, with the highest log likelihood found at each so far.

    Arguments:
        likelihood: of the set
        support: bounds and units of the parameters
        axes: values of each parameter of interest by its index
        theta: of which the nuisance parameters are the first ones tried
    """

    def __init__(self, likelihood: Likelihood, support: Support, axes: Mapping[int, Tensor], theta: Tensor) -> None:
        self.likelihood, self.support, self.parameters = likelihood, support, list(axes)
        self.shape = [len(axis) for axis in axes.values()]
        self.psi = torch.cartesian_prod(*axes.values()).reshape(-1, len(axes)).double()
        self.nuisances = [i for i in range(len(theta)) if i not in axes]
        self.theta = self._placed(theta.expand(len(self.psi), -1), torch.arange(len(self.psi)))
        self.value = _values(likelihood, self.theta, torch.zeros(len(self.theta)).long())

    def climb_from(self, candidates: Tensor, points: Tensor) -> None:
        """Climb at some points from the likeliest of candidates, shape `(candidates, parameter)`."""
        of_each = points.repeat_interleave(len(candidates))
        rows = self._placed(candidates.repeat(len(points), 1), of_each)
        values = _values(self.likelihood, rows, torch.zeros(len(rows)).long()).view(len(points), -1)
        taken = values.topk(min(TAKEN, len(candidates)), dim=1).indices
        starts = rows.view(len(points), len(candidates), -1).gather(1, taken[..., None].expand(-1, -1, rows.shape[1]))
        for start in starts.unbind(1):
            self._climb(start, points)

    def ask_neighbours(self) -> None:
        """Climb from where neighbours are until none does better; warn if they do for ever."""
        number = torch.arange(len(self.theta)).view(self.shape)
        pairs = []
        for axis, count in enumerate(self.shape):
            lower, upper = (number.narrow(axis, first, count - 1).flatten() for first in (0, 1))
            pairs += [torch.stack([lower, upper]), torch.stack([upper, lower])]
        here, there = torch.cat(pairs, dim=1)
        for _ in range(SWEEPS):
            rows = self._placed(self.theta[there], here)
            found = _values(self.likelihood, rows, torch.zeros(len(rows)).long())
            better = found > self.value[here] + BETTER
            if not better.any():
                return
            self._climb(rows[better], here[better])
        warn(
            f"After {SWEEPS} sweeps there are still points of the grid at which nuisance parameters of neighbours are "
            "better than their own: the profile likelihood is not smooth there, and may be too low."
        )

    def _climb(self, start: Tensor, points: Tensor) -> None:
        found = maximise(self.likelihood, torch.zeros(len(start)).long(), start, self.nuisances, self.support)
        for theta, value, point in zip(found.theta, found.value, points.tolist(), strict=True):
            if value > self.value[point]:
                self.theta[point], self.value[point] = theta, value

    def _placed(self, theta: Tensor, points: Tensor) -> Tensor:
        """Return rows of theta with psi of some points."""
        placed = theta.clone()
        placed[:, self.parameters] = self.psi[points]
        return placed


def _optima(likelihood: Likelihood, support: Support) -> Maxima:
    """Return maxima over all parameters from the likeliest draws of the prior, the highest first."""
    draws = support.draws.double()
    values = _values(likelihood, draws, torch.zeros(len(draws)).long())
    if not torch.isfinite(values).any():
        raise ValueError(
            f"The likelihood is zero at all of {len(draws)} draws of the prior. Is x within reach of the prior?"
        )
    start = draws[values.topk(min(STARTS, len(draws))).indices]
    found = maximise(likelihood, torch.zeros(len(start)).long(), start, range(len(support.low)), support)
    if not found.found.all():
        warn(
            f"{int((~found.found).sum())} of {len(start)} ascents to the maximum of the likelihood did not come to "
            "rest: it is rough, or has no maximum within the prior."
        )
    order = found.value.argsort(descending=True)
    return Maxima(*(each[order] for each in found))


def _values(likelihood: Likelihood, theta: Tensor, sets: Tensor) -> Tensor:
    """Return the log likelihood of each row, shape `(rows,)`, or raise ValueError if it is NaN."""
    values = likelihood.at(theta, sets)
    wrong = values.isnan()
    if wrong.any():
        raise ValueError(
            f"The log likelihood should be a number; it is NaN at {int(wrong.sum())} of {len(values)} points, the "
            f"first of them theta = {theta[wrong][0].tolist()}."
        )
    return values
