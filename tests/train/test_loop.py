import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Generator

from mfsbi import AF, MFlow, alternating, density_only, sequential
from mfsbi.flows import SplineCouplings
from mfsbi.train.data import Batch, split
from mfsbi.train.loop import fit
from mfsbi.train.losses import latent_nll, reconstruction
from mfsbi.train.record import EpochRecord, History
from mfsbi.train.schedules import Phase, Settings
from tests.problems import surface_data

SMALL = SplineCouplings(layers=2, width=16)
SPEC = MFlow(2, chart=SMALL, latent=SMALL)
QUICK = Settings(training_batch_size=100, show_progress_bars=False)


@pytest.fixture
def data():
    _, theta, x = surface_data(600)
    return split([Batch(theta, x)], 0.2, Generator().manual_seed(0))


@pytest.fixture
def model(data):
    torch.manual_seed(0)
    return SPEC.build(data[0].theta, data[0].x)


def weights(module):
    return torch.cat([value.flatten() for value in module.state_dict().values()]).clone()


@pytest.mark.parametrize("scheme", [sequential, alternating])
def test_training_lowers_both_validation_losses(scheme, data, model):
    history = fit(model, data, scheme(12), QUICK)
    for loss in ("reconstruction", "latent_nll"):
        values = history.of(loss)[1]
        assert len(values) == 6
        assert min(values) < values[0]


def test_the_course_of_an_epoch_is_recorded(data, model):
    history = fit(model, data, [Phase(reconstruction, ("chart",), 2, rows=12)], QUICK)  # of 40 steps
    passes, losses = history.course("reconstruction")
    assert passes[:2] == [0.025, 0.075]
    assert passes[-1] == 1.975
    means = torch.tensor(losses).view(2, 20).mean(1)
    torch.testing.assert_close(means, torch.tensor(history.of("reconstruction")[0]), atol=0, rtol=1e-5)
    assert min(losses[20:]) < min(losses[:20])
    assert History.of_record(json.loads(json.dumps(history.as_record()))) == history


def test_a_phase_moves_its_parts_and_no_others(data, model):
    chart, latent = weights(model.chart), weights(model.latent)
    fit(model, data, [Phase(reconstruction, ("chart",), 5)], QUICK)
    assert (weights(model.latent) == latent).all()
    assert not (weights(model.chart) == chart).all()


@pytest.mark.parametrize(("rows", "sizes"), [(None, {100}), (30, {30})])
def test_a_phase_may_choose_the_rows_of_its_steps(rows, sizes, data, model):
    seen = []

    def watched(model, batch):
        if torch.is_grad_enabled():
            seen.append(batch.rows)
        return reconstruction(model, batch)

    fit(model, data, [Phase(watched, ("chart",), 1, rows=rows)], QUICK)
    assert set(seen) == sizes
    assert len(seen) == 480 // max(sizes)


def test_one_seed_gives_one_result(data, model):
    start = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, data, sequential(4), QUICK)
    first = weights(model)
    model.load_state_dict(start)
    fit(model, data, sequential(4), QUICK)
    assert (weights(model) == first).all()


def scripted(values):
    """Return a loss whose validation mean follows a script: training calls have gradients, validation has none."""
    script = iter(values)

    def loss(model, batch):
        base = sum(weight.sum() for weight in model.chart.parameters()) * torch.ones(batch.rows)
        return base if torch.is_grad_enabled() else torch.full((batch.rows,), next(script))

    return loss


def test_early_stopping_puts_a_copy_of_the_best_weights_back(data, model):
    """The weights after epoch 2, not the last ones: a live view of them would fail here."""
    script = [9.0, 3.0, 1.0, 2.0, 2.0, 2.0, 2.0]
    settings = Settings(training_batch_size=100, stop_after_epochs=3, show_progress_bars=False)
    seen = []

    def watched(model, batch):
        if not torch.is_grad_enabled():
            seen.append(weights(model.chart))
        return inner(model, batch)

    inner = scripted(script)
    watched.__name__ = "watched"
    history = fit(model, data, [Phase(watched, ("chart",), 6)], settings)
    assert len(history.epochs) == 5
    assert (weights(model.chart) == seen[2]).all()
    assert not (seen[2] == seen[-1]).all()


