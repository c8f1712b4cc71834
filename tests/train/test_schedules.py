import pytest

from mfsbi.train.losses import latent_nll, reconstruction
from mfsbi.train.schedules import Phase, alternating, density_only, sequential


def test_sequential_gives_half_the_epochs_to_the_chart():
    assert sequential(7) == [Phase(reconstruction, ("chart",), 3), Phase(latent_nll, ("latent",), 4)]


def test_alternating_takes_turns_of_one_epoch():
    assert [(phase.trains[0], phase.epochs) for phase in alternating(4)] == [("chart", 1), ("latent", 1)] * 2


@pytest.mark.parametrize("scheme", [sequential, alternating, density_only])
def test_epochs_count_passes_over_the_data(scheme):
    assert sum(phase.epochs for phase in scheme(10)) == 10


@pytest.mark.parametrize(("scheme", "epochs"), [(sequential, 1), (alternating, 1), (density_only, 0)])
def test_too_few_epochs_are_refused(scheme, epochs):
    with pytest.raises(ValueError, match=f"`epochs` should be at least {epochs + 1}.*got {epochs}"):
        scheme(epochs)
