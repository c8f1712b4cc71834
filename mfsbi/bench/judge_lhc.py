"""Judging what was learned of the LHC process by its exact posterior.

Three true theta, those of the paper, and at each some sets of 20 events. Posteriors are on a grid of two parameters:
fine cells over the box that holds all but a millionth of the exact posterior, and coarse ones over the rest of the
prior, so that what a model puts elsewhere counts against it. Sample closure is the published one: 26 weighted
constraints, each clipped to [0, 10], averaged; reconstruction errors are in standardised units.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfsbi import metrics
from mfsbi.bench.judge import Candidate
from mfsbi.seeds import derived, seeded
from mfsbi.types import HasQuickLikelihood, LikelihoodOfEvents, Simulator

__all__ = ["LHC_POINTS", "judge_lhc"]

LHC_POINTS = ((0.0, 0.0), (0.5, 0.0), (-1.0, -1.0))
EVENTS, POINTS = 20, 10_000
TRUTH_SEED = 43
WIDTH = 4.5  # of the prior's standard deviations, on either side
EXACT_CELLS, COARSE_CELLS, FINE_CELLS = 900, 60, 70
SPREADS = torch.tensor(
    [
        0.005733124397, 0.019373627499, 0.005601847358, 0.013246297555, 0.00514927181, 0.005285928756, 0.751120437331,
        0.683745034764, 0.479495732489, 0.354115600847, 0.69444039143, 0.458106562064, 0.003383151275, 0.008990040231,
        0.00294437317, 0.001150977632, 0.00270669532, 0.001018199731, 0.003762394136, 0.003735274411, 0.003774514059,
        0.003723547158, 0.001899523968, 0.00078502274, 1.108382399444, 0.472020922131,
    ],
    dtype=torch.float64,
)  # fmt: skip
"""Weights of the constraints, as published: one over the spread of what each of them compares."""


@runtime_checkable
class Process(Simulator, HasQuickLikelihood, Protocol):
    """What is asked of the LHC process."""

    def __hash__(self) -> int:
        """Return what it is remembered by."""

    def closure(self, x: Tensor) -> Tensor:
        """Return the 26 constraints."""


class _Set(NamedTuple):
    """Events, and cells of theta with their areas and the exact posterior's probabilities."""

    x: Tensor
    truth: Tensor
    theta: Tensor
    log_area: Tensor
    log_probability: Tensor
    log_density_at_truth: float


def judge_lhc(candidate: Candidate, process: Process, sets: int) -> dict[str, Any]:
    """Return the columns of the LHC table, with the values of each set of events.

    Arguments:
        candidate: what is judged; without samples there is no closure, and without a manifold no reconstruction
        process: the simulator, with two parameters and a standard normal prior
        sets: of 20 events at each of the three true theta
    """
    with seeded(derived(TRUTH_SEED, 0)):
        theta = process.prior.sample((POINTS,))
    result: dict[str, Any] = {}
    if candidate.sample is not None:
        constraints = process.closure(candidate.sample(theta).double()).abs() * SPREADS
        result["closure"] = float(constraints.clamp(max=10).mean())
    scale = process.simulate(theta, seed=derived(TRUTH_SEED, 2)).std(0)
    x = process.simulate(theta, seed=derived(TRUTH_SEED, 1)).to(theta)
    if candidate.project is not None:
        residual = (x - candidate.project(x, theta)) / scale.to(theta)
        result["reconstruction"] = float(residual.norm(dim=-1).mean())
    found = [_compare(candidate, _exact(process, point, number)) for point in LHC_POINTS for number in range(sets)]
    columns = {name: [each[name] for each in found] for name in found[0]}
    return result | {f"{name}s": v for name, v in columns.items()} | {n: sum(v) / len(v) for n, v in columns.items()}


def _compare(candidate: Candidate, events: _Set) -> dict[str, float]:
    """Return what one set of events says about the model's posterior."""
    potential = candidate.potential(events.x)

    def log_posterior(theta: Tensor) -> Tensor:
        return potential(theta.float()).double() + _log_prior(theta)

    log_mass = log_posterior(events.theta) + events.log_area
    total = log_mass.logsumexp(0)
    log_p, log_q = events.log_probability, log_mass - total
    return {
        "kl": metrics.kl_divergence(log_p, log_q),
        "tv": metrics.total_variation(log_p.exp(), log_q.exp()),
        "log_posterior": float(log_posterior(events.truth[None])[0] - total),
        "exact_log_posterior": events.log_density_at_truth,
    }


@lru_cache(maxsize=30)
def _exact(process: Process, point: tuple[float, ...], number: int) -> _Set:
    """Return a set of events with its exact posterior, which takes a second and is the same for all rows."""
    truth = torch.tensor(point, dtype=torch.float64)
    seed = derived(TRUTH_SEED, 3, LHC_POINTS.index(point), number)
    x = process.simulate(truth.expand(EVENTS, -1).float(), seed=seed)
    likelihood = process.likelihood(x)
    everywhere, _ = _cells([(-WIDTH, WIDTH)] * 2, EXACT_CELLS)
    probability = _log_posterior(likelihood)(everywhere).softmax(0).view(EXACT_CELLS, EXACT_CELLS)
    box = [_within(probability.sum(1 - axis)) for axis in (0, 1)]
    fine, log_fine = _cells(box, FINE_CELLS)
    coarse, log_coarse = _cells([(-WIDTH, WIDTH)] * 2, COARSE_CELLS)
    outside = torch.stack([(coarse[:, i] < low) | (coarse[:, i] > high) for i, (low, high) in enumerate(box)]).any(0)
    theta = torch.cat([fine, coarse[outside]])
    log_area = torch.cat([torch.full((len(fine),), log_fine), torch.full((int(outside.sum()),), log_coarse)]).double()
    log_mass = _log_posterior(likelihood)(theta) + log_area
    at_truth = _log_posterior(likelihood)(truth[None])[0] - log_mass.logsumexp(0)
    return _Set(x, truth, theta, log_area, log_mass.log_softmax(0), float(at_truth))


def _log_posterior(likelihood: LikelihoodOfEvents) -> Callable[[Tensor], Tensor]:
    return lambda theta: likelihood.log_likelihood(theta) + _log_prior(theta)


def _log_prior(theta: Tensor) -> Tensor:
    """Return the standard normal prior's log density, up to its constant, shape `(rows,)`."""
    return -0.5 * theta.square().sum(-1)


def _within(probability: Tensor) -> tuple[float, float]:
    """Return the ends of the coarse cells that hold all but a millionth of a marginal over exact cells."""
    there = probability.view(COARSE_CELLS, -1).sum(-1) > 1e-6 / COARSE_CELLS
    first, last = int(there.nonzero()[0]), int(there.nonzero()[-1]) + 1
    step = 2 * WIDTH / COARSE_CELLS
    return first * step - WIDTH, last * step - WIDTH


def _cells(box: list[tuple[float, float]], cells: int) -> tuple[Tensor, float]:
    """Return the centres of cells x cells cells of a box, shape `(cells^2, 2)`, and the log area of one."""
    axes = [low + (high - low) * (torch.arange(cells, dtype=torch.float64) + 0.5) / cells for low, high in box]
    area = torch.tensor([(high - low) / cells for low, high in box]).prod()
    return torch.cartesian_prod(*axes), float(area.log())
