import copy

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import RejectionPosteriorParameters

from mfsbi import AF, SMC, ManifoldNLE, calibrate
from mfsbi.flows import SplineCouplings
from mfsbi.inference.grid import grid_posterior
from mfsbi.plugin.host import MCMCPosteriorParameters
from tests.laws import perturbed
from tests.problems import surface_data

SETS, EVENTS = 12, 3
FEW = {"num_candidate_samples": 50}


@pytest.fixture(scope="module")
def trainer():
    surface, theta, x = surface_data(400)
    trainer = ManifoldNLE(surface.prior, AF(SplineCouplings(layers=2, width=16)), show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=2)
    return trainer


@pytest.fixture(scope="module")
def posterior(trainer):
    return trainer.build_posterior(
        posterior_parameters=MCMCPosteriorParameters(num_chains=2, warmup_steps=5, init_strategy_parameters=FEW)
    )


@pytest.fixture(scope="module")
def sets():
    surface, theta, _ = surface_data(SETS, seed=5)
    return theta, surface.simulate(theta[:, None].expand(-1, EVENTS, -1), seed=6)


def test_one_call_examines_all_data_sets(posterior, sets):
    result = calibrate(posterior, *sets, draws=20)
    assert result.draws.shape == (SETS, 20, 1)
    assert result.ranks.shape == (SETS, 1)
    assert result.levels.shape == result.closeness.shape == (SETS,)
    assert set(result.p_values) == {"ranks", "shift", "width", "levels", "closeness"}


def test_each_data_set_has_its_own_posterior(trainer, sets):
    """Particles of all sets that move together have, set by set, the moments of the exact grid."""
    theta, x = (part[:4] for part in sets)
    model = perturbed(trainer.spec(*surface_data(400)[1:]), 0.3)  # far from flat, unlike two epochs of training
    posterior = trainer.build_posterior(model)
    draws = calibrate(posterior, theta, x, draws=240).draws[..., 0]
    grids = []
    for one in x:
        posterior.potential_fn.set_x(one)
        grids.append(grid_posterior(lambda at: posterior.potential_fn(at, track_gradients=False), [-1], [1]))
    means, stds = torch.cat([grid.mean for grid in grids]), torch.cat([grid.std for grid in grids])
    gaps = (draws.mean(1) - means).abs() / stds
    strangers = (draws.mean(1).roll(1) - means).abs() / stds
    assert gaps.max() < 0.4 < strangers.max()


def test_levels_are_of_the_posterior_of_the_same_set(posterior, sets):
    theta, x = sets
    result = calibrate(posterior, theta, x, draws=10)
    posterior.potential_fn.set_x(x[4])
    values = posterior.potential_fn(torch.cat([theta[4:5], result.draws[4]]), track_gradients=False)
    assert result.levels[4].item() == pytest.approx(((values[1:] > values[0]).sum().item() + 0.5) / 11)


def test_the_seed_is_all_that_matters(posterior, sets):
    few = [part[:3] for part in sets]
    first, second, other = (calibrate(posterior, *few, draws=6, seed=seed).draws for seed in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()


@pytest.mark.parametrize("kind", ["smc", "mcmc", "rejection", "importance"])
def test_an_exam_leaves_the_posterior_as_it_is(trainer, sets, kind):
    theta, x = (part[:3] for part in sets)
    posterior = trainer.build_posterior(sample_with=kind).set_default_x(x[0])
    before = dict(vars(posterior)), dict(vars(posterior.potential_fn))
    strategy = copy.deepcopy(getattr(posterior, "init_strategy_parameters", None))
    calibrate(posterior, theta, x, draws=4)
    assert all(value is before[0][name] for name, value in vars(posterior).items())
    assert all(value is before[1][name] for name, value in vars(posterior.potential_fn).items())
    assert getattr(posterior, "init_strategy_parameters", None) == strategy
    assert (posterior.potential_fn.x_o == x[0]).all()


def test_other_posteriors_are_asked_one_set_at_a_time(trainer, sets):
    theta, x = (part[:3] for part in sets)
    few = RejectionPosteriorParameters(num_samples_to_find_max=1000, num_iter_to_find_max=20)
    result = calibrate(trainer.build_posterior(posterior_parameters=few), theta, x[:, 0], draws=8)
    assert result.draws.shape == (3, 8, 1)


def test_settings_need_a_sampler(posterior, sets):
    with pytest.raises(TypeError, match="leave out `particles`"):
        calibrate(posterior, *sets, particles=50)


def test_smc_by_word_takes_all_data_sets_at_once(posterior, sets):
    first, second = (calibrate(posterior, *sets, draws=9, sampler=by) for by in ("smc", SMC()))
    assert (first.draws == second.draws).all()
    assert first.draws.shape == (SETS, 9, 1)
