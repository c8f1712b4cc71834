from dataclasses import replace

import pytest

from mfsbi.bench import judge_lhc
from mfsbi.bench.judge import Candidate
from mfsbi.bench.judge_lhc import LHC_POINTS
from mfsbi.bench.report import by_simulations, report
from mfsbi.bench.run import experiments, read_results, run_table
from mfsbi.bench.tables import LHC_PRESETS, TABLES


@pytest.fixture(autouse=True)
def small(monkeypatch, short_noise):
    """One set of events for each point, and few cells."""
    for name, value in {"POINTS": 100, "EXACT_CELLS": 300, "FINE_CELLS": 30}.items():
        monkeypatch.setattr(judge_lhc, name, value)
    budget = replace(LHC_PRESETS["smoke"], simulations=300, chart_steps=5, density_steps=3, ambient_steps=2, sets=1)
    monkeypatch.setitem(LHC_PRESETS, "smoke", replace(budget, peer_seconds=0.5))


def exact(process, shift=0.0):
    """Return the process itself as a candidate, its potential shifted by as much."""

    def potential(x):
        likelihood = process.likelihood(x)
        return lambda theta: likelihood.log_likelihood(theta.double() + shift)

    return Candidate(potential, lambda theta: process.simulate(theta, seed=5), lambda x, _: x)


def test_the_judge_finds_nothing_wrong_with_the_truth_and_much_with_a_shift():
    process = TABLES["lhc"].truth
    result = judge_lhc.judge_lhc(exact(process), process, sets=1)
    assert len(result["kls"]) == len(LHC_POINTS)
    assert max(result["kls"]) < 1e-6
    assert result["closure"] < 1e-9
    assert result["log_posterior"] == pytest.approx(result["exact_log_posterior"], abs=1e-4)
    wrong = judge_lhc.judge_lhc(exact(process, shift=0.1), process, sets=1)
    assert wrong["kls"][0] > 1.0  # where 20 events know theta to 0.03
    assert wrong["log_posterior"] < result["log_posterior"]


@pytest.mark.filterwarnings("ignore:The chart", "ignore:torch.triangular_solve")
@pytest.mark.parametrize(
    "row",
    [
        pytest.param("AF (SCANDAL)", marks=pytest.mark.slow),
        "MFlow (SCANDAL)",
        "PIE (original)",
        "PAE (SCANDAL)",
        "ALICES",
        pytest.param("sbi NLE, nsf", marks=pytest.mark.slow),
    ],
)
def test_a_row_is_run_and_judged(row, tmp_path, monkeypatch):
    for name, value in {"COARSE_CELLS": 12, "FINE_CELLS": 10}.items():
        monkeypatch.setattr(judge_lhc, name, value)
    run_table("lhc", "smoke", tmp_path, only=row, show_progress_bars=False)
    (found,) = read_results(tmp_path, experiments("lhc", "smoke"))
    result = found["result"]
    assert "failed" not in result
    assert ("closure" in result) == (row != "ALICES")
    assert ("reconstruction" in result) == (row not in ("AF (SCANDAL)", "ALICES", "sbi NLE, nsf"))
    assert result["kl"] == pytest.approx(sum(result["kls"]) / 3)
    assert f"| {row} |" in report("lhc", "smoke", tmp_path)


def test_what_simulations_teach_is_the_median_by_their_number(tmp_path):
    for preset, kl in (("1e3", 2.0), ("1e4", 1.0), ("quick", 9.0), ("paper", 0.5)):
        for each in experiments("lhc", preset):
            if each.row.name in ("MFlow", "MFlow (SCANDAL)", "ALICES", "PIE (original, SCANDAL)"):
                each.write(tmp_path, {"kl": kl + each.seed} if each.row.name == "MFlow" else {"kl": kl / 10})
            if each.row.name == "PAE" and preset == "paper":  # one number alone teaches nothing of this
                each.write(tmp_path, {"kl": kl})
    plain, golden = by_simulations("lhc", tmp_path)
    assert plain == {"MFlow": {1_000: 2.0, 10_000: 1.0, 1_000_000: 1.5}}
    assert golden["MFlow"] == golden["PIE (original)"] == {1_000: 0.2, 10_000: 0.1, 1_000_000: 0.05}
    assert set(golden) == {"MFlow", "ALICES", "PIE (original)"}
