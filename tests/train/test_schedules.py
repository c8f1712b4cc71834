import pytest

from mfsbi.train.losses import Scandal, joint_nll, latent_nll, nll, reconstruction
from mfsbi.train.schedules import Phase, alternating, ambient, density_only, sequential, simultaneous, with_score


def test_scores_do_not_join_a_reconstruction():
    schedule = [Phase(reconstruction, ("chart", "latent"), 1), Phase(latent_nll, ("latent",), 1)]
    assert [phase.loss for phase in with_score(schedule)] == [reconstruction, Scandal(base=latent_nll)]


def test_sequential_gives_half_the_epochs_to_the_chart():
    assert sequential(7) == [
        Phase(reconstruction, ("chart",), 3, decay=0.0),
        Phase(latent_nll, ("latent",), 4),
    ]


def test_alternating_takes_turns_of_one_epoch():
    assert [(phase.trains[0], phase.epochs) for phase in alternating(4)] == [("chart", 1), ("latent", 1)] * 2


def test_simultaneous_trains_both_between_a_start_and_an_end():
    assert [(phase.loss, phase.trains, phase.epochs) for phase in simultaneous(8)] == [
        (reconstruction, ("chart",), 2),
        (joint_nll, ("chart", "latent"), 2),
        (latent_nll, ("latent",), 4),
    ]


def test_ambient_trains_everything_by_the_likelihood():
    assert ambient(5) == [Phase(nll, ("chart", "latent"), 5, decay=0.0)]


@pytest.mark.parametrize("scheme", [sequential, alternating, simultaneous, ambient, density_only])
def test_epochs_count_passes_over_the_data(scheme):
    assert sum(phase.epochs for phase in scheme(10)) == 10


@pytest.mark.parametrize(
    ("scheme", "epochs"), [(sequential, 1), (alternating, 1), (simultaneous, 2), (density_only, 0), (ambient, 0)]
)
def test_too_few_epochs_are_refused(scheme, epochs):
    with pytest.raises(ValueError, match=f"`epochs` should be at least {epochs + 1}.*got {epochs}"):
        scheme(epochs)
