import json
import os
import re
import signal
import sys
from functools import partial

import arviz
import numpy as np
import pytest
import torch
from matplotlib import image
from typer.testing import CliRunner

from mfsbi import MFlow, demo, load, load_trainer
from mfsbi.cli import app
from mfsbi.gold import read_madminer
from mfsbi.inference.to_arviz import read
from mfsbi.plugin.ratio import ALICES, GoldenRatio
from mfsbi.priors import box
from mfsbi.registry import named
from mfsbi.seeds import derived
from mfsbi.train import losses
from mfsbi.train.checkpoint import Checkpoints
from simulators.polynomial import PolynomialSurface
from tests.problems import surface_data, write_madminer, write_mined_surface

TINY = ["demo", "--simulations", "1000", "--quiet"]


@pytest.fixture
def short(monkeypatch, short_chains):
    """A demo of a few steps: it cannot learn much, and says so."""
    monkeypatch.setattr("mfsbi.train.schedules.steps_of_chart", lambda *_: 20)
    monkeypatch.setattr("mfsbi.train.loop.LONGEST", 20)
    monkeypatch.setattr(demo, "sample_chains", partial(demo.sample_chains, draws=400))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore:The chart", "ignore:There are few")
def test_the_demo_leaves_draws_estimator_figures_and_numbers_and_the_same_for_one_seed(short, tmp_path):
    result = run(*TINY, "--out", tmp_path / "demo")
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "demo") in result.output.replace("\n", "")
    for row in ("reconstruction error", "manifold distance", "posterior mean", "TV distance", "R-hat", "effective"):
        assert row in result.output
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    pictures = {"training.png", "surface.png", "posterior.png", "trace.png", "rank.png"}
    assert names == pictures | {"posterior.nc", "estimator.safetensors", "result.json"}
    numbers = json.loads((tmp_path / "demo" / "result.json").read_text())
    data = arviz.from_netcdf(str(tmp_path / "demo" / "posterior.nc"))
    assert float(data["posterior"]["theta"].mean()) == pytest.approx(numbers["mean"], abs=1e-5)
    assert load(tmp_path / "demo" / "estimator.safetensors").input_shape == (3,)
    assert run(*TINY, "--out", tmp_path / "again").exit_code == 0
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again | {"seconds": 0} == numbers | {"seconds": 0}


def test_help_teaches():
    assert "Simulate, train, sample, compare" in run("demo", "--help").output


def test_an_interrupted_demo_saves_the_estimator_and_fails(short, tmp_path, monkeypatch):
    monkeypatch.setattr("mfsbi.train.schedules.reconstruction", interrupting_reconstruction())
    with pytest.warns(UserWarning, match="Training was interrupted"):
        result = run(*TINY, "--out", tmp_path)
    assert result.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["estimator.safetensors"]


