r"""Check joint scores and joint log ratios before anything is trained on them; it takes no further simulations.

At fixed theta the joint score averages to zero, whatever the simulator,

    E[t | theta] = int dx dz p(x, z|theta) d/dtheta log p(x, z|theta) = d/dtheta 1 = 0,

and so it does over any region of theta. With labels y of whether x was drawn at theta or at the reference, and prior
odds w of the two, the joint log ratio says the chance of y given the whole run,

    E[y | x, z, theta] = s = sigmoid(log r + log w),    so    E[y - s | theta] = 0 = E[(y - s) s | theta],

which unlike E[1/r] = 1 have no tails to wait for. Regions are the deciles of each parameter. A mean that is six
standard errors off, or more of them where rows are few (Student), has a chance of 2e-9 if means are about normal. A
wrong normalisation of t is found, and a ratio upside down or doubled, or rows of it out of order.

**Scores and x.** A mean of zero is that of -t and 10 t, too, and of t in any order. How x follows theta is what tells
them apart: where theta was drawn from the prior p, and g(theta) is zero at its edges, then for any f(x)

    E[(g t_i + d_i g + g d_i log p) f] = int dx dz f int dtheta d_i[g(theta) p(theta) p(x, z|theta)] = 0.

Here g is 1 - u_i^2 on a box that u_i takes to [-1, 1], and 1 for priors without edges; f are the rank of each feature
among all rows and its square, in units in which they lie between -1 and 1. The same with functions of theta for f has
no t in it, and says whether theta was drawn from p. Scores are refused if that is likely, and a mean with them is six
standard errors from zero and would not be if they were multiplied by something between 0.8 and 1.25.

**Errors of rare outcomes.** A process of chance theta/10 has scores of 1/theta if it happens, and -1/10 otherwise. In a
hundred rows it often does not happen, and their spread says nothing of what was missed. So the spread in a region is
taken to be no less than that of all rows, and the variance of y - s no less than it has to be, E[s (1 - s)].
"""

from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor
from torch.distributions import constraints

from mfsbi.priors import bounds_of
from mfsbi.types import Prior

__all__ = [
    "log_odds",
    "require_centred_labels",
    "require_centred_score",
    "require_constant_odds",
    "require_matching_score",
    "soft_labels",
]

CHANCE = 1e-9
"""Of either sign, that true scores or ratios are refused: a z of six."""

FACTOR = 1.25
"""By which scores may be off: a prior may be not quite what theta was drawn from."""

LARGEST_Z_OF_THETA = 4.0
"""Of moments of theta that was drawn from the prior."""

MOST_NUMBERS = 5_000_000
"""Of x that scores are compared with."""

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


def require_matching_score(theta: Tensor, x: Tensor, joint_score: Tensor, prior: Prior) -> None:
    """Raise if x follows theta as the joint score says it does not; see above.

    Arguments:
        theta: shape `(rows, parameter)`, where x was drawn
        x: shape `(rows, data)`
        joint_score: shape `(rows, parameter)`
        prior: that theta is drawn from, if it is

    Raises:
        ValueError: if it does; the message names component, feature, z-value and what the score should be multiplied by
    """
    step = 1 + x.numel() // MOST_NUMBERS
    theta, x, joint_score = (each[::step].double() for each in (theta, x, joint_score))
    weights = _weights(theta, prior)
    if len(theta) < LEAST_ROWS or weights is None or not _drawn_from(theta, *weights):
        return
    g, slope = weights
    rank = _ranks(x)
    f = torch.cat([rank, rank.square()], dim=1)
    f = f - f.mean(0)
    for i in range(theta.shape[1]):
        by_score, by_theta = (g * joint_score)[:, i, None] * f, slope[:, i, None] * f
        z = _z_values(by_score + by_theta, torch.zeros(()))
        worst = int(z.abs().argmax())
        factor = float(-by_theta[:, worst].mean() / by_score[:, worst].mean())
        if z[worst].abs() > _largest_z(len(theta)) and not 1 / FACTOR < factor < FACTOR:
            raise ValueError(
                f"`joint_score` and x contradict each other. For parameter {i}, feature {worst % x.shape[1]} of x "
                f"follows theta as if the score were {factor:.3g} times what it is, z = {z[worst]:.1f} in {len(theta)} "
                "rows. Has it the sign and units of d/dtheta log p(x, z|theta), and its rows the order of x and theta?"
            )


def _weights(theta: Tensor, prior: Prior) -> tuple[Tensor, Tensor] | None:
    """Return g and d_i g + g d_i log p, each of shape `(rows, parameter)`; None if the prior does not say.

    For priors with a box for support or no edges at all, and a density that torch differentiates, or a constant one.
    """
    edges = _edges(prior, theta.shape[1])
    if edges is None:
        return None
    low, high = edges
    inside = low.isfinite()
    u = torch.where(inside, 2 * (theta - low) / (high - low) - 1, 0.0)
    g, d_g = 1 - u.square(), torch.where(inside, -4 * u / (high - low), 0.0)
    at = theta.clone().to(torch.get_default_dtype()).requires_grad_()
    try:
        with torch.enable_grad():
            log_p = torch.as_tensor(prior.log_prob(at))
            slopes = torch.autograd.grad(log_p.sum(), at) if log_p.requires_grad else None
    except (ValueError, RuntimeError):  # rounding has moved a theta over an edge, or it is of another type
        return None
    if slopes is not None:
        return g, d_g + g * slopes[0]
    return (g, d_g) if (log_p == log_p.flatten()[0]).all() else None


def _ranks(x: Tensor) -> Tensor:
    """Return the rank of each row in each column, from -1 to 1; equal values have the same."""
    columns = x.T.contiguous()
    ordered = columns.sort(1).values
    below, up_to = (torch.searchsorted(ordered, columns, right=right) for right in (False, True))
    return ((below + up_to) / len(x) - 1).T


def _edges(prior: Prior, parameters: int) -> tuple[Tensor, Tensor] | None:
    """Return the lower and the upper ends of all parameters, infinite if they have none; None for other supports."""
    try:
        support = getattr(prior, "support", None)
        if getattr(support, "base_constraint", support) in (constraints.real, constraints.real_vector):
            endless = torch.full((parameters,), torch.inf)
            return -endless, endless
        low, high = torch.tensor(bounds_of(prior), dtype=torch.float64).unbind(-1)
    except (ValueError, NotImplementedError):
        return None
    return (low, high) if len(low) == parameters and (low.isfinite() == high.isfinite()).all() else None


def _drawn_from(theta: Tensor, g: Tensor, slope: Tensor) -> bool:
    """Return whether theta may have been drawn from the prior, as far as moments up to the third say."""
    unit, parameters = (theta - theta.mean(0)) / theta.std(0), range(theta.shape[1])
    for i in parameters:
        others = torch.stack([torch.ones_like(unit[:, 0]), *(unit[:, k] for k in parameters if k != i)], dim=1)
        for power in range(3):
            own = unit[:, i] ** power
            its_slope = power * unit[:, i] ** max(power - 1, 0) / theta[:, i].std()
            z = _z_values((g[:, i] * its_slope + slope[:, i] * own)[:, None] * others, torch.zeros(()))
            if not (z.abs() <= LARGEST_Z_OF_THETA).all():  # nor if theta is always the same
                return False
    return True


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
