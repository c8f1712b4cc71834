import pytest
import torch
from sbi.inference import (
    NLE_A,
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
)
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters, VIPosteriorParameters
from torch.distributions import Exponential, Independent, Uniform

from mfsbi import AF, ManifoldNLE, MFlow, alternating, sequential
from mfsbi.flows import SplineCouplings
from mfsbi.inference.grid import grid_posterior
from mfsbi.plugin.posteriors import SMCPosterior
from mfsbi.train.losses import reconstruction
from mfsbi.train.schedules import Phase
from tests.problems import surface_data

SMALL = SplineCouplings(layers=2, width=16)
SPEC = MFlow(2, SMALL, SMALL)
FEW = {"max_num_epochs": 2, "training_batch_size": 100, "restarts": 0}


@pytest.fixture(scope="module")
def problem():
    return surface_data(400)


def trainer(problem, spec=SPEC, **settings):
    surface, theta, x = problem
    made = ManifoldNLE(surface.prior, spec, show_progress_bars=False, **settings)
    return made.append_simulations(theta, x)


@pytest.fixture(scope="module")
def trained(problem):
    made = trainer(problem, AF(SMALL))
    made.train(**FEW)
    return made


def state(estimator):
    return torch.cat([value.flatten().float() for value in estimator.state_dict().values()])


@pytest.mark.parametrize("schedule", [sequential(2), alternating(2), None])
def test_the_three_verbs(problem, schedule, short_chains):
    made = trainer(problem)
    with pytest.warns(UserWarning, match="not clearly better than a hyperplane after 1 starts"):
        made.train(schedule=schedule, **FEW)
    posterior = made.build_posterior()
    draws = posterior.sample((30,), x=problem[2][:20], show_progress_bars=False)
    assert draws.shape == (30, 1)
    assert (draws.abs() <= 1).all()


def test_one_seed_gives_one_estimator_and_leaves_the_global_state_alone(problem):
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(99)
        before = torch.get_rng_state()
        states.append(state(trainer(problem, AF(SMALL), seed=seed).train(**FEW)))
        assert (torch.get_rng_state() == before).all()
    assert (states[0] == states[1]).all()
    assert not (states[0] == states[2]).all()


def test_the_users_prior_is_left_as_it_was(problem):
    prior = Independent(Exponential(torch.ones(1), validate_args=True), 1, validate_args=True)
    ManifoldNLE(prior, SPEC)
    with pytest.raises(ValueError, match="within the support"):
        prior.log_prob(torch.tensor([-1.0]))


class Plain:
    """A prior on [-1, 1] with no more than what is asked of one."""

    def sample(self, shape=()):
        return 2 * torch.rand(*shape, 1) - 1

    def log_prob(self, theta):
        return torch.where(theta.abs().amax(-1) <= 1, -0.6931, -torch.inf)


@pytest.mark.filterwarnings("ignore:No prior bounds", "ignore:Prior is lacking")
def test_a_prior_needs_sample_and_log_prob_alone(problem):
    _, theta, x = problem
    trainer = ManifoldNLE(Plain(), AF(SplineCouplings(layers=1, width=8)), show_progress_bars=False)
    trainer.append_simulations(theta, x).train(max_num_epochs=2)
    settings = {"num_chains": 2, "warmup_steps": 2, "show_progress_bars": False}
    draws = trainer.build_posterior().sample((4,), x=x[:2], **settings)
    assert draws.shape == (4, 1)
    assert (draws.abs() <= 1).all()


def test_a_collapsed_chart_is_started_again_and_counted(problem):
    made = trainer(problem)
    with pytest.warns(UserWarning) as caught:
        made.train(max_num_epochs=2, restarts=2)
    messages = [str(warning.message) for warning in caught]
    assert sum("Starting again" in message for message in messages) == 2
    assert "after 3 starts" in messages[-1]
    assert "larger `manifold_dim`" in messages[-1]
    assert len(made.history.collapses) == len(made.estimator.training_record["collapses"]) == 3
    assert made.history.losses == ["reconstruction", "latent_nll"]


def test_a_chart_that_learns_is_not_started_again(problem):
    made = trainer(problem, MFlow(2, SplineCouplings(layers=4, width=64), SMALL))
    made.train(schedule=[Phase(reconstruction, ("chart",), 30)], training_batch_size=50)
    assert made.history.collapses == []