def interrupting_reconstruction():
    calls = []

    def reconstruction(model, batch):
        calls.append(1)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return losses.reconstruction(model, batch)

    return reconstruction


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return a folder with a model of a few epochs, trained by the command, and arrays to use it on."""
    folder = tmp_path_factory.mktemp("trained")
    surface, theta, x = surface_data(600)
    np.save(folder / "theta.npy", theta.numpy())
    np.save(folder / "x.npy", x.numpy())
    np.savez(folder / "sims.npz", theta=theta.numpy(), x=x.numpy())
    np.save(folder / "x_o.npy", surface.simulate(torch.zeros(5, 1), seed=1).numpy())
    np.save(folder / "nan.npy", np.full((5, 3), np.nan))
    out = folder / "model.safetensors"
    arrays = [folder / "theta.npy", folder / "x.npy"]
    result = run("train", *arrays, "--prior", "-1:1", "--model", "AF", "--epochs", 2, "--quiet", "--out", out)
    assert result.exit_code == 0, result.output
    return folder


def test_training_on_arrays_saves_model_and_simulations(trained):
    trainer = load_trainer(trained / "model.safetensors", box(["-1:1"]))
    assert len(trainer.simulations[0].theta) == 600
    assert [epoch.phase for epoch in trainer.history.epochs] == [0, 0, 1, 1]  # once for each member


@pytest.mark.filterwarnings("ignore:The ch")
def test_training_on_a_simulator_knows_prior_and_dimension(tmp_path):
    out = tmp_path / "model.safetensors"
    line = "train", "polynomial", "--simulations", 300, "--epochs", 2, "--coordinates", "0,2", "--quiet", "--out", out
    result = run(*line)
    assert result.exit_code == 0, result.output
    assert load(out).spec == MFlow(manifold_dim=2, coordinates=(0, 2))
    assert "reconstruction" in result.output


@pytest.mark.filterwarnings("ignore:The ch")
def test_a_store_is_learned_from_and_what_was_killed_goes_on(tmp_path, monkeypatch):
    sims, out = tmp_path / "sims", tmp_path / "model.safetensors"
    result = run("simulate", "polynomial", "-n", 400, "--shard-rows", 40, "--out", sims, "--quiet")
    assert result.exit_code == 0, result.output
    line = "train", sims, "--manifold-dim", 2, "--epochs", 2, "--no-gold", "--quiet", "--out", out, "--resume"
    write = Checkpoints.write

    def terminated(self, snapshot):
        os.kill(os.getpid(), signal.SIGTERM)
        write(self, snapshot)

    monkeypatch.setattr("mfsbi.plugin.rounds.IN_MEMORY", 4000)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", terminated)
        result = run(*line)
        assert result.exit_code == 143, result.output
    assert not out.exists()
    result = run(*line)
    assert result.exit_code == 0, result.output
    assert "Learning from Store(" in result.output
    assert load(out).spec == MFlow(manifold_dim=2)
    assert {path.name for path in tmp_path.iterdir()} == {"sims", "model.safetensors"}


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    result = run("train", "polynomial", "--simulations", 30, "--epochs", 2, "--out", tmp_path / "model.safetensors")
    assert result.exit_code == 2
    assert "its folder may not be written to. Choose another place by --out" in result.output


@pytest.mark.filterwarnings("ignore:The ch", "ignore:Training was interrupted")
def test_what_was_interrupted_goes_on_as_well(tmp_path, monkeypatch):
    out, kept = tmp_path / "model.safetensors", tmp_path / "model.safetensors.checkpoints"
    simulator = "polynomial", "--simulations", 300, "--epochs", 6, "--no-gold", "--quiet"
    line = "train", *simulator, "--out", out, "--resume"
    write = Checkpoints.write

    def interrupted(self, snapshot):
        write(self, snapshot)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", interrupted)
        result = run(*line)
    assert result.exit_code == 130, result.output
    assert f"stays in {kept}" in result.output
    np.save(tmp_path / "x_o.npy", np.zeros((2, 2)))
    with pytest.warns(UserWarning, match="training of .* was interrupted"):
        run("sample", out, tmp_path / "x_o.npy", "--prior", "-1:1", "--out", tmp_path / "nowhere.nc", "--draws", 4)
    assert len(load(out).training_record["epochs"]) == 3
    result = run(*line)
    assert result.exit_code == 0, result.output
    assert len(load(out).training_record["epochs"]) == 9  # three of the chart and of each member of the density
    assert not kept.exists()


@pytest.mark.parametrize("ending", ["nc", "zarr"])
@pytest.mark.filterwarnings("ignore:There are few independent draws")
def test_sampling_leaves_an_arviz_file(trained, tmp_path, ending):
    out = tmp_path / f"posterior.{ending}"
    settings = ["--sampler", "grid", "--draws", 50, "--quiet", "--simulator", "polynomial"]
    result = run("sample", trained / "model.safetensors", trained / "x_o.npy", *settings, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Posterior by grid" in result.output
    data = read(out)
    assert data["posterior"]["theta"].shape == (4, 50)
    assert data["observed_data"]["x"].shape == (5, 3)
    assert f"{float(data['posterior']['theta'].mean()):.3f}" in result.output


def test_bounds_replace_the_prior_of_a_simulator(trained, tmp_path):
    out = tmp_path / "model.safetensors"
    line = "train", "polynomial", "--model", "AF", "--simulations", 60, "--epochs", 1, "--quiet", "--out", out
    assert run(*line, "--prior", "0:0.5").exit_code == 0
    theta = load_trainer(out, box(["0:0.5"])).simulations[0].theta
    assert 0 <= float(theta.min()) < float(theta.max()) <= 0.5
    result = run(*line, "--prior", "0:1", "--prior", "0:1")
    assert result.exit_code == 2
    assert "There should be a --prior for each of theta, or none; got 2" in result.output
    out = tmp_path / "posterior.nc"
    settings = ["--sampler", "grid", "--draws", 200, "--simulator", "polynomial", "--prior", "0:0.5", "--out", out]
    assert run("sample", trained / "model.safetensors", trained / "x_o.npy", *settings).exit_code == 0
    assert 0 <= float(read(out)["posterior"]["theta"].min()) < float(read(out)["posterior"]["theta"].max()) <= 0.5


def test_a_prior_wider_than_what_was_learned_is_said(trained, tmp_path):
    settings = ["--sampler", "grid", "--draws", 200, "--quiet", "--out", tmp_path / "posterior.nc"]
    with pytest.warns(UserWarning, match=r"6\d % of the prior of parameter 0 lies outside -\d.*, where theta was"):
        run("sample", trained / "model.safetensors", trained / "x_o.npy", "--prior", "-3:3", *settings)


def test_draws_go_where_their_ending_can_be_read(trained, tmp_path):
    out = tmp_path / "posterior.txt"
    result = run("sample", trained / "model.safetensors", trained / "x_o.npy", "--prior", "-1:1", "--out", out)
    assert result.exit_code == 2
    assert "`--out` should end in .nc or .zarr" in result.output


ROWS_ONLY = """
from simulators.polynomial import PolynomialSurface

