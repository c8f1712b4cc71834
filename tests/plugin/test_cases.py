"""Small scripts of users that went wrong once, each with the value or the word that is right."""

import warnings

import numpy as np
import pytest
import torch
from sbi.analysis import pairplot
from sbi.utils import RestrictionEstimator
from torch.distributions import Exponential, Independent, MultivariateNormal, Uniform

from mfsbi import AF, ManifoldNLE, MFlow, SplineCouplings, sample_chains, to_arviz
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.to_arviz import read, write
from mfsbi.plugin.host import MCMCPosteriorParameters

pytestmark = pytest.mark.usefixtures("as_users_have_it")
SMALL = AF(SplineCouplings(layers=2, width=24))
QUIET = "ignore:There are few", "ignore:Only .* candidates", "ignore:The chains"


@pytest.mark.filterwarnings(*QUIET)
def test_an_exponential_prior_keeps_its_draws_above_zero():
    torch.manual_seed(0)
    prior = Independent(Exponential(torch.ones(1)), 1)
    theta = prior.sample((2000,))
    trainer = ManifoldNLE(prior, SMALL, seed=0).append_simulations(theta, theta + 0.5 * torch.randn(2000, 1))
    trainer.train(max_num_epochs=10, training_batch_size=100)
    posterior, x_o = trainer.build_posterior(), torch.tensor([[-0.3]])
    assert posterior.potential(torch.tensor([[-1.0]]), x=x_o) == -torch.inf
    for sampler, settings in (
        ("importance", {"oversampling": 64}),
        ("grid", {"bounds": [(-5.0, 5.0)]}),
        ("emcee", {"warmup": 100, "thin": 2}),
    ):
        chains = sample_chains(posterior, x_o, 100, sampler=sampler, seed=0, **settings)
        assert (chains.draws >= 0).all()
        assert float(chains.mean) == pytest.approx(0.253, abs=0.06)
        assert float(chains.std) == pytest.approx(0.217, rel=0.25)


@pytest.mark.filterwarnings(*QUIET)
@pytest.mark.parametrize(
    "prior",
    [
        Independent(Uniform(torch.tensor(np.zeros(2)), torch.tensor(np.ones(2))), 1),
        MultivariateNormal(torch.tensor(np.zeros(2)), torch.tensor(np.eye(2))),
    ],
    ids=["uniform", "normal"],
)
def test_a_prior_of_float64_reaches_its_posterior(prior):
    torch.manual_seed(0)
    theta = prior.sample((600,))
    trainer = ManifoldNLE(prior, SMALL, seed=0).append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
    trainer.train(max_num_epochs=2)
    chains = sample_chains(trainer.build_posterior(), theta[:1], 20, sampler="emcee", warmup=10, thin=1)
    assert torch.isfinite(chains.draws).all()
    assert prior.support.check(chains.pooled.double()).all()


def test_the_prior_of_a_restriction_is_taken_and_kept():
    torch.manual_seed(0)
    prior = Independent(Uniform(-2 * torch.ones(2), 2 * torch.ones(2)), 1)
    theta = prior.sample((1000,))
    x = theta + 0.4 * torch.randn(1000, 2)
    x[theta[:, 0] < -0.5] = float("nan")  # the simulator fails there
    estimator = RestrictionEstimator(prior=prior)
    estimator.append_simulations(theta, x)
    estimator.train(max_num_epochs=20)
    trainer = ManifoldNLE(estimator.restrict_prior(), AF(), seed=0)
    assert (trainer.prior.sample((500,))[:, 0] > -1.0).all()
    assert trainer.prior.log_prob(torch.tensor([[-1.9, 0.0]])) == -torch.inf


@pytest.mark.parametrize("name", ["latex.zarr", "latex.nc", "my draws.zarr", "Ω_m.nc"])
def test_names_in_latex_are_read_back(name, tmp_path):
    names = [r"$\Omega_m$", r"$\sigma_8$"]
    data = to_arviz(Chains(torch.randn(4, 50, 2), torch.randn(4, 50), Info("slice")), names)
    write(data, tmp_path / name)
    again = read(tmp_path / name)["posterior"]
    assert list(again.data_vars) == names
    np.testing.assert_array_equal(again[names[1]], data["posterior"][names[1]])


