"""Phases without a number of epochs: how long they go on, and which weights they end with."""

from itertools import chain

import pytest
import torch
from torch import nn

from mfsbi import AF, ManifoldNLE, MFlow, sequential
from mfsbi.flows import AutoregressiveMixtures
from mfsbi.train import course
from mfsbi.train.checkpoint import Keeper
from mfsbi.train.course import Average, steps_of_chart, waits_until
from mfsbi.train.loop import fit
from mfsbi.train.losses import Alices, latent_nll, reconstruction
from mfsbi.train.schedules import Phase, Settings, density_only, measured
from tests.problems import plane, surface_data
from tests.train.killing import SMALL, surface_rows, weights
from tests.train.test_checkpoint import Kept, Killed

QUICK = Settings(training_batch_size=100, show_progress_bars=False)


@pytest.fixture(scope="module")
def data():
    return surface_rows()


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    return MFlow(2, chart=SMALL, latent=SMALL).build(data[0].theta, data[0].x)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Wait for few steps, and take few."""
    monkeypatch.setattr(course, "FEWEST", 8)
    monkeypatch.setattr("mfsbi.train.loop.LONGEST", 60)


def falling_until(best):
    """Return a loss that is judged ever better until so many epochs are over, and ever worse then."""
    script = chain(torch.linspace(9.0, 1.0, best + 3).tolist(), map(float, range(2, 10_000)))  # 3 before an epoch

    def loss(model, batch):
        base = sum(weight.sum() for weight in model.latent.parameters()) * torch.ones(batch.rows)
        return base if torch.is_grad_enabled() else torch.full((batch.rows,), next(script))

    return loss


@pytest.mark.parametrize("best", [1, 3, 6])
def test_it_waits_then_lets_the_rate_fall_from_the_best_weights(best, data, model):
    loss, at = falling_until(best), []

    def watched(model, batch):
        if torch.is_grad_enabled():
            at.append(weights(model.latent))
        return loss(model, batch)

    history = fit(model, data, [Phase(watched, ("chart", "latent"), None)], QUICK)
    steps = len(at) // len(history.epochs)
    waited = waits_until(best, steps)
    rates = [epoch.learning_rate for epoch in history.epochs]
    assert rates[:waited] == sorted(rates[:waited])
    falls = rates[waited:]
    assert len(falls) >= 1
    assert falls == sorted(falls, reverse=True)
    assert falls[-1] < 0.02 * QUICK.learning_rate


def test_a_start_that_is_never_bettered_is_kept_without_a_fall(data, model):
    first = weights(model.latent.flow)
    history = fit(model, data, [Phase(falling_until(0), ("chart", "latent"), None)], QUICK)
    steps = data[0].rows // 100
    assert len(history.epochs) == waits_until(0, steps)
    assert (weights(model.latent.flow) == first).all()


def test_it_ends_in_any_case(data, model):
    history = fit(model, data, [Phase(falling_until(9000), ("chart", "latent"), None)], QUICK)
    assert len(history.epochs) * (data[0].rows // 100) < 100


def test_patience_holds_there_too(data, model):
    settings = Settings(training_batch_size=100, stop_after_epochs=1, show_progress_bars=False)
    history = fit(model, data, [Phase(falling_until(1), ("chart", "latent"), None)], settings)
    assert len(history.epochs) < 10


def test_weights_are_averaged_over_the_last_steps():
    layer = nn.Linear(1, 1, bias=False)
    average = Average(layer)
    for step in range(5000):
        nn.init.constant_(layer.weight, float(step % 2))
        average.update()
    with average.in_place():
        assert layer.weight.item() == pytest.approx(0.5, abs=0.01)
    assert layer.weight.item() == 1.0
    average.restart()
    with average.in_place():
        assert layer.weight.item() == 1.0


@pytest.mark.parametrize("kills_at", [2, 9, 17])
def test_what_was_killed_goes_on_bit_for_bit(kills_at, data, model, tmp_path):
    schedule = density_only(None)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    expected = fit(model, data, schedule, QUICK)
    whole = weights(model)
    model.load_state_dict(first)
    with pytest.raises(Killed):
        fit(model, data, schedule, QUICK, keeper=Keeper(Kept(tmp_path, kills_at=kills_at)))
    model.load_state_dict(first)
    found = fit(model, data, schedule, QUICK, keeper=Keeper(Kept(tmp_path, resume=True)))
    assert (weights(model) == whole).all()
    assert [epoch[:6] for epoch in found.epochs] == [epoch[:6] for epoch in expected.epochs]


def test_charts_get_steps_by_the_number_of_rows_and_densities_small_steps_where_rows_are_few():
    chart, density = measured(sequential(None), 900, 500)
    assert (chart.loss, chart.epochs, chart.rows) == (reconstruction, 145, 100)
    assert (density.loss, density.epochs, density.rows) == (latent_nll, None, 50)
    chart, density = measured(sequential(None), 100_000, 500)
    assert chart.rows == 398
    assert chart.epochs * 252 == pytest.approx(steps_of_chart(100_000), abs=252)
    assert density.rows == 500
    assert measured(sequential(4), 900, 500) == sequential(4)
    (chosen,) = measured([Phase(Alices(), ("network",), None, rows=7)], 900, 500)
    assert (chosen.epochs, chosen.rows) == (None, 7)


@pytest.mark.parametrize("spec", [AF(AutoregressiveMixtures(width=8)), MFlow(2, chart=SMALL, latent=SMALL)])
def test_train_lets_the_data_decide(spec, monkeypatch):
    monkeypatch.setattr(course, "steps_of_chart", lambda *_: 5)
    monkeypatch.setattr("mfsbi.train.schedules.steps_of_chart", lambda *_: 5)
    trainer = ManifoldNLE(surface_data(2)[0].prior, spec, show_progress_bars=False)
    theta, x = plane(400)
    trainer.append_simulations(theta, x).train(max_num_epochs=None, restarts=0)
    losses = [epoch.validation_loss for epoch in trainer.history.epochs if epoch.nats]
    assert min(losses) < losses[0]


def test_phases_of_the_same_parts_all_have_a_number_of_epochs_or_none(data, model):
    with pytest.raises(ValueError, match=r"train \('latent',\) should all have a number of epochs, or none"):
        fit(model, data, [*density_only(1), *density_only(None)], QUICK)


def test_a_model_is_in_evaluation_mode_afterwards(data, model):
    fit(model, data, sequential(2), QUICK)
    assert not any(module.training for module in model.modules())
