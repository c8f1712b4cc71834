"""What sbi's own tests (v0.27) state of likelihood trainers, potentials, posteriors and diagnostics, held for ours.

All posteriors here are known: x lies on a plane, u ~ N(theta, 1/4) there and theta is uniform in a wide box, so n
observations leave theta ~ N(mean of u, 1/(4 n)).
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from pyro.infer import MCMC
from sbi.diagnostics import check_tarp, get_nltp, run_sbc, run_tarp
from sbi.diagnostics.lc2st import LC2ST
from sbi.diagnostics.sbc import check_prior_vs_dap, check_uniformity_frequentist
from sbi.inference import (
    NLE_A,
    EnsemblePosterior,
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
    simulate_for_sbi,
)
from sbi.inference.posteriors.posterior_parameters import (
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.inference.potentials.likelihood_based_potential import LikelihoodBasedPotential
from sbi.samplers.mcmc import SliceSamplerSerial, SliceSamplerVectorized
from sbi.utils import BoxUniform, RestrictedPrior, get_density_thresholder, mcmc_transform
from sbi.utils.conditional_density_utils import (
    ConditionedPotential,
    RestrictedPriorForConditional,
    RestrictedTransformForConditional,
)
from torch.distributions import Independent, MultivariateNormal, Normal

from mfsbi import AffineCouplings, ManifoldNLE, MFlow, density_only
from mfsbi.inference.grid import grid_posterior
from mfsbi.plugin.potential import ManifoldPotential
from tests.problems import off_plane, on_plane

pytestmark = pytest.mark.filterwarnings("ignore:Number of posterior samples for ranking")

SMALL = AffineCouplings(2, 32)
SPEC = MFlow(2, SMALL, SMALL)
PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
TRUTH = torch.tensor([0.6, -0.4])
TRAINING = {"training_batch_size": 100, "learning_rate": 1e-2}
QUIET = {"show_progress_bars": False}
FEW = {"num_candidate_samples": 50}


def simulate(theta):
    return on_plane(theta + 0.5 * torch.randn_like(theta))


def observed(rows):
    """Return iid observations at the true parameters."""
    generator = torch.Generator().manual_seed(rows)
    return on_plane(TRUTH + 0.5 * torch.randn(rows, 2, generator=generator))


def assert_exact(draws, x, effective):
    """Assert that mean and spread are those of the posterior, for about so many independent draws."""
    mean, std = off_plane(x).mean(0), 0.5 / len(x) ** 0.5
    assert ((draws.mean(0) - mean).abs() < (0.3 + 4 / effective**0.5) * std).all()
    assert ((draws.std(0) - std).abs() < (0.2 + 3 / (2 * effective) ** 0.5) * std).all()


@pytest.fixture(autouse=True)
def _seeded_numpy():
    np.random.seed(0)  # noqa: NPY002 - sbi's slice samplers draw from it


@pytest.fixture(scope="module")
def trained():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = PRIOR.sample((2000,))
        trainer = ManifoldNLE(PRIOR, SPEC, show_progress_bars=False).append_simulations(theta, simulate(theta))
    trainer.train(schedule=density_only(20), weight_decay=0.0, **TRAINING)
    return trainer


def chains(trained, number=10, warmup=5):
    """Return a posterior that is sampled by short chains."""
    return trained.build_posterior(
        posterior_parameters=MCMCPosteriorParameters(
            num_chains=number, warmup_steps=warmup, init_strategy_parameters=dict(FEW)
        )
    )


@pytest.fixture
def posterior(trained):
    return chains(trained)


def grid_of(posterior, x):
    return grid_posterior(lambda theta: posterior.potential(theta, x=x), [-2, -2], [2, 2], 60)


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
    "hmc_pyro": (MCMC, 1, 30, 30, 6),
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
def test_chains_start_by_every_strategy(posterior, strategy):
    posterior.set_default_x(observed(4))
    if strategy == "latest_sample":
        posterior.sample((4,), num_chains=2, warmup_steps=0, **QUIET)
    draws = posterior.sample((4,), init_strategy=strategy, num_chains=2, warmup_steps=0, **QUIET)
    assert draws.shape == (4, 2)
    assert torch.isfinite(posterior.potential(draws)).all()


@pytest.mark.parametrize("shape", [(), (2, 3)], ids=str)
def test_draws_have_the_shape_that_was_asked_for(posterior, shape):
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
    assert type(made) is kind
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


@pytest.mark.parametrize("sample_with", ["mcmc", "rejection", "importance", "vi"])
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


def test_batched_sampling_is_sampling_for_each_observation(posterior):
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


def test_sampling_goes_on_after_batched_sampling(posterior):
    x = observed(4)
    posterior.set_default_x(x)
    before = posterior.potential(TRUTH)
    settings = {"num_chains": 2, "warmup_steps": 0}
    assert posterior.sample_batched((4,), x=x[:1], **settings, **QUIET).shape == (4, 1, 2)
    assert posterior.sample((4,), **settings, **QUIET).shape == (4, 2)
    assert posterior.potential(TRUTH) == before


def test_an_ensemble_draws_from_its_members_by_weight(trained):
    x = observed(16)
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


def test_a_posterior_can_be_conditioned_on_a_parameter(posterior):
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


def truncated(posterior):
    """Return draws of the prior where the posterior is not small, and log p of them and of a point far away."""
    inside = get_density_thresholder(posterior, quantile=0.05, num_samples_to_estimate_support=200)
    proposal = RestrictedPrior(PRIOR, inside)
    theta = proposal.sample((40,))
    return theta, proposal.log_prob(torch.cat([theta, -TRUTH[None]]), norm_restricted_prior=False)


def test_proposals_can_be_truncated_to_the_posterior(posterior, trained):
    x = observed(16)
    with pytest.warns(UserWarning, match="normaliz"):
        theta, log_prob = truncated(posterior.set_default_x(x))
    distance = ((theta - off_plane(x).mean(0)) / 0.125).norm(dim=1)
    assert 1.5 < distance.max() < 4.5
    assert (log_prob == torch.cat([PRIOR.log_prob(theta), torch.tensor([-torch.inf])])).all()
    again = copy.deepcopy(trained).append_simulations(theta, simulate(theta), from_round=1)
    assert "2,040" in repr(again)


def passes(kind, number):
    """Return settings of `train` for so many passes over the data."""
    return {"max_num_epochs": number} if kind is NLE_A else {"schedule": density_only(number), "weight_decay": 0.0}


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
@pytest.mark.parametrize("kind", [ManifoldNLE, NLE_A])
def test_a_posterior_proposes_the_next_round(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    theta = PRIOR.sample((2000,))
    trainer = kind(PRIOR, density_estimator=SPEC, show_progress_bars=False).append_simulations(theta, simulate(theta))
    trainer.train(**passes(kind, 12), **TRAINING)
    x = observed(4)
    proposal = trainer.build_posterior(sample_with="importance").set_default_x(x)
    theta, data = simulate_for_sbi(simulate, proposal, 200, show_progress_bar=False)
    assert ((theta - off_plane(x).mean(0)).abs() < 1).float().mean() > 0.9
    trainer.append_simulations(theta, data, from_round=1).train(**passes(kind, 10), **TRAINING)
    posterior = trainer.build_posterior()
    assert not torch.equal(posterior.potential(theta, x=x), proposal.potential(theta, x=x))
    grid = grid_of(posterior, x)
    assert ((grid.mean - off_plane(x).mean(0)).abs() < 0.2).all()
    assert ((grid.std - 0.25).abs() < 0.1).all()


@pytest.mark.parametrize("kind", [ManifoldNLE, NLE_A])
@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_the_first_round_is_forgotten_on_demand(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    theta = PRIOR.sample((200,))
    trainer = kind(PRIOR, density_estimator=SPEC, show_progress_bars=False)
    trainer.append_simulations(theta, simulate(theta) + on_plane(torch.tensor([50.0, 50.0])))
    trainer.append_simulations(theta, simulate(theta), from_round=1)
    estimator = trainer.train(discard_prior_samples=True, **passes(kind, 2))
    assert off_plane(estimator.sample((200,), condition=TRUTH[None])).abs().max() < 10
    estimator = trainer.train(discard_prior_samples=False, retrain_from_scratch=True, **passes(kind, 2))
    assert off_plane(estimator.sample((200,), condition=TRUTH[None])).abs().max() > 20


def test_a_pickled_trainer_builds_and_trains_the_same(trained):
    twin, original = pickle.loads(pickle.dumps(trained)), copy.deepcopy(trained)
    x, theta = observed(4), PRIOR.sample((3,))
    assert (twin.build_posterior().potential(theta, x=x) == trained.build_posterior().potential(theta, x=x)).all()
    for trainer in (twin, original):
        trainer.train(schedule=density_only(2), retrain_from_scratch=True, **TRAINING)
    before, after = (made.build_posterior().potential(theta, x=x) for made in (trained, twin))
    assert (after == original.build_posterior().potential(theta, x=x)).all()
    assert not torch.allclose(after, before)


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_sbis_trainer_can_be_pickled_with_our_spec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    theta = PRIOR.sample((200,))
    trainer = NLE_A(PRIOR, density_estimator=SPEC, show_progress_bars=False)
    trainer.append_simulations(theta, simulate(theta)).train(max_num_epochs=1)
    with pytest.warns(UserWarning, match="When the inference object is pickled"):
        twin = pickle.loads(pickle.dumps(trainer))
    x = observed(4)
    assert (twin.build_posterior().potential(theta, x=x) == trainer.build_posterior().potential(theta, x=x)).all()


@pytest.fixture(scope="module")
def prior_predictive():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        theta = PRIOR.sample((100,))
        return theta, simulate(theta)


SINGLE = {"number": 1, "warmup": 0}
SBC = {"num_posterior_samples": 12, "show_progress_bar": False}


def test_calibration_and_coverage_accept_the_posterior(trained, prior_predictive):
    made = chains(trained, **SINGLE)
    ranked = [lambda theta, x: theta[:, 0], lambda theta, x: theta[:, 1], made.potential]
    ranks, averaged = run_sbc(*prior_predictive, made, reduce_fns=ranked, **SBC)
    assert (ranks.shape, averaged.shape) == ((100, 3), (100, 2))
    assert (check_uniformity_frequentist(ranks, 12) > 1e-3).all()
    assert (check_prior_vs_dap(PRIOR.sample((100,)), averaged) < 0.75).all()


def test_calibration_rejects_the_posterior_for_other_data(trained, prior_predictive):
    theta, x = prior_predictive
    ranks, _ = run_sbc(theta, x + on_plane(torch.tensor([0.5, 0.5])), chains(trained, **SINGLE), **SBC)
    assert ranks.shape == (100, 2)
    assert (check_uniformity_frequentist(ranks, 12) < 1e-3).all()


@pytest.mark.filterwarnings("ignore:Number of SBC samples")
def test_the_calibration_exam_runs_one_observation_at_a_time(trained, prior_predictive):
    theta, x = (part[:2] for part in prior_predictive)
    with pytest.warns(UserWarning, match="Using non-batched sampling"):
        ranks, _ = run_sbc(theta, x, chains(trained, **SINGLE), use_batched_sampling=False, **SBC)
    assert ranks.shape == (2, 2)


def test_tarp_accepts_the_posterior(trained, prior_predictive):
    coverage, level = run_tarp(*prior_predictive, chains(trained, **SINGLE), **SBC)
    assert coverage.shape == level.shape
    area, p_value = check_tarp(coverage, level)
    assert abs(area) < 0.6
    assert p_value > 0.01
    assert ((coverage - level).abs() < 0.25).all()


def test_the_local_two_sample_test_tells_the_posterior_from_a_shifted_one(trained, prior_predictive):
    theta, x = prior_predictive
    made = trained.build_posterior(sample_with="importance")
    own = torch.cat([made.sample((1,), x=row, oversampling_factor=200) for row in x])
    draws = made.sample((40,), x=x[:1], oversampling_factor=200)
    statistics = []
    for shift in (0.0, 3.0):
        exam = LC2ST(theta, x, own + shift, classifier="random_forest", num_trials_null=2)
        exam.train_on_observed_data().train_under_null_hypothesis()
        statistics.append(exam.get_statistic_on_observed_data(theta_o=draws + shift, x_o=x[0]))
    assert exam.p_value(theta_o=draws + shift, x_o=x[0]) == 0
    assert statistics[1] > 2 * statistics[0]


def test_true_parameters_have_a_negative_log_probability_each(posterior, prior_predictive):
    theta, x = (part[:5] for part in prior_predictive)
    with pytest.warns(UserWarning, match="not normalized"):
        value = get_nltp(theta, x, posterior)
    expected = torch.stack([-posterior.potential(theta[i], x=x[i])[0] for i in range(5)])
    torch.testing.assert_close(value, expected)


def test_what_is_local_to_each_trial_can_be_given(trained):
    """sbi's `condition_on_theta`: the sum over trials of log p(x_i|theta_i), the prior left out."""
    x, local, shared = observed(4), torch.tensor([[-1.0], [0.0], [1.0], [0.5]]), torch.tensor([[0.3], [-0.7]])
    potential = ManifoldPotential(trained.estimator, PRIOR, x)
    stock = LikelihoodBasedPotential(trained.estimator, PRIOR, x)
    ours, theirs = (one.condition_on_theta(local, dims_global_theta=[0])(shared) for one in (potential, stock))
    torch.testing.assert_close(ours, theirs)


