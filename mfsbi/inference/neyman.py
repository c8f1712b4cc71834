r"""Confidence belts: critical values of the likelihood ratio from simulations, with which intervals cover.

Wilks's theorem says how q(psi) of `mfsbi.inference.profile` is distributed in a limit, and for the right likelihood.
Neyman's construction asks the simulator instead. At each psi of a grid simulate toys, data sets of as many events as
were observed, compute q(psi) of each, and take as critical value c(psi) what the share `level` of them does not exceed.
Accept for the observed data

    {psi : q(psi) <= c(psi)}.

At the true psi, toys and data are drawn alike and q is the same function of both, so psi is accepted in the share
`level` of experiments, whatever function q is. Hence toys of the true simulator give **intervals that cover even if the
learned likelihood is wrong**, which then are wider than they need be, but no less honest (Cranmer, Brehmer & Louppe,
PNAS 117 (2020) 30055, arXiv:1911.01429). Ordering by the likelihood ratio is that of Feldman & Cousins (Phys. Rev. D 57
(1998) 3873, arXiv:physics/9711021): intervals pass from two sides to one by themselves, and are never empty, also near
the edge of what is physical.

**Of n toys** the critical value is the one of rank ceil((n + 1) level): q of the observed data has every rank among
theirs with the same probability, so that the coverage is not below `level`, on average over toys. Its Monte Carlo
error is half the difference of the toys whose ranks are sqrt(n level (1 - level)) above and below. Between points
sqrt c is interpolated linearly.

**Nuisance parameters.** Toys depend on nu as well, and are simulated at (psi, nu_hat(psi)), the profiled values of
the observed data (profile construction, or plug-in; Chuang & Lai, Statistica Sinica 10 (2000) 1). Coverage is exact
where the law of q does not depend on nu, and approximate elsewhere, without a guarantee. Such a belt belongs to
the data it was made for. Without nuisance parameters it belongs to a number of events, and serves any data of as many.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy import stats
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from mfsbi.inference.profile import Interval, ProfileLikelihood, pieces, require_level, warn_of_region

__all__ = ["ConfidenceBelt", "Critical"]


ROUNDING = 1e-6
"""Of a belt's length, by which a grid may reach beyond it."""


class Critical(NamedTuple):
    """Critical values of q at the points of a belt.

    Arguments:
        value: shape `(*points,)`
        error: their Monte Carlo error, one standard deviation, shape `(*points,)`
    """

    value: Tensor
    error: Tensor


