r"""The profile likelihood ratio of one to three parameters of interest, and its intervals by Wilks's theorem.

Let theta = (psi, nu), psi of interest and nu nuisance parameters. For events x_1, ..., x_m that share one theta, with
log L(psi, nu) = sum_j log p(x_j|psi, nu),

    q(psi) = 2 [max_{psi', nu'} log L(psi', nu') - max_nu log L(psi, nu)]  >=  0.

The first maximum is at theta_hat, the maximum likelihood estimate, the second at nu_hat(psi), the profiled nuisance
parameters. Nothing but the support of the prior matters: maxima are looked for within it, and its density plays no
role. By Wilks's theorem (Ann. Math. Stat. 9 (1938) 60) q at the true psi follows, for many events, a chi-squared
law with as many degrees of freedom as psi has entries, so that

    {psi : q(psi) <= F^-1(level)},    F the distribution function of that law,

holds the true psi in the share `level` of experiments. It does so only if the likelihood is that of the experiment,
events are many, parameters are determined by them, and theta_hat lies within the support: not on its edge. Where one of
these fails, take critical values from simulations (`mfsbi.inference.neyman`).

**Between points** sqrt q is interpolated linearly, which is exact where q is a parabola, with q(psi_hat) = 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from mfsbi.checks import require_number, warn
from mfsbi.inference.maximum import Support

__all__ = ["Interval", "ProfileLikelihood", "pieces", "require_level", "warn_of_region"]

NEAR, FEWEST = 4.0, 3
"""q of two standard deviations, and the points along each axis at which it should be smaller."""

ON_EDGE = 1e-3
"""Distance from an edge of the prior's support, in spreads of the prior, that counts as on it."""


class Interval(NamedTuple):
    """From `low` to `high`, in units of the parameter."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True)
class ProfileLikelihood:
    """q(psi) on a regular grid; `print` shows theta_hat, and for one parameter its intervals of 68.3 % and 95 %.

    Arguments:
        axes: the grid, for each parameter of interest its values, shape `(points,)`
        theta: (psi, nu_hat(psi)), shape `(*points, parameter)`
        q: shape `(*points,)`, infinite where the likelihood is zero at all starts of the search
        best: theta_hat, shape `(parameter,)`
        log_likelihood: at theta_hat, in nats; up to a constant for a ratio
        parameters: indices of the parameters of interest
        names: of all parameters
        events: that share theta
        support: of the prior
    """

    axes: tuple[Tensor, ...]
    theta: Tensor
    q: Tensor
    best: Tensor
    log_likelihood: float
    parameters: tuple[int, ...]
    names: tuple[str, ...]
    events: int
    support: Support

    @property
    def nuisances(self) -> list[int]:
        """Indices of the nuisance parameters."""
        return [i for i in range(len(self.best)) if i not in self.parameters]

    def critical(self, level: float) -> Tensor:
        """Return the chi-squared law's quantile for a confidence level at each point, shape `(*points,)`.

        Raises:
            ValueError: if level is not between 0 and 1
        """
        require_level(level)
        return torch.full_like(self.q, float(stats.chi2.ppf(level, len(self.parameters))))

    def intervals(self, level: float) -> list[Interval]:
        """Return where q <= the quantile of the chi-squared law with one degree of freedom, by Wilks's theorem.

        There may be several pieces. A warning says where a piece is cut off by the grid or the prior.

        Arguments:
            level: of confidence, such as 0.683 or 0.95

        Raises:
            ValueError: if level is not between 0 and 1, or there is more than one parameter of interest
        """
        self.region(level)
        return pieces(self, self.critical(level))

    def region(self, level: float) -> Tensor:
        """Return which points of the grid have q <= the quantile of the chi-squared law, shape `(*points,)`.

        A warning says where the region is cut off by the grid or the prior, or the grid is too coarse.

        Raises:
            ValueError: if level is not between 0 and 1
        """
        within = self.q <= self.critical(level)
        warn_of_region(self, within)
        self._warn_of_edges(within)
        return within

    def at(self, psi: float | Sequence[float] | Tensor) -> float:
        """Return q at any point of the grid's range, interpolated.

        Raises:
            ValueError: if psi has another number of entries, or lies outside the grid
        """
        point = self.require_point(psi)
        if len(self.axes) == 1:
            values, roots = self._curve(self.q)
            return float(np.interp(point[0], values, roots)) ** 2
        grid = RegularGridInterpolator([axis.numpy() for axis in self.axes], self.q.numpy())
        return float(grid(point)[0])

    def p_value(self, psi: float | Sequence[float] | Tensor) -> float:
        """Return how often q would be as large as it is at a point, if that were the truth, by Wilks's theorem.

        Raises:
            ValueError: if psi has another number of entries, or lies outside the grid
        """
        return float(stats.chi2.sf(self.at(psi), len(self.parameters)))

    def require_point(self, psi: float | Sequence[float] | Tensor) -> NDArray[np.float64]:
        """Return a point as an array, or raise ValueError if it is no point within the grid."""
        point = np.atleast_1d(np.asarray(psi, dtype=np.float64))
        ends = [(float(axis[0]), float(axis[-1])) for axis in self.axes]
        fits = point.shape == (len(ends),) and all(a <= value <= b for value, (a, b) in zip(point, ends, strict=True))
        if not fits:
            raise ValueError(
                f"`psi` should have a value for each of {self._of_interest}, within {ends}; got {point.tolist()}."
            )
        return point

    @property
    def _of_interest(self) -> str:
        return ", ".join(self.names[i] for i in self.parameters)

    def _curve(self, values: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return psi with psi_hat among them, and the root of values with zero there."""
        psi, best = self.axes[0].numpy(), float(self.best[self.parameters[0]])
        roots, place = values.clamp(min=0).sqrt().numpy(), int(np.searchsorted(psi, best))
        if not psi[0] <= best <= psi[-1]:
            return psi, roots
        if psi[place] == best:
            return psi, np.where(psi == best, 0.0, roots)
        return np.insert(psi, place, best), np.insert(roots, place, 0.0)

    def _warn_of_edges(self, within: Tensor) -> None:
        """Warn if a maximum lies where the support of the prior ends."""
        points = torch.cat([self.best[None], self.theta[within]])
        distance = torch.minimum(points - self.support.low, self.support.high - points) / self.support.spread
        touched = (distance < ON_EDGE).any(0).nonzero().flatten().tolist()
        if touched:
            warn(
                f"The likelihood is as high as that on the edge of the prior's support, of "
                f"{', '.join(self.names[i] for i in touched)}: Wilks's theorem does not hold there. Take critical "
                "values from simulations, `confidence_belt`."
            )

    def __str__(self) -> str:
        best = ", ".join(f"{name} = {value:.4g}" for name, value in zip(self.names, self.best.tolist(), strict=True))
        lines = [f"maximum likelihood of {self.events} event{'s' * (self.events > 1)} at {best}"]
        for level in (0.683, 0.95) if len(self.axes) == 1 else ():
            found = " and ".join(map(str, pieces(self, self.critical(level))))
            lines.append(f"{self._of_interest} in {found} at {100 * level:g} % by Wilks's theorem")
        return "\n".join(lines)

    def __repr__(self) -> str:
        points = " x ".join(str(len(axis)) for axis in self.axes)
        return f"ProfileLikelihood({self._of_interest}, {points} points, events={self.events})"


