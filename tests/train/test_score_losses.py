"""The joint score as a second label, of densities and of ratios."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mfsbi import MFlow
from mfsbi.ratio import RatioModel
from mfsbi.train.data import Batch
from mfsbi.train.losses import (
    RECONSTRUCTION_WEIGHT,
    Alices,
    Scandal,
    joint,
    joint_nll,
    latent_nll,
    nll,
    reconstruction,
)
from mfsbi.train.losses.scores import DOUBT, deviance
from mfsbi.train.noise import ScoreSize
from mfsbi.train.schedules import alternating, ambient, sequential, simultaneous, with_score
from tests.laws import perturbed
from tests.problems import SMALL, SPECS, plane

NOISE = torch.tensor([0.4, 2.5], dtype=torch.float64)
ROWS = 12


def doubles(theta, x):
    return theta.double(), x.double()


def build(spec):
    """Return a model in float64 that is far from the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(spec.build(*doubles(*plane(theta_dim=2))).double(), 0.1)


def network():
    theta, x = doubles(*plane(theta_dim=2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = RatioModel(x.mean(0), x.std(0), theta.mean(0), theta.std(0), width=8, depth=2).double()
    return perturbed(model, 0.1)


def golden(rows=ROWS, seed=5, classes=False):
    """Return rows with gold of the right shape; a loss does not ask whether it is true."""
    generator = torch.Generator().manual_seed(seed)
    theta, x = doubles(*plane(rows, seed=seed, theta_dim=2))
    score = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    if not classes:
        return Batch(theta, x, joint_score=score)
    ratio = torch.randn(rows, generator=generator, dtype=torch.float64)
    return Batch(theta, x, score, ratio, (torch.arange(rows) % 3 > 0).double())


WHOLE = {
    "latent of AF": (SPECS["AF"], latent_nll, "latent"),
    "latent of MFlow": (SPECS["MFlow"], latent_nll, "latent"),
    "latent of PAE": (SPECS["PAE"], latent_nll, "latent"),
    "latent of PIE, conditional": (SPECS["PIE, conditional"], latent_nll, "latent"),
    "likelihood of AF": (SPECS["AF"], nll, "latent"),
    "likelihood of PIE": (SPECS["PIE"], nll, ""),
    "likelihood of PIE, conditional": (SPECS["PIE, conditional"], nll, ""),
    "joint of PIE": (SPECS["PIE"], joint, ""),
    "joint of MFlow": (SPECS["MFlow"], joint, "latent"),
    "joint likelihood of a curve": (MFlow(1, SMALL, SMALL), joint_nll, ""),  # its volume's gradient has no noise
}
"""What depends on all weights of a part in the way its gradient says: elsewhere coordinates are held fixed."""


def slope_and_difference(loss, model, batch, part, step=1e-6):
    """Return the change of the mean loss along a random direction of the weights, by its gradient and by values."""
    weights = [weight for name, weight in model.named_parameters() if name.startswith(part)]
    model.zero_grad()
    loss(model, batch).mean().backward()
    generator = torch.Generator().manual_seed(1)
    along = [torch.randn(weight.shape, generator=generator, dtype=weight.dtype) for weight in weights]
    slope = sum((weight.grad * d).sum() for weight, d in zip(weights, along, strict=True) if weight.grad is not None)

    def moved(by):
        with torch.no_grad():
            for weight, d in zip(weights, along, strict=True):
                weight.add_(by * d)
        return loss(model, batch).mean().detach()

    return float(slope), float((moved(step) - moved(-2 * step)) / (2 * step))


@pytest.mark.parametrize("settings", [{"noise": NOISE}, {"weight": 0.7}], ids=["noise", "weight"])
@pytest.mark.parametrize("name", WHOLE)
def test_the_gradient_in_the_weights_is_the_change_of_the_loss(name, settings):
    """The loss differentiates splines twice; where their knots meet they are smooth enough for it."""
    spec, base, part = WHOLE[name]
    slope, difference = slope_and_difference(Scandal(**settings, base=base), build(spec), golden(), part)
    assert slope == pytest.approx(difference, rel=1e-5)


@pytest.mark.parametrize("settings", [{"noise": NOISE}, {"weight": 0.7}], ids=["noise", "weight"])
@pytest.mark.parametrize("classes", [True, False])
def test_the_gradient_of_alices_in_the_weights_is_the_change_of_the_loss(classes, settings):
    loss = Alices(**settings, log_odds=0.4)
    slope, difference = slope_and_difference(loss, network(), golden(classes=classes), "")
    assert slope == pytest.approx(difference, rel=1e-6)


def score_by_differences(log_prob, theta, step=1e-6):
    columns = []
    for axis in torch.eye(theta.shape[-1], dtype=theta.dtype):
        columns.append((log_prob(theta + step * axis) - log_prob(theta - step * axis)) / (2 * step))
    return torch.stack(columns, dim=-1).detach()


@pytest.mark.parametrize("name", WHOLE)
def test_the_score_that_is_fitted_is_that_of_log_p(name):
    """With it for the joint score nothing is left to explain, whatever the weight."""
    spec, base, _ = WHOLE[name]
    model, batch = build(spec), golden()
    if name == "latent of PAE":
        score = score_by_differences(lambda theta: model.latent.log_prob(model.encode(batch.x), theta), batch.theta)
    else:
        score = score_by_differences(lambda theta: model.log_prob(batch.x, theta), batch.theta)
    extra = Scandal(weight=1e6, base=base)(model, replace(batch, joint_score=score)) - base(model, batch)
    assert score.abs().min() > 1e-4
    assert extra.abs().max() < 1e-6 * RECONSTRUCTION_WEIGHT


def test_the_score_that_alices_fits_is_that_of_the_log_ratio():
    model, batch = network(), golden(classes=True)
    score = score_by_differences(lambda theta: model.log_ratio(batch.x, theta), batch.theta)
    loss = Alices(weight=1e6)
    extra = loss(model, replace(batch, joint_score=score)) - loss(model, replace(batch, joint_score=None))
    assert extra.abs().max() < 1e-6


def errors_of(model, batch):
    """Return t - s for standardised parameters."""
    score = score_by_differences(lambda theta: model.log_prob(batch.x, theta), batch.theta)
    return (batch.joint_score - score) * model.latent.theta_std


def test_given_the_noise_the_loss_is_the_likelihood_of_x_and_that_of_a_score_with_that_noise():
    model, batch = build(SPECS["MFlow"]), golden()
    density = torch.distributions.Normal(0.0, NOISE.sqrt()).log_prob(errors_of(model, batch)).sum(-1)
    constant = math.log(2 * math.pi)  # of two parameters
    expected = latent_nll(model, batch) - density - constant
    torch.testing.assert_close(Scandal(noise=NOISE)(model, batch), expected, atol=1e-6, rtol=1e-6)


def test_the_automatic_weight_is_half_the_inverse_of_the_noise():
    """A fixed weight of 1/(2 V) has the same gradient."""
    losses = Scandal(noise=torch.full((2,), 0.3, dtype=torch.float64)), Scandal(weight=1 / 0.6)
    slopes = [slope_and_difference(loss, build(SPECS["MFlow"]), golden(), "latent")[0] for loss in losses]
    assert slopes[0] == pytest.approx(slopes[1], rel=1e-9)


def test_the_noise_is_measured_on_held_out_rows_in_standardised_units():
    model, held_out = build(SPECS["MFlow"]), golden(40, seed=9)
    adapted = Scandal().adapted(model, held_out)
    own = (held_out.joint_score * model.latent.theta_std).square().mean(0)
    expected = (errors_of(model, held_out).square().sum(0) + DOUBT * own) / (40 + DOUBT)
    torch.testing.assert_close(adapted.noise, expected, atol=1e-6, rtol=1e-6)


class Sizes(torch.nn.Module):
    """F = (1, 2) exp(theta), for scores of theta over 1 and 1/2."""

    theta_std = torch.tensor([1.0, 0.5], dtype=torch.float64)

    def theta_unit(self, theta):
        return self.theta_std.expand_as(theta)

    def forward(self, theta):
        return torch.tensor([1.0, 2.0], dtype=theta.dtype) * theta.exp()


def quasi_likelihood(joint, score, size):
    """2 D, from its slope: the integral of 2 (t - s) / (F + s^2/4) from the model's score to the joint score."""
    nodes, weights = (torch.from_numpy(each) for each in np.polynomial.legendre.leggauss(60))
    between = score + (joint - score) * (nodes[:, None, None] + 1) / 2
    return (weights[:, None, None] * (joint - score) * (joint - between) / (size + between.square() / 4)).sum(0)


def test_errors_count_by_the_size_of_the_score_at_theta_and_of_the_model_there():
    model, batch, size = build(SPECS["MFlow"]), golden(40, seed=9), Sizes()
    joint = batch.joint_score * size.theta_std  # whose unit for theta is not the model's
    errors = errors_of(model, batch) / model.latent.theta_std * size.theta_std
    sizes, loss = size(batch.theta), Scandal(noise=NOISE, size=size)
    terms = (quasi_likelihood(joint, joint - errors, sizes) / NOISE + NOISE.log()) / 2
    torch.testing.assert_close(loss(model, batch), latent_nll(model, batch) + terms.sum(-1), atol=1e-6, rtol=1e-6)
    limit = torch.tensor([0.1, 0.9], dtype=torch.float64)
    expected = latent_nll(model, batch) + (terms * torch.tensor([1.9, 1.1], dtype=torch.float64)).sum(-1)
    torch.testing.assert_close(replace(loss, limit=limit)(model, batch), expected, atol=1e-6, rtol=1e-6)
    squared, own = errors.square() / (sizes + (joint - errors).square() / 4), (joint.square() / sizes).mean(0)
    expected = (squared.sum(0) + DOUBT * own) / (40 + DOUBT)
    torch.testing.assert_close(loss.adapted(model, batch).noise, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(Scandal(2.0, size=size)(model, batch), Scandal(2.0)(model, batch), atol=0, rtol=0)


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e4])
def test_the_loss_of_scores_is_least_in_the_mean_at_their_mean_however_noisy_they_are(unit):
    """Heavy tails, and a noise that the size does not know of."""
    joint = 2 * unit + unit * torch.randn(1001, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    score = (torch.linspace(-3, 7, 1001, dtype=torch.float64) * unit).requires_grad_()
    size = torch.full_like(score, 0.5 * unit**2)
    mean = deviance(joint[:, None], score, size).mean(0)
    assert score[mean.argmin()].item() == pytest.approx(joint.mean().item(), abs=0.02 * unit)
    (slope,) = torch.autograd.grad(mean.sum(), score)
    torch.testing.assert_close(slope, (2 * (score - joint.mean()) / (size + score.square() / 4)).detach())


def test_the_noise_is_measured_again_and_a_fixed_weight_stays():
    model, first, second = build(SPECS["MFlow"]), golden(40, seed=9), golden(40, seed=10)
    loss = Scandal().adapted(model, first).adapted(model, second)
    torch.testing.assert_close(loss.noise, Scandal().adapted(model, second).noise)
    assert Scandal(weight=2.0).adapted(model, first) == Scandal(weight=2.0)


def test_a_score_that_is_always_zero_makes_no_weight_infinite():
    model, batch = build(SPECS["MFlow"]), golden(40)
    batch = replace(batch, joint_score=torch.zeros_like(batch.joint_score))
    for layer in model.latent.flow.layers:
        for weight in layer.network.last.parameters():
            torch.nn.init.zeros_(weight)  # a new flow does not know theta
    assert (Scandal().adapted(model, batch).noise == 1).all()
    assert torch.isfinite(Scandal()(model, batch)).all()


def test_a_score_that_is_always_zero_has_no_weight_that_grows_as_the_model_learns_it():
    model, batch = build(SPECS["MFlow"]), golden(40)
    batch = replace(batch, joint_score=batch.joint_score * torch.tensor([1.0, 0.0]))
    for limit in (None, torch.tensor([0.1, 0.0], dtype=torch.float64)):
        assert Scandal(limit=limit, size=Sizes()).adapted(model, batch).noise[1] == 1


def test_the_noise_has_a_floor_where_the_model_explains_all():
    model, batch = build(SPECS["MFlow"]), golden(40)
    with torch.enable_grad():
        theta = batch.theta.clone().requires_grad_()
        (score,) = torch.autograd.grad(-latent_nll(model, replace(batch, theta=theta)).sum(), theta)
    noise = Scandal().adapted(model, replace(batch, joint_score=score)).noise
    torch.testing.assert_close(noise, DOUBT / (40 + DOUBT) * (score * model.latent.theta_std).square().mean(0))


@pytest.mark.parametrize("kind", [Scandal, Alices])
def test_a_loss_takes_up_its_noise_and_the_weights_of_its_size(kind):
    theta = torch.zeros(1, 2)
    size, other = (ScoreSize(2) for _ in range(2))
    state = kind(noise=NOISE, size=size).state()
    assert not torch.equal(size.second.weight, other.second.weight)
    loss = kind(size=other).restored(state | {"of another": theta})
    assert (loss.noise == NOISE).all()
    assert torch.equal(size.second.weight, other.second.weight)
    assert loss.restored({name: value for name, value in state.items() if name != "noise"}) == loss


def test_without_held_out_rows_the_noise_is_that_of_the_batch():
    model, batch = build(SPECS["MFlow"]), golden()
    torch.testing.assert_close(Scandal()(model, batch), Scandal().adapted(model, batch)(model, batch))


def rescaled(spec, mean, std):
    """Return the same function of (theta - mean)/std: its standardisation takes up the change."""
    model = build(spec)
    model.latent.theta_mean.copy_((model.latent.theta_mean - mean) / std)
    model.latent.theta_std.copy_(model.latent.theta_std / std)
    return model


@pytest.mark.parametrize(
    "loss", [Scandal(noise=NOISE), Scandal(weight=0.7), Scandal()], ids=["noise", "weight", "auto"]
)
def test_rescaling_theta_and_the_score_leaves_the_loss_as_it_is(loss):
    mean, std = torch.tensor([3.0, -20.0]).double(), torch.tensor([100.0, 0.01]).double()
    batch = golden()
    other = replace(batch, theta=(batch.theta - mean) / std, joint_score=batch.joint_score * std)
    model, twin = build(SPECS["MFlow"]), rescaled(SPECS["MFlow"], mean, std)
    torch.testing.assert_close(loss(twin, other), loss(model, batch))


def test_rescaling_theta_and_the_score_leaves_alices_as_it_is():
    mean, std = torch.tensor([3.0, -20.0]).double(), torch.tensor([100.0, 0.01]).double()
    batch, model, twin = golden(classes=True), network(), network()
    other = replace(batch, theta=(batch.theta - mean) / std, joint_score=batch.joint_score * std)
    twin.theta_mean.copy_((model.theta_mean - mean) / std)
    twin.theta_std.copy_(model.theta_std / std)
    torch.testing.assert_close(Alices(noise=NOISE)(twin, other), Alices(noise=NOISE)(model, batch))


def test_a_fixed_weight_counts_squared_standardised_errors():
    model, batch = build(SPECS["MFlow"]), golden()
    expected = latent_nll(model, batch) + 0.7 * errors_of(model, batch).square().sum(-1)
    torch.testing.assert_close(Scandal(weight=0.7)(model, batch), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("base", [latent_nll, joint])
def test_without_weight_or_score_the_loss_is_its_base(base):
    model, batch = build(SPECS["MFlow"]), golden()
    assert (Scandal(weight=0.0, base=base)(model, batch) == base(model, batch)).all()
    assert (Scandal(base=base)(model, replace(batch, joint_score=None)) == base(model, batch)).all()


@pytest.mark.parametrize("kind", [Scandal, Alices])
@pytest.mark.parametrize("weight", [-1.0, math.nan])
def test_a_weight_that_is_negative_or_no_number_is_refused(kind, weight):
    with pytest.raises(ValueError, match="weight of the score should not be negative; got"):
        kind(weight)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("name", ["MFlow", "MeFlow", "PAE"])
def test_the_score_moves_the_density_and_leaves_the_chart_alone(name, cached):
    model, batch = build(SPECS[name]), golden()
    batch = replace(batch, u=model.encode(batch.x).detach() if cached else None)
    Scandal(noise=NOISE)(model, batch).mean().backward()
    assert all(weight.grad is None for weight in model.chart.parameters())
    assert any(weight.grad.any() for weight in model.latent.parameters() if weight.grad is not None)


def test_held_out_rows_are_judged_without_a_graph():
    model, batch = build(SPECS["MFlow"]), golden()
    loss = Scandal(noise=NOISE)
    with torch.no_grad():
        values = loss(model, batch)
    assert not values.requires_grad
    torch.testing.assert_close(values, loss(model, batch).detach())


def test_the_users_theta_is_left_as_it_was():
    batch = golden()
    Scandal(noise=NOISE)(build(SPECS["MFlow"]), batch).mean().backward()
    assert not batch.theta.requires_grad
    assert batch.theta.grad is None


def test_schedules_have_the_score_wherever_likelihood_trains_the_density():
    assert [phase.loss for phase in with_score(sequential(4))] == [reconstruction, Scandal()]
    assert [phase.loss for phase in with_score(alternating(4), 2.0)] == [reconstruction, Scandal(2.0)] * 2
    assert [phase.loss for phase in with_score(ambient(4))] == [Scandal(base=nll)]
    assert [phase.loss for phase in with_score(simultaneous(3))][1:] == [Scandal(base=joint_nll), Scandal()]
    assert with_score(with_score(ambient(4), 3.0)) == with_score(ambient(4), 3.0)
    assert with_score(with_score(ambient(4)), limit=NOISE) == with_score(ambient(4), limit=NOISE)
    own = with_score(ambient(4), limit=NOISE, size=Sizes())
    assert with_score(own, limit=2 * NOISE, size=Sizes())[0].loss is own[0].loss


def test_a_loss_with_score_has_a_name_of_its_own():
    assert Scandal(base=nll).__name__ == "scandal(nll)"
    assert Alices().__name__ == "alices"


def gradient_of_score_term(model, batch):
    model.zero_grad()
    (Scandal(weight=1.0)(model, batch) - latent_nll(model, batch)).mean().backward()
    return torch.cat([weight.grad.flatten() for weight in model.latent.parameters() if weight.grad is not None])


@pytest.mark.parametrize("name", ["AF", "MFlow"])
def test_noise_of_the_joint_score_does_not_move_the_minimum(name):
    """The gradient at the true score is that of noise, which averages away; a bias of the same size is seen."""
    model, batch = build(SPECS[name]), golden(4000)
    score = score_by_differences(lambda theta: model.log_prob(batch.x, theta), batch.theta)
    noisy = replace(batch, joint_score=score + batch.joint_score)
    biased = replace(batch, joint_score=score + 1)
    assert gradient_of_score_term(model, noisy).norm() < 0.25 * gradient_of_score_term(model, biased).norm()
