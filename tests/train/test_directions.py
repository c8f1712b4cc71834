import math
import re
import signal

import pytest
import torch
from torch.distributions import Independent, Uniform

from mfsbi import AF, FOM, PAE, PIE, ManifoldNLE, MeFlow, MFlow, density_only, load, save
from mfsbi.charts import Prescribed
from mfsbi.flows import AffineCouplings, SplineCouplings
from mfsbi.train import directions
from mfsbi.train.checkpoint import Checkpoints, Keeper
from mfsbi.train.data import Batch
from mfsbi.train.directions import learn_directions
from mfsbi.train.loop import fit
from mfsbi.train.losses import latent_nll, reconstruction
from mfsbi.train.schedules import Phase, Settings
from mfsbi.train.state import Snapshot

PRIOR = Independent(Uniform(-torch.ones(1), torch.ones(1)), 1)
SMALL = SplineCouplings(layers=2, width=16)
BENT = AffineCouplings(layers=4, width=32)
CHART = Phase(reconstruction, ("chart",), 20, rows=100)
WHILE_IT_GAINS = Phase(latent_nll, ("latent",), None, rows=300)
QUIET = Settings(show_progress_bars=False)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr("mfsbi.train.loop.LONGEST", 30)


def curve(rows, seed=0):
    """Return theta, x and z: z is normal about theta, and x the curve (z, sin 2z, cos 1.5z), turned."""
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(rows, 1, generator=generator) - 1
    z = theta + 0.1 * torch.randn(rows, 1, generator=generator)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1)))[0]
    return theta, torch.cat([z, (2 * z).sin(), (1.5 * z).cos()], 1) @ turn.T, z


def charted(spec, theta, x):
    """Return a model whose chart has learned, and the rows it learned from and others."""
    torch.manual_seed(0)
    data = Batch(theta[:-300], x[:-300]), Batch(theta[-300:], x[-300:])
    model = spec.build(theta, x)
    fit(model, data, [CHART], QUIET)
    return model.eval(), data


def test_coordinates_in_which_a_law_is_linear_are_found(monkeypatch):
    monkeypatch.setattr("mfsbi.train.directions.LONGEST", 200)
    theta, x, z = curve(1300)
    model, data = charted(MFlow(1), theta, x)
    assert learn_directions(model, data, QUIET).startswith("coordinates: linear functions of x")
    with torch.no_grad():
        w, u = model.encode(x), model.chart.chart.encode(model.chart.inward(x))
        off = {
            name: 1 - float(torch.corrcoef(torch.cat([each, z], 1).T)[0, 1] ** 2)
            for name, each in {"w": w, "u": u}.items()
        }
        torch.testing.assert_close(model.encode(model.chart.decode(w)), w, rtol=0, atol=1e-3)
    assert off["w"] < min(1e-3, 0.5 * off["u"])


def test_a_closed_manifold_keeps_the_coordinates_of_its_chart():
    theta = 2 * torch.rand(1300, 1) - 1
    x = decode_angle(3 * theta + 2 * torch.randn(1300, 1))
    model = MFlow(1, chart=Prescribed(decode_angle, lambda x: torch.atan2(x[..., 1:], x[..., :1]))).build(theta, x)
    data = Batch(theta[:1000], x[:1000]), Batch(theta[1000:], x[1000:])
    assert "is the manifold a graph" in learn_directions(model, data, QUIET)
    assert not model.chart.linear.given


@pytest.mark.parametrize(
    ("more_likely", "tell_more", "why"),
    [
        (-0.2, 0.0, "coordinates: those of the chart, not linear functions of x, which gain -0.2 ± "),
        (8.0, -0.3, "nats of a row over the chart's but tell 0.3 ± 0.01 less of theta"),
    ],
)
def test_coordinates_that_are_less_likely_or_tell_less_of_theta_are_left_alone(
    more_likely, tell_more, why, monkeypatch
):
    theta, x, _ = curve(600)
    model, data = MFlow(1, BENT).build(theta, x), (Batch(theta[:500], x[:500]), Batch(theta[500:], x[500:]))

    def judged(coordinates, *_):
        linear, noise = float(isinstance(coordinates, directions._Linear)), torch.arange(100).remainder(2)
        noise = noise if linear else noise.flip(0)
        log_prob, told = more_likely * linear + 0.1 * noise, tell_more * linear + 0.05 * noise
        return directions._Judged(log_prob, torch.ones(100), torch.zeros(100), told)

    monkeypatch.setattr(directions, "_trained", judged)
    assert why in learn_directions(model, data, QUIET)
    assert not model.chart.linear.given


def test_what_rows_tell_of_theta_is_that_of_a_known_law():
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(20_000, 1, generator=generator)
    y = 0.5 * theta + torch.randn(20_000, 1, generator=generator)
    rows = directions._Rows(theta=theta, x=y, own=y)
    learned = directions._Learned(directions._Own(), rows)
    learned.density.log_prob = lambda w, t: torch.distributions.Normal(0.5 * t, 1.0).log_prob(w).sum(-1)
    told = learned.told(rows, torch.randn(500, 1, generator=generator))
    assert abs(float(told.mean()) - 0.5 * math.log(1 + 0.25)) < 0.01  # the mutual information of a normal channel


def test_few_rows_tell_nothing_and_a_search_that_fails_is_told_of(monkeypatch):
    theta, x, _ = curve(600)
    model = MFlow(1, BENT).build(theta, x)
    assert learn_directions(model, (Batch(theta, x), Batch(theta[:29], x[:29])), QUIET) == ""
    stopping(monkeypatch, ArithmeticError("it diverged"), 3)
    told = learn_directions(model, (Batch(theta, x), Batch(theta, x)), QUIET)
    assert (
        told == "coordinates: those of the chart, since the search for linear functions of x ended early: it diverged"
    )