def pieces(profile: ProfileLikelihood, critical: Tensor) -> list[Interval]:
    """Return the intervals of one parameter in which q is below critical values, in order.

    Arguments:
        profile: of one parameter
        critical: at each point of its grid, shape `(points,)`

    Raises:
        ValueError: if there are several parameters of interest
    """
    if len(profile.axes) != 1:
        raise ValueError(
            f"Intervals are of one parameter of interest; got {len(profile.axes)}. Take `region`, or the profile "
            "likelihood of each parameter."
        )
    psi, roots = profile._curve(profile.q)
    excess = roots - np.interp(psi, profile.axes[0].numpy(), critical.sqrt().numpy())
    within = excess <= 0
    found, start = [], float(psi[0])
    for i, (before, after) in enumerate(pairwise(within)):
        if before == after:
            continue
        share = excess[i] / (excess[i] - excess[i + 1]) if np.isfinite(excess[i : i + 2]).all() else float(before)
        crossing = float(psi[i] + share * (psi[i + 1] - psi[i]))
        if before:
            found.append(Interval(start, crossing))
        start = crossing
    return [*found, Interval(start, float(psi[-1]))] if within[-1] else found


def warn_of_region(profile: ProfileLikelihood, within: Tensor) -> None:
    """Warn if a region goes on beyond the grid, though not beyond the prior, or the grid is too coarse.

    Arguments:
        profile: with the grid
        within: which points lie in the region, shape `(*points,)`
    """
    for number, (axis, i) in enumerate(zip(profile.axes, profile.parameters, strict=True)):
        covered, near = _along(within, number), _along(profile.q <= NEAR, number)
        unit, name = profile.support.spread[i], profile.names[i]
        for end, at, edge in (("low", 0, profile.support.low[i]), ("high", -1, profile.support.high[i])):
            if covered[at] and (axis[at] - edge).abs() > ON_EDGE * unit:
                warn(
                    f"The region of {name} is cut off at the {end} end of the grid, {float(axis[at]):.4g}, and goes on "
                    "beyond. Move that bound out."
                )
        if near.sum() < FEWEST and not near[0] and not near[-1]:  # of what is cut off there may be few
            best, step = float(profile.best[i]), float(axis[1] - axis[0])
            warn(
                f"The grid is too coarse: q is below {NEAR:g} at {int(near.sum())} of {len(axis)} points along {name}. "
                f"Narrow `bounds`, to about {best - 2 * step:.4g} and {best + 2 * step:.4g}, or raise `points`."
            )


def _along(points: Tensor, number: int) -> Tensor:
    """Return where along an axis any point of a grid is true, shape `(points,)`."""
    return points.movedim(number, 0).reshape(points.shape[number], -1).any(-1)


def require_level(level: float) -> None:
    """Raise TypeError unless a confidence level is a number, and ValueError unless it lies between 0 and 1."""
    require_number("level", level)
    if not 0 < level < 1:
        raise ValueError(f"`level` should be a share between 0 and 1, such as 0.95; got {level}.")
