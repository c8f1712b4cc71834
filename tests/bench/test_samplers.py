import json
from functools import partial

import pytest

from mfsbi.bench.samplers import ROADS, Scale, as_markdown, compare_samplers


@pytest.mark.filterwarnings("ignore:The chart")
@pytest.mark.usefixtures("short_chains")
def test_every_sampler_has_a_row_and_slice_two(tmp_path, monkeypatch):
    from mfsbi.plugin.samplers import SAMPLERS

    quick = {"nuts": {"warmup": 5}, "hmc": {"warmup": 5}, "emcee": {"warmup": 5}, "vi": {"max_num_iters": 20}}
    for road, settings in quick.items():
        monkeypatch.setitem(SAMPLERS, road, partial(SAMPLERS[road], **settings))
    told = []
    scale = Scale(simulations=200, epochs=2, events=2, draws=5)
    rates = compare_samplers(["polynomial"], scale, threads=1, out=tmp_path / "new", tell=told.append)
    assert [rate.sampler for rate in rates] == [*ROADS, "slice, stock"]
    assert all(rate.effective > 0 and rate.per_second > 0 for rate in rates)
    assert rates[0].chains == rates[-1].chains == 4
    assert len(told) == 1 + len(rates)
    rows = json.loads((tmp_path / "new" / "samplers.json").read_text())
    assert [row["seconds"] for row in rows] == [rate.seconds for rate in rates]
    assert (tmp_path / "new" / "samplers.md").read_text() == f"{as_markdown(rates)}\n"


def test_simulators_without_parameters_are_refused():
    with pytest.raises(ValueError, match="'lorenz' has no parameters"):
        compare_samplers(["lorenz"])
