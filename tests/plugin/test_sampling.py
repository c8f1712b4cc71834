import copy
import re
from contextlib import chdir, nullcontext
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.samplers.mcmc.slice_numpy import SliceSamplerVectorized
from torch.distributions import Distribution

from mfsbi import (
    AF,
    HMC,
    NUTS,
    SMC,
    Chains,
    Emcee,
    Grid,
    Importance,
    ManifoldNLE,
    Rejection,
    Slice,
    Variational,
    calibrate,
    sample_chains,
)
from mfsbi.flows import SplineCouplings
from mfsbi.inference.chains import Info
from mfsbi.inference.grid import grid_posterior
from mfsbi.inference.samplers import Problem
from mfsbi.inference.to_arviz import diagnose
from mfsbi.plugin.host import NLE_A
from mfsbi.plugin.samplers import SAMPLERS
from mfsbi.seeds import seeded
from tests.problems import surface_data


@pytest.fixture(scope="module")
def posterior():
    surface, theta, x = surface_data(400)
    trainer = ManifoldNLE(surface.prior, AF(SplineCouplings(layers=2, width=16)), show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=2)
    few = {"num_candidate_samples": 100}
    return trainer.build_posterior(
        posterior_parameters=MCMCPosteriorParameters(num_chains=4, warmup_steps=20, init_strategy_parameters=few)
    )


@pytest.fixture(scope="module")
def x():
    return surface_data(20, seed=3)[2]


def test_chains_stay_apart_and_carry_their_log_prob(posterior, x, short_tuning):
    chains = sample_chains(posterior, x, draws=160, seed=1)
    assert chains.draws.shape == (4, 160, 1)
    torch.testing.assert_close(chains.log_prob[2], posterior.potential(chains.draws[2], x))
    moves = (chains.draws[:, 1:] - chains.draws[:, :-1]).abs()
    assert (moves > 0).float().mean() > 0.9


def test_sbis_pooled_draws_are_chain_by_chain(posterior, x, monkeypatch):
    """A tag for each chain, put where sbi's sampler returns them, comes back as that chain."""
    generator = np.random.default_rng(0)
    tagged = np.arange(4.0)[:, None, None] + 0.01 * generator.normal(size=(4, posterior.warmup_steps + 6, 1))
    monkeypatch.setattr(SliceSamplerVectorized, "run", lambda sampler, draws: tagged[:, :draws])
    with pytest.warns(UserWarning, match="have not converged"):
        chains = sample_chains(posterior, x, "slice", draws=6)
    expected = posterior.theta_transform.inv(torch.from_numpy(tagged[:, posterior.warmup_steps :]).float())
    torch.testing.assert_close(chains.draws, expected)


def test_one_seed_gives_one_set_of_chains_and_leaves_the_global_state_alone(posterior, x, short_tuning):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    with pytest.warns(UserWarning, match="There are few independent draws"):
        first = sample_chains(posterior, x, draws=20, seed=1)
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002
    with pytest.warns(UserWarning, match="There are few independent draws"):
        second = sample_chains(posterior, x, draws=20, seed=1)
    assert (first.draws == second.draws).all()


def test_chains_that_have_not_converged_are_a_warning_with_the_numbers(posterior, x, short_tuning):
    with pytest.warns(UserWarning, match="largest R-hat .* smallest effective sample size .*a longer warm-up and more"):
        sample_chains(posterior, x, "slice", draws=5)


QUICK = {
    "grid": {"bounds": [(-1.0, 1.0)], "points": 200},
    "emcee": {"draws": 200, "warmup": 60, "thin": 2},
    "rejection": {},
    "importance": {"oversampling": 16},
    "smc": {},
    "nuts": {"draws": 60, "warmup": 30, "chains": 4},
    "hmc": {"draws": 40, "warmup": 20, "chains": 2, "trajectory_length": 1.0},
    "vi": {"max_num_iters": 200},
}


@pytest.fixture(scope="module")
def exact(posterior, x):
    return grid_posterior(lambda theta: posterior.potential(theta, x), [-1], [1], 400)


@pytest.mark.filterwarnings("ignore:The chains", "ignore:There are few", "ignore:Only", "ignore:.*diverged")
@pytest.mark.parametrize("sampler", sorted(QUICK))
def test_every_road_leads_to_one_posterior(sampler, posterior, x, exact):
    settings = {"draws": 250} | QUICK[sampler]
    chains = sample_chains(posterior, x, sampler=sampler, seed=1, **settings)
    assert (chains.draws.abs() <= 1).all()
    effective = min(diagnose(chains).ess_bulk)
    tolerance = 4 / effective**0.5
    assert abs(chains.mean - exact.mean) < tolerance * exact.std
    assert chains.std == pytest.approx(float(exact.std), rel=tolerance)
    torch.testing.assert_close(chains.log_prob[1], posterior.potential(chains.draws[1], x))
    assert chains.info.seconds > 0
    assert chains.info.acceptance is None or 0 < chains.info.acceptance <= 1
    assert chains.info.evaluations >= chains.log_prob.numel()


