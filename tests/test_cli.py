import json

import arviz
import pytest
from typer.testing import CliRunner

from mfsbi import demo, load
from mfsbi.cli import app
from mfsbi.train import losses

TINY = ["demo", "--simulations", "1000", "--quiet"]


@pytest.fixture
def short(monkeypatch, short_chains):
    """A demo of a few steps: it cannot learn much, and says so."""
    settings = {"CHART_STEPS": 150, "CHART_ROWS": 100, "LATENT_STEPS": 20, "LATENT_ROWS": 100}
    for name, value in settings.items():
        monkeypatch.setattr(demo, name, value)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.filterwarnings("ignore:The ch")
def test_the_demo_leaves_draws_estimator_figures_and_numbers(short, tmp_path):
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


@pytest.mark.filterwarnings("ignore:The ch")
def test_one_seed_gives_one_demo(short, tmp_path):
    for name in "ab":
        assert run(*TINY, "--seed", 5, "--out", tmp_path / name).exit_code == 0
    first, second = (json.loads((tmp_path / name / "result.json").read_text()) for name in "ab")
    first.pop("seconds")
    second.pop("seconds")
    assert first == second


def test_an_unknown_simulator_is_refused_by_name(tmp_path):
    result = run("demo", "nonsense", "--out", tmp_path)
    assert result.exit_code == 2
    assert (
        "there is no simulator 'nonsense'; registered are circle, lorenz, polynomial, sphere"
        in result.stderr.replace("\n", " ")
    )


def test_an_unwritable_folder_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ManifoldNLE", None)
    (tmp_path / "file").write_text("in the way")
    result = run("demo", "--out", tmp_path / "file" / "demo")
    assert result.exit_code == 2
    assert "Cannot write to the folder" in result.stderr
    assert "Choose another one with --out" in result.stderr.replace("\n", " ")


@pytest.mark.parametrize(("option", "value"), [("--simulations", "-5"), ("--seed", "-1"), ("--simulations", "many")])
def test_options_out_of_range_are_refused(option, value):
    result = run("demo", option, value)
    assert result.exit_code == 2
    assert option in result.stderr


def test_help_teaches():
    assert "Simulate, train, sample, compare" in run("demo", "--help").output


def test_an_interrupted_demo_saves_the_estimator_and_fails(short, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "reconstruction", interrupting_reconstruction())
    with pytest.warns(UserWarning, match="Training was interrupted"):
        result = run(*TINY, "--out", tmp_path)
    assert result.exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["estimator.safetensors"]


def interrupting_reconstruction():
    calls = []

    def reconstruction(model, batch):
        calls.append(1)
        if len(calls) == 40:
            raise KeyboardInterrupt
        return losses.reconstruction(model, batch)

    return reconstruction


def test_markup_in_a_name_is_printed_as_it_is():
    assert "no simulator '[/b]'" in run("demo", "[/b]").stderr.replace("\n", " ")
