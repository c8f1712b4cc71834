import json
from pathlib import Path

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from simulators import polynomial
from simulators.polynomial import PolynomialSurface
from tests.laws import gram_log_volume, jacobian_by_differences

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "published.json"


@pytest.fixture
def surface():
    return PolynomialSurface()


def theta_of(rows, value=None):
    if value is not None:
        return torch.full((rows, 1), value, dtype=torch.float64)
    return torch.rand(rows, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


def test_the_rotation_is_one():
    torch.testing.assert_close(
        polynomial.ROTATION @ polynomial.ROTATION.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-8
    )


@pytest.mark.skipif(not REFERENCE.exists(), reason="the published constants are not part of the repository")
def test_the_constants_are_the_published_ones():
    published = json.loads(REFERENCE.read_text())["polynomial"]
    assert polynomial.COEFFICIENTS.tolist() == published["coefficients"]
    assert polynomial.ROTATION.tolist() == published["rotation"]


def test_the_height_is_the_formula_written_out(surface):
    z0, z1 = 0.7, -1.3
    monomials = [z0**i * z1**j for degree in range(6) for i, j in ((degree - k, k) for k in range(degree + 1))]
    expected = 2.718281828459045 ** (-0.1 * (z0**2 + z1**2)) * sum(
        a * m for a, m in zip(polynomial.COEFFICIENTS.tolist(), monomials, strict=True)
    )
    x = surface.decode(torch.tensor([z0, z1], dtype=torch.float64)) @ polynomial.ROTATION
    assert x.tolist() == pytest.approx([z0, z1, expected], abs=1e-7)  # to which the rotation is orthogonal


def test_decode_then_encode_returns_the_coordinates(surface):
    u = 2 * torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(surface.encode(surface.decode(u)), u, rtol=0, atol=1e-7)


def test_samples_lie_on_the_surface(surface):
    x = surface.simulate(theta_of(1000), seed=0)
    assert surface.vertical_distance(x).max() < 1e-7
    assert surface.distance(x).max() < 1e-7


def test_density_integrates_to_one_over_triangles(surface):
    """By areas of a triangulation (cross products), not by the gradient of the height."""
    line = torch.linspace(-13, 13, 521, dtype=torch.float64)
    z = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)
    x = surface.decode(z)
    one, two, three, four = x[:-1, :-1], x[1:, :-1], x[:-1, 1:], x[1:, 1:]
    sides = ((two - one, three - one), (two - four, three - four))
    area = 0.5 * sum(torch.linalg.cross(a, b).norm(dim=-1) for a, b in sides)
    middle = surface.decode((z[:-1, :-1] + z[1:, 1:]) / 2)
    mass = (surface.log_prob(middle, torch.tensor([-0.5], dtype=torch.float64)).exp() * area).sum()
    assert float(mass) == pytest.approx(1, abs=1e-3)


def test_density_has_the_area_element(surface):
    z, theta = torch.randn(20, 2, dtype=torch.float64), torch.tensor([-0.5], dtype=torch.float64)
    widths = torch.tensor([2.0, 0.4], dtype=torch.float64)[:, None].expand(2, 2)
    components = Independent(Normal(polynomial.MEANS, widths), 1)
    density = MixtureSameFamily(Categorical(polynomial.WEIGHTS), components).log_prob(z)
    area = torch.stack([gram_log_volume(jacobian_by_differences(surface.decode, row)) for row in z])
    torch.testing.assert_close(surface.log_prob(surface.decode(z), theta), density - area, rtol=0, atol=1e-6)