@pytest.mark.filterwarnings("ignore:The chains have not converged", "ignore:There are few", "ignore:Only")
@pytest.mark.parametrize("sampler", ["emcee", "importance", "grid", "rejection"])
def test_one_seed_gives_one_result_on_every_road(sampler, posterior, x):
    settings = QUICK[sampler] | {"draws": 10} | ({"warmup": 10} if sampler == "emcee" else {})
    runs = [sample_chains(posterior, x, sampler=sampler, seed=seed, **settings).draws for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert not (runs[0] == runs[2]).all()


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_posteriors_of_other_trainers_are_refused_by_what_needs_our_potential(x):
    surface, theta, data = surface_data(200)
    with pytest.raises(TypeError, match="should come from build_posterior.. of a ManifoldNLE or of ALICES"):
        sample_chains(stock_posterior(surface, theta, data), x, sampler="emcee")


class Fixed:
    """A sampler that returns given draws."""

    def __init__(self, draws, info):
        self.theta, self.info = draws, info

    def draw(self, problem, draws, seed):
        return problem.chains(self.theta, self.info)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (Info("emcee", acceptance=0.001, warmup_steps=1), "Only 0.10% of the steps of 'emcee'"),
        (Info("nuts", divergences=3), "3 trajectories diverged"),
    ],
)
def test_draws_that_say_little_are_a_warning(posterior, x, info, message):
    draws = torch.rand(4, 500, 1, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=message):
        sample_chains(posterior, x, Fixed(draws, info))


def test_independent_draws_are_not_judged_by_r_hat(posterior, x):
    """R-hat is of chains; of 1,000 independent draws it was 1.013 once in some thousand times."""
    draws = 0.2 * torch.randn(4, 250, 1, generator=torch.Generator().manual_seed(0))
    draws[0] += 0.08
    assert max(diagnose(Chains(draws, draws[..., 0])).r_hat) > 1.012
    sample_chains(posterior, x, Fixed(draws, Info("importance", markov=False)))
    with pytest.warns(UserWarning, match="few independent draws"):
        sample_chains(posterior, x, Fixed(draws[:, :50], Info("importance", markov=False)))


@pytest.mark.parametrize(
    ("rows", "shift", "complaint"),
    [
        (600, 0.0, ""),
        (600, 0.25, ""),  # R-hat 1.01 with an effective size of 600: means are known to a twentieth
        (50, 0.0, r"There are few independent draws: .* Means are uncertain by \d+% of a standard deviation"),
        (600, 2.0, r"The chains have not converged: largest R-hat 1\.[2-9].* are not those of the posterior"),
    ],
)
def test_complaints_are_as_loud_as_what_is_wrong(rows, shift, complaint):
    draws = torch.randn(4, rows, 1, generator=torch.Generator().manual_seed(0))
    draws[0] += shift
    found = diagnose(Chains(draws, draws[..., 0])).complaint
    assert re.match(complaint, found) if complaint else not found


def test_draws_of_few_candidates_are_a_warning(posterior, x):
    with pytest.warns(UserWarning, match="Only .* of 8 candidates make 8 draws of the posterior. Raise `oversampling`"):
        sample_chains(posterior, x, 2, sampler="importance", oversampling=1)


def test_chains_need_starts_the_posterior_allows(posterior, x):
    def nowhere(theta, track_gradients=True):
        return torch.full((len(theta),), -torch.inf)

    problem = Problem(nowhere, posterior.potential_fn.prior, posterior.theta_transform, x, posterior, False)
    with pytest.raises(ValueError, match="The posterior is zero at all but 0 of 400 draws of the prior"):
        problem.starts(4, seed=0)


class FromPrior:
    """A sampler of one's own, which takes no notice of the observations."""

    chains = 2

    def draw(self, problem, draws, seed):
        with seeded(seed):
            theta = problem.prior.sample((self.chains * draws,)).view(self.chains, draws, -1)
        return problem.chains(theta, Info(markov=False))


def test_a_sampler_of_ones_own_is_any_object_that_draws(posterior, x):
    found = sample_chains(posterior, x, FromPrior(), draws=300, seed=1)
    assert found.draws.shape == (2, 300, 1)
    assert abs(found.draws.mean()) < 0.1
    torch.testing.assert_close(found.log_prob[1], posterior.potential(found.draws[1], x))
    assert found.info[:6] == ("FromPrior", False, None, None, 1, found.info.seconds)
    assert found.info.evaluations == 600