class Surface(PolynomialSurface):
    def simulate(self, theta, *, seed=None):
        if theta.ndim != 2:
            raise IndexError("theta should have two axes, as is promised")
        return super().simulate(theta, seed=seed)
"""


def test_a_simulator_to_be_calibrated_with_sees_rows(trained, tmp_path, monkeypatch, short_chains):
    (tmp_path / "of_rows.py").write_text(ROWS_ONLY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    settings = ["--sets", 4, "--events", 3, "--draws", 20]
    out = tmp_path / "calibration.png"
    result = run("calibrate", trained / "model.safetensors", "of_rows:Surface", *settings, "--out", out)
    require_verdict_and_figure(result, out, sets=4)


def require_verdict_and_figure(result, out, sets, code=0):
    """The exit code is that of the verdict, and the figure has panels of ranks and of regions, with curves in them."""
    assert result.exit_code == code, result.output
    assert re.search(f"{['No fault found', '(NOT calibrated|Too wide)'][code]} in {sets} data sets", result.output)
    pixels = image.imread(out)[..., :3]
    dark = (pixels.mean(-1) < 0.5).mean(0)  # by column
    left, right = np.array_split(dark, 2)
    assert min(left.max(), right.max()) > 0.2  # axes in either half
    assert (np.ptp(pixels, axis=-1) > 0.2).sum() > 200  # coloured lines


def test_calibration_leaves_a_figure_and_a_verdict(trained, tmp_path, short_chains):
    out = tmp_path / "calibration.png"
    settings = ["--sets", 10, "--events", 2, "--draws", 20]
    result = run("calibrate", trained / "model.safetensors", "polynomial", *settings, "--out", out)
    require_verdict_and_figure(result, out, sets=10)


def test_a_posterior_that_is_wrong_is_told_by_exit_code_and_verdict(trained, tmp_path, short_chains):
    """All data sets come from the edge of the prior, where no ranks of a posterior are uniform."""
    theta, out = torch.full((20, 1), 0.999), tmp_path / "calibration.png"
    np.save(tmp_path / "theta.npy", theta.numpy())
    np.save(tmp_path / "x.npy", PolynomialSurface().simulate(theta[:, None].expand(-1, 2, -1), seed=0).numpy())
    arrays = tmp_path / "theta.npy", tmp_path / "x.npy"
    settings = ["--prior", "-1:1", "--draws", 20, "--out", out]
    result = run("calibrate", trained / "model.safetensors", *arrays, *settings)
    require_verdict_and_figure(result, out, sets=20, code=1)


QUICK = ["--epochs", 2, "--quiet"]


@pytest.fixture(scope="module")
def mined(tmp_path_factory):
    """Return a folder of MadMiner's, with `train` for ratios and `density` for densities."""
    folder = tmp_path_factory.mktemp("samples")
    write_mined_surface(folder)
    sample = read_madminer(folder)
    rows = sample.from_theta
    fields = {"x": sample.x, "theta": sample.theta, "t_xz": sample.joint_score}
    write_madminer(folder, "density", **{word: value[rows].numpy() for word, value in fields.items()})
    return folder


def learned(out, prior, *words):
    """Train by the command and return its trainer, and what it printed."""
    result = run("train", *words, *QUICK, "--out", out)
    assert result.exit_code == 0, result.output
    return load_trainer(out, prior), result.output.replace("\n", " ")


def gold_of(trainer):
    """Return the names of what a trainer's simulations have besides theta and x."""
    batch = trainer.simulations[0].batch.fields
    return {name for name, value in batch.items() if value is not None} - {"theta", "x"}


@pytest.mark.parametrize("name", ["polynomial", "lhc"])
def test_a_simulator_with_gold_teaches_its_joint_score_unless_told_not_to(tmp_path, name):
    words = [name, "--model", "AF", "--simulations", 60]
    prior = named(name).prior
    trainer, said = learned(tmp_path / "model", prior, *words)
    assert gold_of(trainer) == {"joint_score"}
    assert trainer.history.losses == ["scandal(nll)"]
    assert "Learning from 60 simulations, with joint score." in said
    plain, said = learned(tmp_path / "plain", prior, *words, "--no-gold")
    assert gold_of(plain) == set()
    assert "Learning from 60 simulations." in said
    assert (plain.simulations[0].x == trainer.simulations[0].x).all()


