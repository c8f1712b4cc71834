import json
from dataclasses import replace

import pytest

from mfsbi.bench.experiment import Experiment, read_results
from mfsbi.bench.report import report
from mfsbi.bench.run import experiments, run_table
from mfsbi.bench.tables import PRESETS, TABLES

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
        replace(run, row=replace(run.row, learning_rate=1.0)),
        replace(run, row=replace(run.row, schedule=run.row.schedule * 2)),
        replace(run, row=replace(run.row, spec="maf")),
    ]
    assert len({run.name, *(each.name for each in changed)}) == 6


@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.parametrize("row", ["AF", "FOM", "PIE (original)", "PAE", "MFlow simultaneous", "sbi NLE, maf"])
def test_a_row_is_run_judged_and_not_run_again(row, tmp_path, monkeypatch):
    said = []
    budget = replace(PRESETS["smoke"], simulations=300, chart_steps=10, density_steps=3, ambient_steps=3)
    monkeypatch.setitem(PRESETS, "smoke", budget)
    for _ in range(2):
        run_table("polynomial", "smoke", tmp_path, only=row, show_progress_bars=False, tell=said.append)
    assert "done before" in said[1]
    (found,) = read_results(tmp_path / "polynomial-smoke")
    assert found["experiment"]["row"] == row
    result = found["result"]
    assert result["tv"] == pytest.approx(sum(result["tvs"]) / 10)
    assert ("auc" in result) == (not row.startswith(("AF", "sbi")))
    assert ("auc_likelihood" in result) == (row.startswith(("AF", "PIE", "sbi")))
    assert row in report(tmp_path / "polynomial-smoke")


@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.parametrize("row", ["AF", "FOM", "PIE", "PAE", "MFlow sequential"])
def test_the_circle_is_run_and_judged(row, tmp_path, monkeypatch):
    budget = replace(PRESETS["smoke"], simulations=300, chart_steps=10, density_steps=3, ambient_steps=3)
    monkeypatch.setitem(PRESETS, "smoke", budget)
    run_table("circle", "smoke", tmp_path, only=row, show_progress_bars=False)
    (found,) = read_results(tmp_path / "circle-smoke")
    assert ("kl" in found["result"]) == (row in ("FOM", "MFlow sequential"))
    assert "published" not in report(tmp_path / "circle-smoke")


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no preset 'huge'; there are smoke, quick, paper"):
        experiments("polynomial", "huge")
    with pytest.raises(ValueError, match="there is no table 'cube'"):
        experiments("cube", "smoke")
    with pytest.raises(ValueError, match="no row of 'polynomial' has 'GAN' in its name"):
        run_table("polynomial", "smoke", tmp_path, only="GAN")
    with pytest.raises(FileNotFoundError, match="run `mfsbi bench` first"):
        report(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match="should hold an `experiment` and its `result`"):
        report(tmp_path)


def test_medians_stand_beside_what_was_published(tmp_path):
    for seed, distance in enumerate((0.001, 0.002, 0.9)):
        run = replace(experiments("polynomial", "smoke")[0], seed=seed)
        assert isinstance(run, Experiment)
        run.write(tmp_path, {"distance": distance, "collapses": int(distance > 0.5)})
    text = report(tmp_path / "polynomial-smoke")
    assert "| AF | 3 | 0.0020 (0.005) | 1 |" in text
    assert "| AF | 0.0010 0.0020 0.9 |" in text
