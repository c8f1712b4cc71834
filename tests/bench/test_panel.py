"""The panel: its judge, its tables and its report."""

import pytest
import torch
from torch.distributions import Normal

from mfsbi.bench import judge_laws
from mfsbi.bench.dimensions import compare_dimensions
from mfsbi.bench.judge import Candidate
from mfsbi.bench.judge_laws import judge_law
from mfsbi.bench.report import panel
from mfsbi.bench.run import experiments, run_table
from mfsbi.bench.tables import PANEL, TABLES
from simulators.laws import LAWS, law


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Fewer points and shorter walks."""
    for name, value in {"POINTS": 500, "CANDIDATES": 2000, "STEPS": 60}.items():
        monkeypatch.setattr(judge_laws, name, value)
    judge_laws._posteriors.cache_clear()


def candidate(problem, spread=1.0):
    """Return the banana with spreads too wide by a factor."""

    def log_prob(x, theta):
        bent = torch.stack([x[..., 0], x[..., 1] - x[..., 0].square()], -1)
        return Normal(theta, 0.3 * spread).log_prob(bent).sum(-1)

    return Candidate(lambda x: lambda theta: log_prob(x, theta[:, None]).sum(-1), log_prob=log_prob)


def test_the_truth_is_found_without_fault_and_a_wide_law_by_as_much_as_it_is_wide():
    problem = LAWS["banana"]
    right = judge_law(candidate(problem), problem, sets=2)
    assert abs(right["gap"]) < 1e-5
    assert max(right["tv_1"], right["tv_20"]) < 1e-3
    wide = judge_law(candidate(problem, spread=2.0), problem, sets=2)
    expected = 2 * (torch.tensor(2.0).log() - 0.375).item()  # KL of N(0, 1) to N(0, 2^2), twice
    assert wide["gap"] == pytest.approx(expected, abs=0.1)
    assert wide["worst"] > wide["gap"]
    assert min(wide["tv_1"], wide["tv_20"]) > 0.15
    assert wide["tv_1"] == pytest.approx(sum(wide["tvs_1"]) / 2)


def test_every_problem_is_there_plain_and_lifted():
    assert set(PANEL) == set(LAWS)
    for name in PANEL:
        assert TABLES[f"law-{name}"].truth is LAWS[name]
        assert TABLES[f"law-{name}-lifted"].truth.manifold_dim == LAWS[name].data_dim
    rows = {run.row.name for run in experiments("law-banana-lifted", "1e3")}
    assert rows == {"AF", "MFlow", "MFlow (SCANDAL)", "sbi NLE, maf", "sbi NLE, nsf"}


def test_it_is_reported_with_geometric_means(tmp_path):
    for problem, gaps in {"banana": (0.1, 0.4), "modes": (0.4, 0.1)}.items():
        for table in (f"law-{problem}", f"law-{problem}-lifted"):
            for each in experiments(table, "1e3"):
                gap = gaps["sbi" in each.row.name]
                each.write(tmp_path, {"gap": gap, "tv_1": gap / 2, "tv_20": gap, "cpu_seconds": 3.0})
    text = panel("1e3", tmp_path)
    assert "| banana | 0.1 | 0.1 | 0.4 | 0.4 |" in text
    assert "| geometric mean of 2 | 0.2 | 0.2 | 0.2 | 0.2 |" in text
    with pytest.raises(FileNotFoundError, match="no results of the panel"):
        panel("1e4", tmp_path)


@pytest.mark.filterwarnings("ignore:The chart is not clearly better")
@pytest.mark.parametrize(("table", "row"), [("law-banana", "AF"), ("law-banana-lifted", "MFlow")])
def test_a_row_is_run_and_judged(table, row, tmp_path, monkeypatch):
    monkeypatch.setattr("mfsbi.train.loop.LONGEST", 20)
    monkeypatch.setattr("mfsbi.train.schedules.steps_of_chart", lambda *_: 5)
    run_table(table, "smoke", tmp_path, only=row, show_progress_bars=False)
    text = panel("smoke", tmp_path)
    assert "| banana |" in text
    assert law("banana").data_dim == 2


def test_dimensions_are_found_beside_others(tmp_path, monkeypatch):
    pytest.importorskip("skdim")
    monkeypatch.setattr("mfsbi.dimension.steps_of_chart", lambda rows: 400)
    (row,) = compare_dimensions(["banana"], 1000, out=tmp_path)
    assert (row.law, row.features, row.true, row.scan) == ("banana", 8, 2, 2)
    assert abs(row.two_nn - 2) < 0.5
    assert 1 <= row.local_pca <= 8
    assert "| banana | 8 | 2 | 2 |" in (tmp_path / "dimensions.md").read_text()
    assert (tmp_path / "dimensions.json").is_file()
