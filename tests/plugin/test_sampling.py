import numpy as np
import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.samplers.mcmc.slice_numpy import SliceSamplerVectorized

from mfsbi import AF, ManifoldNLE, sample_chains
from mfsbi.flows import SplineCouplings
from tests.problems import surface_data


@pytest.fixture(scope="module")
def posterior():
    surface, theta, x = surface_data(400)
    trainer = ManifoldNLE(surface.prior, AF(SplineCouplings(layers=2, width=16)), show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=2)
    return trainer.build_posterior(posterior_parameters=MCMCPosteriorParameters(num_chains=4, warmup_steps=20))


@pytest.fixture(scope="module")
def x():
    return surface_data(20, seed=3)[2]


def test_chains_stay_apart_and_carry_their_log_prob(posterior, x):
    chains = sample_chains(posterior, x, draws=400, seed=1)
    assert chains.draws.shape == (4, 400, 1)
    torch.testing.assert_close(chains.log_prob[2], posterior.potential_fn(chains.draws[2], track_gradients=False))
    moves = (chains.draws[:, 1:] - chains.draws[:, :-1]).abs()
    assert (moves > 0).float().mean() > 0.9


def test_sbis_pooled_draws_are_chain_by_chain(posterior, x, monkeypatch):
    """A tag for each chain, put where sbi's sampler returns them, comes back as that chain."""
    generator = np.random.default_rng(0)
    tagged = np.arange(4.0)[:, None, None] + 0.01 * generator.normal(size=(4, posterior.warmup_steps + 6, 1))
    monkeypatch.setattr(SliceSamplerVectorized, "run", lambda sampler, draws: tagged[:, :draws])
    with pytest.warns(UserWarning, match="have not converged"):
        chains = sample_chains(posterior, x, draws=6)
    expected = posterior.theta_transform.inv(torch.from_numpy(tagged[:, posterior.warmup_steps :]).float())
    torch.testing.assert_close(chains.draws, expected)


def test_one_seed_gives_one_set_of_chains_and_leaves_the_global_state_alone(posterior, x):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(1), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    with pytest.warns(UserWarning, match="The chains have not converged"):
        first = sample_chains(posterior, x, draws=20, seed=1)
    assert (torch.rand(1), np.random.rand()) == expected  # noqa: NPY002
    with pytest.warns(UserWarning, match="The chains have not converged"):
        second = sample_chains(posterior, x, draws=20, seed=1)
    assert (first.draws == second.draws).all()


def test_chains_that_have_not_converged_are_a_warning_with_the_numbers(posterior, x):
    with pytest.warns(UserWarning, match="largest R-hat .* smallest effective sample size .*Take more draws"):
        sample_chains(posterior, x, draws=5)


def test_no_draws_are_refused(posterior, x):
    with pytest.raises(ValueError, match="`draws` should be positive; got 0"):
        sample_chains(posterior, x, draws=0)
