import pytest
import torch

from mfsbi import AF, FOM, PIE, ManifoldNLE, MFlow, ambient
from mfsbi.train.losses import reconstruction
from mfsbi.train.schedules import Phase
from tests.problems import SMALL, off_plane, on_plane, surface_data

FEW = {"max_num_epochs": 2, "training_batch_size": 100, "restarts": 0}


def trainer(spec):
    surface, theta, x = surface_data(300)
    return ManifoldNLE(surface.prior, spec, show_progress_bars=False).append_simulations(theta, x)


def learned(spec, **settings):
    estimator = trainer(spec).train(**FEW, **settings)
    return torch.cat([value.flatten().float() for value in estimator.state_dict().values()])


def test_a_weight_decay_that_is_given_moves_an_ambient_flow():
    plain, none, some = (learned(AF(SMALL), **kind) for kind in ({}, {"weight_decay": 0.0}, {"weight_decay": 0.5}))
    assert (plain == none).all()
    assert not (plain == some).all()


def test_the_default_is_a_tenth_for_densities_on_a_given_manifold():
    spec = FOM(on_plane, off_plane, SMALL)
    assert (learned(spec) == learned(spec, weight_decay=0.1)).all()
    assert not (learned(spec) == learned(spec, weight_decay=0.0)).all()


@pytest.mark.filterwarnings("ignore:The chart is not clearly better")
def test_a_chart_that_is_learned_has_no_decay_whatever_is_given():
    spec = MFlow(2, SMALL, SMALL)
    charts = [trainer(spec).train(**FEW, weight_decay=decay).model.chart for decay in (0.0, 0.9)]
    for one, other in zip(*(chart.parameters() for chart in charts), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize(
    ("spec", "schedule"),
    [
        (PIE(2, chart=SMALL, latent=SMALL), None),
        (AF(SMALL), ambient(2)),
        (MFlow(2, SMALL, SMALL), [Phase(reconstruction, ("chart",), 2, decay=0.0)]),
    ],
)
def test_a_weight_decay_that_no_phase_has_is_refused(spec, schedule):
    with pytest.raises(ValueError, match=r"no phase of this schedule has weight decay; got 0\.2\. Pass a schedule"):
        trainer(spec).train(schedule, weight_decay=0.2, **FEW)


def test_a_schedule_that_says_so_decays():
    schedule = [phase._replace(decay=1.0) for phase in ambient(2)]
    assert (learned(AF(SMALL), schedule=schedule, weight_decay=0.5) == learned(AF(SMALL), weight_decay=0.5)).all()


def test_a_negative_weight_decay_is_refused():
    with pytest.raises(ValueError, match="`weight_decay` should not be negative"):
        trainer(AF(SMALL)).train(weight_decay=-0.1)
