"""The exam for posteriors, passed by the exact one, and failed by one that is too narrow."""

import pytest
import torch

from mfsbi.inference.calibration import ranks, uniform_p_value
from mfsbi.inference.grid import grid_posterior
from mfsbi.inference.potential import EncodedLikelihood
from mfsbi.metrics import mmd2, total_variation
from mfsbi.plugin.calibrating import calibrate
from simulators.polynomial import PolynomialSurface
from tests.laws import exam_p_value, levels_of_truth

SETS, EVENTS = 300, 20
GRID = torch.linspace(-1, 1, 202)[1:-1]
SURFACE = PolynomialSurface()


@pytest.fixture(scope="module")
def data_sets():
    """Return theta of shape (sets,) and x of shape (sets, events, 3)."""
    theta = torch.rand(SETS, 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return theta[:, 0], SURFACE.simulate(theta[:, None].expand(-1, EVENTS, -1), seed=1)


def exact_log_posterior(x):
    """Return the exact log posterior on the grid, shape (sets, points)."""
    return SURFACE.log_prob(x[:, None].double(), GRID[None, :, None, None]).sum(-1)


def test_the_exact_posterior_passes_the_exam(data_sets):
    theta, x = data_sets
    assert exam_p_value(levels_of_truth(theta, GRID, exact_log_posterior(x))) > 0.01


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda log_posterior: 4 * log_posterior, id="half as wide"),
        pytest.param(lambda log_posterior: 0.1 * log_posterior, id="three times as wide"),
        pytest.param(lambda log_posterior: log_posterior + 2 * GRID, id="shifted"),
    ],
)
def test_a_wrong_posterior_fails_the_exam(data_sets, wrong):
    theta, x = data_sets
    assert exam_p_value(levels_of_truth(theta, GRID, wrong(exact_log_posterior(x)))) < 0.01


@pytest.fixture(scope="module")
def estimator(surface_trainer):
    return surface_trainer.estimator


@pytest.mark.slow
def test_the_learned_posterior_passes_the_exam(estimator, data_sets):
    theta, x = data_sets
    with torch.no_grad():
        rows = [EncodedLikelihood(estimator.model, one).iid(GRID[:, None]) for one in x]
    assert exam_p_value(levels_of_truth(theta, GRID, torch.stack(rows))) > 0.01


@pytest.mark.slow
def test_learned_and_exact_posteriors_are_close(estimator):
    """Ten sets of 20 events at theta = 0, as in the paper: mean TV, and mean MMD^2 of 2,000 draws."""
    distances, discrepancies = [], []
    for seed in range(10):
        x = SURFACE.simulate(torch.zeros(EVENTS, 1), seed=100 + seed)
        exact = grid_posterior(lambda grid, x=x: SURFACE.log_prob(x, grid[:, None]).sum(-1), [-1], [1])
        learned = grid_posterior(EncodedLikelihood(estimator.model, x).iid, [-1], [1])
        distances.append(total_variation(exact.probability, learned.probability))
        generator = torch.Generator().manual_seed(seed)
        draws = [
            grid.theta[torch.multinomial(grid.probability, 2000, replacement=True, generator=generator)]
            for grid in (exact, learned)
        ]
        discrepancies.append(mmd2(*draws))
    assert sum(distances) / 10 < 0.1
    assert sum(discrepancies) / 10 < 0.02


@pytest.mark.slow
def test_the_learned_manifold_is_the_surface(estimator):
    theta = SURFACE.prior.sample((10_000,))
    with torch.no_grad():
        samples = estimator.model.sample(theta)
        reconstruction = estimator.model.distance(SURFACE.simulate(theta, seed=4)).mean()
    assert reconstruction < 0.03
    assert SURFACE.vertical_distance(samples).clamp(max=10).mean() < 0.03


@pytest.mark.slow
def test_the_learned_log_density_is_near_the_true_one(estimator):
    theta = SURFACE.prior.sample((10_000,))
    x = SURFACE.simulate(theta, seed=5)
    with torch.no_grad():
        gap = SURFACE.log_prob(x, theta) - estimator.log_prob(x, theta)[0]
    assert gap.mean() + 3 * gap.std() / 100 > 0
    assert gap.mean() < 0.05


@pytest.mark.slow
def test_the_posterior_by_its_own_sampler_is_calibrated_and_half_of_it_is_not(surface_trainer):
    theta = torch.rand(SETS, 1, generator=torch.Generator().manual_seed(10)) * 2 - 1
    x = SURFACE.simulate(theta[:, None].expand(-1, EVENTS, -1), seed=11)
    result = calibrate(surface_trainer.build_posterior(), theta, x, seed=12)
    print(result)  # noqa: T201 - the figures, for pytest -rP
    assert result.passed
    assert min(result.p_values["ranks"]) > 0.05
    assert result.coverage_gap <= 0.05
    centre = result.draws.mean(1, keepdim=True)
    narrow = centre + 0.5 * (result.draws - centre)
    assert uniform_p_value(ranks(theta, narrow)[:, 0]) < 0.01
