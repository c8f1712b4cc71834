"""Mistakes at every public door: an error that names the argument, what was expected and what came; nothing is left.

Users do not run with the annotations that the rest of the suite executes, so these tests switch them off.
"""

import re
import warnings
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from mfsbi import (
    AF,
    ManifoldNLE,
    MFlow,
    Plan,
    Store,
    save,
    simulate_to_store,
)
from mfsbi.cli import app
from mfsbi.plugin.host import MCMCPosteriorParameters
from tests.bad_input import keeping, learning, using
from tests.bad_input.commands import COMMANDS
from tests.problems import SMALL, surface_data, write_mined_surface

pytestmark = pytest.mark.usefixtures("as_users_have_it")
SHORT = MCMCPosteriorParameters(num_chains=2, warmup_steps=2, init_strategy_parameters={"num_candidate_samples": 20})

CALLS = {
    name: row
    for table in (
        learning.SPECS,
        learning.TRAINERS,
        learning.SIMULATIONS,
        learning.TRAINING,
        using.ESTIMATORS,
        using.POSTERIORS,
        using.USES,
        keeping.FILES,
        keeping.GOLD,
        keeping.STORES,
    )
    for name, row in table.items()
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what a user has after a first training, and files of it, good and damaged."""
    folder = tmp_path_factory.mktemp("made")
    surface, theta, x = surface_data(60)
    trainers = []
    for spec in (AF(SMALL), MFlow(2, SMALL, SMALL)):
        trainer = ManifoldNLE(surface.prior, spec, show_progress_bars=False).append_simulations(theta, x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # two epochs find no manifold
            trainer.train(max_num_epochs=2, restarts=0)
        trainers.append(trainer)
    trainer, other = trainers
    save(trainer.estimator, folder / "estimator")
    save(trainer, folder / "trainer")
    simulate_to_store(Plan(surface, rows=10, shard_rows=5), folder / "store")
    (folder / "torn").write_bytes((folder / "trainer").read_bytes()[:-50])
    (folder / "pickle").write_bytes(b"\x80\x04K\x01.")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "mine").write_text("mine")
    save_file({"a": torch.ones(1)}, folder / "newer", {"format": "mfsbi 99", "description": "{}"})
    for name, array in {"x": x[:5], "theta": theta, "many": x, "nan": x[:5] * torch.nan}.items():
        np.save(folder / f"{name}.npy", array.numpy())
    (folder / "mined").mkdir()
    write_mined_surface(folder / "mined")
    np.save(folder / "words.npy", np.array(["a", "b"]))
    np.savez(folder / "sims.npz", theta=theta.numpy(), x=x.numpy())
    return SimpleNamespace(
        folder=folder,
        surface=surface,
        theta=theta,
        x=x,
        trainer=trainer,
        estimator=trainer.estimator,
        model=other.estimator.model,
        posterior=trainer.build_posterior(posterior_parameters=SHORT),
        store=Store(folder / "store"),
    )


def everything(at):
    """Return all files, and hashes of what the trainer has learned and learns from."""
    files = {str(path): path.read_bytes() if path.is_file() else b"" for path in at.folder.rglob("*")}
    weights = sha256(b"".join(value.numpy().tobytes() for value in at.estimator.state_dict().values())).hexdigest()
    trainer = at.trainer.simulations.digest(), at.trainer.estimator is at.estimator, str(at.trainer.history)
    return files, weights, trainer, at.estimator.training, torch.get_rng_state().numpy().tobytes()


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_an_error_that_says_what_is_wrong_and_leaves_nothing_behind(made, name):
    call, *kind, message = CALLS[name]
    (error,) = kind or [ValueError]
    before = everything(made)
    with pytest.raises(error) as caught:
        call(made)
    assert type(caught.value) is error
    assert re.search(message, str(caught.value)), caught.value
    assert everything(made) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_on_the_command_line_is_an_exit_code_and_leaves_nothing_behind(made, name, monkeypatch):
    line, message = COMMANDS[name]
    monkeypatch.chdir(made.folder)
    before = everything(made)
    result = CliRunner().invoke(app, line.format(made.folder).split())
    assert result.exit_code == 2, result.output
    assert re.search(message, re.sub(r"[\s│]+", " ", result.stderr)), result.stderr
    assert everything(made) == before
