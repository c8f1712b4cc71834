import json

import pytest
import torch

from mfsbi.bench import peers
from mfsbi.bench.speed import Sizes, perturbed, speed
from mfsbi.charts import FlowChart
from mfsbi.flows import SplineCouplings


@pytest.fixture(scope="module")
def chart():
    torch.manual_seed(0)
    return FlowChart(perturbed(SplineCouplings(layers=3, bins=5, lu=True).build(6)), 3)


@pytest.mark.parametrize("peer", [peers.log_volume_by_jacfwd, peers.log_volume_by_layers])
def test_peers_compute_what_we_compute(chart, peer):
    u = torch.randn(4, 3)
    torch.testing.assert_close(peer(chart, u).float(), chart.log_volume(u), rtol=0, atol=1e-4)


@pytest.mark.parametrize("build", [peers.zuko_flow, peers.nflows_flow])
def test_peer_flows_have_as_many_weights(build):
    settings = SplineCouplings(layers=4, bins=11)
    ours, theirs = (sum(w.numel() for w in flow.parameters()) for flow in (settings.build(10), build(10, settings)))
    assert abs(ours / theirs - 1) < 0.05


@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.usefixtures("short_tuning")
def test_the_table_has_all_rows_and_is_written(tmp_path):
    sizes = Sizes(
        rows=20, few_rows=5, layers=2, chart_layers=2, draws=4, chains=2, warmup_steps=1, pairs=1, steps=20, seeds=1
    )
    table = speed(sizes, threads=1, out=tmp_path / "new")
    rows = json.loads((tmp_path / "new" / "speed.json").read_text())["rows"]
    assert [row["row"] for row in rows] == [score.row for score in table.scores]
    assert {row["peer"] for row in rows} >= {"zuko", "nflows", "vmap(jacfwd)", "ours, its networks alone", "import sbi"}
    assert "reconstruction" in table.facts["polynomial M-flow from scratch, seed 0"]
    assert (tmp_path / "new" / "speed.md").read_text().startswith("| row | against |")


def test_threads_come_back_also_after_an_interruption():
    def interrupt(row):
        raise KeyboardInterrupt

    before = torch.get_num_threads()
    with pytest.raises(KeyboardInterrupt):
        speed(Sizes(rows=5, layers=1, pairs=1), threads=before + 1, tell=interrupt)
    assert torch.get_num_threads() == before
