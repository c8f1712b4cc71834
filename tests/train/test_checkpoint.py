"""Trainings that stop and go on: bit for bit what they would have been."""

import os
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from mfsbi import MFlow, alternating, sequential
from mfsbi.train.checkpoint import Checkpoints, Keeper
from mfsbi.train.loop import fit
from mfsbi.train.losses import AbstractLoss, Kind, Scandal, joint_nll, latent_nll, reconstruction
from mfsbi.train.record import History
from mfsbi.train.schedules import Phase, Settings
from tests.train.killing import ALWAYS, SMALL, Killed, surface_rows, weights

SETTINGS = Settings(training_batch_size=100, show_progress_bars=False)


class Kept(Checkpoints):
    """Checkpoints after every step, and an end after some of them."""

    def __init__(self, folder, *, kills_at=None, resume=False, about=None):
        super().__init__(folder, about or {"seed": 0}, minutes=ALWAYS, resume=resume)
        self.left = kills_at

    def write(self, snapshot):
        super().write(snapshot)
        if self.left is not None:
            self.left -= 1
            if self.left == 0:
                raise Killed


@pytest.fixture(scope="module")
def data():
    return surface_rows()


def built(data):
    torch.manual_seed(0)
    return MFlow(2, chart=SMALL, latent=SMALL).build(data[0].theta, data[0].x)


SCHEDULES = {
    "sequential": sequential(4),
    "alternating": alternating(4),
    "with random numbers": [Phase(joint_nll, ("chart", "latent"), 2)],
    "with scores": [Phase(reconstruction, ("chart",), 1), Phase(Scandal(), ("latent",), 2)],
}


@pytest.mark.parametrize("kills_at", [6, 11])
@pytest.mark.parametrize("name", SCHEDULES)
def test_what_was_killed_goes_on_bit_for_bit(name, kills_at, data, tmp_path):
    killed_and_resumed(SCHEDULES[name], kills_at, data, tmp_path)


class Climbs(AbstractLoss):
    """latent_nll, but from its 21st to its 40th step the density climbs instead of falling."""

    kind = Kind.DENSITY
    __name__ = "climbs"

    def __init__(self, steps=0):
        self.steps = steps

    def __call__(self, model, batch):
        value = latent_nll(model, batch)
        if not torch.is_grad_enabled():
            return value
        self.steps += 1
        return 2 * value.detach() - value if 20 < self.steps <= 40 else value

    def adapted(self, model, held_out):
        return Climbs(self.steps)

    def state(self):
        return {"steps": torch.tensor(self.steps)}

    def restored(self, state):
        return Climbs(int(state["steps"]))


@pytest.mark.parametrize("kills_at", [27, 45])  # in the epoch that broke down, and in the one after it
def test_what_was_killed_near_a_break_down_goes_on_with_what_its_loss_keeps(kills_at, data, tmp_path):
    with pytest.warns(UserWarning, match="broke down in phase 1 .*, epoch 2"):
        killed_and_resumed([Phase(Climbs(), ("latent",), 4, rows=20, rate=3.0)], kills_at, data, tmp_path)


def killed_and_resumed(schedule, kills_at, data, tmp_path):
    whole = built(data)
    expected = fit(whole, data, schedule, SETTINGS)
    model = built(data)
    with pytest.raises(Killed):
        fit(model, data, schedule, SETTINGS, keeper=Keeper(Kept(tmp_path, kills_at=kills_at)))
    model = built(data)  # another process
    found = fit(model, data, schedule, SETTINGS, keeper=Keeper(Kept(tmp_path, resume=True)))
    assert (weights(model) == weights(whole)).all()
    assert [epoch[:6] for epoch in found.epochs] == [epoch[:6] for epoch in expected.epochs]


def test_patience_is_remembered(data, tmp_path):
    settings = Settings(training_batch_size=100, stop_after_epochs=2, learning_rate=1e-9, show_progress_bars=False)
    schedule = [Phase(reconstruction, ("chart",), 50)]
    expected = fit(built(data), data, schedule, settings)
    with pytest.raises(Killed):
        fit(built(data), data, schedule, settings, keeper=Keeper(Kept(tmp_path, kills_at=7)))
    found = fit(built(data), data, schedule, settings, keeper=Keeper(Kept(tmp_path, resume=True)))
    assert len(found.epochs) == len(expected.epochs) < 50


