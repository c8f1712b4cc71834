import json
from dataclasses import replace

import pytest
import torch

from mfsbi import ManifoldNLE
from mfsbi.bench.judge import Candidate, judge_circle, judge_posteriors
from mfsbi.bench.report import report
from mfsbi.bench.rows import PRESETS
from mfsbi.bench.run import experiments, read_results, run_table
from mfsbi.bench.tables import TABLES
from simulators.polynomial import PolynomialSurface
from simulators.sphere import Circle

ROWS = {
    "AF", "FOM", "PIE (original)", "PIE (unconditional manifold)", "PAE",
    "MFlow simultaneous", "MFlow alternating", "MFlow sequential",
    "MeFlow simultaneous", "MeFlow alternating", "MeFlow sequential",
    "sbi NLE, maf", "sbi NLE, nsf", "sbi NLE, zuko_nsf",
}  # fmt: skip


def test_the_polynomial_table_has_all_rows_and_seeds():
    runs = experiments("polynomial", "paper")
    assert {run.row.name for run in runs} == ROWS
    seeds = {name: sorted(run.seed for run in runs if run.row.name == name) for name in ROWS}
    assert all(found == list(range(10 if name == "MFlow sequential" else 5)) for name, found in seeds.items())


def test_budgets_are_kept_in_steps():
    budget = PRESETS["paper"]
    rows = {row.name: row for row in TABLES["polynomial"].rows(budget)}
    for name in ("MFlow sequential", "MFlow alternating"):
        phases = [phase for phase in rows[name].schedule if "chart" in phase.trains]
        steps = sum(phase.epochs * 0.9 * budget.simulations / phase.rows for phase in phases)
        assert steps == pytest.approx(budget.chart_steps, rel=0.02)


def test_a_result_is_named_by_all_that_decides_it():
    run = experiments("polynomial", "smoke")[0]
    other = experiments("polynomial", "smoke")[0]
    assert run.name == other.name
    changed = [
        replace(run, seed=1),
        replace(run, budget=replace(run.budget, simulations=99)),
        replace(run, row=replace(run.row, cpu_seconds=1.0)),
        replace(run, row=replace(run.row, schedule=run.row.schedule * 2)),
        replace(run, row=replace(run.row, spec="maf")),
    ]
    assert len({run.name, *(each.name for each in changed)}) == 6


@pytest.fixture
def few(monkeypatch):
    """Fewer points to judge by."""
    monkeypatch.setattr("mfsbi.bench.judge.POINTS", 1000)


@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.parametrize("row", ["AF", "FOM", "PIE (original)", "PAE", "MFlow simultaneous", "sbi NLE, maf"])
def test_a_row_is_run_judged_and_not_run_again(row, tmp_path, monkeypatch):
    said = []
    budget = replace(PRESETS["smoke"], simulations=300, chart_steps=10, density_steps=3, ambient_steps=3, sets=4)
    monkeypatch.setitem(PRESETS, "smoke", replace(budget, peer_seconds=0.5))
    monkeypatch.setattr("mfsbi.bench.judge.CELLS", 100)
    for _ in range(2):
        run_table("polynomial", "smoke", tmp_path, only=row, show_progress_bars=False, tell=said.append)
    assert "done before" in said[1]
    (found,) = read_results(tmp_path, experiments("polynomial", "smoke"))
    assert found["experiment"]["row"] == row
    result = found["result"]
    assert result["tv"] == pytest.approx(sum(result["tvs"]) / 4)
    assert ("auc" in result) == (not row.startswith(("AF", "sbi")))
    assert ("auc_likelihood" in result) == (row.startswith(("AF", "PIE", "sbi")))
    assert row in report("polynomial", "smoke", tmp_path)


@pytest.mark.usefixtures("few")
@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.parametrize("row", ["AF", "FOM", "PIE", "PAE", "MFlow sequential"])
def test_the_circle_is_run_and_judged(row, tmp_path, monkeypatch):
    budget = replace(PRESETS["smoke"], simulations=300, chart_steps=10, density_steps=3, ambient_steps=3, sets=4)
    monkeypatch.setitem(PRESETS, "smoke", budget)
    run_table("circle", "smoke", tmp_path, only=row, show_progress_bars=False)
    (found,) = read_results(tmp_path, experiments("circle", "smoke"))
    assert ("kl_density" in found["result"]) == (row == "FOM")
    assert "published" not in report("circle", "smoke", tmp_path)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no preset 'huge'; there are smoke, quick, paper"):
        experiments("polynomial", "huge")
    with pytest.raises(ValueError, match="there is no table 'cube'"):
        experiments("cube", "smoke")
    with pytest.raises(ValueError, match="no row of 'polynomial' has 'GAN' in its name"):
        run_table("polynomial", "smoke", tmp_path, only="GAN")
    with pytest.raises(FileNotFoundError, match="run `mfsbi bench` first"):
        report("polynomial", "smoke", tmp_path)
    spoiled = experiments("polynomial", "smoke")[0].path(tmp_path)
    spoiled.parent.mkdir()
    spoiled.write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="should hold an `experiment` and its `result`"):
        report("polynomial", "smoke", tmp_path)


