import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from sbi.inference import NRE_A, ImportanceSamplingPosterior, MCMCPosterior, RejectionPosterior, VIPosterior
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.inference.potentials.ratio_based_potential import ratio_estimator_based_potential
from sbi.neural_nets.ratio_estimators import RatioEstimator
from sbi.utils import BoxUniform

from mfsbi import ALICES, calibrate, sample_chains
from mfsbi.inference.grid import grid_posterior
from mfsbi.plugin import ratio
from mfsbi.train.losses import Alices
from mfsbi.train.schedules import Phase
from tests.problems import scattered, scattered_log_ratio

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
FEW = {"max_num_epochs": 2, "training_batch_size": 100}
SMALL = {"width": 16, "depth": 2, "show_progress_bars": False}
CLASSES = {
    "ALICES": ("joint_log_ratio", "joint_score", "from_theta"),
    "ALICE": ("joint_log_ratio", "from_theta"),
    "CARL": ("from_theta",),
    "CARL with score": ("from_theta", "joint_score"),
}


def trainer(name="ALICES", rows=400, **settings):
    theta, gold = scattered(rows)
    made = ALICES(PRIOR, **(SMALL | settings))
    return made.append_simulations(theta, gold["x"], **{field: gold[field] for field in CLASSES[name]})


@pytest.fixture(scope="module")
def trained():
    """Return a trainer that knows its problem well."""
    made = trainer(rows=2000, width=32)
    made.train(max_num_epochs=25, training_batch_size=100, learning_rate=1e-2)
    return made


@pytest.fixture(scope="module")
def posterior(trained):
    settings = {"num_chains": 4, "warmup_steps": 10, "init_strategy_parameters": {"num_candidate_samples": 100}}
    return trained.build_posterior(posterior_parameters=MCMCPosteriorParameters(**settings))


def observed(rows=5, seed=7):
    generator = torch.Generator().manual_seed(seed)
    return torch.tensor([0.6, -0.4]) + 1.4 * torch.randn(rows, 2, generator=generator)


def state(estimator):
    return torch.cat([value.flatten() for value in estimator.state_dict().values()])


def test_the_ratio_is_the_exact_one(trained):
    theta, gold = scattered(2000, seed=8)
    error = trained.estimator(theta, gold["x"]) - scattered_log_ratio(gold["x"], theta)
    assert error.square().mean() < 0.08 * scattered_log_ratio(gold["x"], theta).square().mean()


@pytest.mark.parametrize("prefix", [(), (7,), (3, 7)])
def test_the_contract_of_sbis_ratio_estimators(trained, prefix):
    estimator = trained.estimator
    assert isinstance(estimator, RatioEstimator)
    assert (estimator.theta_shape, estimator.x_shape) == ((2,), (2,))
    theta, x = torch.rand(*prefix, 2), torch.randn(*prefix, 2)
    assert estimator(theta, x).shape == prefix
    assert (estimator.unnormalized_log_ratio(theta, x) == estimator(theta, x)).all()
    assert not estimator.training


def test_rows_of_a_batch_do_not_know_of_each_other(trained):
    theta, x = scattered(12)[0].view(3, 4, 2), scattered(12)[1]["x"].view(3, 4, 2)
    alone = trained.estimator(theta[1, 2], x[1, 2])
    torch.testing.assert_close(trained.estimator(theta, x)[1, 2], alone)


@pytest.mark.parametrize(
    ("theta", "x", "message"),
    [
        ((7, 3), (7, 2), "input"),
        ((7, 2), (7, 3), "condition"),
        ((7, 2), (6, 2), "Make them agree"),
        ((1, 2), (6, 2), "Make them agree"),
        ((3, 7, 2), (7, 2), "Make them agree"),
    ],
)
def test_shapes_that_do_not_match_are_refused(trained, theta, x, message):
    with pytest.raises(ValueError, match=message):
        trained.estimator(torch.zeros(theta), torch.zeros(x))


def test_sbis_own_potential_sums_over_observations(trained):
    x, theta = observed(), PRIOR.sample((6,))
    potential, transform = ratio_estimator_based_potential(trained.estimator, PRIOR, x)
    expected = sum(trained.estimator(theta, one.expand(6, 2)) for one in x) + PRIOR.log_prob(theta)
    torch.testing.assert_close(potential(theta, track_gradients=False), expected)
    assert transform.inv(transform(theta)).shape == theta.shape


