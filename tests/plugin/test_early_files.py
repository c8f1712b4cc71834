"""Files of version 0.1, as it wrote them in November 2026, load and predict what was predicted then."""

import json
from pathlib import Path

import pytest
import torch

from mfsbi import load, load_trainer
from tests.problems import SPECS, plane, surface_data

SAVED = Path(__file__).parent / "saved"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_an_early_file_predicts_what_it_did(name):
    spec = type(SPECS["FOM"])(SPECS["FOM"].decode, SPECS["FOM"].encode, load(SAVED / "PIE.safetensors").spec.latent)
    estimator = load(SAVED / f"{name}.safetensors", spec if name == "FOM" else None)
    theta, x = plane(100 if name == "bent" else 40)
    if name == "bent":
        x[:, 2] = (3 * x[:, 2]).exp()
    predict = (lambda x, theta: estimator.unnormalized_log_ratio(theta, x)) if name == "ratio" else estimator.loss
    torch.testing.assert_close(predict(x[:3], theta[:3]), torch.tensor(EXPECTED[name]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["MFlow", "ratio"])
def test_an_early_trainer_trains_on(name):
    trainer = load_trainer(SAVED / f"{name}.safetensors", surface_data(2)[0].prior)
    trainer.show_progress_bars = False
    settings = {"restarts": 0} if name == "MFlow" else {}
    assert trainer.train(max_num_epochs=2, training_batch_size=20, **settings) is not None
