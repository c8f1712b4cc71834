"""All roads lead to one posterior, and where it is known, to that one."""

from itertools import combinations

import pytest
import torch
from sbi.utils.metrics import c2st

from mfsbi import AffineCouplings, ManifoldNLE, MFlow, sequential
from mfsbi.inference.grid import grid_posterior
from mfsbi.metrics import total_variation
from mfsbi.plugin.samplers import SAMPLERS
from mfsbi.plugin.sampling import sample_chains
from simulators.polynomial import PolynomialSurface
from tests.statistical.linear_gaussian import LinearGaussian

FEW = 1000
BINS, FINE = 10, 6
GAUSSIAN, EVENTS = LinearGaussian(3), 3
SETTINGS = {
    "slice": {"draws": 250},
    "nuts": {"draws": 2000},
    "hmc": {"draws": 2000},
    "emcee": {"draws": 500, "thin": 20},
    "importance": {"draws": 1000, "oversampling": 100},
}
"""Of chains so long that `FEW` of their draws are nearly independent; the others take four chains of 1,000 draws."""


@pytest.fixture(scope="module")
def gaussian_trainer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = GAUSSIAN.prior.sample((20_000,))
        spec = MFlow(3, latent=AffineCouplings(4, 64))
        trainer = ManifoldNLE(GAUSSIAN.prior, spec, show_progress_bars=False)
        trainer.append_simulations(theta, GAUSSIAN.simulate(theta))
    trainer.train(schedule=sequential(60), training_batch_size=500)
    return trainer


@pytest.fixture(scope="module", params=["surface", "gaussian"])
def roads(request):
    """Return draws by road, the potential, and the bounds outside which there is nothing."""
    trainer = request.getfixturevalue(f"{request.param}_trainer")
    if request.param == "surface":
        x = PolynomialSurface().simulate(torch.zeros(20, 1), seed=7)
        known, bounds, points = {}, [(-1.0, 1.0)], 1000
    else:
        mean, x = GAUSSIAN.observed(EVENTS, seed=1)
        exact = GAUSSIAN.posterior(mean, EVENTS)
        known = {"exact": exact.sample((4000,))}
        low, high = exact.mean - 6 * exact.stddev, exact.mean + 6 * exact.stddev
        bounds, points = list(zip(low.tolist(), high.tolist(), strict=True)), BINS * FINE
    posterior = trainer.build_posterior()
    draws = {}
    for road in SAMPLERS:
        settings = {"draws": 1000} | SETTINGS.get(road, {})
        if road == "grid":
            settings |= {"bounds": bounds, "points": points}
        chains = sample_chains(posterior, x, sampler=road, seed=1, **settings)
        draws[road] = chains.draws.transpose(0, 1).flatten(0, 1)  # neighbours come from different chains
    posterior.potential_fn.set_x(x)
    return draws | known, posterior.potential_fn, bounds


@pytest.mark.slow
def test_no_classifier_tells_two_roads_apart(roads):
    draws, _, _ = roads
    few = {road: theta[torch.linspace(0, len(theta) - 1, FEW).long()] for road, theta in draws.items()}
    scores = {(a, b): float(c2st(few[a], few[b])) for a, b in combinations(few, 2)}
    print({pair: round(score, 3) for pair, score in scores.items()})  # noqa: T201 - the figures, for pytest -rP
    assert max(scores.values()) <= 0.55


@pytest.mark.slow
def test_every_road_is_near_the_grid(roads):
    draws, potential, bounds = roads
    fine = BINS * FINE
    low, high = zip(*bounds, strict=True)
    grid = grid_posterior(lambda theta: potential(theta, track_gradients=False), low, high, fine)
    cells = grid.probability.view([fine] * len(bounds))
    for road, theta in draws.items():
        for axis, (left, right) in enumerate(bounds):
            others = [other for other in range(len(bounds)) if other != axis]
            marginal = (cells.sum(others) if others else cells).view(BINS, FINE).sum(-1)
            share = torch.histc(theta[:, axis].double(), BINS, left, right) / len(theta)
            distance = total_variation(marginal, share / share.sum())
            print(road, axis, f"{distance:.4f}")  # noqa: T201
            assert distance <= 0.05
