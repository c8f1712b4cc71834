import math

import pytest
import torch

from mfsbi.inference.grid import grid_posterior
from mfsbi.inference.potential import exact_potential
from mfsbi.inference.run_emcee import run_emcee
from simulators.lhc.detector import accepted, encode
from simulators.lhc.process import WBFHiggs


@pytest.fixture(scope="module", params=[2, 3])
def process(request):
    return WBFHiggs(request.param)


@pytest.fixture(scope="module")
def theta(process):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(500, process.parameter_dim, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def gold(process, theta):
    return process.simulate_with_gold(theta, seed=1)


def test_events_are_on_the_manifold_selected_and_possible(process, theta, gold):
    assert gold.x.shape == (500, 40)
    assert gold.x.dtype == torch.float64
    assert process.distance(gold.x).max() < 1e-9
    assert accepted(encode(gold.x)).all()
    assert torch.isfinite(process.log_prob(gold.x, theta)).all()


def test_gold_comes_with_the_events_of_simulate(process, theta, gold):
    assert (process.simulate(theta, seed=1) == gold.x).all()
    assert not (process.simulate(theta, seed=2) == gold.x).any(-1).any()
    assert gold.joint_score.shape == theta.shape
    assert gold.joint_log_ratio.shape == (500,)


def test_shapes_follow_theta(process, theta):
    batch = theta[:6].view(2, 3, -1)
    gold = process.simulate_with_gold(batch, seed=0)
    assert gold.x.shape == (2, 3, 40)
    assert gold.joint_score.shape == batch.shape
    assert gold.joint_log_ratio.shape == (2, 3)
    assert process.log_prob(gold.x, batch).shape == (2, 3)
    assert process.score(gold.x, batch).shape == batch.shape
    assert process.simulate(batch[0, 0], seed=0).shape == (40,)
    assert process.simulate(batch[:0], seed=0).shape == (0, 3, 40)
    assert process.log_prob(gold.x[0, 0], theta).shape == (500,)


def test_the_joint_ratio_grows_by_the_joint_score(process, theta):
    step = 1e-4 * theta.flip(0)
    gold = process.simulate_with_gold(theta, theta_ref=theta - step, seed=3)
    at_centre = process.simulate_with_gold(theta, theta_ref=theta + step, seed=3)
    slope = 0.5 * (gold.joint_log_ratio - at_centre.joint_log_ratio)
    torch.testing.assert_close(slope, (gold.joint_score * step).sum(-1), rtol=1e-3, atol=1e-6)
    same = process.simulate_with_gold(theta, theta_ref=theta, seed=3)
    assert (same.joint_log_ratio == 0).all()


def test_the_score_is_the_gradient_of_the_log_prob(process, theta, gold):
    at = theta[:20].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(process.log_prob(gold.x[:20], at).sum(), at)
    torch.testing.assert_close(process.score(gold.x[:20], theta[:20]), gradient)


def test_the_surface_is_as_large_as_the_determinant_says(process, gold):
    x = gold.x[:5]
    jacobian = torch.stack([torch.autograd.functional.jacobian(process.decode, u) for u in process.encode(x)])
    scaled = jacobian / jacobian.norm(dim=1, keepdim=True)
    expected = 0.5 * torch.logdet(scaled.mT @ scaled) + jacobian.norm(dim=1).log().sum(-1)
    torch.testing.assert_close(process.log_volume(x), expected, rtol=0, atol=1e-6)
    halved = process.log_volume(x, scale=torch.full((40,), 2.0, dtype=torch.float64))
    torch.testing.assert_close(halved, expected - 14 * math.log(2), rtol=0, atol=1e-6)
    assert process.log_volume(x[:0]).shape == (0,)


@pytest.mark.parametrize("feature", range(40))
def test_points_off_the_manifold_have_no_probability(process, theta, gold, feature):
    off = gold.x[:4].clone()
    off[:2, feature] *= -1 if process.feature_names[feature] != "e_jj" else 1.01
    off[2:, feature] += 0.01 * off[2:, feature].abs() + 0.01
    assert (process.distance(off) > 1e-3).all()
    assert (process.log_prob(off, theta[:4]) == -torch.inf).all()
    assert torch.isnan(process.score(off, theta[:4])).all()


def test_points_outside_the_selection_have_no_probability(process, theta, gold):
    chart = process.encode(gold.x[:4])
    chart[:, 10] = 15.0
    assert (process.log_prob(process.decode(chart), theta[:4]) == -torch.inf).all()


def test_what_is_wrong_is_refused(process, gold):
    parameters = process.parameter_dim
    with pytest.raises(ValueError, match="`theta` should have . features on its last axis; got shape .5, 1"):
        process.simulate(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="`theta` should be finite"):
        process.simulate(torch.full((5, parameters), torch.nan))
    with pytest.raises(ValueError, match=r"`theta` should lie within \(-10, 10\).*got 20"):
        process.simulate(torch.full((5, parameters), 20.0))
    with pytest.raises(ValueError, match="`x` should have 40 features"):
        process.log_prob(gold.x[:, :39], torch.zeros(parameters))
    with pytest.raises(ValueError, match="`x` should be finite"):
        process.log_prob(gold.x * torch.nan, torch.zeros(parameters))
    with pytest.raises(ValueError, match="`x` should be float64.*lost the jet masses"):
        process.log_prob(gold.x.float(), torch.zeros(parameters))
    with pytest.raises(ValueError, match="`theta` should have . features"):
        process.simulate_with_gold(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="`theta_ref` should have . features on its last axis; got shape .1,"):
        process.simulate_with_gold(torch.zeros(5, parameters), theta_ref=torch.zeros(1))
    with pytest.raises(ValueError, match="`theta_ref` should broadcast to the shape of theta"):
        process.simulate_with_gold(torch.zeros(5, parameters), theta_ref=torch.zeros(2, parameters))
    with pytest.raises(ValueError, match="`scale` should have 40 features"):
        process.log_volume(gold.x, scale=torch.ones(3))
    with pytest.raises(ValueError, match="`theta` should have shape .rows, "):
        exact_potential(process, gold.x)(torch.zeros(5, 1))
    with pytest.raises(ValueError, match="`x` should have shape .observations, data., with an observation"):
        exact_potential(process, gold.x[:0])
    with pytest.raises(ValueError, match="`tolerance` should be positive"):
        WBFHiggs(tolerance=0.0)
    with pytest.raises(ValueError, match="`parameters` should be 2 or 3; got 4"):
        WBFHiggs(4)


def test_the_true_posterior_can_be_differentiated(process, theta, gold):
    at = theta[:5].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(exact_potential(process, gold.x[:20])(at).sum(), at)
    scores = process.score(gold.x[:20], theta[:5, None]).sum(1)
    torch.testing.assert_close(gradient, scores - theta[:5])


def test_the_true_posterior_by_grid_and_by_walkers():
    process = WBFHiggs(2)
    x = process.simulate(torch.zeros(100, 2), seed=5)
    potential = exact_potential(process, x)
    grid = grid_posterior(potential, [-0.3, -0.3], [0.3, 0.3], 200)
    starts = 0.1 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
    chains = run_emcee(potential, starts, 500, seed=1)
    assert ((chains.mean - grid.mean).abs() < 0.15 * grid.std).all()
    assert ((chains.std / grid.std - 1).abs() < 0.1).all()
    assert (grid.mean.abs() < 4 * grid.std).all()