def test_an_interrupt_leaves_a_usable_estimator(problem):
    def interrupting(model, batch):
        if len(seen) > 20:
            raise KeyboardInterrupt
        seen.append(1)
        return reconstruction(model, batch)

    seen = []
    made = trainer(problem)
    with pytest.warns(UserWarning, match="Training was interrupted in phase 1 of 1; its best weights so far are kept"):
        estimator = made.train(schedule=[Phase(interrupting, ("chart",), 50)], training_batch_size=60)
    assert made.history.interrupted
    assert estimator is made.estimator
    assert torch.isfinite(estimator.log_prob(problem[2][:5], problem[1][:5])).all()


def test_an_interrupt_before_anything_was_learned_keeps_the_earlier_estimator(problem):
    def interrupting(model, batch):
        raise KeyboardInterrupt

    made = trainer(problem, AF(SMALL))
    earlier = made.train(**FEW)
    schedule = [Phase(interrupting, ("chart", "latent"), 50)]
    with pytest.warns(UserWarning, match=r"(the earlier estimator is kept|Training was interrupted)"):
        estimator = made.train(schedule=schedule, retrain_from_scratch=True)
    assert estimator is earlier is made.estimator
    assert made.history.interrupted
    assert not earlier.training_record["interrupted"]


def test_training_goes_on_from_where_it_was_unless_told(trained):
    before = state(trained.estimator)
    trained.train(**FEW)
    first = trained.estimator
    assert not (state(first) == before).all()
    trained.train(retrain_from_scratch=True, **FEW)
    assert trained.estimator is not first


def test_an_estimator_is_handed_back_in_evaluation_mode_each_time(problem):
    made = trainer(problem, AF(SMALL))
    made.train(**FEW).train()
    assert not any(module.training for module in made.train(**FEW).modules())


def test_the_summary_has_the_losses_of_each_epoch(trained):
    assert trained.summary["epochs_trained"] == [len(trained.summary["training_loss"])]
    assert len(trained.summary["validation_loss"]) == len(trained.history.epochs) > 0


def test_the_summary_is_shown_on_demand(problem, capsys):
    trainer(problem, AF(SMALL)).train(show_train_summary=True, **FEW)
    assert "nll: 2 epochs, best validation loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sample_with", "kind"),
    [
        ("smc", SMCPosterior),
        ("mcmc", MCMCPosterior),
        ("rejection", RejectionPosterior),
        ("importance", ImportanceSamplingPosterior),
        pytest.param("vi", VIPosterior, marks=pytest.mark.filterwarnings("ignore:Using MAF flow for 1D")),
    ],
)
def test_every_posterior_class_is_built(trained, sample_with, kind):
    assert isinstance(trained.build_posterior(sample_with=sample_with), kind)


def test_the_default_posterior_draws_by_smc_and_by_mcmc_where_that_is_asked_for(trained, problem, short_tuning):
    posterior = trained.build_posterior().set_default_x(problem[2][:5])
    assert type(posterior) is SMCPosterior
    torch.manual_seed(0)
    draws = posterior.sample((1000,), show_progress_bars=False)
    again = posterior.sample((10, 100), show_progress_bars=False)
    torch.manual_seed(0)
    assert (posterior.sample((1000,), show_progress_bars=False) == draws).all()
    assert again.shape == (10, 100, 1)
    assert not (again.view(1000, 1) == draws).all()
    exact = grid_posterior(posterior.potential, [-1], [1])
    for some in (draws, again.view(1000, 1)):
        assert abs(float(some.mean()) - float(exact.mean)) < 0.15 * float(exact.std)
        assert abs(float(some.std()) / float(exact.std) - 1) < 0.1
    evaluations, posterior.potential_fn.evaluations = posterior.potential_fn.evaluations, 0
    few = {"num_chains": 2, "warmup_steps": 2, "init_strategy_parameters": {"num_candidate_samples": 10}}
    assert posterior.sample((4,), method="slice_np_vectorized", show_progress_bars=False, **few).shape == (4, 1)
    assert posterior.potential_fn.evaluations < 1000 < evaluations


def test_it_draws_for_many_data_sets(trained, problem):
    x = problem[0].simulate(torch.tensor([[-0.8], [0.8]]).repeat(20, 1), seed=1)
    sets = x.view(20, 2, -1).transpose(0, 1)
    posterior = trained.build_posterior()
    draws = posterior.sample_batched((500,), sets, show_progress_bars=False)
    assert draws.shape == (500, 2, 1)
    for k in range(2):
        exact = grid_posterior(lambda some, k=k: posterior.potential(some, sets[k]), [-1], [1])
        assert abs(float(draws[:, k].mean()) - float(exact.mean)) < 0.2 * float(exact.std)


@pytest.mark.parametrize("sample_with", ["rejection", "importance"])
def test_posteriors_without_chains_draw(trained, problem, sample_with):
    posterior = trained.build_posterior(sample_with=sample_with)
    posterior.set_default_x(problem[2][:5])
    assert posterior.sample((10,), show_progress_bars=False).shape == (10, 1)


