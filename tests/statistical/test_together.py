"""`torchrun` with two processes against one: the same curve of losses at the same rows per step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mfsbi import files, load

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
TRAINING = """
import sys, torch
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
from mfsbi import MFlow, ManifoldNLE
from mfsbi.train.ranks import process_group
from simulators.polynomial import PolynomialSurface
surface = PolynomialSurface()
theta = 2 * torch.rand(20_000, 1, generator=torch.Generator().manual_seed(0)) - 1
with process_group() as ranks:
    trainer = ManifoldNLE(surface.prior, MFlow(2), seed=0, show_progress_bars=False)
    trainer.append_simulations(theta, surface.simulate(theta, seed=0)).train(max_num_epochs=10, restarts=0)
    if ranks.first:
        torch.save([[e.validation_loss, 18_000 / e.seconds] for e in trainer.history.epochs], sys.argv[1])
"""
COMMAND = ["-m", "mfsbi", "train", "polynomial", "--no-gold", "--simulations", "6000", "--epochs", "8", "--quiet"]


def start(command, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}  # one GPU would not do for two
    return subprocess.Popen([str(word) for word in command], cwd=folder, env=environment, start_new_session=True)


def run(command, folder):
    assert start(command, folder).wait() == 0


def test_two_processes_have_the_losses_of_one(tmp_path):
    """In float64: float32's rounding alone, data changed by 2e-7, moves the loss of a density by 1e-3 on its way."""
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    run([sys.executable, script, "one.pt"], tmp_path)
    run([*TORCHRUN, script, "two.pt"], tmp_path)
    one, two = (torch.tensor(torch.load(tmp_path / name)) for name in ("one.pt", "two.pt"))
    for (a, a_rate), (b, b_rate) in zip(one, two, strict=True):
        print(f"validation loss {a:.8f} {b:.8f}, rows per second {a_rate:.0f} {b_rate:.0f}")  # noqa: T201 - the report
    assert (one[:, 0] - two[:, 0]).abs().max() < 1e-4


def test_the_command_leaves_one_model_and_goes_on_after_sigterm(tmp_path):
    run([sys.executable, *COMMAND, "--out", "one.safetensors"], tmp_path)
    run([*TORCHRUN, *COMMAND, "--out", "two.safetensors"], tmp_path)
    records = [load(tmp_path / f"{name}.safetensors").training_record["epochs"] for name in ("one", "two")]
    for one, two in zip(*records, strict=True):
        assert one[4] == pytest.approx(two[4], abs=1e-2 if "nll" in one[1] else 1e-4)
    stopped = [*TORCHRUN, *COMMAND, "--resume", "--out", "stopped.safetensors"]
    process, kept = start(stopped, tmp_path), tmp_path / "stopped.safetensors.checkpoints"
    while not list(kept.glob("*.safetensors")):  # of the end of the first phase
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert list(kept.glob("*.safetensors"))
    run(stopped, tmp_path)
    assert not kept.exists()
    expected = files.read(tmp_path / "two.safetensors")[0]
    found = files.read(tmp_path / "stopped.safetensors")[0]
    assert all((expected[name] == value).all() for name, value in found.items())