def test_a_training_that_ended_is_there_at_once(data, tmp_path):
    model = built(data)
    fit(model, data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    again, steps = built(data), []

    def watched(model, batch):
        steps.append(torch.is_grad_enabled())
        return reconstruction(model, batch)

    watched.__name__ = "reconstruction"
    schedule = sequential(2)
    schedule[0] = schedule[0]._replace(loss=watched)
    history = fit(again, data, schedule, SETTINGS, keeper=Keeper(Kept(tmp_path, resume=True)))
    assert (weights(again) == weights(model)).all()
    assert len(history.epochs) == 2
    assert not any(steps)


def test_what_a_killed_writer_left_is_swept_up(data, tmp_path, monkeypatch):
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(Killed))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead do not tidy up
        with pytest.raises(Killed):
            fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path, resume=True)))
    assert len(list(tmp_path.iterdir())) == 3
    assert Kept(tmp_path, resume=True).start is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_machine_with_fewer_gpus_goes_on(data, tmp_path, monkeypatch):
    given = []
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.get_rng_state()] * 3)
        fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda _, device: given.append(device))
    with monkeypatch.context() as patch:
        patch.setattr("mfsbi.seeds.torch.random.fork_rng", lambda **_: nullcontext())
        fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path, resume=True)))
    assert given == [0, 1]


