r"""Warnings where simulations do not reach: what is asked of them that they cannot tell.

A likelihood is learned where simulations were. Elsewhere it extrapolates, and nothing in a posterior shows that. So
trainers and posteriors of likelihoods and ratios check,

* when simulations come: did some runs blow up?
* before training: does every parameter vary, does theta fill the prior, are features of x continuous?
* before a posterior is drawn: does its prior stay where theta was, and do the observations lie where x was?

**Theta and the prior.** The range of each parameter is compared with draws of the prior, and covers it unless more than
5 % + 10 / rows of them lie beyond. For bands and other shapes both are brought to normal scores z by the prior's own
ranks; in units of the prior's covariance, the smallest variance of the simulated z along any direction says how thin
their band is.

**Observations.** Of m new rows 2 d m / (N + 1) lie, on average, beyond the extremes of N simulations in one of d
features, whatever the distribution. If its tails fall with the square, 1 / (1 + s)^2 of these are beyond by a share s
of the range. Rows beyond by a tenth, a half and five times the range are counted, and reported if the chance of so many
is below one in a hundred. Features are compared as charts see them, bent if they cover decades (`mfsbi.warp`).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.special import ndtri

from mfsbi.checks import warn
from mfsbi.seeds import seeded
from mfsbi.train.data import Batch
from mfsbi.warp import Warp

__all__ = ["Reach", "warn_of_observations", "warn_of_outliers", "warn_of_prior", "warn_of_simulations"]

DRAWS = 2000
"""Of the prior."""

BEYOND, DOUBT = 0.05, 10.0
"""Share of prior draws that may lie beyond the simulations, and rows that add to it as one over all."""

THIN = 0.4
"""Spread of theta along a direction, in spreads of the prior, below which it covers a small part."""

BEYOND_RANGE, FEW = (0.1, 0.5, 5.0), 3.0
"""Shares of a range beyond its ends that are looked at; and what, over sqrt(N), is added to them."""

TAIL, SURPRISE = 2, 0.01
"""Power by which rows become fewer farther out, as in heavy tails; and chance below which as many are reported."""

TIED, FEW_VALUES, SPIKE = 0.5, 100, 0.2
"""Share of rows whose value another row has, too, from which a feature is no continuous one; values below which it is
discrete; and share of rows with one of them from which that stands out."""

ROWS = 2000
"""Rows that are looked at for ties, at most, and for the bulk beside which others are huge."""

HUGE = 8.0
"""Spreads of the bulk, in a feature that was bent, beyond which rows have blown up."""

RARE = 0.02
"""Share of such rows above which they are a part of the distribution."""


class Reach(NamedTuple):
    """Where simulations were.

    Arguments:
        rows: how many they were
        theta: least and largest value of each parameter
        x: least and largest value of each feature
    """

    rows: int
    theta: tuple[list[float], list[float]]
    x: tuple[list[float], list[float]]

    @classmethod
    def of(cls, batch: Batch) -> "Reach":
        """Return the reach of rows in memory."""
        theta, x = ((value.amin(0).tolist(), value.amax(0).tolist()) for value in (batch.theta, batch.x))
        return cls(batch.rows, theta, x)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> "Reach | None":
        """Return the reach in an estimator's training record; None if there is none, as in early files.

        Arguments:
            record: as JSON gives it back; what stands there in another form counts as none
        """
        written: Any = record.get("reach")
        try:
            rows, theta, x = (written[name] for name in cls._fields)
            ends = [[[float(value) for value in end] for end in field] for field in (theta, x)]
            return cls(int(rows), (ends[0][0], ends[0][1]), (ends[1][0], ends[1][1]))
        except (TypeError, KeyError, ValueError, IndexError):
            return None


def warn_of_simulations(batch: Batch, prior: Distribution | None, *, all_from_prior: bool, discrete: bool) -> None:
    """Warn of what simulations cannot tell, before anything is learned from them.

    Arguments:
        batch: the rows to learn from, or a sample of them
        prior: of theta; None for data without parameters
        all_from_prior: whether all rows belong to the first round, so that theta should cover the prior
        discrete: whether discrete features are no trouble, as for ratios
    """
    if prior is not None:
        constant = (batch.theta.amin(0) == batch.theta.amax(0)).nonzero().flatten().tolist()
        if constant:
            always = ", ".join(f"{value:.4g}" for value in batch.theta[0, constant[:5]].tolist())
            warn(
                f"{_told('Parameter', constant)} never varied in the simulations (always "
                f"{always}), so that nothing can be learned there: the posterior will be "
                "the prior whatever the data. Vary theta in all parameters, or leave these out of it."
            )
        if all_from_prior:
            warn_of_prior(prior, Reach.of(batch), "the prior", batch.theta)
    if not discrete:
        _warn_of_ties(batch.x[:ROWS])


def warn_of_prior(prior: Distribution, reach: Reach, name: str, theta: Tensor | None = None) -> None:
    """Warn where a prior reaches farther than the simulations did.

    Arguments:
        prior: of the posterior
        reach: of the simulations
        name: what to call that prior
        theta: of the simulations, whose shape is looked at as well if they are there
    """
    with seeded(0):
        draws = prior.sample((DRAWS,)).cpu()
    low, high = (torch.tensor(end, dtype=torch.float64) for end in reach.theta)
    if draws.shape[1] != len(low):
        return
    outside = ((draws < low) | (draws > high)).double().mean(0)
    if theta is not None:
        outside = outside * (low < high)  # parameters that never varied have a warning of their own
    beyond = (outside > BEYOND + DOUBT / reach.rows).nonzero().flatten().tolist()
    if beyond:
        i = max(beyond, key=lambda i: float(outside[i]))
        warn(
            f"{_told('Parameter', beyond)} of {name} reach{'es' if len(beyond) == 1 else ''} beyond the simulations: "
            f"{100 * float(outside[i]):.0f} % of the prior of parameter {i} lies outside {float(low[i]):.4g} to "
            f"{float(high[i]):.4g}, where theta was. The likelihood is extrapolated there, and the posterior may be "
            "wrong: simulate from all of the prior, or narrow it."
        )
    elif theta is not None and len(theta) >= 20 * theta.shape[1] and (low < high).all():
        spread = _thinnest(draws.double(), theta.cpu().double())
        if spread < THIN:
            warn(
                f"Theta of the simulations cover a small part of {name}: along one direction their spread is "
                f"{spread:.2g} of the prior's. The likelihood is extrapolated elsewhere, and the posterior may be "
                "wrong: draw theta from the prior, or make the prior what they were drawn from."
            )


def warn_of_observations(x: Tensor, reach: Reach | None, straightened: Callable[[Tensor], Tensor]) -> None:
    """Warn of observations that lie where no simulation was.

    Arguments:
        x: shape `(*, data)`
        reach: of the simulations; nothing is said without it
        straightened: x as charts see it, feature by feature
    """
    if reach is None or x.shape[-1] != len(reach.x[0]):
        return
    rows = x.reshape(-1, x.shape[-1])
    low, high = (straightened(torch.tensor(end, dtype=torch.float64).to(rows)).double() for end in reach.x)
    straight = straightened(rows).double()
    beyond = torch.maximum(low - straight, straight - high) / (high - low).clamp(min=1e-300)
    doubt, expected = FEW / math.sqrt(reach.rows), 2 * rows.shape[1] * len(rows) / (reach.rows + 1)
    counts = {share: int((beyond > share + doubt).any(-1).sum()) for share in BEYOND_RANGE}
    if all(not count or _chance(count, expected / (1 + share) ** TAIL) > SURPRISE for share, count in counts.items()):
        return
    count = counts[BEYOND_RANGE[0]]
    row, feature = divmod(int(beyond.argmax()), rows.shape[1])
    others = f", and {count - 1} more of {len(rows)}" if count > 1 else ""
    warn(
        f"Observation {row} lies outside all simulations{others}: feature {feature} is {float(rows[row, feature]):.6g} "
        f"and simulations had {reach.x[0][feature]:.6g} to {reach.x[1][feature]:.6g}. The likelihood is extrapolated "
        "there, and the posterior may be wrong: check units and the order of the features, or simulate where the data "
        "are."
    )


def _warn_of_ties(x: Tensor) -> None:
    """Warn of features that take few values, but more than one, which specs refuse."""
    steps = x.sort(0).values.diff(dim=0)
    equal, pad = steps == 0, torch.zeros(1, x.shape[1], dtype=torch.bool, device=x.device)
    tied = (torch.cat([pad, equal]) | torch.cat([equal, pad])).double().mean(0)
    finest = torch.finfo(x.dtype).eps * x.abs().amax(0)
    coarse = steps.amax(0) <= 4 * finest  # rows tie since the type has no more digits
    values = [len(column.unique()) for column in x.T]
    told = ((tied > TIED) & (x.amin(0) < x.amax(0)) & ~coarse).nonzero().flatten().tolist()
    discrete = [i for i in told if values[i] < FEW_VALUES]
    if discrete:
        warn(
            f"{_told('Feature', discrete)} of x {'takes' if len(discrete) == 1 else 'take'} few values (feature "
            f"{discrete[0]} {values[discrete[0]]} in {len(x)} rows): a density of continuous x can become arbitrarily "
            "high there, and the posterior too narrow. Add uniform noise as wide as a step to simulations and "
            "observations, or use `ALICES` or sbi's `MNLE`."
        )
    common = x.mode(0).values
    shares = (x == common).double().mean(0)
    spiked = [i for i in told if i not in discrete and shares[i] > SPIKE]
    if spiked:
        warn(
            f"{_told('Feature', spiked)} of x {'has' if len(spiked) == 1 else 'have'} one and the same value in many "
            f"rows (feature {spiked[0]} {float(common[spiked[0]]):.4g} in {100 * float(shares[spiked[0]]):.0f} "
            "%): a density of continuous x can become arbitrarily high there, and the posterior too narrow. Use "
            "`ALICES`, or a summary without such a value."
        )


def warn_of_outliers(x: Tensor) -> None:
    """Warn of rows far from all others in features that are bent for their sake.

    Arguments:
        x: as they came, shape `(rows, data)`
    """
    warp = Warp.of_data(x)
    if not warp.bent:
        return
    straight = warp(x)[:, warp.bent].double()
    away = (straight - straight.median(0).values).abs()
    low, high = (torch.quantile(straight[:ROWS], level, dim=0) for level in (0.16, 0.84))
    usual = torch.stack([column[column > 0].median() for column in away.T])  # of those that differ
    huge = away > HUGE * torch.where(high > low, (high - low) / 2, usual)
    share = huge.double().mean(0)
    found = ((share > 0) & (share < RARE)).nonzero().flatten().tolist()
    if found:
        feature, rows = warp.bent[found[0]], huge[:, found[0]].nonzero().flatten().tolist()
        warn(
            f"{_told('Feature', [warp.bent[i] for i in found])} of x hold{'s' if len(found) == 1 else ''} rare huge "
            f"values: feature {feature} has {len(rows)} in {len(x)} rows, up to "
            f"{float(x[rows, feature].abs().max()):.3g} beside a median of {float(x[:, feature].median()):.3g}, rows "
            f"{_some(rows)}. They are kept, and such features are bent so that the others stay apart; if these runs "
            "failed, remove them."
        )


def _thinnest(prior: Tensor, theta: Tensor) -> float:
    """Return the smallest spread of theta along a direction of normal scores, in spreads of the prior there."""
    ordered = prior.sort(0).values.T.contiguous()

    def scores(values: Tensor) -> Tensor:
        columns = values.T.contiguous()
        below = torch.searchsorted(ordered, columns) + torch.searchsorted(ordered, columns, right=True)
        return ndtri((below / 2 + 0.5) / (len(prior) + 1)).T

    of_prior, of_theta = (torch.cov(scores(values).T).reshape(prior.shape[1], -1) for values in (prior, theta))
    variances, axes = torch.linalg.eigh(of_prior)
    kept = variances > 1e-3 * variances[-1]  # a prior on a surface has directions of its own without extent
    white = axes[:, kept] / variances[kept].sqrt()
    return math.sqrt(max(float(torch.linalg.eigvalsh(white.T @ of_theta @ white)[0]), 0.0))


def _chance(count: int, expected: float) -> float:
    """Return the chance of so many or more by a Poisson distribution of that mean."""
    return float(torch.special.gammainc(torch.tensor(float(count)), torch.tensor(expected)))


def _told(word: str, numbers: list[int]) -> str:
    """Return "Parameter 3" or "Parameters 1, 2, 3"."""
    return f"{word}{'s' if len(numbers) > 1 else ''} {_some(numbers)}"


def _some(numbers: list[int]) -> str:
    """Return some of the numbers, and how many there are more."""
    more = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return ", ".join(map(str, numbers[:5])) + more
