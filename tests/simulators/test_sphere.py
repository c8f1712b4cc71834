import math

import pytest
import torch

from simulators.sphere import Circle, Sphere
from tests.laws import gram_log_volume, jacobian_by_differences

SPHERES = {"circle": Circle(), "circle in five": Circle(5), "sphere": Sphere(2), "three-sphere in six": Sphere(3, 6)}


@pytest.fixture(params=SPHERES)
def sphere(request):
    return SPHERES[request.param]


def theta_of(rows, seed=0):
    return torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.8 - 0.9


def test_samples_lie_on_the_sphere(sphere):
    x = sphere.simulate(theta_of(500), seed=0)
    assert x.shape == (500, sphere.data_dim)
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(500, dtype=torch.float64))
    assert sphere.distance(x).max() < 1e-7


def test_angles_and_points_belong_together(sphere):
    x = sphere.simulate(theta_of(50), seed=1)
    torch.testing.assert_close(sphere.decode(sphere.encode(x)), x, rtol=0, atol=1e-9)
    u = sphere.encode(x)
    assert (u >= 0).all()
    assert (u[:, :-1] <= math.pi).all()
    assert (u[:, -1] < 2 * math.pi).all()


@pytest.mark.parametrize("theta", [[0.0, -1.0], [0.9, 0.4]])
@pytest.mark.parametrize("name", ["circle", "circle in five", "sphere"])
def test_density_integrates_to_one(name, theta):
    """Over cells of angles, their size by differences of `decode`, not by the formula for the volume."""
    sphere = SPHERES[name]
    n = sphere.manifold_dim
    polar = (torch.arange(1500, dtype=torch.float64) + 0.5) / 1500 * math.pi
    azimuth = (torch.arange(200, dtype=torch.float64) + 0.5) / 200 * 2 * math.pi
    angles = torch.cartesian_prod(polar, azimuth) if n == 2 else azimuth[:, None]
    cell = math.pi / 1500 * 2 * math.pi / 200 if n == 2 else 2 * math.pi / 200
    columns = []
    for axis in range(n):
        shift = torch.zeros(n, dtype=torch.float64)
        shift[axis] = 1e-6
        columns.append((sphere.decode(angles + shift) - sphere.decode(angles - shift)) / 2e-6)
    jacobian = torch.stack(columns, -1)
    volume = torch.linalg.det(jacobian.mT @ jacobian).clamp(min=0).sqrt()
    density = sphere.log_prob(sphere.decode(angles), torch.tensor(theta, dtype=torch.float64)).exp()
    assert float((density * volume).sum() * cell) == pytest.approx(1, abs=2e-3)


def test_the_volume_of_a_cell_is_that_of_the_chart():
    sphere, u = SPHERES["three-sphere in six"], torch.tensor([0.7, 1.9, 3.0], dtype=torch.float64)
    by_differences = gram_log_volume(jacobian_by_differences(sphere.decode, u))
    expected = 2 * u[0].sin().log() + u[1].sin().log()
    torch.testing.assert_close(by_differences, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["circle", "sphere", "three-sphere in six"])
def test_density_is_that_of_the_samples(name):
    """Expectations by weights between two theta, which only the right ratio of densities can give."""
    sphere, rows = SPHERES[name], 200_000
    one, two = (torch.tensor(theta, dtype=torch.float64).expand(rows, 2) for theta in ([0.3, 0.2], [0.6, -0.1]))
    x, y = sphere.simulate(one, seed=3), sphere.simulate(two, seed=4)
    weight = (sphere.log_prob(x, two) - sphere.log_prob(x, one)).exp()
    for function in (lambda x: torch.ones(len(x), dtype=x.dtype), lambda x: x[:, 0], lambda x: x[:, 1] * x[:, -1]):
        gap = (weight * function(x)).mean() - function(y).mean()
        error = ((weight * function(x)).var() / rows + function(y).var() / rows).sqrt()
        assert abs(gap) < 4.5 * error


def test_the_paper_gaussian_is_at_theta_zero_and_minus_one():
    x = Circle().simulate(torch.tensor([0.0, -1.0], dtype=torch.float64).expand(100_000, 2), seed=0)
    mean = x.mean(0)
    length = math.exp(-((math.pi / 4) ** 2) / 2)
    torch.testing.assert_close(mean, torch.tensor([0.0, length], dtype=torch.float64), rtol=0, atol=0.01)


def test_the_score_is_the_derivative_of_log_prob(sphere):
    theta = theta_of(6, seed=5)
    x = sphere.simulate(theta, seed=6)
    for i in range(6):
        expected = jacobian_by_differences(lambda t, i=i: sphere.log_prob(x[i], t)[None], theta[i])[0]
        torch.testing.assert_close(sphere.score(x[i], theta[i]), expected, rtol=1e-5, atol=1e-6)


def test_off_the_sphere_there_is_no_density(sphere):
    x = sphere.out_of_distribution(100, seed=0)
    assert (sphere.log_prob(x, torch.zeros(2)) == -math.inf).all()
    assert sphere.distance(x).mean() > 0.05
    assert (sphere.distance(x) - sphere.vertical_distance(x)).abs().max() == 0


def test_distance_is_to_the_nearest_point():
    """By a search over many points of the circle."""
    circle = Circle(5)
    x = torch.randn(20, 5, dtype=torch.float64)
    dense = circle.decode(torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)[:, None])
    torch.testing.assert_close(circle.distance(x), torch.cdist(x, dense).min(-1).values, rtol=0, atol=1e-6)


def test_one_seed_gives_one_sample(sphere):
    theta = theta_of(5)
    assert (sphere.simulate(theta, seed=2) == sphere.simulate(theta, seed=2)).all()
    assert not (sphere.simulate(theta, seed=2) == sphere.simulate(theta, seed=3)).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`manifold_dim` should be at least 1 and below `data_dim`; got 2 and 2"):
        Sphere(2, 2)
    with pytest.raises(ValueError, match="`theta` should have 2 features"):
        Circle().simulate(torch.zeros(4, 1))
    with pytest.raises(ValueError, match="width .* positive; got -2"):
        Circle().simulate(torch.tensor([[-2.0, 0.0]]))
    with pytest.raises(ValueError, match="`x` should be finite"):
        Circle().log_prob(torch.tensor([[torch.nan, 0.0]]), torch.zeros(1, 2))


@pytest.mark.parametrize("n", [2, 3, 7])
def test_the_inverse_density_of_samples_averages_to_the_area(n):
    """E[1/p] over the samples in a cap is the cap's area: a wrong volume, or a lost preimage, would show."""
    sphere, theta = Sphere(n), torch.tensor([0.9, 0.4], dtype=torch.float64).expand(30_000, 2)
    x = sphere.simulate(theta, seed=8)
    cap = (x[:, 0].abs() < 0.5) & (x[:, 1].abs() < 0.5)  # away from the poles of both first angles
    inverse = torch.where(cap, (-sphere.log_prob(x, theta)).exp(), 0.0)
    uniform = torch.nn.functional.normalize(torch.randn(100_000, n + 1, dtype=torch.float64), dim=-1)
    share = ((uniform[:, 0].abs() < 0.5) & (uniform[:, 1].abs() < 0.5)).double().mean()
    area = float(share) * 2 * math.pi ** ((n + 1) / 2) / math.gamma((n + 1) / 2)
    error = float(inverse.std()) / len(x) ** 0.5
    assert float(inverse.mean()) == pytest.approx(area, abs=5 * error + 0.01 * area)
