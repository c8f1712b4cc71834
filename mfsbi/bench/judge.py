"""Judging what was trained by the truth of its simulator.

Definitions do not vary between rows. For the polynomial surface they are those of the paper (Brehmer & Cranmer,
arXiv:2003.13913, §4.2): everything at theta = 0, 10,000 points, sets of 20 observations, posteriors on a grid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Generator, Tensor

from mfsbi import metrics
from mfsbi.charts import PrescribedChart
from mfsbi.inference.grid import grid_posterior
from mfsbi.inference.potential import EncodedLikelihood
from mfsbi.models import AbstractModel, AmbientModel, DensityModel
from mfsbi.plugin.host import ConditionalDensityEstimator
from mfsbi.ratio import RatioModel
from mfsbi.seeds import derived
from mfsbi.types import KnownTruth

__all__ = ["CIRCLE_THETA", "Candidate", "judge_circle", "judge_posteriors", "of_model", "of_ratio", "of_sbi"]

POINTS, EVENTS, CELLS = 10_000, 20, 400
TRUTH_SEED = 41  # settings were chosen on the sets of seed 20
"""The observed sets and the points that judge are the same for all rows and seeds."""

CIRCLE_THETA = (0.0, -1.0)
"""Where the Gaussian on a circle is that of the paper: mean pi/2, width pi/4."""

OfRows: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(x, theta), row by row -> points of shape `(rows, data)`, or numbers of shape `(rows,)`."""


@dataclass(frozen=True)
class Candidate:
    """What can be judged: anything that says how likely theta is; what else it cannot tell is None.

    Arguments:
        potential: x -> (theta -> sum_j log p(x_j|theta) up to a constant)
        sample: theta -> one x for each row
        project: (x, theta) -> the nearest points of the manifold, if there is one below the dimension of x
        log_prob: (x, theta) -> log p(x|theta) in data space
        log_prob_on_truth: (x, theta) -> log p(x|theta) on the true manifold, where that was prescribed
    """

    potential: Callable[[Tensor], Callable[[Tensor], Tensor]]
    sample: Callable[[Tensor], Tensor] | None = None
    project: OfRows | None = None
    log_prob: OfRows | None = None
    log_prob_on_truth: OfRows | None = None


def of_model(model: AbstractModel) -> Candidate:
    """Return a model of mfsbi's as a candidate, whose potential encodes coordinates once.

    Arguments:
        model: of any kind; a density on a learned manifold has no `log_prob` here, having no measure in common with the
            truth
    """
    full = model.chart.manifold_dim == model.chart.data_dim
    density = model.log_prob if isinstance(model, DensityModel) else None
    return Candidate(
        lambda x: EncodedLikelihood(model, x).iid,
        model.sample,
        None if full else model.project,
        density if full or isinstance(model, AmbientModel) else None,
        density if isinstance(model.chart, PrescribedChart) else None,
    )


def of_sbi(estimator: ConditionalDensityEstimator) -> Candidate:
    """Return an estimator of sbi's as a candidate; it works in the precision of theta, ten thousand rows at a time."""

    def log_prob(x: Tensor, theta: Tensor) -> Tensor:
        rows = zip(x.to(theta).split(10_000), theta.split(10_000), strict=True)
        return torch.cat([estimator.log_prob(some[None], at)[0] for some, at in rows])

    def sample(theta: Tensor) -> Tensor:
        return estimator.sample(torch.Size([1]), theta)[0]

    return Candidate(lambda x: _sum_over(x, log_prob), sample, log_prob=log_prob)


def of_ratio(model: RatioModel) -> Candidate:
    """Return a ratio as a candidate, which has no manifold and draws nothing."""
    return Candidate(lambda x: _sum_over(x.to(model.x_mean), lambda x, theta: model.log_ratio(x, theta).double()))


def _sum_over(x: Tensor, log_prob: OfRows) -> Callable[[Tensor], Tensor]:
    """Return theta -> sum_j log_prob(x_j, theta)."""

    def potential(theta: Tensor) -> Tensor:
        rows = log_prob(x.repeat(len(theta), 1), theta.repeat_interleave(len(x), 0))
        return rows.view(len(theta), len(x)).sum(-1)

    return potential


