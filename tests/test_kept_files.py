"""Files that version 0.1.0 wrote before the house was rebuilt go on working; `told.json` holds what it found with them.

Written with these settings by one thread: sixty rows of the polynomial surface, small networks, a few epochs.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mfsbi import (
    ALICES,
    AffineCouplings,
    ManifoldNLE,
    MFlow,
    Plan,
    SplineCouplings,
    Store,
    load,
    load_trainer,
    simulate_to_store,
)
from mfsbi.gold import simulate
from simulators.polynomial import PolynomialSurface

KEPT = Path(__file__).parent / "kept"
TOLD = json.loads((KEPT / "told.json").read_text())
SURFACE = PolynomialSurface()
THETA = torch.linspace(-0.95, 0.95, 60)[:, None]
NEW_THETA = THETA[::6]
NEW_X = SURFACE.simulate(NEW_THETA, seed=2)


def close(found, told, rel=1e-4):
    return found.flatten().tolist() == pytest.approx(torch.tensor(told).flatten().tolist(), rel=rel, abs=rel)


def densities(estimator, theta=NEW_THETA, x=NEW_X):
    with torch.no_grad():
        return estimator.log_prob(x[None], theta)[0].double()


@pytest.mark.parametrize("name", ["mflow", "af", "pie", "meflow", "warped"])
def test_an_estimator_has_the_density_that_it_had(name):
    told = TOLD[name]
    theta, x = (torch.tensor(told[each]) if each in told else new for each, new in (("theta", NEW_THETA), ("x", NEW_X)))
    x = x.double() if name == "warped" else x
    assert close(densities(load(KEPT / f"{name}.safetensors"), theta, x), told["log_prob"])


def test_an_autoencoder_has_the_coordinates_that_it_had():
    assert close(load(KEPT / "pae.safetensors").model.encode(NEW_X).detach(), TOLD["pae"]["u"])


def test_the_demos_estimator_has_the_density_that_it_had():
    assert close(densities(load(KEPT / "demo.safetensors")), TOLD["demo"]["log_prob"])


def test_a_ratio_is_what_it_was():
    ratio = load(KEPT / "ratio.safetensors").unnormalized_log_ratio(NEW_THETA, NEW_X)
    assert close(ratio.detach(), TOLD["ratio"]["log_ratio"])


@pytest.mark.filterwarnings("ignore:Training broke down")  # of scores of sixty rows
def test_a_trainer_has_its_simulations_and_trains_on_as_it_did():
    trainer = load_trainer(KEPT / "trainer.safetensors", SURFACE.prior)
    trainer.show_progress_bars = False
    assert trainer.simulations.digest() == TOLD["trainer"]["digest"]
    assert close(densities(trainer.estimator), TOLD["trainer"]["log_prob"])
    trainer.train(max_num_epochs=2, training_batch_size=20, restarts=0)
    assert close(densities(trainer.estimator), TOLD["trainer"]["trained on"], rel=0.02)


def likelihood_with_scores():
    spec = MFlow(
        2,
        AffineCouplings(layers=2, width=8, depth=2, sharpness=2.0),
        SplineCouplings(layers=2, width=8, depth=2, bins=4),
    )
    trainer = ManifoldNLE(SURFACE.prior, spec, seed=0, show_progress_bars=False)
    x, joint_score, _ = simulate(SURFACE, THETA, seed=0)
    return trainer.append_simulations(THETA, x, joint_score=joint_score)


def ratio_with_gold():
    trainer = ALICES(SURFACE.prior, width=8, depth=2, seed=0, show_progress_bars=False)
    at_theta = torch.arange(60) % 2 == 0
    return trainer.append_simulations(simulate(SURFACE, THETA, theta_ref=torch.zeros(1), from_theta=at_theta, seed=1))


@pytest.mark.filterwarnings("ignore:The chart is not clearly better")
@pytest.mark.parametrize(
    ("name", "made", "settings"),
    [
        ("checkpoint-mflow", likelihood_with_scores, {"max_num_epochs": 6, "restarts": 0}),
        ("checkpoint-ratio", ratio_with_gold, {"max_num_epochs": 4}),
    ],
)
def test_a_training_that_was_stopped_in_its_last_epoch_is_finished_as_if_it_had_not_been(
    name, made, settings, tmp_path
):
    folder = shutil.copytree(KEPT / name, tmp_path / name)
    trainer = made()
    trainer.train(training_batch_size=20, checkpoint=folder, resume_training=True, **settings)
    *before, last = [epoch.validation_loss for epoch in trainer.history.epochs]
    assert before == TOLD[name]["losses"][:-1]  # read from the file, not learned again
    assert last == pytest.approx(TOLD[name]["losses"][-1], rel=1e-3)
    weights = sum(float(value.double().sum()) for value in trainer.estimator.state_dict().values())
    assert weights == pytest.approx(TOLD[name]["sum"], rel=1e-4)


def test_a_store_is_read_and_gone_on_with(tmp_path):
    folder = shutil.copytree(KEPT / "store", tmp_path / "store")
    whole = Store(folder).read()
    assert Store(folder).complete
    (folder / "marks" / "c.1.0").unlink()
    assert len(Store(folder)) == 20
    with pytest.warns(UserWarning, match="Whether the simulator is"):
        again = simulate_to_store(Plan(SURFACE, rows=40, shard_rows=20, seed=4), folder, show_progress_bar=False)
    for name, value in whole.fields.items():
        torch.testing.assert_close(again.read().fields[name], value)
