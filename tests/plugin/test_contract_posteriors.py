"""What sbi's own tests (v0.27) state of likelihood trainers, potentials and posteriors, held for ours."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pyro.infer import MCMC
from sbi.inference import (
    EnsemblePosterior,
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
)
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.inference.potentials.likelihood_based_potential import LikelihoodBasedPotential
from sbi.samplers.mcmc import SliceSamplerSerial, SliceSamplerVectorized
from sbi.utils import BoxUniform, mcmc_transform
from sbi.utils.conditional_density_utils import (
    ConditionedPotential,
    RestrictedPriorForConditional,
    RestrictedTransformForConditional,
)
from torch.distributions import Independent, MultivariateNormal, Normal

from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.seeds import seeded
from tests.plugin.contract import (
    FEW,
    PRIOR,
    QUIET,
    TRUTH,
    assert_exact,
    chains,
    grid_of,
    observed,
    simulate,
    train,
    truncated,
)
from tests.problems import off_plane, on_plane

pytestmark = pytest.mark.filterwarnings("ignore:Number of posterior samples for ranking")


@pytest.fixture(autouse=True)
def _seeded_numpy():
    np.random.seed(0)  # noqa: NPY002 - sbi's slice samplers draw from it


@pytest.fixture(scope="module")
def trained():
    return train()


@pytest.fixture
def posterior(trained):
    return chains(trained)


@pytest.mark.parametrize("rows", [1, 4, 16])
def test_iid_observations_narrow_the_posterior(posterior, rows):
    x = observed(rows)
    grid = grid_of(posterior, x)
    std = 0.5 / rows**0.5
    assert ((grid.mean - off_plane(x).mean(0)).abs() < 0.4 * std).all()
    assert ((grid.std - std).abs() < 0.2 * std).all()


def test_the_potential_of_iid_observations_is_the_sum_over_them(posterior):
    x, theta = observed(4), PRIOR.sample((6,))
    alone = torch.stack([posterior.potential(theta, x=row) - PRIOR.log_prob(theta) for row in x])
    together = posterior.potential(theta, x=x) - PRIOR.log_prob(theta)
    torch.testing.assert_close(together, alone.sum(0), rtol=1e-4, atol=1e-4)


def test_log_prob_is_the_potential_and_says_that_it_is_not_normalised(posterior):
    posterior.set_default_x(observed(4))
    theta = torch.cat([PRIOR.sample((3,)), torch.tensor([[0.0, 2.1]])])
    with pytest.warns(UserWarning, match="normaliz"):
        value = posterior.log_prob(theta)
    assert (value == posterior.potential(theta)).all()
    assert torch.isfinite(value[:3]).all()
    assert value[3] == -torch.inf


def test_one_observation_may_come_without_a_batch_axis_or_from_numpy(posterior):
    x, theta = observed(1), PRIOR.sample((3,))
    expected = posterior.potential(theta, x=x)
    assert (posterior.potential(theta, x=x[0]) == expected).all()
    assert (posterior.potential(theta, x=x.numpy()) == expected).all()
    assert posterior.potential(theta[0], x=x).shape == (1,)


def test_without_an_observation_there_is_nothing_to_sample(posterior):
    with pytest.raises(ValueError, match="Context `x` needed"):
        posterior.sample((2,))


SAMPLERS = {
    "slice_np_vectorized": (SliceSamplerVectorized, 10, 10, 200, 60),
    "slice_np": (SliceSamplerSerial, 1, 5, 50, 20),
    "nuts_pyro": (MCMC, 1, 50, 60, 25),
    "hmc_pyro": (MCMC, 1, 15, 30, 6),
}
"""The class, chains, warmup, draws, and about how many of them are independent."""


@pytest.mark.parametrize("method", SAMPLERS)
def test_every_sampler_draws_the_posterior_and_leaves_it_picklable(posterior, method):
    kind, number, warmup, draws, effective = SAMPLERS[method]
    x = observed(4)
    posterior.set_default_x(x)
    sample = posterior.sample((draws // 2, 2), method=method, num_chains=number, warmup_steps=warmup, **QUIET)
    assert sample.shape == (draws // 2, 2, 2)
    assert_exact(sample.flatten(0, 1), x, effective)
    assert type(posterior.posterior_sampler) is kind
    twin = pickle.loads(pickle.dumps(posterior))
    assert (twin.default_x == x).all()
    assert (twin.potential(sample[0]) == posterior.potential(sample[0])).all()
    assert twin.sample((2,), warmup_steps=0, num_chains=2, **QUIET).shape == (2, 2)


@pytest.mark.parametrize("strategy", ["proposal", "sir", "resample", "latest_sample"])
def test_chains_start_by_every_strategy(posterior, strategy, short_tuning):
    posterior.set_default_x(observed(4))
    if strategy == "latest_sample":
        posterior.sample((4,), num_chains=2, warmup_steps=0, **QUIET)
    draws = posterior.sample((4,), init_strategy=strategy, num_chains=2, warmup_steps=0, **QUIET)
    assert draws.shape == (4, 2)
    assert torch.isfinite(posterior.potential(draws)).all()


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_draws_have_the_shape_that_was_asked_for(posterior, shape, short_tuning):
    settings = {"num_chains": 2, "warmup_steps": 0}
    assert posterior.sample(shape, x=observed(1), **settings, **QUIET).shape == (*shape, 2)


@pytest.mark.parametrize(
    ("parameters", "kind", "settings"),
    [
        (MCMCPosteriorParameters(thin=2, init_strategy="sir"), MCMCPosterior, {"thin": 2, "init_strategy": "sir"}),
        (RejectionPosteriorParameters(m=1.5), RejectionPosterior, {"m": 1.5}),
        (VIPosteriorParameters(q="gaussian", vi_method="fKL"), VIPosterior, {"vi_method": "fKL"}),
        (
            ImportanceSamplingPosteriorParameters(oversampling_factor=8),
            ImportanceSamplingPosterior,
            {"oversampling_factor": 8},
        ),
    ],
)
def test_settings_of_a_posterior_arrive(trained, parameters, kind, settings):
    made = trained.build_posterior(posterior_parameters=parameters)
    assert isinstance(made, kind)
    assert {name: getattr(made, name) for name in settings} == settings


def by_rejection(trained, x):
    few = RejectionPosteriorParameters(num_samples_to_find_max=1000, num_iter_to_find_max=20)
    return trained.build_posterior(posterior_parameters=few).set_default_x(x).sample((200,), **QUIET)


def by_resampling(trained, x):
    made = trained.build_posterior(sample_with="importance").set_default_x(x)
    return made.sample((200,), oversampling_factor=512, **QUIET)


def by_variation(trained, x):
    made = trained.build_posterior(posterior_parameters=VIPosteriorParameters(q="gaussian")).set_default_x(x)
    fit = {"max_num_iters": 200, "n_particles": 64, "learning_rate": 3e-2, "check_for_convergence": False}
    made.train(quality_control=False, show_progress_bar=False, **fit)
    return pickle.loads(pickle.dumps(made)).sample((200,))


@pytest.mark.parametrize("road", [by_rejection, by_resampling, by_variation])
def test_posteriors_without_chains_draw_it_too(trained, road):
    x = observed(4)
    assert_exact(road(trained, x), x, 100)


def test_importance_weights_are_those_of_the_posterior(trained):
    x = observed(4)
    made = trained.build_posterior(sample_with="importance").set_default_x(x)
    draws, log_weights = made.sample((5000,), method="importance")
    assert ((log_weights.softmax(0) @ draws - off_plane(x).mean(0)).abs() < 0.15).all()
    exact = Independent(Normal(off_plane(x).mean(0), 0.25), 1)
    near = exact.mean + torch.tensor([[0.0, 0.0], [0.2, 0.1], [-0.1, 0.2]])
    assert ((made.log_prob(near) - exact.log_prob(near)).abs() < 0.4).all()  # it estimates the evidence


@pytest.mark.parametrize("sample_with", ["smc", "mcmc", "rejection", "importance", "vi"])
def test_the_maximum_is_found(trained, sample_with):
    x = observed(4)
    made = trained.build_posterior(sample_with=sample_with).set_default_x(x)
    start = {"init_method": PRIOR.sample((100,)), "num_to_optimize": 10}
    best = made.map(num_iter=200, learning_rate=0.05, **start, **QUIET)
    assert ((best - off_plane(x).mean(0)).abs() < 0.3 * 0.25).all()


def test_amortised_variation_learns_all_observations_at_once(trained):
    prior = MultivariateNormal(torch.zeros(2), torch.eye(2))  # sbi's own potential refuses bounded priors here too
    potential = ManifoldPotential(trained.estimator, prior)
    amortised = VIPosterior(potential, prior, q="maf", theta_transform=mcmc_transform(prior))
    theta = prior.sample((150,))
    sizes = {"n_particles": 4, "validation_batch_size": 20, "validation_n_particles": 2, "stop_after_iters": 100}
    fit = {"max_num_iters": 40, "learning_rate": 1e-2, "show_progress_bar": False}
    amortised.train_amortized(theta, simulate(theta), **sizes, **fit)
    x = on_plane(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]))
    draws = amortised.sample((100,), x=x)
    assert draws.shape == (100, 2, 2)
    assert ((draws.mean(0) - 0.8 * off_plane(x)).abs() < 0.4).all()  # N(4 u / 5, 1/5)


def test_batched_sampling_is_sampling_for_each_observation(posterior, short_tuning):
    x = on_plane(torch.tensor([[-1.0, 1.0], [1.0, -0.5], [0.3, 0.3]]))
    together = posterior.sample_batched((40, 2), x=x, **QUIET)
    assert together.shape == (40, 2, 3, 2)
    for i in range(3):
        apart, draws = grid_of(posterior, x[i]), together[:, :, i].flatten(0, 1)
        assert ((draws.mean(0) - apart.mean).abs() < 0.6 * apart.std).all()
        assert ((draws.std(0) - apart.std).abs() < 0.5 * apart.std).all()


def test_observations_that_are_not_iid_meet_one_theta_each_in_sbis_potential_too(trained):
    x, theta = observed(5), PRIOR.sample((5,))
    potential = LikelihoodBasedPotential(trained.estimator, PRIOR)
    potential.set_x(x, x_is_iid=False)
    expected = trained.estimator.log_prob(x, condition=theta) + PRIOR.log_prob(theta)
    torch.testing.assert_close(potential(theta), expected)
    ours = ManifoldPotential(trained.estimator, PRIOR)
    for i in range(5):
        ours.set_x(x[i])
        potential.set_x(x[i])
        torch.testing.assert_close(
            ours(theta) - ours(theta[:1]), potential(theta) - potential(theta[:1]), rtol=1e-4, atol=1e-4
        )


def test_sampling_goes_on_after_batched_sampling(posterior, short_tuning):
    x = observed(4)
    posterior.set_default_x(x)
    before = posterior.potential(TRUTH)
    settings = {"num_chains": 2, "warmup_steps": 0}
    assert posterior.sample_batched((4,), x=x[:1], **settings, **QUIET).shape == (4, 1, 2)
    assert posterior.sample((4,), **settings, **QUIET).shape == (4, 2)
    assert posterior.potential(TRUTH) == before


def test_an_ensemble_draws_from_its_members_by_weight(trained, short_tuning):
    x = observed(16)
    with pytest.warns(UserWarning, match="Parameters 0, 1 of the posterior's prior reach beyond the simulations"):
        away = trained.build_posterior(prior=BoxUniform(-4 * torch.ones(2), -3 * torch.ones(2)))
    members = [chains(trained), MCMCPosterior(away.potential_fn, proposal=away.proposal, **_settings())]
    ensemble = EnsemblePosterior(members, weights=[3.0, 1.0])
    ensemble.set_default_x(x)
    draws = ensemble.sample((80,), **QUIET)
    assert draws.shape == (80, 2)
    assert (draws[:, 0] < -3).float().mean() == pytest.approx(0.25, abs=0.2)


def _settings():
    return {"num_chains": 10, "warmup_steps": 5, "init_strategy_parameters": dict(FEW)}


def test_an_ensemble_of_one_likelihood_is_that_posterior(trained):
    x = observed(4)
    ensemble = EnsemblePosterior([chains(trained), chains(trained)])
    ensemble.set_default_x(x)
    theta = PRIOR.sample((5,))
    expected = chains(trained).potential(theta, x=x)
    torch.testing.assert_close(ensemble.potential(theta), expected)
    with pytest.warns(UserWarning, match="normaliz"):
        log_weights, each = ensemble.log_prob(theta, individually=True)
    torch.testing.assert_close(each, expected.expand(2, -1))
    assert log_weights.exp().sum() == pytest.approx(1)
    best = ensemble.map(init_method=PRIOR.sample((50,)), num_to_optimize=5, num_iter=200, learning_rate=0.05)
    assert ((best - off_plane(x).mean(0)).abs() < 0.3 * 0.25).all()


def test_a_posterior_can_be_conditioned_on_a_parameter(posterior, short_tuning):
    x, condition = observed(4), torch.tensor([[9.0, -0.3]])
    posterior.potential_fn.set_x(x)
    conditioned = ConditionedPotential(posterior.potential_fn, condition, [0])
    value = conditioned(torch.tensor([[0.1], [0.5]]))
    assert (value == posterior.potential(torch.tensor([[0.1, -0.3], [0.5, -0.3]]), x=x)).all()
    made = MCMCPosterior(
        conditioned,
        theta_transform=RestrictedTransformForConditional(posterior.theta_transform, condition, [0]),
        proposal=RestrictedPriorForConditional(posterior.potential_fn.prior, [0]),
        **_settings(),
    )
    draws = made.sample((200,), x=x, **QUIET)
    assert draws.shape == (200, 1)
    assert draws.mean() == pytest.approx(float(off_plane(x).mean(0)[0]), abs=0.15)
    assert draws.std() == pytest.approx(0.25, rel=0.4)


def test_proposals_can_be_truncated_to_the_posterior(posterior, trained, short_tuning):
    x = observed(16)
    with pytest.warns(UserWarning, match="normaliz"):
        theta, log_prob = truncated(posterior.set_default_x(x))
    distance = ((theta - off_plane(x).mean(0)) / 0.125).norm(dim=1)
    assert 1.5 < distance.max() < 4.5
    assert (log_prob == torch.cat([PRIOR.log_prob(theta), torch.tensor([-torch.inf])])).all()
    again = copy.deepcopy(trained).append_simulations(theta, simulate(theta), from_round=1)
    assert "2,040" in repr(again)


@pytest.mark.parametrize("sample_with", ["smc", "mcmc", "rejection", "importance", "vi"])
def test_a_posterior_that_was_moved_draws_as_before(trained, sample_with, short_chains):
    x = observed(3)
    made = trained.build_posterior(sample_with=sample_with).set_default_x(x)
    if sample_with == "vi":
        made.train(max_num_iters=5, quality_control=False, show_progress_bar=False)
    before = _drawn(made)
    assert made.to("cpu") is made
    torch.testing.assert_close(_drawn(made), before)
    assert made.default_x.tolist() == x.tolist()


def _drawn(posterior):
    """Return draws of one seed; sbi's slice draws from numpy's generator."""
    with seeded(0):
        return posterior.sample((20,), show_progress_bars=False)
