"""A training of plain modules, without any trainer: where it starts, starts again, and what it keeps."""

import pytest
import torch

from mfsbi import MFlow, sequential
from mfsbi.ratio import RatioModel
from mfsbi.train.losses import Alices, reconstruction
from mfsbi.train.schedules import Phase, Settings
from mfsbi.train.training import Training
from tests.train.killing import SMALL, surface_rows, weights

SETTINGS = Settings(training_batch_size=100, show_progress_bars=False)
SCHEDULE = sequential(2)


@pytest.fixture(scope="module")
def data():
    return surface_rows()


@pytest.fixture
def built(data):
    """Return what builds models, and the numbers it was asked for."""

    def build(number):
        build.numbers.append(number)
        torch.manual_seed(number)
        return MFlow(2, chart=SMALL, latent=SMALL).build(data[0].theta, data[0].x)

    build.numbers = []
    return build


@pytest.mark.filterwarnings("ignore:The chart")
def test_it_starts_again_from_other_weights_while_the_chart_collapses(data, built):
    training = Training(built, data, SCHEDULE, SETTINGS)
    training.run(2, retrain=False)
    assert built.numbers == [0, 1, 2]
    assert training.learned is training.model
    assert training.record is training.history
    assert len(training.record.collapses) == 3
    assert not training.model.training


def test_it_goes_on_from_what_was_learned_unless_told_to_begin_anew(data, built):
    earlier = built(7)
    before = weights(earlier)
    training = Training(built, data, SCHEDULE, SETTINGS, learned=earlier)
    training.run(2, retrain=False)
    assert built.numbers == [7]
    assert training.learned is earlier
    assert not training.record.anew
    assert not (weights(earlier) == before).all()
    with pytest.warns(UserWarning, match="after 1 starts"):
        training.run(0, retrain=True)
    assert training.learned is not earlier
    assert training.record.anew


def test_a_ratio_has_no_chart_to_judge(data):
    def build(_):
        theta, x = data[0].theta, data[0].x
        return RatioModel(x.mean(0), x.std(0), theta.mean(0), theta.std(0), 8, 1)

    training = Training(build, data, [Phase(Alices(), ("network",), 1)], SETTINGS)
    training.run(5, retrain=False)
    assert training.record.collapses == []
    assert training.record.losses == ["alices"]


def test_what_was_learned_stays_if_a_new_training_does_not_get_through_an_epoch(data, built):
    def interrupted(model, batch):
        if torch.is_grad_enabled():
            raise KeyboardInterrupt
        return reconstruction(model, batch)

    earlier = built(0)
    training = Training(built, data, [Phase(interrupted, ("chart",), 1)], SETTINGS, learned=earlier)
    with (
        pytest.warns(UserWarning, match="Training was interrupted"),
        pytest.warns(UserWarning, match="Nothing was learned anew: the earlier estimator is kept"),
    ):
        training.run(0, retrain=True)
    assert training.learned is earlier
    assert training.record is None
    assert training.history.interrupted


def test_an_error_keeps_what_was_learned_before_it(data, built):
    calls = []

    def failing(model, batch):
        calls.append(1)
        value = reconstruction(model, batch)
        return value if len(calls) < 8 else value * torch.nan

    training = Training(built, data, [Phase(failing, ("chart",), 5)], SETTINGS)
    with pytest.raises(ArithmeticError, match="training diverged"):
        training.run(retrain=False)
    assert training.learned is training.model
    assert len(training.record.epochs) == 1


def test_a_schedule_that_no_part_fits_gives_up_no_earlier_record(data, built):
    training = Training(built, data, [Phase(reconstruction, ("network",), 1)], SETTINGS)
    with pytest.raises(ValueError, match="should train a tuple of parts"):
        training.run(retrain=False)
    assert training.history is None
    assert training.learned is None