def test_a_flow_learns_the_joint_score_of_a_sample_of_madminers(mined, tmp_path):
    words = ["--madminer", mined, "--sample", "density", "--prior", "-1:1", "--model", "AF"]
    trainer, said = learned(tmp_path / "model", box(["-1:1"]), *words)
    assert gold_of(trainer) == {"joint_score"}
    assert (trainer.simulations[0].x == read_madminer(mined, "density").x).all()
    assert "Learning from 200 simulations, with joint score." in said


def test_a_flow_takes_the_rows_drawn_at_theta_of_a_sample_for_ratios_and_says_so(mined, tmp_path):
    words = ["--madminer", mined, "--prior", "-1:1", "--model", "AF"]
    trainer, said = learned(tmp_path / "model", box(["-1:1"]), *words)
    sample = read_madminer(mined)
    assert (trainer.simulations[0].theta == sample.theta[sample.from_theta]).all()
    assert "drawn at theta0 alone, not from all 400 simulations, 200 of them drawn at the reference" in said
    assert "Learning from 200 simulations, with joint score." in said


ALL_GOLD = {"joint_score", "joint_log_ratio", "from_theta"}
RATIOS = {
    "a simulator with gold": (["polynomial", "--simulations", 60], ALL_GOLD),
    "a simulator told to keep it": (["polynomial", "--simulations", 60, "--no-gold"], set()),
    "arrays": (["{0}/theta.npy", "{0}/x.npy", "--prior", "-1:1"], set()),
    "a sample for ratios": (["--madminer", "{1}", "--prior", "-1:1"], ALL_GOLD),
    "its labels alone": (["--madminer", "{1}", "--prior", "-1:1", "--no-gold"], {"from_theta"}),
    "a sample for densities": (["--madminer", "{1}", "--sample", "density", "--prior", "-1:1"], {"joint_score"}),
}


@pytest.mark.parametrize("name", RATIOS)
def test_ratios_are_learned_from_any_source_with_the_gold_it_has(trained, mined, tmp_path, name):
    words, gold = RATIOS[name]
    words = [str(word).format(trained, mined) for word in words]
    trainer, _ = learned(tmp_path / "model", box(["-1:1"]), *words, "--model", "ALICES")
    assert isinstance(trainer, ALICES)
    assert gold_of(trainer) == gold
    assert trainer.history.losses == ["alices"]


def test_a_simulator_without_gold_is_compared_with_all_x(tmp_path):
    trainer, said = learned(
        tmp_path / "model", named("sphere").prior, "sphere", "--simulations", 60, "--model", "ALICES"
    )
    assert gold_of(trainer) == set()
    assert "Learning from 60 simulations." in said


def test_half_of_a_simulators_x_are_drawn_at_the_mean_of_the_prior(tmp_path):
    words = ["polynomial", "--simulations", 60, "--model", "ALICES"]
    trainer, said = learned(tmp_path / "model", box(["-1:1"]), *words)
    batch = trainer.simulations[0].batch
    assert float(batch.from_theta.mean()) == 0.5
    at = torch.where(batch.from_theta[:, None] > 0, batch.theta, batch.theta.mean(0))
    assert (batch.x == named("polynomial").simulate(at, seed=derived(0, 1))).all()
    assert "60 simulations, 30 of them drawn at the reference, with joint score and joint log ratio." in said


@pytest.fixture(scope="module")
def ratio(tmp_path_factory):
    """Return a file with a ratio of a few epochs."""
    out = tmp_path_factory.mktemp("ratio") / "ratio.safetensors"
    words = ["polynomial", "--model", "ALICES", "--simulations", 400, *QUICK]
    assert run("train", *words, "--out", out).exit_code == 0
    return out


@pytest.mark.filterwarnings("ignore:There are few independent draws")
def test_a_ratio_is_sampled_like_a_likelihood(trained, ratio, tmp_path):
    out = tmp_path / "posterior.nc"
    settings = ["--sampler", "grid", "--draws", 50, "--quiet", "--simulator", "polynomial"]
    result = run("sample", ratio, trained / "x_o.npy", *settings, "--out", out)
    assert result.exit_code == 0, result.output
    assert isinstance(load(ratio), GoldenRatio)
    assert read(out)["posterior"]["theta"].shape == (4, 50)


def test_a_ratio_is_calibrated_like_a_likelihood(ratio, tmp_path, short_chains):
    out = tmp_path / "calibration.png"
    result = run("calibrate", ratio, "polynomial", "--sets", 2, "--events", 2, "--draws", 20, "--out", out)
    require_verdict_and_figure(result, out, sets=2)


@pytest.mark.parametrize("verb", ["train", "sample", "calibrate"])
def test_help_shows_how_to_begin(verb):
    assert f"mfsbi {verb} " in run(verb, "--help").output