def test_a_lucky_epoch_does_not_end_a_training_that_gets_better(data, model):
    """The third epoch is the best of all for long, but the mean of five keeps falling."""
    script = [9.0, 6.0, 5.9, 4.0, 5.6, 5.4, 5.2, 5.0, 4.8, 4.6, 4.4, 4.2]
    settings = Settings(training_batch_size=100, stop_after_epochs=5, show_progress_bars=False)
    assert len(fit(model, data, [Phase(scripted(script), ("chart",), 11)], settings).epochs) == 11


def test_a_phase_that_breaks_down_goes_on_from_its_best_weights(data, model):
    """In the third of six epochs, of 24 steps each, the density climbs instead of falling."""
    at_steps, judged = [], []

    def sabotaged(model, batch):
        value = latent_nll(model, batch)
        if not torch.is_grad_enabled():
            judged.append(weights(model.latent))
            return value
        at_steps.append(weights(model.latent))
        return 2 * value.detach() - value if 48 < len(at_steps) <= 72 else value

    with pytest.warns(UserWarning, match=r"broke down in phase 1 \(sabotaged\), epoch 3.*weights of epoch 2") as caught:
        history = fit(model, data, [Phase(sabotaged, ("latent",), 6, rows=20, rate=3.0)], QUICK)
    assert len([each for each in caught if "broke down" in str(each.message)]) == 1
    losses = [record.validation_loss for record in history.epochs]
    assert losses[2] > losses[0] > losses[1] > min(losses[3:])
    best = [kept for kept in judged if (kept == at_steps[48]).all()]
    assert best  # the third epoch began where the second ended
    assert (at_steps[72] == at_steps[48]).all()  # and so did the fourth


def test_an_epoch_that_broke_down_does_not_end_a_training_that_gets_better(data, model):
    script = [9.0, 3.0, 2.5, 2.0, 1.5, 1.4, 50.0, 1.4, 1.3, 1.2, 1.1, 1.0, 0.9]  # the sixth is judged twice
    settings, inner = replace(QUICK, stop_after_epochs=4), scripted(script)

    def on_rows_learned_from_always_high(model, batch):
        return inner(model, batch) + (100 if torch.is_grad_enabled() else 0)

    schedule = [Phase(on_rows_learned_from_always_high, ("chart",), 11)]
    with pytest.warns(UserWarning, match=r"broke down in phase 1 .*, epoch 6"):
        assert len(fit(model, data, schedule, settings).epochs) == 11


@pytest.mark.filterwarnings("error:Training broke down")
def test_rows_that_are_learned_by_heart_are_no_break_down(data, model):
    few = data[0].select(slice(0, 20)), data[1].select(slice(0, 20))
    history = fit(model, few, [Phase(latent_nll, ("latent",), 300, decay=0.0)], replace(QUICK, learning_rate=2e-2))
    losses = history.of("latent_nll")[1]
    assert losses[-1] > losses[0] > min(losses)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_is_an_error_and_keeps_the_best_weights(bad, data, model):
    inner, seen = scripted([9.0, 1.0, bad]), []

    def loss(model, batch):
        if not torch.is_grad_enabled():
            seen.append(weights(model.chart))
        return inner(model, batch)

    with pytest.raises(ArithmeticError, match=r"validation loss in phase 1 \(loss\), epoch 2 .* lower `learning_rate`"):
        fit(model, data, [Phase(loss, ("chart",), 3)], QUICK)
    assert (weights(model.chart) == seen[1]).all()
    assert not (seen[1] == seen[2]).all()


def test_a_phase_that_only_makes_things_worse_gives_the_first_weights_back(data, model):
    before = weights(model.chart)
    fit(model, data, [Phase(scripted([1.0, 2.0, 3.0]), ("chart",), 2)], QUICK)
    assert (weights(model.chart) == before).all()


def interrupted_after(calls):
    def loss(model, batch):
        if torch.is_grad_enabled():
            loss.calls += 1
            if loss.calls > calls:
                raise KeyboardInterrupt
        return reconstruction(model, batch)

    loss.calls = 0
    loss.__name__ = "reconstruction"
    return loss


def test_an_interrupt_keeps_the_best_weights_and_says_so(data, model):
    schedule = [Phase(interrupted_after(13), ("chart",), 9), Phase(latent_nll, ("latent",), 1)]
    with pytest.warns(UserWarning, match=r"interrupted in phase 1 of 2.*epoch 4.*did not run: latent_nll"):
        history = fit(model, data, schedule, replace(QUICK, learning_rate=2e-3))
    assert history.interrupted
    assert len(history.epochs) == 3
    assert reconstruction(model, data[1]).mean() < min(history.of("reconstruction")[1])


