r"""Free checks of gold, before anything is trained on it.

At fixed theta the joint score averages to zero, whatever the simulator,

    E[t | theta] = int dx dz p(x, z|theta) d/dtheta log p(x, z|theta) = d/dtheta 1 = 0,

and so it does over any region of theta. With labels y of whether x was drawn at theta or at the reference, and prior
odds w of the two, the joint log ratio says the chance of y given the whole run,

    E[y | x, z, theta] = s = sigmoid(log r + log w),    so    E[y - s | theta] = 0 = E[(y - s) s | theta],

which unlike E[1/r] = 1 have no tails to wait for. Regions are the deciles of each parameter. A mean that is six
standard errors off, or more of them where rows are few (Student), has a chance of 2e-9 if means are about normal. A
wrong sign, a wrong normalisation or rows out of order are found, and so is a ratio upside down or doubled.
What cannot be found is a factor on all of t, such as that of other units of theta.

**Errors of rare outcomes.** A process of chance theta/10 has scores of 1/theta if it happens, and -1/10 otherwise. In a
hundred rows it often does not happen, and their spread says nothing of what was missed. So the spread in a region is
taken to be no less than that of all rows, and the variance of y - s no less than it has to be, E[s (1 - s)].
"""

from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor

__all__ = ["log_odds", "require_centred_labels", "require_centred_score", "require_constant_odds", "soft_labels"]

CHANCE = 1e-9
"""Of either sign, that true gold is refused: a z of six."""

BINS = 10
LEAST_ROWS = 100
"""In a bin: with fewer, means of skewed scores are not yet normal."""


def require_centred_score(theta: Tensor, joint_score: Tensor) -> None:
    """Raise unless the joint score averages to zero, over all rows and in every region of theta.

    Arguments:
        theta: shape `(rows, parameter)`, where x was drawn
        joint_score: shape `(rows, parameter)`

    Raises:
        ValueError: if it does not; the message names the component, the region and the z-value
    """
    spread = joint_score.double().std(0, correction=0)
    for region, rows in _regions(theta):
        z = _z_values(joint_score[rows], spread)
        worst = int(z.abs().argmax())
        if z[worst].abs() > _largest_z(len(rows)):
            raise ValueError(
                f"`joint_score` should average to zero at any theta. For parameter {worst}, over {region}, the mean of "
                f"{len(rows)} rows is {float(joint_score[rows, worst].double().mean()):.4g}, z = {z[worst]:.1f}. Is it "
                "the gradient of log p(x, z|theta) with its normalisation, at the theta each x was drawn at? Were rows "
                "left out by what their x became? If an outcome is so rare that none was drawn yet, add simulations."
            )


def require_centred_labels(theta: Tensor, joint_log_ratio: Tensor, from_theta: Tensor) -> None:
    """Raise unless the joint log ratio predicts how many rows were drawn at theta, in every region of theta.

    Arguments:
        theta: shape `(rows, parameter)`
        joint_log_ratio: log r(x, z|theta, reference), shape `(rows,)`
        from_theta: 1 where x was drawn at theta and 0 where at the reference, shape `(rows,)`

    Raises:
        ValueError: if it does not; the message names the region and the z-value
    """
    labels = soft_labels(joint_log_ratio.double(), log_odds(from_theta))
    surprise = torch.stack([from_theta - labels, (from_theta - labels) * labels], dim=-1)
    variance = torch.stack([labels * (1 - labels), labels * (1 - labels) * labels.square()], dim=-1)
    for region, rows in _regions(theta):
        likely = rows[labels[rows] > 0.5]
        z = _z_values(surprise[rows], variance[rows].mean(0).sqrt()).abs().max()
        if z > _largest_z(len(rows)):
            raise ValueError(
                "`joint_log_ratio` should be log p(x, z|theta) - log p(x, z|reference), also where x was drawn at the "
                f"reference. Over {region} it says that {float(labels[rows].mean()):.1%} of {len(rows)} rows were "
                f"drawn at theta, and {float(from_theta[rows].mean()):.1%} were; of the {len(likely)} that it calls "
                f"likely, {float(labels[likely].mean()):.1%} and {float(from_theta[likely].mean()):.1%}: "
                f"z = {float(z):.1f}."
            )


def require_constant_odds(theta: Tensor, from_theta: Tensor) -> None:
    """Raise unless as many rows were drawn at theta for each one at the reference, in every region of theta.

    Arguments:
        theta: shape `(rows, parameter)`
        from_theta: 1 where x was drawn at theta and 0 where at the reference, shape `(rows,)`

    Raises:
        ValueError: if odds depend on theta, and so would add to what is learned; the message names region and z-value
    """
    share = from_theta.double().mean()
    for region, rows in _regions(theta):
        z = float(_z_values((from_theta[rows] - share)[:, None], (share * (1 - share)).sqrt()))
        if abs(z) > _largest_z(len(rows)):
            raise ValueError(
                "`from_theta` should have the same chance at any theta, and in every round. It is True in "
                f"{float(share):.1%} of all rows, and in {float(from_theta[rows].mean()):.1%} of {len(rows)} over "
                f"{region}: z = {z:.1f}. The ratio would be off by the odds."
            )


def log_odds(from_theta: Tensor) -> float:
    """Return the log of how many rows were drawn at theta for each one drawn at the reference."""
    share = from_theta.double().mean()
    return float((share / (1 - share)).log())


def soft_labels(joint_log_ratio: Tensor, odds: float) -> Tensor:
    """Return the chance that x was drawn at theta given the whole run, shape `(rows,)`."""
    return (joint_log_ratio + odds).sigmoid()


def _regions(theta: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield a name and the rows of all of theta, and of up to ten bins of each parameter; equal values share one."""
    everything = torch.arange(len(theta), device=theta.device)
    yield "all theta", everything
    bins = min(BINS, len(theta) // LEAST_ROWS)
    if bins < 2:
        return
    for number, column in enumerate(theta.T.contiguous()):
        ordered = column.sort().values
        edges = ordered[[len(theta) * part // bins for part in range(1, bins)]].unique()
        places = torch.bucketize(column, edges, right=True)
        for rows in (everything[places == place] for place in range(len(edges) + 1)):
            if len(rows) >= LEAST_ROWS:
                yield f"theta_{number} in [{column[rows].min():.4g}, {column[rows].max():.4g}]", rows


def _z_values(values: Tensor, least: Tensor) -> Tensor:
    """Return mean over standard error of each column, with spreads that are no less than `least`.

    Infinite where all rows agree on another value than zero and nothing says that they might not.
    """
    mean, spread = values.double().mean(0), values.double().std(0, correction=0)
    return torch.where(mean == 0, mean, mean / torch.maximum(spread, least) * len(values) ** 0.5)


def _largest_z(rows: int) -> float:
    """Return the z-value that a mean of so many normal rows exceeds with a chance of 2e-9; infinite for one row."""
    return float(stats.t.isf(CHANCE, rows - 1)) if rows > 1 else float("inf")
