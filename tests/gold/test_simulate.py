import pytest
import torch

from mfsbi.gold import simulate
from mfsbi.simulations import Simulations
from simulators.lhc.process import WBFHiggs
from simulators.polynomial import PolynomialSurface
from simulators.sphere import Sphere

SURFACE = PolynomialSurface()


def test_a_simulator_without_gold_gives_x_alone():
    theta = torch.zeros(3, 2)
    found = simulate(Sphere(), theta, seed=1)
    assert (found.x == Sphere().simulate(theta, seed=1)).all()
    assert set(found.fields) == {"theta", "x"}


def test_a_simulator_without_gold_can_still_draw_at_a_reference():
    at_theta = torch.tensor([True, False, True])
    found = simulate(Sphere(), torch.zeros(3, 2), theta_ref=torch.ones(2), from_theta=at_theta, seed=1)
    expected = Sphere().simulate(torch.tensor([[0.0, 0], [1, 1], [0, 0]]), seed=1)
    assert (found.x == expected).all()


@pytest.mark.parametrize("simulator", [SURFACE, WBFHiggs(2)])
def test_gold_comes_with_the_same_x_as_without(simulator):
    theta = simulator.prior.sample((50,))
    found = simulate(simulator, theta, seed=3)
    assert (found.x == simulator.simulate(theta, seed=3)).all()
    assert found.joint_score.shape == theta.shape
    assert found.joint_log_ratio.shape == (50,)


def test_the_ratio_of_rows_drawn_at_the_reference_is_that_of_theta_to_the_reference():
    """E[1/r] at theta and E[r] at the reference are both one, within five standard errors."""
    theta, reference = torch.full((40_000, 1), 0.4), torch.tensor([0.1])
    at_theta = torch.arange(40_000) % 2 == 0
    found = simulate(SURFACE, theta, theta_ref=reference, from_theta=at_theta, seed=4)
    for rows, sign in ((at_theta, -1), (~at_theta, 1)):
        ratio = (sign * found.joint_log_ratio[rows].double()).exp()
        assert abs(float(ratio.mean()) - 1) < 5 * float(ratio.std()) / 20_000**0.5
    assert (found.joint_score[~at_theta] == 0).all()
    assert (found.joint_score[at_theta] != 0).any()


def test_the_mean_joint_score_of_like_x_is_the_score():
    """Regressed on the exact score, the joint score has slope one; what is left has no correlation with x."""
    theta = torch.rand(50_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    found = simulate(SURFACE, theta, seed=5)
    score = SURFACE.score(found.x, theta)
    left = found.joint_score - score
    error = float((left * score).std()) / 50_000**0.5
    assert abs(float((left * score).mean())) < 4 * error
    assert float(left.square().mean()) > 0.05 * float(score.square().mean())


def test_the_score_at_a_reference_is_zero_even_where_there_is_none():
    class Edge:
        """x ~ N(theta^1/2, 1), without a score at the reference of zero."""

        parameter_names = ("theta",)
        prior = PolynomialSurface().prior

        def simulate(self, theta, *, seed=None):
            return theta.sqrt()

        def simulate_with_gold(self, theta, *, theta_ref=None, seed=None):
            return Simulations(
                theta, theta.sqrt(), 0.5 / theta.sqrt() - torch.where(theta == 0, torch.inf, 0.0), theta[:, 0]
            )

    at_theta = torch.tensor([True, False, True])
    found = simulate(Edge(), torch.ones(3, 1), theta_ref=torch.zeros(1), from_theta=at_theta)
    assert found.joint_score[:, 0].tolist() == [0.5, 0.0, 0.5]


def test_rows_at_a_reference_need_one():
    with pytest.raises(ValueError, match="pass `theta_ref`"):
        simulate(SURFACE, torch.zeros(2, 1), from_theta=torch.tensor([True, False]))
    with pytest.raises(ValueError, match="`theta` and `from_theta` should have one row"):
        simulate(SURFACE, torch.zeros(2, 1), theta_ref=torch.zeros(1), from_theta=torch.tensor([True]))
