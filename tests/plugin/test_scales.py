"""Parameters over decades, runs that blew up, clocks: posteriors of default settings against the exact ones.

Each problem has one parameter, 4,000 simulations and a likelihood that is known; posteriors of single observations
are compared by quadrature, in the units in which the exact one is about normal.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, ExpTransform, Independent, LogNormal, TransformedDistribution, Uniform

from mfsbi import AF, ALICES, ManifoldNLE, MFlow

SIMULATIONS = 4000
NOISE = 0.5


class Problem(NamedTuple):
    """A parameter t whose logarithm or itself is seen with noise, and what happens to the data then."""

    prior: Distribution
    straight: Callable[[Tensor], Tensor]
    curved: Callable[[Tensor], Tensor]
    span: tuple[float, float]
    seen: tuple[float, ...]
    recorded: Callable[[Tensor], Tensor] = lambda y: y
    spoiled: float = 0.0


def log_uniform(low: float, high: float) -> Distribution:
    base = Uniform(torch.tensor([math.log(low)]), torch.tensor([math.log(high)]))
    return Independent(TransformedDistribution(base, [ExpTransform()]), 1)


def uniform(low: float, high: float) -> Distribution:
    return Independent(Uniform(torch.tensor([low]), torch.tensor([high])), 1)


def same(value: Tensor) -> Tensor:
    return value


DECADES = math.log(1e-4), math.log(1e2)
PROBLEMS = {
    "log-uniform theta": Problem(log_uniform(1e-4, 1e2), torch.log, torch.exp, DECADES, (-7.0, -4.6, 0.0, 3.0)),
    "log-uniform theta and x": Problem(
        log_uniform(1e-4, 1e2), torch.log, torch.exp, DECADES, (-7.0, -4.6, 0.0, 3.0), recorded=torch.exp
    ),
    "lognormal theta": Problem(
        Independent(LogNormal(torch.zeros(1), 2.5 * torch.ones(1)), 1),
        torch.log,
        torch.exp,
        (-12.0, 12.0),
        (-4.0, -1.0, 0.0, 3.0),
    ),
    "runs that blew up": Problem(uniform(0.5, 8.0), same, same, (0.5, 8.0), (2.0, 3.0, 5.0, 6.5), spoiled=1e6),
    "a clock": Problem(
        uniform(0.5, 8.0), same, same, (0.5, 8.0), (2.0, 3.0, 5.0, 6.5), recorded=lambda y: 1.7e9 + 40 * y.double()
    ),
}
TRAINERS = {
    "AF": lambda prior: ManifoldNLE(prior, AF(), seed=0),
    "MFlow": lambda prior: ManifoldNLE(prior, MFlow(1), seed=0),
    "ALICES": lambda prior: ALICES(prior, seed=0),
}
DECADES_OF_THETA = [name for name, problem in PROBLEMS.items() if problem.straight is torch.log]


def moments(log_prob: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and spread of densities on an even grid, shape `(observations, grid)`."""
    weights = (log_prob - log_prob.amax(-1, keepdim=True)).exp()
    weights = weights / weights.sum(-1, keepdim=True)
    mean = (weights * at).sum(-1)
    return mean, ((weights * (at - mean[:, None]).square()).sum(-1)).sqrt()


def simulated(problem: Problem, features: int) -> tuple[Tensor, Tensor, Tensor]:
    theta = problem.prior.sample((SIMULATIONS,))
    y = problem.straight(theta) + NOISE * torch.randn(SIMULATIONS, 1)
    x = problem.recorded(y)
    if problem.spoiled:
        x = torch.where(torch.rand(SIMULATIONS, 1) < 0.003, problem.spoiled * torch.rand_like(x), x)
    return theta, (x if features == 1 else torch.cat([x, (0.3 * y).sin().to(x)], 1)), y


def errors(problem: Problem, trainer_of: Callable, features: int, *, gold: bool = False) -> tuple[Tensor, Tensor]:
    """Return biases in exact standard deviations, and ratios of standard deviations, of each observation."""
    torch.manual_seed(0)
    theta, x, y = simulated(problem, features)
    score = (y - problem.straight(theta)) / NOISE**2 / theta  # of a parameter whose logarithm is seen
    trainer = trainer_of(problem.prior).append_simulations(theta, x, joint_score=score if gold else None)
    with pytest.warns(UserWarning, match="rare huge values: feature 0 has 1") if problem.spoiled else nullcontext():
        estimator = trainer.train()
    at = torch.linspace(*problem.span, 2001)[1:-1]
    grid = problem.curved(at)[:, None]
    density = problem.prior.log_prob(grid) + (at if problem.straight is torch.log else 0.0)
    y = torch.tensor(problem.seen)[:, None]
    exact = moments(density - 0.5 * ((y - at) / NOISE).square(), at)
    observed = problem.recorded(y)
    observed = observed if features == 1 else torch.cat([observed, (0.3 * y).sin().to(observed)], 1)
    log_prob = torch.stack([learned(estimator, row[None], grid) for row in observed])
    found = moments(density + log_prob, at)
    return (found[0] - exact[0]) / exact[1], found[1] / exact[1]


def learned(estimator, x: Tensor, theta: Tensor) -> Tensor:
    with torch.no_grad():
        if hasattr(estimator, "unnormalized_log_ratio"):
            return estimator.unnormalized_log_ratio(theta, x.expand(len(theta), -1))
        return estimator.log_prob(x.expand(len(theta), -1)[None], theta)[0]


def require_right(bias: Tensor, ratio: Tensor) -> None:
    assert bias.square().mean().sqrt() < 0.2, bias
    assert ratio.log().square().mean().sqrt() < math.log(1.2), ratio


@pytest.mark.parametrize("name", ["log-uniform theta and x", "runs that blew up", "a clock"])
def test_posteriors_are_right_at_any_scale(name):
    require_right(*errors(PROBLEMS[name], TRAINERS["MFlow"], 2))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_posteriors_of_every_model_are_right_at_any_scale(name, trainer):
    require_right(*errors(PROBLEMS[name], TRAINERS[trainer], 2 if trainer == "MFlow" else 1))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("name", DECADES_OF_THETA)
def test_scores_are_learned_from_at_any_scale(name, trainer):
    require_right(*errors(PROBLEMS[name], TRAINERS[trainer], 2 if trainer == "MFlow" else 1, gold=True))
