"""Stacked densities: members, their weights, and how they learn."""

import pytest
import torch
from jaxtyping import TypeCheckError

from mfsbi import AF, PIE, ManifoldNLE, MFlow, load, save, sequential
from mfsbi.flows import AutoregressiveMixtures, SplineCouplings, Stacked
from mfsbi.train.losses import reconstruction
from mfsbi.train.schedules import alternating, ambient, density_only, simultaneous, unfolded
from tests.laws import perturbed
from tests.problems import plane, surface_data

SMALL = {"width": 8, "depth": 2}
PAIR = Stacked((AutoregressiveMixtures(**SMALL), SplineCouplings(layers=2, bins=3, **SMALL)))
MEMBERS = "latent.flow.members."


def density(amount=0.3):
    torch.manual_seed(0)
    return perturbed(PAIR.build(2, 1), amount).double().requires_grad_(False).eval()


def test_the_density_is_the_mixture_and_while_a_member_learns_that_members():
    model, u, theta = density(), torch.randn(7, 2).double(), torch.randn(7, 1).double()
    model.weights.copy_(torch.tensor([0.3, 0.7]))
    whole = model.log_prob(u, theta)
    each = []
    for member in model.members:
        member.train()
        each.append(model.log_prob(u, theta))
        member.eval()
    torch.testing.assert_close(whole.exp(), 0.3 * each[0].exp() + 0.7 * each[1].exp())
    torch.testing.assert_close(model.train().log_prob(u, theta), (each[0] + each[1]) / 2)


def test_draws_come_from_members_by_their_weights():
    model, theta = density(), torch.zeros(4000, 1).double()
    model.weights.copy_(torch.tensor([0.0, 1.0]))
    alone = model.sample(theta, torch.Generator().manual_seed(1))
    model.weights.copy_(torch.tensor([0.25, 0.75]))
    mixed = model.sample(theta, torch.Generator().manual_seed(1))
    model.weights.copy_(torch.tensor([1.0, 0.0]))
    first = model.sample(theta, torch.Generator().manual_seed(1))
    expected = 0.25 * first.mean(0) + 0.75 * alone.mean(0)
    assert (mixed.mean(0) - expected).abs().lt(0.15).all()


def test_weights_are_the_likeliest():
    """Rows drawn from the first member three times out of four give it three quarters of the weight."""
    model, theta = density(amount=0.5), torch.zeros(4000, 1).double()
    model.weights.copy_(torch.tensor([0.75, 0.25]))
    u = model.sample(theta, torch.Generator().manual_seed(2))
    model.settle(u, theta)
    assert model.weights[0].item() == pytest.approx(0.75, abs=0.06)
    assert model.weights.sum().item() == pytest.approx(1)


@pytest.mark.parametrize(
    ("schedule", "spec", "trains"),
    [
        (sequential(2), MFlow(2, latent=PAIR), [("chart",), (f"{MEMBERS}0",), (f"{MEMBERS}1",)]),
        (alternating(2), MFlow(2, latent=PAIR), [("chart",), (f"{MEMBERS}0",), (f"{MEMBERS}1",)]),
        (density_only(1), AF(PAIR), [(f"{MEMBERS}0",), (f"{MEMBERS}1",)]),
        (ambient(1), AF(PAIR), [("chart", f"{MEMBERS}0"), ("chart", f"{MEMBERS}1")]),
        (ambient(1), PIE(2, latent=PAIR), [("chart", "latent")]),
        (simultaneous(3)[1:2], MFlow(2, latent=PAIR), [("chart", "latent")]),
        (sequential(2), MFlow(2, latent=SplineCouplings()), [("chart",), ("latent",)]),
    ],
)
def test_a_phase_of_the_density_is_run_for_each_member(schedule, spec, trains):
    found = unfolded(schedule, spec.build(*plane(20)))
    assert [phase.trains for phase in found] == trains
    assert [phase.label for phase in found][-1] in ("latent 2", "chart+latent 2", "chart+latent", "latent")
    assert all(phase.moves("latent") != (phase.loss is reconstruction) for phase in found)


@pytest.mark.parametrize("spec", [MFlow(2, latent=PAIR), AF(PAIR), PIE(2, latent=PAIR)])
@pytest.mark.usefixtures("short_chains")
def test_it_trains_samples_saves_loads_and_resumes(spec, tmp_path):
    prior, (theta, x) = surface_data(2)[0].prior, plane(300)
    trainer = ManifoldNLE(prior, spec, show_progress_bars=False)
    kept = {"checkpoint": tmp_path / "kept", "checkpoint_minutes": 1e-3, "training_batch_size": 50}
    estimator = trainer.append_simulations(theta, x).train(max_num_epochs=2, **kept)
    assert {record.phase for record in trainer.history.epochs} >= {0}
    assert not any(module.training for module in estimator.modules())
    weights = estimator.model.latent.flow.weights
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    assert weights[0] != weights[1]
    assert trainer.build_posterior().sample((5,), x=x[:1], show_progress_bars=False).shape == (5, theta.shape[1])
    save(trainer, tmp_path / "trainer")
    twin = load(tmp_path / "trainer")
    assert twin.spec == spec
    assert (twin.log_prob(x[:9], theta[:9]) == estimator.log_prob(x[:9], theta[:9])).all()
    again = ManifoldNLE(prior, spec, show_progress_bars=False).append_simulations(theta, x)
    resumed = again.train(max_num_epochs=2, **kept, resume_training=True)
    assert (resumed.log_prob(x[:9], theta[:9]) == estimator.log_prob(x[:9], theta[:9])).all()
    assert estimator.model.sample(theta[:5]).shape == (5, 3)


def test_members_that_are_nan_at_held_out_rows_are_refused():
    model = density()
    before = model.weights.clone()
    with pytest.raises(ArithmeticError, match=r"Members \[0, 1\] of a stacked density, .* are NaN at held-out rows"):
        model.settle(torch.full((1, 2), torch.nan).double(), torch.zeros(1, 1).double())
    assert (model.weights == before).all()


def test_one_member_is_no_mixture():
    with pytest.raises(ValueError, match=r"`Stacked.members` should be at least 2; got 1"):
        Stacked(PAIR.members[:1])


def test_stacked_densities_are_not_stacked_again():
    with pytest.raises(TypeError, match="should not be stacked themselves"):
        Stacked((PAIR, SplineCouplings()))


def test_members_are_flows():
    with pytest.raises((TypeError, TypeCheckError), match="members"):
        Stacked((SplineCouplings(), "spline"))


def test_draws_without_parameters_are_those_of_the_density():
    torch.manual_seed(0)
    model = perturbed(PAIR.build(2, 0), 0.1).double().requires_grad_(False).eval()
    assert model.sample(torch.zeros(5, 0).double()).shape == (5, 2)
    u = model.sample(torch.zeros(20_000, 0).double(), torch.Generator().manual_seed(0))
    line = torch.linspace(-8, 8, 161).double()
    points = torch.cartesian_prod(line, line)
    mass = model.log_prob(points).exp() * 0.1**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-3)
    torch.testing.assert_close(u.mean(0), mass @ points, rtol=0, atol=0.05)
