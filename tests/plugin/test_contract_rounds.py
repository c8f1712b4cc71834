"""What sbi's own tests (v0.27) state of rounds, pickles, ensembles and diagnostics, held for ours."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sbi.diagnostics import check_tarp, get_nltp, run_sbc, run_tarp
from sbi.diagnostics.lc2st import LC2ST
from sbi.diagnostics.sbc import check_prior_vs_dap, check_uniformity_frequentist
from sbi.inference import (
    NLE_A,
    EnsemblePosterior,
    simulate_for_sbi,
)
from sbi.inference.potentials.likelihood_based_potential import LikelihoodBasedPotential

from mfsbi import ManifoldNLE, MFlow, density_only
from mfsbi.plugin.potential import ManifoldPotential
from tests.plugin.contract import (
    PRIOR,
    SMALL,
    SPEC,
    TRAINING,
    TRUTH,
    chains,
    grid_of,
    observed,
    simulate,
    train,
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


def test_calibration_and_coverage_accept_the_posterior(trained, prior_predictive, short_tuning):
    made = chains(trained, **SINGLE)
    ranked = [lambda theta, x: theta[:, 0], lambda theta, x: theta[:, 1], made.potential]
    ranks, averaged = run_sbc(*prior_predictive, made, reduce_fns=ranked, **SBC)
    assert (ranks.shape, averaged.shape) == ((100, 3), (100, 2))
    assert (check_uniformity_frequentist(ranks, 12) > 1e-3).all()
    assert (check_prior_vs_dap(PRIOR.sample((100,)), averaged) < 0.75).all()


def test_calibration_rejects_the_posterior_for_other_data(trained, prior_predictive, short_tuning):
    theta, x = prior_predictive
    ranks, _ = run_sbc(theta, x + on_plane(torch.tensor([0.5, 0.5])), chains(trained, **SINGLE), **SBC)
    assert ranks.shape == (100, 2)
    assert (check_uniformity_frequentist(ranks, 12) < 1e-3).all()


@pytest.mark.filterwarnings("ignore:Number of SBC samples")
def test_the_calibration_exam_runs_one_observation_at_a_time(trained, prior_predictive, short_tuning):
    theta, x = (part[:2] for part in prior_predictive)
    with pytest.warns(UserWarning, match="Using non-batched sampling"):
        ranks, _ = run_sbc(theta, x, chains(trained, **SINGLE), use_batched_sampling=False, **SBC)
    assert ranks.shape == (2, 2)


def test_tarp_accepts_the_posterior(trained, prior_predictive, short_tuning):
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
    before = trainer.simulations.split(0.1, 0, discard_prior_samples=False)
    drawn = PRIOR.sample((50,))
    trainer.append_simulations(drawn, simulate(drawn), from_round=1)
    after = trainer.simulations.split(0.1, 0, discard_prior_samples=False)
    assert all(torch.equal(new.x[: old.rows], old.x) for old, new in zip(before, after, strict=True))
    alone = trainer.simulations.split(0.1, 0, discard_prior_samples=True)
    assert [part.rows for part in alone] == [45, 5]