def test_medians_stand_beside_what_was_published(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], seeds=3))
    runs = [run for run in experiments("polynomial", "smoke") if run.row.name == "AF"]
    for each, distance in zip(runs, (0.001, 0.002, 0.9), strict=True):
        each.write(tmp_path, {"distance": distance, "collapses": int(distance > 0.5)})
    replace(runs[0], row=replace(runs[0].row, cpu_seconds=9.0)).write(tmp_path, {"distance": 5.0})  # of other settings
    text = report("polynomial", "smoke", tmp_path)
    assert "| AF | 3 | 0.0020 (0.005) | 1 | 0 |" in text
    assert "| AF | 0.0010 0.0020 0.9 |" in text


def test_a_run_that_fails_is_kept_and_counted_and_an_interrupted_one_is_not(tmp_path, monkeypatch):
    def fail(*_, **settings):
        raise ArithmeticError("training diverged")

    def interrupt(*_, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(ManifoldNLE, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_table("polynomial", "smoke", tmp_path, only="FOM")
    assert not list(tmp_path.rglob("*.json"))
    monkeypatch.setattr(ManifoldNLE, "train", fail)
    run_table("polynomial", "smoke", tmp_path, only="FOM")
    assert "| FOM | 1 | 0 | 1 |" in report("polynomial", "smoke", tmp_path)


def exact(simulator):
    """Return the simulator as a candidate."""
    return Candidate(
        lambda x: lambda theta: simulator.log_prob(x, theta[:, None]).double().sum(-1),
        lambda theta: simulator.simulate(theta, seed=5),
        lambda x, _theta: simulator.decode(simulator.encode(x)),
    )


@pytest.mark.usefixtures("few")
def test_the_judge_finds_nothing_wrong_with_the_truth():
    result = judge_posteriors(exact(PolynomialSurface()), PolynomialSurface(), sets=4)
    assert result["distance"] < 1e-6
    assert result["reconstruction"] < 1e-6
    assert result["auc"] > 0.999
    assert all(abs(result[name]) < 1e-9 for name in ("tv", "kl", "mmd2"))


@pytest.mark.usefixtures("few")
def test_the_judge_finds_the_prior_far_from_the_posterior():
    prior = replace(exact(PolynomialSurface()), potential=lambda _x: lambda theta: torch.zeros(len(theta)))
    result = judge_posteriors(prior, PolynomialSurface(), sets=4)
    assert 0.25 < result["tv"] < 0.55
    assert result["kl"] > 0.2


def test_what_cannot_tell_noise_gets_half_of_the_area():
    """Densities that see where along the circle a point lies, but not how far off it."""

    def along(x, theta):
        return Circle().log_prob(x / x.norm(dim=-1, keepdim=True), theta)

    result = judge_circle(replace(exact(Circle()), log_prob=along), Circle(), 4)
    assert result["auc_likelihood"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("seconds", "fewest", "most"), [(0.0, 1, 2), (1.0, 26, 10_000)])
def test_a_peer_trains_until_its_time_is_spent(seconds, fewest, most, tmp_path, monkeypatch):
    """sbi's trainer counts epochs without progress; calling it anew for each would stop it after twenty."""
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], simulations=200, peer_seconds=seconds, sets=1))
    run_table("polynomial", "smoke", tmp_path, only="sbi NLE, maf")
    (found,) = read_results(tmp_path, experiments("polynomial", "smoke"))
    assert fewest <= found["result"]["epochs"] <= most


def test_every_row_of_the_lhc_table_comes_with_scores_and_without():
    names = {run.row.name for run in experiments("lhc", "paper")}
    plain = {"AF", "PIE (original)", "PIE (unconditional manifold)", "PAE", "MFlow", "MeFlow"}
    scored = {"PIE (original, SCANDAL)", "PIE (unconditional manifold, SCANDAL)"}
    scored |= {f"{name} (SCANDAL)" for name in plain if "(" not in name}
    assert names == plain | scored | {"ALICES", "sbi NLE, nsf"}
    assert len(experiments("lhc", "paper")) == 42
