import pytest
import torch
from torch import Generator

from mfsbi import AF, PIE, ManifoldNLE, MFlow, ambient, density_only, sequential
from mfsbi.flows import SplineCouplings
from mfsbi.train.data import Batch, split
from mfsbi.train.guard import ChartGuard, judge_chart
from mfsbi.train.losses import reconstruction
from mfsbi.train.schedules import Phase, with_score
from tests.problems import plane, surface_data

SMALL = SplineCouplings(layers=2, width=16)


def divided(theta, x):
    return split([Batch(theta, x)], 0.2, Generator().manual_seed(0))


def test_an_untrained_chart_is_as_good_as_principal_components_and_collapsed():
    training, validation = divided(*surface_data(2000)[1:])
    verdict = judge_chart(MFlow(2, SMALL, SMALL).build(training.theta, training.x), training, validation)
    assert verdict.error == pytest.approx(verdict.principal_component_error, rel=1e-3)
    assert verdict.collapsed


def test_a_plane_is_found_by_principal_components_and_not_a_collapse():
    training, validation = divided(*plane())
    verdict = judge_chart(MFlow(2, SMALL, SMALL).build(training.theta, training.x), training, validation)
    assert verdict.principal_component_error < 1e-4
    assert not verdict.collapsed


@pytest.mark.parametrize(("may_stop", "goes_on"), [(True, False), (False, True)])
def test_the_guard_stops_a_collapsed_training_only_if_it_may(may_stop, goes_on):
    training, validation = divided(*surface_data(500)[1:])
    model = MFlow(2, SMALL, SMALL).build(training.theta, training.x)
    guard = ChartGuard(model, sequential(4), (training, validation), may_stop=may_stop)
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
    guard = ChartGuard(spec.build(training.theta, training.x), schedule, (training, validation), may_stop=True)
    assert all(guard(phase) for phase in range(len(schedule)))
    assert guard.verdict is None


def test_the_verdict_says_both_errors():
    training, validation = divided(*surface_data(500)[1:])
    text = str(judge_chart(MFlow(2, SMALL, SMALL).build(training.theta, training.x), training, validation))
    assert "held-out reconstruction error" in text
    assert "principal components" in text
    assert torch.get_default_dtype() is torch.float32


def shape(name, rows=1500):
    """Return rows about or on a manifold that principal components do not find, and its dimension."""
    draw = Generator().manual_seed(1)
    t = torch.rand(rows, 1, generator=draw) * 2 - 1
    noise = torch.randn(rows, 3, generator=draw)
    angle = torch.pi * t
    return {
        "plane, some noise": lambda: (plane(rows)[1] + 0.3 * noise, 2),
        "plane, much noise": lambda: (plane(rows)[1] + noise, 2),
        "nothing but noise": lambda: (noise, 1),
        "circle": lambda: (torch.cat([angle.cos(), angle.sin()], 1), 1),
        "thick circle": lambda: (torch.cat([angle.cos(), angle.sin()], 1) + 0.05 * noise[:, :2], 1),
        "parabola": lambda: (torch.cat([t, t**2], 1), 1),
        "parabola of a Gaussian": lambda: (torch.cat([noise[:, :1], noise[:, :1] ** 2], 1), 1),
        "spiral": lambda: (torch.cat([t * (6 * t).cos(), t * (6 * t).sin()], 1), 1),
        "sphere": lambda: (noise / noise.norm(dim=1, keepdim=True), 2),
        "polynomial": lambda: (surface_data(rows)[2], 2),
    }[name]()


def verdict_on(name):
    x, dims = shape(name)
    training, validation = divided(torch.zeros(len(x), 1), x)
    model = MFlow(dims, SMALL, SMALL).build(training.theta, training.x)
    return judge_chart(model, training, validation), ChartGuard(
        model, sequential(4), (training, validation), may_stop=True
    )


@pytest.mark.parametrize("name", ["plane, some noise", "plane, much noise", "nothing but noise"])
def test_noise_about_a_plane_is_told_as_such_and_ends_no_training(name):
    verdict, guard = verdict_on(name)
    assert verdict.collapsed
    assert verdict.noise
    assert guard(0)


@pytest.mark.parametrize(
    "name", ["circle", "thick circle", "parabola", "parabola of a Gaussian", "spiral", "sphere", "polynomial"]
)
def test_a_manifold_that_a_chart_has_missed_is_no_noise(name):
    verdict, guard = verdict_on(name)
    assert verdict.collapsed
    assert not verdict.noise
    assert not guard(0)


def test_of_few_held_out_rows_nothing_is_called_noise():
    x, _ = shape("plane, much noise", rows=100)
    training, validation = divided(torch.zeros(len(x), 1), x)
    assert not judge_chart(MFlow(2, SMALL, SMALL).build(training.theta, training.x), training, validation).noise


def test_a_trainer_says_once_that_there_is_noise_and_does_not_start_again():
    theta, x = plane(600)
    x = x + 0.5 * torch.randn(x.shape, generator=Generator().manual_seed(2))
    trainer = ManifoldNLE(surface_data(10)[0].prior, MFlow(2, SMALL, SMALL), show_progress_bars=False)
    with pytest.warns(UserWarning) as caught:
        trainer.append_simulations(theta, x).train(max_num_epochs=2)
    (message,) = [str(warning.message) for warning in caught]
    assert "What 2 principal components leave looks like noise, which no chart can reconstruct" in message
    assert "larger `manifold_dim`, or `AF`" in message
    assert trainer.history.collapses == []
    assert trainer.history.losses == ["reconstruction", "latent_nll"]


@pytest.mark.parametrize(("shape", "noise"), [("curve", False), ("plane", True)])
def test_thousands_of_features_are_judged_without_a_matrix_of_all_of_them(shape, noise, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(400, 1, generator=generator)
    wave = torch.linspace(0, 3, 1500)
    x = (u + wave).sin() if shape == "curve" else u * wave.cos() + 0.5 * torch.randn(400, 1500, generator=generator)
    training, validation = split([Batch(torch.zeros(400, 1), x)], 0.2, generator)
    model = MFlow(1, SMALL, SMALL).build(training.theta, training.x)
    decomposed, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: decomposed.append(matrix.shape[-1]) or eigh(matrix))
    verdict = judge_chart(model, training, validation)
    assert max(decomposed) < 1000
    assert verdict.error == pytest.approx(verdict.principal_component_error, rel=0.02)
    assert (verdict.collapsed, verdict.noise) == (True, noise)


@pytest.mark.slow
def test_too_few_rows_for_what_a_chart_learned_by_heart_are_told_as_such():
    torch.manual_seed(0)
    x, theta = torch.randn(400, 5), torch.zeros(400, 0)
    x = torch.cat([x, (x @ torch.randn(5, 5) / 1.8).sin()], 1)
    trainer = ManifoldNLE(None, MFlow(5), show_progress_bars=False).append_simulations(theta, x)
    schedule = [Phase(reconstruction, ("chart",), 200, decay=0.0)]
    with pytest.warns(
        UserWarning, match=r"The chart reconstructs the simulations .* too few for a manifold of 5"
    ) as told:
        trainer.train(schedule=schedule, training_batch_size=100)
    assert len(told) == 1
    assert trainer.history.collapses == []
