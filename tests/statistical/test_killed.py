"""Processes killed at random moments, with nothing lost."""

import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mfsbi import files

pytestmark = pytest.mark.slow

TRAINING = """
import sys, torch
from mfsbi import MFlow, ManifoldNLE, save
from simulators.polynomial import PolynomialSurface
torch.set_num_threads(1)
surface = PolynomialSurface()
theta = 2 * torch.rand(4000, 1, generator=torch.Generator().manual_seed(0)) - 1
x, score, _ = surface.simulate_with_gold(theta, seed=0)
trainer = ManifoldNLE(surface.prior, MFlow(2), seed=0, show_progress_bars=False)
trainer.append_simulations(theta, x, joint_score=score)
print("begins", flush=True)
trainer.train(
    max_num_epochs=40, restarts=0, checkpoint=sys.argv[1], checkpoint_minutes=float(sys.argv[3]), resume_training=True
)
save(trainer.estimator, sys.argv[2])
"""


def started(*arguments):
    process = subprocess.Popen([sys.executable, "-c", TRAINING, *map(str, arguments)], stdout=subprocess.PIPE)
    with process.stdout as said:
        said.readline()
    return process


def assert_same(killed, whole):
    tensors, expected = files.read(killed)[0], files.read(whole)[0]
    assert tensors.keys() == expected.keys()
    assert all((tensors[name] == expected[name]).all() for name in expected)


def test_a_training_killed_twenty_times_ends_as_one_that_never_was(tmp_path):
    whole, killed, kept = tmp_path / "whole.safetensors", tmp_path / "killed.safetensors", tmp_path / "kept"
    uninterrupted = started(tmp_path / "other", whole, 1e9)
    begins = time.perf_counter()
    assert uninterrupted.wait() == 0
    seconds = time.perf_counter() - begins
    generator, kills = random.Random(0), 0
    while kills < 20:
        process = started(kept, killed, 0.003)
        time.sleep(generator.uniform(0, seconds / 15))
        process.send_signal(signal.SIGTERM if kills == 10 else signal.SIGKILL)
        if process.wait() == 0:  # done before it could be killed: so another begins
            assert_same(killed, whole)
            shutil.rmtree(kept)
        else:
            assert process.returncode in {-signal.SIGKILL, 143, -signal.SIGTERM}
            kills += 1
    assert started(kept, killed, 0.003).wait() == 0
    assert_same(killed, whole)