@pytest.mark.parametrize("theta", [-0.9, 0.0, 0.8])
def test_samples_have_the_moments_of_the_mixture(surface, theta):
    z = surface.encode(surface.simulate(theta_of(400_000, theta), seed=1))
    width = 0.6 + 0.4 * theta
    mean = torch.tensor([0.6 - 0.4, -0.6 + 0.4], dtype=torch.float64)
    variance = 0.6 * (4 + 1) + 0.4 * (width**2 + 1) - mean**2
    error = (variance / len(z)).sqrt()
    assert ((z.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(z.var(0), variance, rtol=0.02, atol=0)


def test_log_prob_is_minus_infinity_off_the_surface(surface):
    x = surface.simulate(theta_of(5), seed=0)
    lifted = x + 2e-4 * polynomial.ROTATION[:, 2]
    assert torch.isfinite(surface.log_prob(x, theta_of(5))).all()
    assert torch.isneginf(surface.log_prob(lifted, theta_of(5))).all()


def test_log_prob_forgives_float32(surface):
    theta = theta_of(100_000).float()
    assert torch.isfinite(surface.log_prob(surface.simulate(theta, seed=0), theta)).all()


def test_score_is_the_derivative_in_theta(surface):
    theta = theta_of(50)
    x = surface.simulate(theta, seed=2)
    step = 1e-5
    difference = (surface.log_prob(x, theta + step) - surface.log_prob(x, theta - step)) / (2 * step)
    torch.testing.assert_close(surface.score(x, theta)[:, 0], difference, rtol=0, atol=1e-5)


@pytest.mark.parametrize("theta", [-0.5, 0.3])
def test_the_score_has_zero_mean(surface, theta):
    score = surface.score(surface.simulate(theta_of(200_000, theta), seed=3), theta_of(1, theta))
    assert abs(score.mean() / (score.std() / len(score) ** 0.5)) < 4


def test_distance_is_that_of_a_fine_search(surface):
    x = surface.out_of_distribution(6, seed=0, noise=0.3).double()
    offsets = torch.linspace(-1.5, 1.5, 601, dtype=torch.float64)
    shifts = torch.stack(torch.meshgrid(offsets, offsets, indexing="ij"), dim=-1).reshape(-1, 2)
    searched = torch.stack([(surface.decode(surface.encode(row) + shifts) - row).norm(dim=-1).min() for row in x])
    torch.testing.assert_close(surface.distance(x), searched, rtol=0, atol=2e-3)
    assert (surface.distance(x) <= searched + 1e-9).all()


def test_distance_is_never_above_the_vertical_one(surface):
    x = surface.out_of_distribution(500, seed=1, noise=1.0).double()
    assert (surface.distance(x) <= surface.vertical_distance(x) + 1e-12).all()


def test_one_seed_gives_one_sample_and_leaves_the_global_generator_alone(surface):
    state = torch.get_rng_state()
    first, second = (surface.simulate(theta_of(10), seed=5) for _ in range(2))
    assert (first == second).all()
    assert (torch.get_rng_state() == state).all()
    assert not (first == surface.simulate(theta_of(10), seed=6)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.simulate(torch.zeros(3, 2)), r"`theta` should have 1 features.*\(3, 2\)"),
        (lambda s: s.simulate(torch.full((3, 1), float("nan"))), "`theta` should be finite"),
        (lambda s: s.simulate(torch.full((3, 1), -2.0)), "`theta` should be above -1.5"),
        (lambda s: s.log_prob(torch.zeros(3, 2), torch.zeros(3, 1)), r"`x` should have 3 features.*\(3, 2\)"),
        (lambda s: s.distance(torch.full((1, 3), float("inf"))), "`x` should be finite"),
        (lambda s: s.decode(torch.zeros(3)), "`u` should have 2 features"),
    ],
)
def test_bad_arguments_are_refused(surface, call, message):
    with pytest.raises(ValueError, match=message):
        call(surface)


def test_the_joint_log_ratio_grows_by_the_joint_score():
    theta = torch.linspace(-0.9, 0.9, 40, dtype=torch.float64)[:, None]
    step = 1e-4
    below, above = (
        PolynomialSurface().simulate_with_gold(theta, theta_ref=theta + shift, seed=8) for shift in (-step, step)
    )
    slope = (below.joint_log_ratio - above.joint_log_ratio) / (2 * step)
    torch.testing.assert_close(slope[:, None], below.joint_score, rtol=1e-5, atol=1e-6)


def test_the_joint_log_ratio_to_itself_is_zero():
    theta = torch.linspace(-0.9, 0.9, 40)[:, None]
    assert (PolynomialSurface().simulate_with_gold(theta, theta_ref=theta, seed=8).joint_log_ratio == 0).all()
