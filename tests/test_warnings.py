"""Every warning points at the line of the user's that led to it, however many calls lie between."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch

from mfsbi import AF, ALICES, ManifoldNLE, MFlow, Plan, checks, simulate_to_store, train_ensemble
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.train.schedules import Phase
from tests.problems import SMALL, surface_data

pytestmark = pytest.mark.usefixtures("as_users_have_it")
SURFACE, THETA, X = surface_data(60)
SPEC = AF(SMALL)
NARROW = THETA / 4
FEW = {"max_num_epochs": 2, "training_batch_size": 20}


def likelihood(theta=THETA, spec=SPEC):
    return ManifoldNLE(SURFACE.prior, spec, show_progress_bars=False).append_simulations(theta, X)


def ratio(theta=THETA):
    return ALICES(SURFACE.prior, width=8, depth=1, show_progress_bars=False).append_simulations(theta, X)


def of_narrow_simulations():
    """Return a trainer whose estimator is said to be of another part of the prior."""
    made = likelihood()
    record = made.train(**FEW).training_record
    twin = likelihood()
    twin.estimator = ManifoldEstimator(made.estimator.model, made.spec)
    twin.estimator.training_record = record | {"reach": record["reach"] | {"theta": ([-0.1], [0.1])}}
    return twin


def interrupting(model, batch):
    raise KeyboardInterrupt


def torn(folder):
    """Return a folder with two checkpoints, the newer of which is damaged."""
    likelihood().train(**FEW, checkpoint=folder, checkpoint_minutes=1e-9)
    newest = max(folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:-9])
    return folder


def old_store(folder):
    """Return a store of another version."""
    return shutil.copytree(Path(__file__).parent / "kept" / "store", folder / "store")


def with_holes():
    return torch.where(torch.arange(60)[:, None] == 3, torch.nan, X)


def with_huge():
    torch.manual_seed(0)
    return torch.where(torch.arange(400)[:, None] % 150 == 0, 1e6, surface_data(400)[2] + 0.1 * torch.randn(400, 3))


LINES = {
    "Dropped 1 of 60": lambda _: likelihood().append_simulations(THETA, with_holes(), exclude_invalid_x=True),
    "rare huge values": lambda _: likelihood().append_simulations(surface_data(400)[1], with_huge()),
    "of the prior reaches beyond": lambda _: likelihood(NARROW).train(**FEW),
    "of the prior reaches": lambda _: ratio(NARROW).train(**FEW),
    "of the posterior's prior": lambda _: of_narrow_simulations().build_posterior(),
    "not clearly better": lambda _: likelihood(spec=MFlow(2, SMALL, SMALL)).train(**FEW, restarts=0),
    "was interrupted": lambda _: likelihood().train([Phase(interrupting, ("chart", "latent"), 1)]),
    "torn|not a file": lambda folder: likelihood().train(**FEW, checkpoint=torn(folder), resume_training=True),
    "as another version": lambda folder: simulate_to_store(Plan(SURFACE, 40, seed=4), old_store(folder)),
    "The member with seed 1": lambda _: train_ensemble(likelihood(NARROW), [1], **FEW),
}


@pytest.fixture(autouse=True)
def _hooks_are_not_the_users(monkeypatch):
    monkeypatch.setattr(checks, "OURS", (*checks.OURS, "tests.hooks."))


@pytest.mark.parametrize("message", LINES)
def test_a_warning_names_the_line_of_the_user(message, tmp_path):
    with pytest.warns(UserWarning, match=message) as caught:
        LINES[message](tmp_path)
    places = {(warning.filename, warning.lineno) for warning in caught}
    assert places == {(__file__, LINES[message].__code__.co_firstlineno)}


def test_without_a_line_of_the_users_the_outermost_is_named(monkeypatch):
    monkeypatch.setattr(checks, "OURS", ("",))
    with pytest.warns(UserWarning, match="something") as caught:
        checks.warn("something")
    assert caught[0].filename == inspect.stack()[-1].filename