def test_an_ensemble_weighs_its_members_by_their_likelihoods(trained):
    x, theta = observed(4), PRIOR.sample((5,))
    other = ManifoldNLE(PRIOR, SPEC, seed=3, show_progress_bars=False)
    drawn = PRIOR.sample((400,))
    other.append_simulations(drawn, simulate(drawn)).train(max_num_epochs=4, restarts=0, **TRAINING)
    ensemble = EnsemblePosterior([chains(trained), chains(other)])
    ensemble.set_default_x(x)
    each = [
        one.log_prob(x[:, None].expand(-1, 5, -1), condition=theta).sum(0)
        for one in (trained.estimator, other.estimator)
    ]
    expected = torch.stack(each).logsumexp(0) - torch.log(torch.tensor(2.0)) + PRIOR.log_prob(theta)
    torch.testing.assert_close(ensemble.potential(theta), expected.detach(), rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*ordinary conditional flow")
def test_a_manifold_of_all_dimensions_is_trained_as_long_as_asked():
    trainer = ManifoldNLE(PRIOR, MFlow(3, SMALL, SMALL), show_progress_bars=False)
    drawn = PRIOR.sample((100,))
    trainer.append_simulations(drawn, simulate(drawn)).train(max_num_epochs=4)
    assert len(trainer.history.epochs) == 4


def test_rows_trained_on_are_never_held_out_later(trained):
    trainer = copy.deepcopy(trained)
    before = trainer._split(0.1, discard_prior_samples=False)
    drawn = PRIOR.sample((50,))
    trainer.append_simulations(drawn, simulate(drawn), from_round=1)
    after = trainer._split(0.1, discard_prior_samples=False)
    assert all(torch.equal(new.x[: old.size], old.x) for old, new in zip(before, after, strict=True))
    alone = trainer._split(0.1, discard_prior_samples=True)
    assert [part.size for part in alone] == [45, 5]