def test_calibration_takes_it_too(posterior):
    theta, data = surface_data(3, seed=5)[1:]
    with pytest.warns(UserWarning, match="few independent draws"):
        assert calibrate(posterior, theta, data, draws=9, sampler=FromPrior()).draws.shape == (3, 9, 1)


VALUES = {
    "slice": (Slice(), {}),
    "nuts": (NUTS(chains=2, warmup=3, max_tree_depth=2), {"chains": 2, "warmup": 3, "max_tree_depth": 2}),
    "hmc": (HMC(chains=2, warmup=3, num_steps=2), {"chains": 2, "warmup": 3, "num_steps": 2}),
    "emcee": (Emcee(warmup=3, thin=1), {"warmup": 3, "thin": 1}),
    "rejection": (Rejection(), {}),
    "importance": (Importance(oversampling=4), {"oversampling": 4}),
    "vi": (Variational(max_num_iters=3, n_particles=8), {"max_num_iters": 3, "n_particles": 8}),
    "smc": (SMC(chains=2, particles=20), {"chains": 2, "particles": 20}),
    "grid": (Grid(points=50), {"bounds": [(-1.0, 1.0)], "points": 50}),
}
"""Each sampler as a value, and the settings of its word that mean the same."""

FEW_DRAWS = pytest.mark.filterwarnings("ignore:The chains", "ignore:There are few", "ignore:Only", "ignore:.*diverged")


@FEW_DRAWS
@pytest.mark.parametrize("word", SAMPLERS)
def test_a_word_with_its_settings_is_a_value(word, posterior, x, short_tuning):
    value, settings = VALUES[word]
    first = sample_chains(posterior, x, value, draws=5, seed=1)
    for second in (
        sample_chains(posterior, x, 5, sampler=word, seed=1, **settings),
        sample_chains(posterior, x, draws=5, sampler=value, seed=1),
        sample_chains(posterior, x, word, draws=5, seed=1, **settings),
    ):
        assert (first.draws == second.draws).all()
        assert first.info._replace(seconds=0) == second.info._replace(seconds=0)
    assert first.info.sampler == (posterior.method if word == "slice" else word)
    assert first.info.markov == (word in ("slice", "nuts", "hmc", "emcee"))
    assert type(value)(**vars(value)) == value


def state_of(posterior):
    """Return what a sampler could leave behind: every attribute, by identity, and global state."""
    potential, state = posterior.potential_fn, np.random.get_state()  # noqa: NPY002
    parts = [vars(posterior), vars(potential), posterior.init_strategy_parameters]
    kept = [{name: id(value) for name, value in part.items()} for part in parts]
    observations = None if potential.return_x_o() is None else potential.x_o.tolist()
    return kept, observations, state[1].tolist(), torch.random.get_rng_state().tolist(), Distribution._validate_args


@FEW_DRAWS
@pytest.mark.parametrize("broken", [False, True], ids=["whole", "with an error"])
@pytest.mark.parametrize("word", SAMPLERS)
def test_no_sampler_leaves_anything_behind(word, broken, posterior, x, short_tuning, monkeypatch):
    def fail(*_, **__):
        raise ArithmeticError("the potential is broken")

    mine = copy.deepcopy(posterior).set_default_x(x[:2])
    if broken:
        monkeypatch.setattr(type(mine.potential_fn), "__call__", fail)
    before = state_of(mine)
    with pytest.raises(ArithmeticError, match="is broken") if broken else nullcontext():
        sample_chains(mine, x, VALUES[word][0], draws=5, seed=1)
    assert state_of(mine) == before
    assert mine.default_x.tolist() == x[:2].tolist()


@FEW_DRAWS
def test_a_posterior_without_observations_has_none_afterwards(posterior, x):
    mine = copy.deepcopy(posterior)
    mine.potential_fn.set_x(None)
    before = state_of(mine)
    for rows in (x, x[:2]):
        sample_chains(mine, rows, Importance(), draws=5)
    assert state_of(mine) == before
    assert mine.default_x is mine.potential_fn.return_x_o() is None


def test_a_grid_without_bounds_takes_those_of_the_prior(posterior, x):
    grids = Grid(points=50), Grid(bounds=[(-1.0, 1.0)], points=50)
    first, second = (sample_chains(posterior, x, grid, seed=1).draws for grid in grids)
    assert (first == second).all()


def stock_posterior(surface, theta, x):
    trainer = NLE_A(surface.prior, density_estimator="maf", show_progress_bars=False)
    with TemporaryDirectory() as folder, chdir(folder):
        trainer.append_simulations(theta, x).train(max_num_epochs=1)
    return trainer.build_posterior()
