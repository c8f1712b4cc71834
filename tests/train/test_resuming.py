"""Trainers that stop and go on, by sbi's verbs."""

from contextlib import nullcontext

import pytest
import torch

from mfsbi import ALICES, FOM, ManifoldNLE, MFlow, load_trainer, save, sequential
from mfsbi.train.losses import Scandal, latent_nll, reconstruction
from mfsbi.train.schedules import Phase
from simulators.polynomial import PolynomialSurface
from tests.train.killing import ALWAYS, SMALL, killed_after, surface_rows, weights


@pytest.fixture(scope="module")
def data():
    return surface_rows()


TRAINERS = {
    "likelihood": lambda: ManifoldNLE(PolynomialSurface().prior, MFlow(2, chart=SMALL, latent=SMALL), seed=1),
    "ratio": lambda: ALICES(PolynomialSurface().prior, width=8, depth=1, seed=1),
}


def appended(kind, data):
    trainer = TRAINERS[kind]()
    return trainer.append_simulations(data[0].theta, data[0].x, joint_score=data[0].joint_score)


@pytest.mark.parametrize("kind", TRAINERS)
@pytest.mark.parametrize("kills_at", [1, 9])
def test_a_trainer_that_was_killed_goes_on(kind, kills_at, data, tmp_path, monkeypatch):
    monkeypatch.setattr("mfsbi.train.noise.STEPS", 5)
    settings = {"max_num_epochs": 4, "restarts": 0} if kind == "likelihood" else {"max_num_epochs": 4}
    with pytest.warns() if kind == "likelihood" else nullcontext():
        whole = appended(kind, data).train(**settings)
    keeping = {"checkpoint": tmp_path, "checkpoint_minutes": ALWAYS}
    with killed_after(kills_at, monkeypatch):
        appended(kind, data).train(**settings, **keeping)
    with pytest.warns() if kind == "likelihood" else nullcontext():
        resumed = appended(kind, data).train(**settings, **keeping, resume_training=True)
    assert (weights(resumed) == weights(whole)).all()
    with pytest.raises(ValueError, match="another training: schedule"):
        appended(kind, data).train(**settings | {"max_num_epochs": 6}, **keeping, resume_training=True)


def test_a_training_of_another_given_chart_is_not_resumed(data, tmp_path):
    def begun(power, *, resume):
        spec = FOM(lambda u: torch.cat([u, u**power], -1), lambda x: x[:, :1], latent=SMALL)
        trainer = ManifoldNLE(PolynomialSurface().prior, spec, show_progress_bars=False)
        trainer.append_simulations(data[0].theta, data[0].x[:, :2])
        return trainer.train(max_num_epochs=1, checkpoint=tmp_path, resume_training=resume)

    first = begun(2, resume=False)
    assert (weights(begun(2, resume=True)) == weights(first)).all()
    with pytest.raises(ValueError, match="another training: spec"):
        begun(3, resume=True)


@pytest.mark.parametrize("scheme", ["", "source-1:"])
def test_functions_noted_by_another_version_are_a_warning_and_other_differences_are_refused(
    scheme, data, tmp_path, monkeypatch
):
    def begun(*, resume, epochs=1):
        spec = FOM(lambda u: torch.cat([u, u**2], -1), lambda x: x[:, :1], latent=SMALL)
        trainer = ManifoldNLE(PolynomialSurface().prior, spec, show_progress_bars=False)
        trainer.append_simulations(data[0].theta, data[0].x[:, :2])
        return trainer.train([Phase(doubled, ("latent",), epochs)], checkpoint=tmp_path, resume_training=resume)

    with monkeypatch.context() as patch:
        patch.setattr("mfsbi.simulating.fingerprint.SCHEME", scheme)
        first = begun(resume=False)
    with pytest.warns(UserWarning, match="Whether yours are still those") as caught:
        again = begun(resume=True)
    assert len(caught) == 1
    assert (weights(again) == weights(first)).all()
    with pytest.raises(ValueError, match="another training: schedule"):
        begun(resume=True, epochs=2)


def doubled(model, batch):
    return 2 * latent_nll(model, batch)