def test_settings_choose_the_class(trained):
    posterior = trained.build_posterior(posterior_parameters=VIPosteriorParameters(q="gaussian"))
    assert isinstance(posterior, VIPosterior)


def test_sbis_untrained_trainer_builds_a_posterior_from_our_estimator(trained, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # sbi writes its logs there
    stock = NLE_A(problem[0].prior, show_progress_bars=False)
    posterior = stock.build_posterior(density_estimator=trained.estimator)
    draws = posterior.sample((10,), x=problem[2][:5], num_chains=2, warmup_steps=2, show_progress_bars=False)
    assert draws.shape == (10, 1)


def test_batched_sampling_keeps_observations_apart(trained, problem):
    posterior = trained.build_posterior(posterior_parameters=MCMCPosteriorParameters(num_chains=2, warmup_steps=2))
    draws = posterior.sample_batched((10,), x=problem[2][:4], show_progress_bars=False)
    assert draws.shape == (10, 4, 1)


def test_of_small_rounds_one_row_is_held_out_though_others_are_discarded(problem):
    surface, theta, x = problem
    made = trainer(problem, AF(SMALL))
    for first in range(0, 20, 4):
        made.append_simulations(theta[first : first + 4], x[first : first + 4], from_round=1)
    training, validation = made.simulations.split(0.1, 0, discard_prior_samples=True)
    assert (training.rows, validation.rows) == (19, 1)


def test_rounds_can_be_discarded(problem):
    surface, theta, x = problem
    made = trainer(problem, AF(SMALL)).append_simulations(theta[:50], x[:50], from_round=1)
    made.train(discard_prior_samples=True, **FEW)
    assert sum(part.rows for part in made.simulations.split(0.1, 0, discard_prior_samples=True)) == 50
    assert sum(part.rows for part in made.simulations.split(0.1, 0, discard_prior_samples=False)) == 450


def changed(tensor, row, value):
    tensor = tensor.clone()
    tensor[row] = value
    return tensor


NAN = float("nan")


def test_theta_outside_an_unbounded_prior_is_refused(problem):
    prior = Independent(Exponential(torch.ones(1)), 1)
    theta = changed(problem[1].abs() + 0.1, 2, -0.5)
    with pytest.raises(ValueError, match="inside the prior; 1 of 400.*row 2"):
        ManifoldNLE(prior, SPEC).append_simulations(theta, problem[2])


def test_float64_simulations_are_converted(problem):
    surface, theta, x = problem
    made = ManifoldNLE(surface.prior, AF(SMALL), show_progress_bars=False)
    estimator = made.append_simulations(theta.double(), x.double()).train(**FEW)
    assert next(estimator.parameters()).dtype == torch.float32


def test_weights_of_another_type_than_simulations_are_refused(problem):
    made = trainer(problem, AF(SMALL))
    made.train(**FEW)
    torch.set_default_dtype(torch.float64)
    try:
        made.append_simulations(*problem[1:])
        made.simulations.rounds[:1] = []
        with pytest.raises(ValueError, match=r"weights of torch\.float32, and simulations .* torch\.float64"):
            made.train(**FEW)
    finally:
        torch.set_default_dtype(torch.float32)


def test_theta_may_be_rounded_over_the_edge_of_the_prior(problem):
    bounds = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64)
    theta = torch.full((30, 1), 0.3, dtype=torch.float64)
    assert float(theta.float()[0]) > 0.3
    ManifoldNLE(Independent(Uniform(*bounds), 1), SPEC).append_simulations(theta, problem[2][:30])


def test_a_training_that_fails_at_once_leaves_no_estimator(problem):
    made = trainer(problem)
    schedule = [Phase(lambda model, batch: torch.full((batch.rows,), NAN, requires_grad=True), ("chart",), 2)]
    with pytest.raises(ArithmeticError, match="training diverged"):
        made.train(schedule=schedule)
    assert made.estimator is None
    with pytest.raises(RuntimeError, match="no trained estimator yet"):
        made.build_posterior()


def test_invalid_rows_are_dropped_on_demand_with_a_warning(problem):
    surface, theta, x = problem
    made = ManifoldNLE(surface.prior, SPEC)
    with pytest.warns(UserWarning, match="Dropped 2 of 400 simulations"):
        made.append_simulations(theta, changed(x, slice(3, 5), NAN), exclude_invalid_x=True)
    data = made.simulations[0]
    assert len(data.theta) == 398
    assert (data.theta[3] == theta[5]).all()