def test_a_parameter_that_never_varied_has_a_word():
    torch.manual_seed(0)
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    theta = prior.sample((500,))
    theta[:, 1] = 0.0
    trainer = ManifoldNLE(prior, SMALL, seed=0).append_simulations(theta, theta + 0.5 * torch.randn(500, 2))
    with pytest.warns(
        UserWarning, match=r"Parameter 1 never varied in the simulations .always 0.* the posterior will be the prior"
    ):
        trainer.train(max_num_epochs=1, training_batch_size=100)


@pytest.mark.filterwarnings(*QUIET)
def test_runs_that_blew_up_leave_the_posterior_as_it_is():
    prior = Independent(Uniform(torch.tensor([0.5]), torch.tensor([8.0])), 1)
    torch.manual_seed(0)
    theta = prior.sample((4000,))
    x = theta + 0.5 * torch.randn(4000, 1)
    x = torch.where(torch.rand_like(x) < 0.003, 1e6 * torch.rand_like(x), x)
    trainer = ManifoldNLE(prior, SMALL, seed=0)
    with pytest.warns(UserWarning, match="Feature 0 of x holds rare huge values: feature 0 has 1. in 4000 rows.* rows"):
        trainer.append_simulations(theta, x)
    trainer.train(max_num_epochs=15, training_batch_size=100)
    x_o = 2.0 + 0.5 * torch.randn(10, 1, generator=torch.Generator().manual_seed(5))
    chains = sample_chains(trainer.build_posterior(), x_o, 300, sampler="importance", oversampling=64)
    assert float(chains.mean) == pytest.approx(float(x_o.mean()), abs=0.08)
    assert float(chains.std) == pytest.approx(0.158, rel=0.2)


def test_noise_that_no_chart_can_keep_has_a_word():
    """Twelve noisy features of three parameters: three principal axes lose what the others say."""
    torch.manual_seed(0)
    place = torch.linspace(0, 1, 12)
    design = torch.exp(-0.5 * ((place[:, None] - torch.tensor([0.2, 0.5, 0.8])) / 0.3) ** 2)
    prior = MultivariateNormal(torch.zeros(3), torch.eye(3))
    theta = prior.sample((1500,))
    x = theta @ design.T + (0.4 + 1.5 * (place - 0.5).abs()) * torch.randn(1500, 12)
    trainer = ManifoldNLE(prior, MFlow(3, latent=SMALL.latent), seed=0).append_simulations(theta, x)
    with pytest.warns(UserWarning, match="looks like noise, which no chart can reconstruct, so there is no new start"):
        trainer.train(max_num_epochs=6)
    assert not trainer.history.collapses


def test_sbis_pairplot_and_its_workers_are_there():
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    torch.manual_seed(0)
    theta = prior.sample((200,))
    trainer = ManifoldNLE(prior, SMALL, seed=0).append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
    trainer.train(max_num_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # sbi's own, of the workers
        posterior = trainer.build_posterior(
            posterior_parameters=MCMCPosteriorParameters(
                method="slice_np",
                num_chains=2,
                num_workers=2,
                warmup_steps=2,
                init_strategy_parameters={"num_candidate_samples": 20},
            )
        )
        draws = posterior.sample((8,), x=theta[:1], show_progress_bars=False)
    assert draws.shape == (8, 2)
    figure, _ = pairplot(draws)
    assert figure.axes


@pytest.mark.filterwarnings(*QUIET)
def test_variation_with_a_prior_of_ones_own_says_nothing_of_devices():
    class Own:
        def sample(self, shape=()):
            return torch.rand(*shape, 1)

        def log_prob(self, theta):
            return torch.where((theta[..., 0] > 0) & (theta[..., 0] < 1), 0.0, -torch.inf)

    torch.manual_seed(0)
    theta = Own().sample((300,))
    trainer = ManifoldNLE(Own(), SMALL, seed=0).append_simulations(theta, theta + 0.3 * torch.randn_like(theta))
    trainer.train(max_num_epochs=1)
    chains = sample_chains(trainer.build_posterior(), torch.tensor([[0.5]]), 50, sampler="vi", max_num_iters=20)
    assert ((chains.draws > 0) & (chains.draws < 1)).all()