@dataclass(frozen=True)
class ConfidenceBelt:
    """The distribution of q(psi) in toys simulated at psi; `print` shows the intervals of the data it was made for.

    Arguments:
        profile: of the data it was made for; toys were simulated at its (psi, nu_hat(psi))
        axes: for each parameter of interest the values at which they were, shape `(points,)`
        q: of the toys in ascending order, shape `(*points, toys)`
    """

    profile: ProfileLikelihood
    axes: tuple[Tensor, ...]
    q: Tensor

    def critical(self, level: float) -> Critical:
        """Return critical values at the points of the belt with their errors.

        Arguments:
            level: of confidence, such as 0.683 or 0.95

        Raises:
            ValueError: if level is not between 0 and 1, or there are too few toys for it
        """
        require_level(level)
        toys = self.q.shape[-1]
        rank = math.ceil((toys + 1) * level)
        if rank > toys:
            raise ValueError(
                f"A level of {level:g} needs {math.ceil(level / (1 - level))} toys or more; there are {toys}."
            )
        width = math.sqrt(toys * level * (1 - level))
        above, below = min(toys, round(rank + width)), max(1, round(rank - width))
        return Critical(self.q[..., rank - 1], (self.q[..., above - 1] - self.q[..., below - 1]) / 2)

    def on_grid(self, level: float, profile: ProfileLikelihood | None = None) -> Tensor:
        """Return critical values at the points of a profile likelihood, shape `(*points,)`.

        Arguments:
            level: of confidence
            profile: as `region` takes it

        Raises:
            ValueError: as `region`
        """
        profile = self._fitting(profile)
        roots = self.critical(level).value.sqrt()
        table = RegularGridInterpolator([axis.numpy() for axis in self.axes], roots.numpy())
        inner = (other.clamp(axis[0], axis[-1]) for axis, other in zip(self.axes, profile.axes, strict=True))
        points = torch.cartesian_prod(*inner).view(-1, len(self.axes))
        return torch.from_numpy(table(points.numpy())).square().view(profile.q.shape)

    def intervals(self, level: float, profile: ProfileLikelihood | None = None) -> list[Interval]:
        """Return where q <= the critical value, for one parameter of interest; there may be several pieces.

        Arguments:
            level: of confidence, such as 0.683 or 0.95
            profile: as `region` takes it

        Raises:
            ValueError: as `region`, or if there is more than one parameter of interest
        """
        self.region(level, profile)
        return pieces(self._fitting(profile), self.on_grid(level, profile))

    def region(self, level: float, profile: ProfileLikelihood | None = None) -> Tensor:
        """Return which points of the profile likelihood's grid have q <= the critical value, shape `(*points,)`.

        A warning says where the region is cut off by the grid, or the grid is too coarse.

        Arguments:
            level: of confidence, such as 0.683 or 0.95
            profile: of other data of as many events, on a grid within the belt; that of the data the belt was made for
                if None. With nuisance parameters there is no other

        Raises:
            ValueError: if level is not between 0 and 1, there are too few toys for it, or the profile does not fit
        """
        profile = self._fitting(profile)
        within = profile.q <= self.on_grid(level, profile)
        warn_of_region(profile, within)
        return within

    def p_value(self, psi: float | Sequence[float] | Tensor, profile: ProfileLikelihood | None = None) -> float:
        """Return the share of toys, the data among them, whose q is as large as that of the data, at any psi.

        It is that of toys at neighbouring points of the belt, interpolated.

        Arguments:
            psi: a value of each parameter of interest, within the grid
            profile: as `region` takes it

        Raises:
            ValueError: if psi is no point within the grid, or the profile does not fit
        """
        profile = self._fitting(profile)
        point, observed = profile.require_point(psi), profile.at(psi)
        share = (1 + (self.q >= observed).sum(-1)) / (1 + self.q.shape[-1])
        return float(RegularGridInterpolator([axis.numpy() for axis in self.axes], share.double().numpy())(point)[0])

    def coverage_of_wilks(self, level: float) -> Tensor:
        """Return how often regions by Wilks's theorem hold the truth, at the points of the belt, shape `(*points,)`.

        It is the share of toys whose q does not exceed the quantile of the chi-squared law.

        Raises:
            ValueError: if level is not between 0 and 1
        """
        require_level(level)
        return (self.q <= float(stats.chi2.ppf(level, len(self.axes)))).double().mean(-1)

    def _fitting(self, profile: ProfileLikelihood | None) -> ProfileLikelihood:
        """Return the profile likelihood to use, or raise ValueError if the belt is not one for it."""
        own = self.profile
        if profile is None or profile is own:
            return own
        if own.nuisances:
            raise ValueError(
                "A belt with nuisance parameters is of the data that it was made for, whose profiled values toys have; "
                "got the profile likelihood of others. Make a belt for those."
            )
        if (profile.parameters, profile.events) != (own.parameters, own.events):
            raise ValueError(
                f"The belt is of {own.events} events and parameters {own.parameters}; got a profile likelihood of "
                f"{profile.events} and {profile.parameters}."
            )
        for axis, other in zip(self.axes, profile.axes, strict=True):
            beyond = max(float(axis[0] - other[0]), float(other[-1] - axis[-1]))
            if beyond > ROUNDING * float(axis[-1] - axis[0]):
                raise ValueError(
                    f"The belt reaches from {float(axis[0]):.6g} to {float(axis[-1]):.6g}; got a profile likelihood "
                    f"from {float(other[0]):.6g} to {float(other[-1]):.6g}. Give both the same `bounds`."
                )
        return profile

    def __str__(self) -> str:
        points = " x ".join(str(len(axis)) for axis in self.axes)
        lines = [str(self.profile), f"a belt of {self.q.shape[-1]} toys at each of {points} points"]
        toys = self.q.shape[-1]
        for level in (0.683, 0.95) if len(self.axes) == 1 else ():
            if math.ceil((toys + 1) * level) <= toys:
                found = " and ".join(map(str, pieces(self.profile, self.on_grid(level))))
                name = self.profile.names[self.profile.parameters[0]]
                lines.append(f"{name} in {found} at {100 * level:g} % by Neyman's construction")
        return "\n".join(lines)

    def __repr__(self) -> str:
        points = " x ".join(str(len(axis)) for axis in self.axes)
        return f"ConfidenceBelt({self.profile!r}, {points} points, toys={self.q.shape[-1]})"
