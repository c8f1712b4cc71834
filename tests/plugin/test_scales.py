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
from sbi.inference.posteriors.posterior_parameters import RejectionPosteriorParameters
from torch import Tensor
from torch.distributions import Distribution, ExpTransform, Independent, LogNormal, TransformedDistribution, Uniform

from mfsbi import AF, ALICES, ManifoldNLE, MFlow, SplineCouplings, sample_chains

SIMULATIONS = 4000
SMALL = AF(SplineCouplings(layers=2, width=24))
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
    with pytest.warns(UserWarning, match="rare huge values: feature 0 has 1") if problem.spoiled else nullcontext():
        trainer = trainer_of(problem.prior).append_simulations(theta, x, joint_score=score if gold else None)
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


def test_posteriors_are_right_although_runs_blew_up():
    require_right(*errors(PROBLEMS["runs that blew up"], TRAINERS["AF"], 1))


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


def clock(rows, spread=1.0):
    """Return theta and the seconds since 1970 at which something happened, in float64."""
    torch.manual_seed(0)
    theta = spread * (2 * torch.rand(rows, 1) - 1)
    return theta, 1e9 + (100 * theta.double() + 20 * torch.randn(rows, 1, dtype=torch.float64)).round()


def quick(theta, x, kind="AF", **settings):
    trainer = ALICES(uniform(-1.0, 1.0)) if kind == "ALICES" else ManifoldNLE(uniform(-1.0, 1.0), SMALL)
    trainer.append_simulations(theta, x)
    trainer.train(max_num_epochs=8, training_batch_size=100, **settings)
    return trainer


FEW = RejectionPosteriorParameters(num_samples_to_find_max=1000, num_iter_to_find_max=20)
OBSERVED = torch.tensor([[1e9 - 60], [1e9 + 60]], dtype=torch.float64)


@pytest.mark.filterwarnings(
    "ignore:There are few", "ignore:Only", "ignore:The chains", "ignore:.*requires_grad", "ignore:Using MAF"
)
@pytest.mark.parametrize("kind", ["AF", "ALICES"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_road_keeps_the_digits_of_observations(kind, dtype):
    torch.set_default_dtype(dtype)
    try:
        theta, x = clock(1500)
        trainer = quick(theta.to(dtype), x, kind)
        posterior = trainer.build_posterior()
        for sampler, settings in (
            ("grid", {"bounds": [(-1.0, 1.0)]}),
            ("importance", {"oversampling": 16}),
            ("vi", {"max_num_iters": 30}),
            ("emcee", {"warmup": 30, "thin": 1}),
        ):
            low, high = (sample_chains(posterior, x_o[None], 60, sampler=sampler, **settings).mean for x_o in OBSERVED)
            assert high - low > 0.3, sampler
        rejection = trainer.build_posterior(posterior_parameters=FEW)
        low, high = (rejection.sample((100,), x=x_o[None], show_progress_bars=False).mean() for x_o in OBSERVED)
        assert high - low > 0.3
        fitted = trainer.build_posterior(sample_with="vi").set_default_x(OBSERVED[1:])
        fitted.train(max_num_iters=30, show_progress_bar=False, quality_control=False)
        assert torch.equal(fitted.potential_fn.return_x_o(), OBSERVED[1:])
        assert fitted.sample((10,), show_progress_bars=False).shape == (10, 1)
    finally:
        torch.set_default_dtype(torch.float32)


def test_rounds_of_any_type_and_size_are_one_training():
    theta, x = clock(1000)
    trainer = quick(theta, x)
    trainer.append_simulations(theta[:1], x[:1])
    assert trainer.simulations[1].x.dtype == torch.float64
    narrow = clock(200, 0.1)
    trainer.append_simulations(*narrow, from_round=1)
    trainer.train(max_num_epochs=1, training_batch_size=100)
    assert trainer.estimator.model.chart.warp.wide == [0]


def test_a_later_round_that_is_narrow_enough_to_need_digits_reaches_the_first_model():
    torch.manual_seed(0)
    theta = 2 * torch.rand(1000, 1) - 1
    x = 1e5 + 100 * theta.double() + 0.01 * torch.randn(1000, 1, dtype=torch.float64)
    trainer = quick(theta, x)
    theta = 0.03 * theta
    trainer.append_simulations(theta, 1e5 + 100 * theta.double(), from_round=1)
    trainer.train(max_num_epochs=1, training_batch_size=100)
