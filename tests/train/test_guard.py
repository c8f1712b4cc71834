import pytest
import torch
from torch import Generator

from mfsbi import AF, PIE, MFlow, ambient, density_only, sequential
from mfsbi.flows import SplineCouplings
from mfsbi.train.data import Batch, split
from mfsbi.train.guard import ChartGuard, judge_chart
from mfsbi.train.schedules import with_score
from tests.problems import plane, surface_data

SMALL = SplineCouplings(layers=2, width=16)


def divided(theta, x):
    return split([Batch(theta, x)], 0.2, Generator().manual_seed(0))


def test_an_untrained_chart_is_as_good_as_principal_components_and_collapsed():
    training, validation = divided(*surface_data(2000)[1:])
    verdict = judge_chart(MFlow(2, SMALL, SMALL).build(*training[:2]), training, validation)
    assert verdict.error == pytest.approx(verdict.principal_component_error, rel=1e-3)
    assert verdict.collapsed


def test_a_plane_is_found_by_principal_components_and_not_a_collapse():
    training, validation = divided(*plane())
    verdict = judge_chart(MFlow(2, SMALL, SMALL).build(*training[:2]), training, validation)
    assert verdict.principal_component_error < 1e-4
    assert not verdict.collapsed


@pytest.mark.parametrize(("may_stop", "goes_on"), [(True, False), (False, True)])
def test_the_guard_stops_a_collapsed_training_only_if_it_may(may_stop, goes_on):
    training, validation = divided(*surface_data(500)[1:])
    model = MFlow(2, SMALL, SMALL).build(*training[:2])
    guard = ChartGuard(model, sequential(4), training, validation, may_stop=may_stop)
    assert guard(1)
    assert guard.verdict is None
    assert guard(0) is goes_on
    assert guard.verdict.collapsed


@pytest.mark.parametrize(
    ("spec", "schedule"),
    [
        (AF(SMALL), sequential(2)),
        (MFlow(2, SMALL, SMALL), density_only(2)),
        (PIE(2, chart=SMALL, latent=SMALL), ambient(2)),
        (PIE(2, chart=SMALL, latent=SMALL), with_score(ambient(2))),
    ],
)
def test_nothing_is_judged_when_no_chart_is_trained(spec, schedule):
    training, validation = divided(*surface_data(500)[1:])
    guard = ChartGuard(spec.build(*training[:2]), schedule, training, validation, may_stop=True)
    assert all(guard(phase) for phase in range(len(schedule)))
    assert guard.verdict is None


def test_the_verdict_says_both_errors():
    training, validation = divided(*surface_data(500)[1:])
    text = str(judge_chart(MFlow(2, SMALL, SMALL).build(*training[:2]), training, validation))
    assert "held-out reconstruction error" in text
    assert "principal components" in text
    assert torch.get_default_dtype() is torch.float32