def test_an_interrupt_in_the_first_epoch_keeps_what_was_learned(data, model):
    before = reconstruction(model, data[1]).mean()
    many = data[0].select(torch.arange(480).repeat(40))
    with pytest.warns(UserWarning, match=r"interrupted in phase 1 of 1.*epoch 1, validation loss"):
        history = fit(model, (many, data[1]), [Phase(interrupted_after(150), ("chart",), 1)], QUICK)
    assert history.epochs == []
    assert reconstruction(model, data[1]).mean() < before


def test_an_interrupt_after_a_bad_step_puts_the_best_epoch_back(data, model):
    inner = interrupted_after(13)

    def loss(model, batch):
        if inner.calls == 13:
            with torch.no_grad():
                next(iter(model.chart.parameters())).mul_(100)
        return inner(model, batch)

    loss.__name__ = "reconstruction"
    with pytest.warns(UserWarning, match="those of epoch 3"):
        history = fit(model, data, [Phase(loss, ("chart",), 9)], QUICK)
    held_out = reconstruction(model, data[1]).mean().item()
    assert held_out == pytest.approx(min(history.of("reconstruction")[1]), rel=1e-5)


def test_a_phase_with_nothing_to_train_is_passed_over(data):
    model = AF(SMALL).build(data[0].theta, data[0].x)
    history = fit(model, data, sequential(4), QUICK)
    assert history.losses == ["latent_nll"]


def test_training_ends_when_told_not_to_go_on(data, model):
    history = fit(model, data, sequential(4), QUICK, keep_going=lambda _: False)
    assert history.losses == ["reconstruction"]


def test_the_learning_rate_warms_up_and_falls_to_nearly_zero(data, model):
    history = fit(model, data, density_only(20), QUICK)
    rates = [epoch.learning_rate for epoch in history.epochs]
    assert max(rates) > 0.9 * QUICK.learning_rate
    assert rates[-1] < 0.02 * QUICK.learning_rate


@pytest.mark.parametrize("encodes", [0, 1])
def test_an_interrupt_between_epochs_is_caught_too(encodes, data, model, monkeypatch):
    calls, encode = [], type(model.chart).encode

    def interrupting(chart, x):
        calls.append(1)
        if len(calls) == encodes + 1:
            raise KeyboardInterrupt
        return encode(chart, x)

    monkeypatch.setattr(type(model.chart), "encode", interrupting)
    with pytest.warns(UserWarning, match="interrupted in phase 1 of 1"):
        history = fit(model, data, density_only(1), QUICK)
    assert history.interrupted


def test_a_phase_may_take_smaller_steps(data, model):
    schedule = [Phase(latent_nll, ("latent",), 20, rate=0.1)]
    rates = [epoch.learning_rate for epoch in fit(model, data, schedule, QUICK).epochs]
    assert 0.09 * QUICK.learning_rate < max(rates) <= 0.1 * QUICK.learning_rate


@pytest.mark.parametrize(("decay", "shrinks"), [(0.0, False), (1.0, True)])
def test_a_phase_decays_what_it_trains_unless_told_not_to(decay, shrinks, data, model):
    calls = iter(range(1000))

    def flat(model, batch):  # no gradient, and ever better, so that the last weights are kept
        return 0 * sum(weight.sum() for weight in model.latent.parameters()) - next(calls) * torch.ones(batch.rows)

    before = weights(model.latent)
    fit(model, data, [Phase(flat, ("latent",), 3, decay=decay)], replace(QUICK, weight_decay=0.5))
    assert bool(weights(model.latent).norm() < before.norm()) == shrinks


def test_the_bar_is_quiet_when_told(data, model, capfd):
    fit(model, data, sequential(2), QUICK)
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_the_bar_shows_loss_and_time_left(data, model, capfd):
    fit(model, data, sequential(2), Settings(training_batch_size=100, show_progress_bars=True))
    assert "validation=" in capfd.readouterr().err


