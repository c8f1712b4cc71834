"""Autoregressive mixtures of normals."""

import pytest
import torch
from jaxtyping import TypeCheckError
from torch.distributions import MultivariateNormal, StudentT

from mfsbi.charts import CutFlow
from mfsbi.flows import AutoregressiveMixtures
from tests.laws import perturbed

STARTS = pytest.mark.parametrize("start", ["normal", "linear"])


def density(start="normal", features=2, parameters=1, components=3, seed=0, amount=0.1):
    torch.manual_seed(seed)
    config = AutoregressiveMixtures(components=components, width=16, start=start)
    return perturbed(config.build(features, parameters), amount).double().requires_grad_(False)


def grid(half, points):
    axis = torch.linspace(-half, half, points, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis), (2 * half / (points - 1)) ** 2


@STARTS
@pytest.mark.parametrize("theta", [-1.3, 0.0, 2.0])
def test_the_density_is_normalised(start, theta):
    points, cell = grid(12, 601)
    log_prob = density(start).log_prob(points, torch.full((len(points), 1), theta, dtype=torch.float64))
    assert log_prob.exp().sum().item() * cell == pytest.approx(1, abs=1e-4)


@STARTS
def test_draws_are_of_the_density(start):
    """Moments of 40,000 draws are those of a brute-force sum over a grid."""
    model, theta = density(start), torch.tensor([[0.7]], dtype=torch.float64)
    points, cell = grid(12, 601)
    mass = model.log_prob(points, theta.expand(len(points), 1)).exp() * cell
    u = model.sample(theta.expand(40_000, 1), torch.Generator().manual_seed(1))
    for power in (1, 2):
        expected = (mass[:, None] * points**power).sum(0)
        error = (u**power).std(0) / len(u) ** 0.5
        assert ((u**power).mean(0) - expected).abs().lt(5 * error).all()
    cross = (mass * points.prod(1)).sum()
    assert (u.prod(1).mean() - cross).abs() < 5 * u.prod(1).std() / len(u) ** 0.5


@pytest.mark.parametrize("components", [1, 4])
def test_it_starts_with_mean_zero_and_spread_one(components):
    model = density(components=components, amount=0.0)
    points, cell = grid(8, 401)
    mass = model.log_prob(points, torch.zeros(len(points), 1, dtype=torch.float64)).exp() * cell
    torch.testing.assert_close((mass[:, None] * points).sum(0), torch.zeros(2).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close((mass[:, None] * points.square()).sum(0), torch.ones(2).double(), atol=1e-5, rtol=0)


def test_the_linear_start_is_the_law_where_all_is_linear_and_normal():
    generator = torch.Generator().manual_seed(3)
    theta = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    root = torch.tensor([[0.6, 0, 0], [0.3, 0.2, 0], [-0.4, 0.2, 0.5]], dtype=torch.float64)
    slopes = torch.tensor([[0.6, -0.2], [0.4, 0.1], [0.1, 0.5]], dtype=torch.float64)
    u = theta @ slopes.T + torch.randn(20_000, 3, generator=generator, dtype=torch.float64) @ root.T
    model = density("linear", features=3, parameters=2, components=1, amount=0.0)
    model.measure(u[:10_000], theta[:10_000])
    exact = MultivariateNormal(theta[10_000:] @ slopes.T, scale_tril=root).log_prob(u[10_000:])
    found = model.log_prob(u[10_000:], theta[10_000:])
    assert (exact - found).mean().abs() < 0.01
    assert (exact - found).abs().quantile(0.99) < 0.2


def test_narrow_coordinates_start_as_narrow_as_they_are():
    torch.manual_seed(6)
    theta = torch.randn(5000, 1).double()
    u = theta + 0.003 * torch.randn(5000, 2).double()
    model = density("linear", components=1, amount=0.0)
    model.measure(u, theta)
    exact = MultivariateNormal(theta.expand(-1, 2), 9e-6 * torch.eye(2).double()).log_prob(u)
    assert (exact - model.log_prob(u, theta)).mean().abs() < 0.05


def test_no_rows_are_no_trouble():
    model = density()
    none = torch.zeros(0, 1).double()
    assert model.log_prob(torch.zeros(0, 2).double(), none).shape == (0,)
    assert model.sample(none).shape == (0, 2)


def test_far_values_do_not_rule_the_linear_start():
    generator = torch.Generator().manual_seed(4)
    theta = torch.randn(2000, 1, generator=generator)
    torch.manual_seed(4)
    u = 2 * theta + 0.1 * StudentT(torch.tensor(1.5)).sample((2000, 2))
    model = density("linear", components=1, amount=0.0)
    model.measure(u.double(), theta.double())
    torch.testing.assert_close(
        model.theta_slope[model.order[0]].detach(), torch.tensor([2.0]).double(), atol=0.02, rtol=0
    )
    assert model.log_scale.exp().max() < 0.3


def test_noise_is_not_regressed_on():
    """With as many coordinates as rows allow, slopes of noise stay near zero."""
    torch.manual_seed(5)
    u, theta = torch.randn(100, 40).double(), torch.randn(100, 5).double()
    model = density("linear", features=40, parameters=5, components=1, amount=0.0)
    model.measure(u, theta)
    new, told = torch.randn(5000, 40).double(), torch.randn(5000, 5).double()
    loss = MultivariateNormal(torch.zeros(40).double(), torch.eye(40).double()).log_prob(new) - model.log_prob(
        new, told
    )
    assert loss.mean() < 3.0  # least squares on 40 neighbours lose 17 nats


@STARTS
def test_a_likelihood_has_no_kinks_in_theta(start):
    """Third differences of log p vanish as the third power of the step."""
    model, u = density(start), torch.tensor([[0.4, -0.8]], dtype=torch.float64)

    def largest(step):
        theta = torch.arange(-1.0, 1.0, step, dtype=torch.float64)[:, None]
        return model.log_prob(u.expand(len(theta), 2), theta).diff(n=3).abs().max()

    assert largest(2e-3) / largest(1e-3) == pytest.approx(8, rel=0.1)


def test_without_parameters_theta_may_be_left_out():
    model = density(parameters=0)
    u = torch.randn(3, 4, 2, dtype=torch.float64)
    assert model.log_prob(u).shape == (3, 4)
    assert model.sample(torch.zeros(5, 0, dtype=torch.float64)).shape == (5, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"components": 0}, "components` should be a positive integer"), ({"start": "flat"}, "start")],
)
def test_settings_are_checked(settings, message):
    with pytest.raises((ValueError, TypeCheckError), match=message):
        AutoregressiveMixtures(**settings)


def test_a_chart_of_it_is_refused():
    with pytest.raises(TypeError, match="`Bijection`, which a chart needs"):
        CutFlow(AutoregressiveMixtures()).build(3, 1)


def test_of_many_coordinates_the_likest_alone_are_regressed_on(monkeypatch):
    monkeypatch.setattr("mfsbi.flows.mixtures.NEIGHBOURS", 1)
    torch.manual_seed(0)
    model = AutoregressiveMixtures(start="linear").build(6, 1)
    u, theta = torch.randn(4000, 6).cumsum(1), torch.randn(4000, 1)
    u = u / u.std(0)
    model.measure(u, theta)
    last = int(model.order[-1])
    (kept,) = model.slope[last].nonzero()[:, 0].tolist()
    assert kept in (last - 1, last + 1)
    assert model.slope[last, kept].item() == pytest.approx(float(u[:, [last, kept]].T.corrcoef()[0, 1]), abs=0.1)
