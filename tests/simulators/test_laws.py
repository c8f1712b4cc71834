"""Laws and lifted laws, against brute force in float64."""

import pytest
import torch

from simulators.laws import LAWS, Law, Lifted, law

ALL = pytest.mark.parametrize("name", LAWS)


def simulated(problem, rows=400, seed=0):
    torch.manual_seed(seed)
    theta = problem.prior.sample((rows,)).double()
    return theta, problem.simulate(theta, seed=seed)


@ALL
def test_the_score_has_mean_zero_and_is_the_slope_of_the_density(name):
    """E[d/dtheta log p(x|theta)] = 0 holds only if x are draws of a normalised density."""
    theta, x = simulated(LAWS[name], rows=20_000)
    score = LAWS[name].score(x, theta)
    error = score.std(0) / len(score) ** 0.5
    assert (score.mean(0).abs() < 4.5 * error).all()
    step = 1e-5 * torch.nn.functional.one_hot(torch.tensor(1), theta.shape[1])
    slope = (LAWS[name].log_prob(x, theta + step) - LAWS[name].log_prob(x, theta - step)) / 2e-5
    torch.testing.assert_close(slope[:50], score[:50, 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["banana", "modes"])
def test_densities_of_two_features_are_normalised(name):
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    for theta in torch.tensor([[0.3, -0.6], [1.0, 0.2]]).double():
        assert LAWS[name].log_prob(points, theta).exp().sum().item() * 0.02**2 == pytest.approx(1, abs=1e-6)


@ALL
def test_one_seed_gives_one_draw_and_leaves_torchs_generator_alone(name):
    theta = LAWS[name].prior.sample((3,))
    torch.manual_seed(1)
    first, after = LAWS[name].simulate(theta, seed=4), torch.rand(1)
    torch.manual_seed(1)
    assert torch.rand(1) == after
    assert (LAWS[name].simulate(theta, seed=4) == first).all()
    assert not (LAWS[name].simulate(theta, seed=5) == first).all()
    assert first.shape == (3, LAWS[name].data_dim)


@ALL
def test_lifted_x_lies_on_a_manifold_with_the_volume_of_its_tangents(name):
    lifted = Lifted(LAWS[name], factor=3)
    theta, y = simulated(lifted, rows=8)
    assert y.shape == (8, 3 * LAWS[name].data_dim)
    assert lifted.vertical_distance(y).max() < 1e-10
    u = lifted.encode(y)
    torch.testing.assert_close(u, LAWS[name].simulate(theta, seed=0))
    tangents = torch.func.vmap(torch.func.jacfwd(lifted.decode))(u)
    volume = 0.5 * torch.logdet(tangents.mT @ tangents)
    torch.testing.assert_close(lifted.log_volume(u), volume)
    torch.testing.assert_close(lifted.log_prob(y, theta), LAWS[name].log_prob(u, theta) - volume)
    torch.testing.assert_close(lifted.score(y, theta), LAWS[name].score(u, theta))


@pytest.mark.parametrize("factor", [1, 3])
@ALL
def test_draws_come_with_their_score_and_log_ratio(name, factor):
    problem = law(name, factor)
    theta, x = simulated(problem, rows=8)
    gold = problem.simulate_with_gold(theta, theta_ref=theta[0], seed=0)
    torch.testing.assert_close(gold.x, x, rtol=0, atol=0)
    torch.testing.assert_close(gold.joint_score, problem.score(x, theta))
    torch.testing.assert_close(gold.joint_log_ratio, problem.log_prob(x, theta) - problem.log_prob(x, theta[:1]))
    assert gold.joint_log_ratio[0] == 0


def test_a_law_is_had_by_name():
    assert isinstance(law("banana"), Law)
    lifted = law("banana", factor=4)
    assert isinstance(lifted, Lifted)
    assert (lifted.manifold_dim, lifted.data_dim) == (2, 8)
    assert "banana" in repr(lifted)
    with pytest.raises(ValueError, match=r"`name` should be one of \['banana', .*; got 'apple'"):
        law("apple")
    with pytest.raises(ValueError, match="`factor` should be at least 2"):
        Lifted(LAWS["banana"], factor=1)


@pytest.mark.parametrize("theta", [torch.zeros(2, 3), torch.full((2, 2), torch.nan)])
def test_theta_is_checked(theta):
    with pytest.raises(ValueError, match="`theta` should"):
        LAWS["banana"].simulate(theta)


def test_fractions_are_not_rounded_to_their_ends():
    theta = torch.tensor([[8.0, 8.0, 0.0], [-8.0, -8.0, 0.0]]).repeat(20_000, 1)
    x = LAWS["shares"].simulate(theta, seed=0)
    assert 0 < x.min() < x.max() < 1
    assert torch.isfinite(LAWS["shares"].log_prob(x.double(), theta.double())).all()
