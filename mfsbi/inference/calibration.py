r"""Whether posteriors are calibrated: over many data sets, the truth lies at every level of them equally often.

Draw theta from the prior, x given theta, and draws of the posterior given x. If the posterior is right, each of these
numbers is uniform on (0, 1) over data sets:

* the *rank* of one parameter's truth: the share of draws below it (simulation-based calibration, Talts et al.,
  arXiv:1804.06788);
* the *level* of the truth: the share of draws of higher posterior density, which is the smallest credibility whose
  region of highest density holds the truth; how often that is below c is the coverage of c (Hermans et al.,
  arXiv:2110.06581);
* the *closeness*: the share of draws that are nearer to a point chosen without knowing theta (TARP, Lemos et al.,
  arXiv:2302.03026).

Each is tested by Kolmogorov and Smirnov's test. Of each parameter two further tests name what is wrong. The quantiles
of the normal law at the ranks, z = Phi^-1(rank), have mean zero and variance one but for the steps of the ranks:

* their mean is the *shift* of the truths, in standard deviations of the posterior: above zero if this lies too low;
* their spread is the *width* that the posterior should have, in units of the one it has: above one if this is too
  narrow, below one if it is too wide, which is an honest answer, but not the best one.

No test sees every mistake: a posterior that is just the prior passes all of ranks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Generator, Tensor

from mfsbi.checks import require_finite
from mfsbi.seeds import derived

__all__ = ["Calibration", "closeness", "coverage", "levels", "ranks", "uniform_p_value"]

LEAST = 0.01
"""The p-value of all tests together below which something is wrong."""

LEAST_WIDTH = 0.01
"""Of truths over that of draws which is told, where all have one rank."""


@dataclass(frozen=True)
class Calibration:
    """What an exam of posteriors found; each column should be uniform.

    Arguments:
        draws: the posterior of each data set, shape `(sets, draws, parameter)`
        ranks: shape `(sets, parameter)`
        levels: shape `(sets,)`
        closeness: shape `(sets,)`
    """

    draws: Tensor
    ranks: Tensor
    levels: Tensor
    closeness: Tensor

    @property
    def p_values(self) -> dict[str, list[float]]:
        """The p-value of each test: ranks, shift and width of each parameter, and one each for levels and closeness."""
        columns = self._normals
        return {
            "ranks": [uniform_p_value(column) for column in self.ranks.unbind(-1)],
            "shift": [column.p_of_shift for column in columns],
            "width": [column.p_of_width for column in columns],
            "levels": [uniform_p_value(self.levels)],
            "closeness": [uniform_p_value(self.closeness)],
        }

    @property
    def p_value(self) -> float:
        """The p-value of all tests together: the smallest times their number (Bonferroni), at most 1."""
        each = [p for values in self.p_values.values() for p in values]
        return min(1.0, len(each) * min(each))

    @property
    def faults(self) -> list[str]:
        """What is wrong with the posterior of which parameter, and by how much, in words; empty if no test says."""
        found = []
        limit = LEAST / sum(map(len, self.p_values.values()))
        for i, normal in enumerate(self._normals):
            if normal.p_of_width < limit:
                word = "narrow" if normal.width > 1 else "wide"
                factor = normal.width if normal.width > 1 else 1 / max(normal.width, LEAST_WIDTH)
                found.append(f"parameter {i} is too {word} by a factor of {factor:.2f}")
            if normal.p_of_shift < limit:
                way = "low" if normal.shift > 0 else "high"
                found.append(f"parameter {i} is too {way} by {abs(normal.shift):.2f} of its standard deviations")
        return found

    @property
    def _normals(self) -> "list[_Normal]":
        return [_Normal.of(column, self.draws.shape[1]) for column in self.ranks.unbind(-1)]

    @property
    def conservative(self) -> bool:
        """Whether posteriors are too wide and nothing else: honest, but less than the data could tell.

        Regions that hold the truth too seldom are not, whatever single parameters say.
        """
        wide = bool(self.faults) and all("too wide" in fault for fault in self.faults)
        return wide and float(self.levels.mean()) <= 0.5

    @property
    def coverage_gap(self) -> float:
        """The largest |coverage(c) - c| over credibilities c of 0.05, 0.1, ..., 0.95."""
        credibility = torch.linspace(0.05, 0.95, 19)
        return float((coverage(self.levels, credibility) - credibility).abs().max())

    @property
    def passed(self) -> bool:
        """Whether `p_value` is above 0.01."""
        return self.p_value > LEAST

    def __str__(self) -> str:
        parts = "; ".join(f"{name} {', '.join(f'{p:.3g}' for p in values)}" for name, values in self.p_values.items())
        verdict = "No fault found" if self.passed else "Too wide" if self.conservative else "NOT calibrated"
        told = f": {', '.join(self.faults)}" if self.faults else ""
        return (
            f"{verdict} in {len(self.levels)} data sets{told}: p = {self.p_value:.3g} of all tests together ({parts}); "
            f"coverage within {self.coverage_gap:.3f}."
        )

    def __repr__(self) -> str:
        return f"Calibration({self})"


@dataclass(frozen=True)
class _Normal:
    """The ranks of one parameter as quantiles of a normal law.

    Arguments:
        shift: their mean
        width: their spread, over what it should be
        p_of_shift: of the hypothesis that the mean is zero
        p_of_width: that the spread is one
    """

    shift: float
    width: float
    p_of_shift: float
    p_of_width: float

    @classmethod
    def of(cls, ranks: Tensor, draws: int) -> "_Normal":
        """Return that of ranks among so many draws: steps of 1 / (draws + 1), each as likely if all is right."""
        z = torch.special.ndtri(ranks.double().cpu())
        steps = torch.special.ndtri((torch.arange(draws + 1, dtype=torch.float64) + 0.5) / (draws + 1))
        variance, fourth = float(steps.square().mean()), float(steps.pow(4).mean())
        count, shift = len(z), float(z.mean())
        spread = float((z - shift).square().sum()) / (count - 1)
        off_centre = shift / (max(variance, spread) / count) ** 0.5  # what scatters widely is off by chance, too
        p_of_width, excess = 1.0, fourth - variance**2
        if excess > 1e-9:  # none for a single draw, whose ranks are two
            freedom = 2 * variance**2 * (count - 1) / excess  # of the chi-squared law with the same scatter
            at = freedom * spread / variance
            p_of_width = min(1.0, 2 * float(min(stats.chi2.sf(at, freedom), stats.chi2.cdf(at, freedom))))
        return cls(shift, (spread / variance) ** 0.5, float(2 * stats.norm.sf(abs(off_centre))), p_of_width)


def ranks(theta: Tensor, draws: Tensor) -> Tensor:
    """Return the share of draws below the truth, (count + 1/2) / (draws + 1), shape `(sets, parameter)`.

    Arguments:
        theta: the truth of each data set, shape `(sets, parameter)`
        draws: of each posterior, shape `(sets, draws, parameter)`

    Raises:
        ValueError: if shapes do not fit or a value is not finite
    """
    _require_fit(theta, draws)
    return ((draws < theta[:, None]).sum(1) + 0.5) / (draws.shape[1] + 1)


def levels(log_prob: Tensor, log_prob_of_truth: Tensor) -> Tensor:
    """Return the share of draws of higher posterior density than the truth, shape `(sets,)`.

    Arguments:
        log_prob: log posterior of the draws up to a constant of each set, shape `(sets, draws)`
        log_prob_of_truth: that of the truth, shape `(sets,)`
    """
    return ((log_prob > log_prob_of_truth[:, None]).sum(1) + 0.5) / (log_prob.shape[1] + 1)


def closeness(theta: Tensor, draws: Tensor, *, seed: int = 0) -> Tensor:
    """Return the share of draws nearer than the truth to a random point, shape `(sets,)`.

    Points are uniform in the box that holds all theta; distances are in units of the box.

    Arguments:
        theta: the truth of each data set, shape `(sets, parameter)`
        draws: of each posterior, shape `(sets, draws, parameter)`
        seed: of the points

    Raises:
        ValueError: if shapes do not fit or a value is not finite
    """
    _require_fit(theta, draws)
    low, width = theta.amin(0), theta.amax(0) - theta.amin(0)
    generator = Generator().manual_seed(derived(seed, 0))  # not the stream that theta may have come from
    point = torch.rand(theta.shape, generator=generator).to(theta)
    distance = ((draws - low) / width - point[:, None]).norm(dim=-1)
    return levels(-distance, -((theta - low) / width - point).norm(dim=-1))


def coverage(level: Tensor, credibility: Tensor) -> Tensor:
    """Return how often the region of that credibility holds the truth, shape as `credibility`.

    Arguments:
        level: of the truth in each data set, as `levels` returns them, shape `(sets,)`
        credibility: probabilities of regions of highest density, shape `(points,)`; right posteriors give them back
    """
    return (level[:, None] <= credibility).double().mean(0).to(credibility)


def uniform_p_value(values: Tensor) -> float:
    """Return the p-value of the hypothesis that these numbers are uniform on (0, 1).

    By Kolmogorov and Smirnov's test, which takes them for independent.

    Arguments:
        values: shape `(sets,)`
    """
    return float(stats.kstest(np.asarray(values.double().cpu()), "uniform").pvalue)


def _require_fit(theta: Tensor, draws: Tensor) -> None:
    if theta.ndim != 2 or draws.ndim != 3 or draws.shape[::2] != theta.shape or len(theta) < 2:
        raise ValueError(
            "`theta` should have shape (sets, parameter) with two sets or more, and `draws` (sets, draws, parameter); "
            f"got {tuple(theta.shape)} and {tuple(draws.shape)}."
        )
    require_finite("theta", theta, "The truth of a data set is known.")
    require_finite("draws", draws, "Look for the cause in the sampler.")
