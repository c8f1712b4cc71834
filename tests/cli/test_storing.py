import json
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from mfsbi.cli import app, storing
from mfsbi.store import Store
from tests.simulating.problems import contents

MODULE = """
import torch

def simulate(theta):
    if (theta[:, 1] > 9.5).any():
        raise ArithmeticError("no solution")
    return theta + torch.randn(len(theta), 2)
"""


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_simulators.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_simulators:simulate"
    sys.modules.pop("my_simulators", None)


def test_a_simulator_fills_a_store_and_the_same_line_goes_on(tmp_path):
    line = ["simulate", "polynomial", "-n", "1e2", "--shard-rows", 25, "--out", tmp_path / "store"]
    result = run(*line, "--shard", "1/2")
    assert result.exit_code == 0, result.output
    assert "holds 50 of 100 simulations; 2 of 4 shards are finished" in result.output
    result = run(*line)
    assert "holds 100 of 100 simulations; 4 of 4 shards are finished" in result.output
    before = contents(tmp_path / "store")
    assert run(*line).exit_code == 0
    assert contents(tmp_path / "store") == before
    assert Store(tmp_path / "store").attributes["simulator"] == "polynomial"


def test_a_store_of_a_function_is_shown_and_checked(module, tmp_path):
    bounds = ["--prior", "-1:1", "--prior", "0:10"]
    out = tmp_path / "store"
    result = run("simulate", module, *bounds, "-n", 60, "--shard-rows", 20, "--out", out, "--max-failures", 0.5)
    assert result.exit_code == 0, result.output
    assert "failed; 3 of 3 shards" in result.output
    shown = run("store", "info", out).output
    assert "simulator: my_simulators:simulate" in shown
    assert "parameter names: ['theta_0', 'theta_1']" in shown
    assert "prior bounds: [[-1.0, 1.0], [0.0, 10.0]]" in shown
    result = run("store", "check", out, "--again", 2)
    assert result.exit_code == 0, result.output
    assert "2 shards came out the same again" in result.output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_is_sent_the_modules_and_packages_of_the_working_folder(tmp_path):
    """Scheduler and worker start in a folder where they see neither the simulator nor the package that it needs."""
    pytest.importorskip("distributed")
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "helping").mkdir()
    (here / "helping" / "more.py").write_text("def twice(theta): return 2 * theta")
    (here / "simulating.py").write_text("import helping.more\ndef simulate(theta): return helping.more.twice(theta)")
    file = there / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    parts = {"dask_scheduler": ["--port", "0"], "dask_worker": ["--nthreads", "1", "--no-nanny"]}
    started = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.{name}", *common, *options], cwd=there)
        for name, options in parts.items()
    ]
    line = ["simulate", "simulating:simulate", "--prior", "-1:1", "-n", "40", "--out", "sims", "--dask"]
    try:
        while not file.exists():
            time.sleep(0.1)
        line.append(json.loads(file.read_text())["address"])
        done = subprocess.run(
            [sys.executable, "-m", "mfsbi", *line], check=False, cwd=here, capture_output=True, text=True
        )
        assert "40 of 40 simulations" in done.stdout, done.stderr
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert (Store(here / "sims").x == 2 * Store(here / "sims").theta).all()


def test_a_damaged_store_is_an_exit_code_and_advice(tmp_path):
    run("simulate", "polynomial", "-n", 50, "--shard-rows", 25, "--out", tmp_path / "store")
    (tmp_path / "store" / "x" / "c.1.0").write_bytes(b"")
    result = run("store", "check", tmp_path / "store")
    assert result.exit_code == 1
    assert "Shard 1: cannot be read" in result.output
    assert "Remove marks/c.<shard>.0" in result.output


def test_an_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(storing, "simulate_to_store", interrupt)
    result = run("simulate", "polynomial", "-n", 50, "--out", tmp_path / "store")
    assert result.exit_code == 130
    assert "the same line again goes on" in result.output


@pytest.mark.parametrize("name", ["simulate"])
def test_help_shows_how_to_begin(name):
    assert f"mfsbi {name} polynomial -n 1e7" in run(name, "--help").output