def test_two_are_kept_at_most(data, tmp_path):
    checkpoints = Kept(tmp_path)
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(checkpoints))
    assert len(checkpoints.paths) == 2
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "changed"])
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(damage, data, tmp_path):
    whole = built(data)
    fit(whole, data, sequential(4), SETTINGS)
    with pytest.raises(Killed):
        fit(built(data), data, sequential(4), SETTINGS, keeper=Keeper(Kept(tmp_path, kills_at=7)))
    newest = Kept(tmp_path, resume=True).paths[0]
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[-9] ^= 1
    changed = bytes(content).replace(b'\\"epoch\\": 2', b'\\"epoch\\": 1')
    assert changed != content
    damaged = {"cut": content[: len(content) // 2], "flipped": content, "emptied": b"", "changed": changed}
    newest.write_bytes(damaged[damage])
    model = built(data)
    with pytest.warns(UserWarning, match=r"(torn|not a file of mfsbi).*The one before it"):
        checkpoints = Kept(tmp_path, resume=True)
    fit(model, data, sequential(4), SETTINGS, keeper=Keeper(checkpoints))
    assert (weights(model) == weights(whole)).all()


def test_other_files_in_the_folder_are_let_be(data, tmp_path):
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    newest = Kept(tmp_path, resume=True).paths[0]
    copied = newest.with_name(f"{newest.stem} (copy).safetensors")
    copied.write_bytes(newest.read_bytes())
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    assert copied.exists()


def test_a_checkpoint_of_another_training_is_refused(data, tmp_path):
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    with pytest.raises(ValueError, match="another training: seed 0 there, 1 here.*Choose another folder"):
        Kept(tmp_path, resume=True, about={"seed": 1})


def test_numbers_of_numpy_tell_trainings_apart_as_any(tmp_path):
    assert Kept(tmp_path, about={"epochs": np.int64(3)}).about == {"epochs": 3}


def test_a_training_that_does_not_resume_replaces_what_was_there(data, tmp_path):
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    assert Kept(tmp_path).paths == []


def test_a_full_disk_is_a_warning(data, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mfsbi.train.checkpoint.files.write", full)
    with pytest.warns(UserWarning, match="could not be written, and training goes on.*No space left"):
        history = fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    assert len(history.epochs) == 2


def test_a_folder_nobody_can_write_to_is_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OSError, match="cannot be written to .*: choose another folder"):
        Kept(tmp_path)


def signalling(signals, schedule):
    """Return a schedule in whose ninth step of reconstruction these signals come."""
    calls = []

    def signalled(model, batch):
        calls.append(1)
        if len(calls) == 9:
            for number in signals:
                os.kill(os.getpid(), number)
        return reconstruction(model, batch)

    signalled.__name__ = "reconstruction"
    return [schedule[0]._replace(loss=signalled), *schedule[1:]]


def resumed(data, folder):
    model = built(data)
    fit(model, data, sequential(4), SETTINGS, keeper=Keeper(Checkpoints(folder, {}, minutes=1e9, resume=True)))
    return weights(model)


def test_sigterm_writes_a_checkpoint_and_leaves(data, tmp_path):
    whole, before = built(data), signal.getsignal(signal.SIGTERM)
    fit(whole, data, sequential(4), SETTINGS)
    schedule, checkpoints = (
        signalling([signal.SIGTERM], sequential(4)),
        Checkpoints(tmp_path, {}, minutes=1e9, resume=False),
    )
    with pytest.raises(SystemExit) as left:
        fit(built(data), data, schedule, SETTINGS, keeper=Keeper(checkpoints))
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert (resumed(data, tmp_path) == weights(whole)).all()


def test_ctrl_c_writes_a_checkpoint_and_keeps_the_best_weights(data, tmp_path):
    whole, before = built(data), signal.getsignal(signal.SIGINT)
    fit(whole, data, sequential(4), SETTINGS)
    schedule, checkpoints = (
        signalling([signal.SIGINT], sequential(4)),
        Checkpoints(tmp_path, {}, minutes=1e9, resume=False),
    )
    with pytest.warns(UserWarning, match="Training was interrupted in phase 1 of 2"):
        history = fit(built(data), data, schedule, SETTINGS, keeper=Keeper(checkpoints))
    assert history.interrupted
    assert signal.getsignal(signal.SIGINT) is before
    assert (resumed(data, tmp_path) == weights(whole)).all()


def test_a_second_ctrl_c_does_not_wait(data, tmp_path):
    schedule = signalling([signal.SIGINT, signal.SIGINT], sequential(4))
    checkpoints = Checkpoints(tmp_path, {}, minutes=1e9, resume=False)
    with pytest.warns(UserWarning, match="Training was interrupted"):
        assert fit(built(data), data, schedule, SETTINGS, keeper=Keeper(checkpoints)).interrupted
    assert checkpoints.paths == []


def test_sigterm_after_the_last_step_is_obeyed_too(data, tmp_path):
    checkpoints, whole = Checkpoints(tmp_path, {}, minutes=1e9, resume=False), built(data)
    with pytest.raises(SystemExit) as left:
        fit(whole, data, sequential(2), SETTINGS, keep_going=ends_after_the_last, keeper=Keeper(checkpoints))
    assert left.value.code == 143
    model = built(data)
    history = fit(
        model, data, sequential(2), SETTINGS, keeper=Keeper(Checkpoints(tmp_path, {}, minutes=1e9, resume=True))
    )
    assert (weights(model) == weights(whole)).all()
    assert len(history.epochs) == 2


@pytest.mark.parametrize("trainable", [True, False])
def test_sigterm_is_obeyed_where_no_step_is_left(trainable, data, tmp_path):
    """In a training that goes on only to be told to end, and after a phase that has nothing to train."""
    signalled = {
        True: lambda phase: phase == 0 and os.kill(os.getpid(), signal.SIGTERM),
        False: ends_after_the_last,
    }
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Kept(tmp_path)))
    model = built(data)
    model.latent.requires_grad_(requires_grad=trainable)
    checkpoints = Checkpoints(tmp_path, {"seed": 0}, minutes=1e9, resume=trainable)
    with pytest.raises(SystemExit) as left:
        fit(model, data, sequential(2), SETTINGS, keep_going=signalled[trainable], keeper=Keeper(checkpoints))
    assert left.value.code == 143
    assert checkpoints.paths


def test_sigterm_where_there_is_nothing_to_train_is_obeyed_too(data, tmp_path):
    model = built(data).requires_grad_(requires_grad=False)
    checkpoints = Checkpoints(tmp_path, {}, minutes=1e9, resume=False)
    with pytest.raises(SystemExit):
        fit(model, data, sequential(2), SETTINGS, keep_going=ends_after_the_last, keeper=Keeper(checkpoints))
    assert checkpoints.paths == []


def test_a_signal_that_is_handled_outside_of_python_is_left_alone(data, tmp_path, monkeypatch):
    monkeypatch.setattr("mfsbi.train.checkpoint.signal.getsignal", lambda _: None)
    monkeypatch.setattr("mfsbi.train.checkpoint.signal.signal", lambda *_: pytest.fail("which could not be put back"))
    fit(built(data), data, sequential(2), SETTINGS, keeper=Keeper(Checkpoints(tmp_path, {}, minutes=1e9, resume=False)))


def ends_after_the_last(phase):
    if phase == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def test_history_survives_a_file():
    history = History(collapses=["flat"])
    assert History.of_record(history.as_record()) == history