@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.parametrize("loaded", [True, False])
def test_a_training_from_earlier_weights_is_not_begun_anew(loaded, data, tmp_path, monkeypatch):
    """Its chart is not judged, so that a collapsed one stays, whether or not the earlier weights are there again."""
    rows, path = (data[0].theta, data[0].x), tmp_path / "trainer"
    first = TRAINERS["likelihood"]().append_simulations(*rows)
    first.train(max_num_epochs=2, restarts=0)
    save(first, path)
    whole = first.train(max_num_epochs=4)

    def again():
        return load_trainer(path, PolynomialSurface().prior)

    keeping = {"checkpoint": tmp_path / "kept", "checkpoint_minutes": ALWAYS}
    with killed_after(3, monkeypatch):
        again().train(max_num_epochs=4, **keeping)
    trainer = again() if loaded else TRAINERS["likelihood"]().append_simulations(*rows)
    resumed = trainer.train(max_num_epochs=4, **keeping, resume_training=True)
    assert (weights(resumed) == weights(whole)).all()
    assert trainer.history.collapses == []


@pytest.mark.parametrize("loaded", [True, False])
def test_a_ratio_goes_on_from_earlier_weights(loaded, data, tmp_path, monkeypatch):
    """From those of the checkpoint, whatever the trainer knew; and if it began anew, so it goes on."""
    keeping = {"checkpoint": tmp_path, "checkpoint_minutes": ALWAYS}
    for scratch in (False, True):
        first = appended("ratio", data)
        first.train(max_num_epochs=1, score_weight=0.0)
        known = first.estimator
        with killed_after(3, monkeypatch):
            first.train(max_num_epochs=3, score_weight=0.0, retrain_from_scratch=scratch, **keeping)
        trainer = first if loaded else appended("ratio", data)
        resumed = trainer.train(max_num_epochs=3, score_weight=0.0, **keeping, resume_training=True)
        assert trainer.history.anew == scratch
        assert len(trainer.history.epochs) == 3
        assert resumed is not known or not scratch


@pytest.mark.filterwarnings("ignore:The chart")
def test_another_weight_of_the_score_is_another_training(data, tmp_path):
    def trained(weight, **keeping):
        schedule = [Phase(reconstruction, ("chart",), 1), Phase(Scandal(weight), ("latent",), 1)]
        appended("likelihood", data).train(schedule, score_weight=0.0, restarts=0, checkpoint=tmp_path, **keeping)

    trained(1.0)
    with pytest.raises(ValueError, match="another training: schedule"):
        trained(2.0, resume_training=True)


def test_a_checkpoint_of_another_version_is_refused(data, tmp_path, monkeypatch):
    keeping = {"max_num_epochs": 1, "checkpoint": tmp_path}
    monkeypatch.setattr("mfsbi.plugin.trainer.version", lambda _: "0.0.1")
    appended("ratio", data).train(**keeping)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another training: mfsbi 0.0.1 there"):
        appended("ratio", data).train(**keeping, resume_training=True)


@pytest.mark.parametrize("kind", TRAINERS)
def test_resuming_without_a_folder_is_refused(kind, data):
    with pytest.raises(ValueError, match="`resume_training` needs `checkpoint`"):
        appended(kind, data).train(resume_training=True)


def test_a_collapsed_start_is_remembered(data, tmp_path):
    """Killed in its second start, a training goes on there, and its weights are those of the second start."""
    settings = {"max_num_epochs": 2, "restarts": 1, "checkpoint": tmp_path / "a", "checkpoint_minutes": ALWAYS}
    trainer, again = appended("likelihood", data), appended("likelihood", data)
    with pytest.warns(UserWarning):
        whole = trainer.train(**settings)
    assert len(trainer.history.collapses) == 2
    with pytest.warns(UserWarning, match="after 2 starts"):
        resumed = again.train(**settings, resume_training=True)
    assert (weights(resumed) == weights(whole)).all()
    assert again.history.collapses == trainer.history.collapses


def twice(model, batch):
    return 2 * reconstruction(model, batch)


def thrice(model, batch):
    return 3 * reconstruction(model, batch)


@pytest.mark.filterwarnings("ignore:The chart")
def test_another_loss_of_ones_own_by_the_same_name_is_another_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(thrice, "__name__", "twice")
    monkeypatch.setattr(thrice, "__qualname__", "twice")
    first, *rest = sequential(2)
    for loss, known in ((twice, True), (twice, True), (thrice, False)):
        trainer = TRAINERS["likelihood"]().append_simulations(data[0].theta, data[0].x)
        with nullcontext() if known else pytest.raises(ValueError, match="another training: schedule"):
            trainer.train([first._replace(loss=loss), *rest], checkpoint=tmp_path, resume_training=True)