def test_gradients_reach_theta_for_samplers_that_follow_them(trained):
    potential, _ = ratio_estimator_based_potential(trained.estimator, PRIOR, observed())
    theta = torch.zeros(3, 2, requires_grad=True)
    (score,) = torch.autograd.grad(potential(theta).sum(), theta)
    assert torch.isfinite(score).all()
    assert score.any()


def test_sbis_untrained_trainer_builds_a_posterior_from_our_estimator(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    stock = NRE_A(PRIOR, show_progress_bars=False).build_posterior(density_estimator=trained.estimator)
    ours = trained.build_posterior()
    theta, x = PRIOR.sample((9,)), observed()
    torch.testing.assert_close(stock.potential(theta, x=x), ours.potential(theta, x=x))
    draws = stock.sample((10,), x=x, num_chains=2, warmup_steps=2, show_progress_bars=False)
    assert draws.shape == (10, 2)


@pytest.mark.parametrize(
    ("sample_with", "kind"),
    [
        ("smc", MCMCPosterior),
        ("mcmc", MCMCPosterior),
        ("rejection", RejectionPosterior),
        ("importance", ImportanceSamplingPosterior),
        ("vi", VIPosterior),
    ],
)
def test_every_posterior_class_is_built(trained, sample_with, kind):
    assert isinstance(trained.build_posterior(sample_with=sample_with), kind)


def exact(x):
    """Return the exact posterior of observations on a grid."""
    return grid_posterior(
        lambda theta: scattered_log_ratio(x, theta[:, None].expand(-1, len(x), -1)).sum(-1), [-1, -1], [1, 1], 60
    )


def moments_of(draws):
    return torch.stack([draws.double().mean(0), draws.double().std(0)])


def moments_of_grid(grid):
    mean = grid.probability @ grid.theta
    return torch.stack([mean, (grid.probability @ (grid.theta - mean).square()).sqrt()])


@pytest.mark.parametrize(
    ("sampler", "settings"),
    [
        ("slice", {"draws": 100}),
        ("rejection", {}),
        ("importance", {}),
        ("emcee", {"warmup": 50, "draws": 100}),
        ("grid", {"bounds": [(-1, 1), (-1, 1)], "points": 50}),
    ],
)
@pytest.mark.filterwarnings("ignore:The chains have not converged", "ignore:There are few")
def test_every_road_leads_to_the_posterior(posterior, sampler, settings):
    x = observed()
    chains = sample_chains(posterior, x, **({"draws": 250, "sampler": sampler} | settings))
    assert chains.log_prob.shape == chains.draws.shape[:2]
    expected = moments_of_grid(exact(x))
    assert (moments_of(chains.pooled) - expected).abs().max() < 0.15


def test_iid_observations_narrow_the_posterior(trained):
    spreads = []
    for rows in (1, 5, 40):
        x = observed(rows)
        grid = grid_posterior(lambda theta, x=x: trained.build_posterior().potential(theta, x=x), [-1, -1], [1, 1], 40)
        spreads.append(float(moments_of_grid(grid)[1].norm()))
    assert all(later < earlier for earlier, later in pairwise(spreads))


@pytest.mark.filterwarnings("ignore:The chains have not converged", "ignore:There are few")
def test_nuts_follows_the_gradient_of_the_ratio(posterior):
    chains = sample_chains(posterior, observed(), 5, sampler="nuts", chains=2, warmup=3)
    assert chains.draws.shape == (2, 5, 2)


@pytest.mark.filterwarnings("ignore:The chains have not converged", "ignore:There are few")
def test_a_trained_ratio_passes_the_exam_of_calibration(posterior):
    theta, gold = scattered(100, seed=11, share=1.1)
    result = calibrate(posterior, theta, gold["x"], draws=40, sampler="importance")
    assert result.p_value > 1e-3


def test_calibration_takes_the_posteriors_own_way_of_sampling_if_not_told(trained):
    theta, gold = scattered(3, seed=11, share=1.1)
    result = calibrate(trained.build_posterior(sample_with="rejection"), theta, gold["x"], draws=20)
    assert result.draws.shape == (3, 20, 2)


def test_one_seed_gives_one_estimator_and_leaves_the_global_state_alone():
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        made = trainer(seed=seed)
        states.append(state(made.train(**FEW)))
        made.build_posterior()
        assert (torch.get_rng_state() == before[0]).all()
        assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert (states[0] == states[1]).all()
    assert not (states[0] == states[2]).all()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_posterior_can_be_copied_and_pickled(posterior, copied):
    theta, x = PRIOR.sample((9,)), observed()
    assert (copied(posterior).potential(theta, x=x) == posterior.potential(theta, x=x)).all()


def test_a_posterior_keeps_what_was_known_when_it_was_built():
    made = trainer()
    made.train(**FEW)
    posterior, theta, x = made.build_posterior(), PRIOR.sample((9,)), observed()
    before = posterior.potential(theta, x=x)
    made.train(**FEW)
    assert (posterior.potential(theta, x=x) == before).all()
    assert not (made.build_posterior().potential(theta, x=x) == before).all()


@pytest.mark.parametrize("name", CLASSES)
def test_every_amount_of_gold_trains(name):
    made = trainer(name)
    made.train(**FEW)
    assert made.history.losses == ["alices"]
    assert made.estimator.training_record["simulations"] == 400
    assert made.estimator.training_record["sha256"] == made.simulations.digest()


@pytest.mark.parametrize("fields", [{}, {"joint_score"}])
def test_simulations_of_the_prior_alone_train(fields):
    theta, gold = scattered(400, share=1.1)
    made = ALICES(PRIOR, **SMALL).append_simulations(theta, gold["x"], **{name: gold[name] for name in fields})
    made.train(**FEW)
    assert torch.isfinite(made.estimator(theta, gold["x"])).all()


def test_the_score_can_be_left_out():
    assert (state(trainer().train(score_weight=0, **FEW)) == state(trainer("ALICE").train(**FEW))).all()


def test_the_ratio_does_not_depend_on_how_many_rows_were_drawn_at_the_reference():
    """Prior odds are taken off: with 15 % or 85 % at theta the mean log ratio is the exact one."""
    theta, gold = scattered(1000, seed=9)
    exact_mean = scattered_log_ratio(gold["x"], theta).mean()
    for share in (0.15, 0.85):
        rows, brought = scattered(2000, share=share)
        made = ALICES(PRIOR, **SMALL).append_simulations(rows, **(brought | {"joint_score": None}))
        estimator = made.train(max_num_epochs=20, training_batch_size=100, learning_rate=1e-2)
        assert abs(float((estimator(theta, gold["x"]).mean() - exact_mean).detach())) < 0.2  # log odds are 1.7


def test_training_goes_on_from_where_it_was_unless_told():
    made = trainer()
    first = made.train(**FEW)
    before = state(first)
    assert made.train(**FEW) is first
    assert not (state(first) == before).all()
    assert made.train(retrain_from_scratch=True, **FEW) is not first


def test_rounds_can_be_discarded():
    theta, gold = scattered(100, seed=3)
    made = trainer().append_simulations(theta, **gold, from_round=1)
    made.train(discard_prior_samples=True, **FEW)
    parts = made.simulations.split(0.1, 0, discard_prior_samples=True)
    assert sum(part.rows for part in parts) == 100


def test_the_summary_is_shown_on_demand(capsys):
    trainer().train(show_train_summary=True, **FEW)
    assert "alices: 2 epochs, best validation loss" in capsys.readouterr().out


class Interrupted(Alices):
    """A Ctrl-C in the 25th step, before which the weights are spoiled."""

    steps = 0

    def __call__(self, model, batch):
        if torch.is_grad_enabled():
            Interrupted.steps += 1
            if Interrupted.steps == 25:
                with torch.no_grad():
                    next(model.parameters()).mul_(100)
                raise KeyboardInterrupt
        return super().__call__(model, batch)


def test_an_interrupt_keeps_the_best_weights_and_says_so(monkeypatch):
    monkeypatch.setattr(ratio, "Alices", Interrupted)
    Interrupted.steps = 0
    made = trainer("CARL")
    with pytest.warns(UserWarning, match=r"interrupted in phase 1 of 1.*those of epoch \d+"):
        estimator = made.train(max_num_epochs=50, training_batch_size=60)
    assert made.history.interrupted
    assert estimator is made.estimator
    _, validation = made.simulations.split(0.1, ratio.derived(0, 2), discard_prior_samples=False)
    odds = ratio.log_odds(made.simulations[0].batch.from_theta)
    loss = Alices(log_odds=odds)(estimator.model, validation).mean()
    assert float(loss.detach()) == pytest.approx(min(made.history.of("alices")[1]), abs=1e-5)
    assert made.build_posterior().potential(torch.zeros(1, 2), x=observed()).isfinite().all()


def test_scores_of_rows_at_the_reference_may_be_anything_finite():
    theta, gold = scattered()
    wild = torch.where(gold["from_theta"][:, None], gold["joint_score"], 1e4)
    made = ALICES(PRIOR, **SMALL).append_simulations(theta, **(gold | {"joint_score": wild}))
    assert (state(made.train(**FEW)) == state(trainer().train(**FEW))).all()


def test_rounds_bring_the_same_gold():
    theta, gold = scattered(seed=1)
    with pytest.raises(ValueError, match="`joint_log_ratio` should come with every round.*earlier simulations brought"):
        trainer().append_simulations(theta, **(gold | {"joint_log_ratio": None}))


@pytest.mark.parametrize("name", ["ALICES", "CARL"])
def test_rounds_of_other_odds_in_other_places_are_refused(name):
    """Hard labels learned a log ratio that was off by 1.2 on either side, and soft ones by 0.2."""
    made = ALICES(PRIOR, **SMALL)
    for seed, share, side in ((0, 0.2, -1), (1, 0.8, 1)):
        theta, gold = scattered(1000, seed=seed, share=share)
        there = side * theta[:, 0] > 0
        fields = {field: gold[field][there] for field in ("x", *CLASSES[name])}
        made.append_simulations(theta[there], **fields, from_round=seed)
    with pytest.raises(ValueError, match="`from_theta` should have the same chance at any theta, and in every round"):
        made.train(**FEW)


def test_what_is_missing_is_said():
    with pytest.raises(RuntimeError, match="no simulations yet"):
        ALICES(PRIOR).train()
    with pytest.raises(RuntimeError, match=r"no trained estimator yet: call `train\(\)`"):
        trainer().build_posterior()
    with pytest.raises(ValueError, match="`seed` should be a non-negative integer; got -1"):
        ALICES(PRIOR, seed=-1)
    with pytest.raises(ValueError, match="`width` should be a positive integer; got 0"):
        ALICES(PRIOR, width=0)


def test_features_that_never_vary_are_no_trouble():
    theta, gold = scattered()
    x = torch.cat([gold["x"], torch.ones(400, 1)], dim=1)
    estimator = ALICES(PRIOR, **SMALL).append_simulations(theta, **(gold | {"x": x})).train(**FEW)
    assert torch.isfinite(estimator(theta, x)).all()


def test_a_trainer_says_what_it_is(trained):
    assert repr(trained) == "ALICES(width, depth=(32, 2), seed=0, simulations=2,000, trained=True)"
    assert repr(trained.estimator).startswith("GoldenRatio(RatioModel(data=2, theta=2, weights=")


ONE_ROW = [Phase(Alices(), ("network",), 1, rows=1)]


@pytest.mark.parametrize("settings", [{"training_batch_size": 1}, {"validation_fraction": 0.01}, {"schedule": ONE_ROW}])
def test_a_row_alone_makes_no_pair(settings):
    theta, gold = scattered(60)
    made = ALICES(PRIOR, **SMALL).append_simulations(theta, gold["x"])
    with pytest.raises(ValueError, match="Pairs are made of two rows: `training_batch_size` .* or `Phase.rows`"):
        made.train(**(FEW | settings))


def test_a_schedule_of_ones_own_trains_as_its_phases_say():
    one, other = trainer(), trainer()
    expected = one.train(max_num_epochs=3, score_weight=0.5)
    found = other.train([Phase(Alices(0.5), ("network",), 3)], score_weight=2.0)
    assert (state(found) == state(expected)).all()
    found = trainer().train([Phase(Alices(), ("network",), 1, rows=50), Phase(Alices(), ("network",), 1)], **FEW)
    assert not (state(found) == state(expected)).all()