def decode_angle(u):
    return torch.cat([u.cos(), u.sin()], -1)


@pytest.mark.parametrize("spec", [AF(SMALL), PAE(1, SMALL), PIE(1, chart=SMALL, latent=SMALL)])
def test_models_of_no_learned_manifold_are_left_alone(spec):
    theta, x, _ = curve(600)
    assert not learn_directions(spec.build(theta, x), (Batch(theta, x), Batch(theta, x)), QUIET)


def test_a_given_manifold_is_left_alone():
    theta, x, _ = curve(600)
    spec = FOM(lambda u: torch.cat([u, u.sin()], -1), lambda x: x[..., :1], SMALL)
    x = torch.cat([x[:, :1], x[:, :1].sin()], 1)
    assert not learn_directions(spec.build(theta, x), (Batch(theta, x), Batch(theta, x)), QUIET)


@pytest.mark.parametrize("spec", [MFlow(1, BENT, SMALL), MeFlow(1, BENT, SMALL)])
def test_a_training_takes_them_where_the_data_decide_and_a_file_holds_them(spec, tmp_path):
    theta, x, _ = curve(1000)
    trainer = ManifoldNLE(PRIOR, spec, show_progress_bars=False).append_simulations(theta, x)
    model = trained(trainer)
    assert model.chart.linear.given
    assert re.search(
        r"coordinates: linear functions of x, which gain 0\.\d+ ± 0\.\d+ nats of a row", str(trainer.history)
    )
    save(trainer.estimator, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors").model
    theta, x = theta[:50], x[:50]
    torch.testing.assert_close(again.log_prob(x, theta), model.log_prob(x, theta), rtol=0, atol=0)
    drawn = again.sample(theta, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, model.sample(theta, torch.Generator().manual_seed(0)), rtol=0, atol=0)
    drawn = drawn.detach()
    torch.testing.assert_close(again.chart.decode(again.encode(drawn)).detach(), drawn, rtol=0, atol=1e-3)


def trained(trainer, **options):
    """Return the model of a short training."""
    return trainer.train([CHART, WHILE_IT_GAINS], **options).model


def short_trainer(rows=1000):
    theta, x, _ = curve(rows)
    return ManifoldNLE(PRIOR, MFlow(1, BENT, SMALL), show_progress_bars=False).append_simulations(theta, x)


def test_a_schedule_of_so_many_epochs_keeps_the_coordinates_of_the_chart():
    trainer = short_trainer()
    assert not trainer.train([CHART, *density_only(2)]).model.chart.linear.given
    assert "coordinates" not in str(trainer.history)


def test_a_training_that_goes_on_keeps_the_coordinates_its_density_has(monkeypatch):
    monkeypatch.setattr("mfsbi.train.training.learn_directions", lambda *_: "coordinates: those of the chart")
    trainer = short_trainer()
    trained(trainer)
    monkeypatch.setattr("mfsbi.train.training.learn_directions", learn_directions)
    assert not trained(trainer).chart.linear.given


def stopping(monkeypatch, error, after):
    """Let the training of coordinates stop by an error after so many losses."""
    calls, judged = [], directions._Learned.judged

    def counted(self, rows):
        calls.append(None)
        if len(calls) == after:
            raise error
        return judged(self, rows)

    monkeypatch.setattr(directions._Learned, "judged", counted)


def test_after_ctrl_c_meanwhile_the_chart_is_kept_and_no_density_is_trained(monkeypatch):
    stopping(monkeypatch, KeyboardInterrupt, 5)
    trainer = short_trainer()
    with pytest.warns(UserWarning, match="interrupted in phase 1 of 2.*Phases that did not run: latent_nll"):
        model = trained(trainer)
    assert not model.chart.linear.given
    assert trainer.history.interrupted
    assert {record.loss for record in trainer.history.epochs} == {"reconstruction"}


def test_a_training_that_was_killed_meanwhile_goes_on_as_if_it_was_not(tmp_path, monkeypatch):
    whole = trained(short_trainer()).state_dict()
    stopping(monkeypatch, SystemExit(143), 5)
    with pytest.raises(SystemExit):
        trained(short_trainer(), checkpoint=tmp_path)
    found = trained(short_trainer(), checkpoint=tmp_path, resume_training=True).state_dict()
    assert "chart.linear.directions" in found
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def test_what_was_found_is_known_to_a_training_that_goes_on_later(tmp_path, monkeypatch):
    found, write = [], Checkpoints.write

    def written(self, snapshot):
        write(self, snapshot)
        if found:
            raise SystemExit(143)

    def sought(*given):
        found.append(learn_directions(*given))
        return found[0]

    monkeypatch.setattr("mfsbi.train.training.learn_directions", sought)
    monkeypatch.setattr(Checkpoints, "due", lambda self: bool(found))
    monkeypatch.setattr(Checkpoints, "write", written)
    with pytest.raises(SystemExit):
        trained(short_trainer(), checkpoint=tmp_path)  # after the first step of the density
    monkeypatch.setattr(Checkpoints, "write", write)
    again = short_trainer()
    trained(again, checkpoint=tmp_path, resume_training=True)
    assert [again.history.coordinates] == found != [""]


def test_sigterm_is_heard_by_the_outer_training_and_obeyed_within(tmp_path):
    outer = Keeper(Checkpoints(tmp_path, {}, minutes=1e-9, resume=False))
    inner = Keeper(outer=outer)
    with outer.listening(), inner.listening():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(SystemExit):
            inner.keep(lambda: Snapshot({}, {}), ended=True)
        outer.terminated = False
    assert not any(tmp_path.iterdir())