def test_coordinates_of_any_size_are_learned(data):
    """A chart whose coordinates are far away and large: the density finds them as it finds standardised ones."""
    losses = []
    for size, place in ((1.0, 0.0), (40.0, 300.0)):
        torch.manual_seed(0)
        model = SPEC.build(data[0].theta, data[0].x)
        encode = model.chart.encode
        model.chart.encode = lambda x, encode=encode, size=size, place=place: place + size * encode(x)
        history = fit(model, data, density_only(10), QUICK)
        losses.append(min(history.of("latent_nll")[1]) - 2 * math.log(size))
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_measured_coordinates_stay_as_they_are_when_training_goes_on(data, model):
    fit(model, data, density_only(1), QUICK)
    before = [value.clone() for value in model.latent.scaling]
    fit(model, data, density_only(1), QUICK)
    assert all((old == new).all() for old, new in zip(before, model.latent.scaling, strict=True))


@pytest.mark.parametrize(("correlation", "sheared"), [(0.5, False), (0.999, True), (1 - 1e-6, False)])
def test_strongly_correlated_coordinates_are_sheared(correlation, sheared):
    generator = Generator().manual_seed(0)
    theta, u = torch.zeros(2000, 1), torch.randn(2000, 2, generator=generator)
    u[:, 1] = correlation * u[:, 0] + math.sqrt(1 - correlation**2) * u[:, 1]
    latent = AF(SMALL).build(theta, u).latent
    latent.measure(10 * u + 7)
    assert (latent.u_shear != torch.eye(2)).any() == sheared
    before = [value.clone() for value in latent.scaling]
    for again in (10 * u + 7, torch.full_like(u, 7.0), u / 0):  # what fits stays, and what has no spread is ignored
        latent.measure(again)
        assert all((old == new).all() for old, new in zip(before, latent.scaling, strict=True))
    if sheared:
        mean, std, shear = latent.scaling
        y = (10 * u + 7 - mean) @ shear / std
        torch.testing.assert_close(y.T.cov(), torch.eye(2), rtol=0, atol=1e-3)
        torch.testing.assert_close(y.mean(0), torch.zeros(2), rtol=0, atol=1e-2)


def test_training_on_with_other_data_never_ends_worse_than_it_began():
    """Rows in a corner: measuring them anew would throw away what the density knows."""
    generator = Generator().manual_seed(0)
    theta = torch.rand(2000, 1, generator=generator) * 6 - 3
    x = theta + 0.3 * torch.randn(2000, 1, generator=generator)
    torch.manual_seed(0)
    model = AF(SMALL).build(theta, x)
    everything = Batch(theta, x)
    fit(model, (everything, everything), density_only(15), QUICK)
    corner = everything.select((theta[:, 0] > 1) & (theta[:, 0] < 2))
    with torch.no_grad():
        before = latent_nll(model, corner).mean()

    def stop(model, batch):
        if torch.is_grad_enabled():
            raise KeyboardInterrupt
        return latent_nll(model, batch)

    with pytest.warns(UserWarning, match="interrupted"):
        fit(model, (corner, corner), [Phase(stop, ("latent",), 1)], QUICK)
    with torch.no_grad():
        assert latent_nll(model, corner).mean() <= before + 1e-6


@pytest.mark.parametrize(
    ("loss", "values", "text"),
    [
        ("nll", [3.0, 1.0, 1.9], "nll: 3 epochs, best validation loss 1 in epoch 2"),
        ("nll", [3.0, -1.0, 0.5], "in epoch 2; it rose by 1.5 since, and the weights of epoch 2 are kept"),
        ("reconstruction", [0.3, 0.1, 0.15], "reconstruction: 3 epochs, best validation loss 0.1 in epoch 2"),
        ("reconstruction", [0.3, 0.1, 0.25], "in epoch 2; it rose by 0.15 since, and the weights of epoch 2 are kept"),
    ],
)
def test_a_history_says_which_epoch_was_best_and_whether_the_loss_rose_since(loss, values, text):
    nats = loss == "nll"
    epochs = [EpochRecord(0, loss, number + 1, 0.0, value, 0.0, 0.0, [], nats) for number, value in enumerate(values)]
    assert str(History(epochs)).endswith(text)
    written = json.loads(json.dumps(History(epochs).as_record()))
    old = {**written, "epochs": [epoch[:8] for epoch in written["epochs"]]}  # as 0.1.0 wrote them
    assert History.of_record(old) == History.of_record(written) == History(epochs)


def test_a_history_promises_no_weights_of_an_earlier_phase():
    epochs = [EpochRecord(phase, "latent_nll", 1, 0.0, value, 0.0, 0.0) for phase, value in ((1, 0.0), (3, 4.0))]
    assert str(History(epochs)) == "latent_nll: 2 epochs, best validation loss 0 in epoch 1; it rose by 4 since"