def judge_circle(candidate: Candidate, circle: KnownTruth, _sets: int) -> dict[str, Any]:
    """Return the columns of the circle's table; KL(truth || model) for what has its density on the same circle.

    Arguments:
        candidate: what is judged, at the paper's theta
        circle: the simulator
        _sets: of events, of which this table has none
    """
    theta = torch.tensor([CIRCLE_THETA]).expand(POINTS, -1)
    result = _judge_manifold(candidate, circle, theta)
    if candidate.log_prob_on_truth is not None:
        x = circle.simulate(theta, seed=derived(TRUTH_SEED, 3))
        result["kl_density"] = float((circle.log_prob(x, theta) - candidate.log_prob_on_truth(x, theta)).mean())
    return result


def judge_posteriors(candidate: Candidate, surface: KnownTruth, sets: int) -> dict[str, Any]:
    """Return the columns of the polynomial table: means over points, and over sets with each set's value.

    Distances and areas under curves (AUC) are those of `mfsbi.metrics`; TV, KL(exact || model) and MMD^2 compare
    posteriors on a grid of 400 cells.

    Arguments:
        candidate: what is judged
        surface: the simulator, with one parameter on (-1, 1)
        sets: of 20 events at theta = 0
    """
    result = _judge_manifold(candidate, surface, torch.zeros(POINTS, len(surface.parameter_names)))
    found = list(_posteriors(candidate, surface, sets))
    names = ("tv", "kl", "mmd2")
    result |= {f"{name}s": values for name, values in zip(names, map(list, zip(*found, strict=True)), strict=True)}
    return result | {name: sum(result[f"{name}s"]) / sets for name in names}


def _posteriors(candidate: Candidate, surface: KnownTruth, sets: int) -> Iterator[tuple[float, float, float]]:
    """Yield TV, KL(exact || model) and MMD^2 of the posterior of each set."""
    for number in range(sets):
        x = surface.simulate(torch.zeros(EVENTS, 1), seed=derived(TRUTH_SEED, 2, number))
        exact = grid_posterior(_exact(surface, x), [-1], [1], CELLS)
        model = grid_posterior(candidate.potential(x), [-1], [1], CELLS)
        p, q = exact.probability, model.probability
        kl = metrics.kl_divergence(p.log(), q.log())
        yield metrics.total_variation(p, q), kl, metrics.mmd2_on_grid(exact.theta, p, q)


def _exact(simulator: KnownTruth, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return theta -> sum_j log p(x_j|theta) of the simulator."""
    return lambda theta: simulator.log_prob(x, theta[:, None]).double().sum(-1)


def _judge_manifold(candidate: Candidate, surface: KnownTruth, theta: Tensor) -> dict[str, Any]:
    """Return what is said about the manifold and about points off it."""
    inside = surface.simulate(theta, seed=derived(TRUTH_SEED, 0))
    noise = torch.randn(inside.shape, generator=Generator().manual_seed(derived(TRUTH_SEED, 4)))
    outside = surface.simulate(theta, seed=derived(TRUTH_SEED, 1)) + 0.1 * noise
    assert candidate.sample is not None
    drawn = candidate.sample(theta)
    result: dict[str, Any] = {
        "distance": float(surface.vertical_distance(drawn).clamp(max=10).mean()),
        "euclidean_distance": float(surface.distance(drawn).clamp(max=10).mean()),
    }
    if candidate.project is not None:
        near, far = ((x - candidate.project(x, theta)).norm(dim=-1) for x in (inside, outside))
        result |= {"reconstruction": float(near.mean()), "auc": metrics.auc(near, far)}
    if candidate.log_prob is not None:
        likely, unlikely = (candidate.log_prob(x, theta) for x in (inside, outside))
        result["auc_likelihood"] = metrics.auc(-likely, -unlikely)
    return result
