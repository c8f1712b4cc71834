import pytest
import torch

from mfsbi.charts import AmbientChart, FlowChart, Standardized
from mfsbi.flows import SplineCouplings
from mfsbi.models import AmbientModel, Latent, ManifoldModel
from tests.laws import gram_log_volume, jacobian_by_backward_passes, jacobian_by_differences, perturbed

pytestmark = pytest.mark.usefixtures("float64")
SMALL = SplineCouplings(layers=3, width=16, bins=6)


def latent(dims, parameters=2):
    density = Latent(SMALL.build(dims, parameters), torch.randn(parameters), torch.rand(parameters) + 0.5)
    density.measure(torch.randn(50, dims) * torch.linspace(0.7, 1.3, dims) + 0.4)
    return density


def sheared():
    """Return a density of two coordinates that are strongly correlated."""
    density = latent(2)
    density.measure(torch.randn(50, 2) @ torch.tensor([[0.8, 0.7], [0.0, 0.2]]) + 0.4)
    assert density.u_shear[0, 1] != 0
    return density


MODELS = {
    "manifold": lambda: ManifoldModel(
        Standardized(FlowChart(SMALL.build(3), 2), torch.randn(3), torch.rand(3) + 0.5), latent(2)
    ),
    "sheared": lambda: ManifoldModel(
        Standardized(FlowChart(SMALL.build(3), 2), torch.randn(3), torch.rand(3) + 0.5), sheared()
    ),
    "curve": lambda: ManifoldModel(FlowChart(SMALL.build(3), 1), latent(1)),
    "ambient": lambda: ManifoldModel(Standardized(AmbientChart(2), torch.randn(2), torch.rand(2) + 0.5), latent(2)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(3)
    return perturbed(MODELS[request.param](), 0.05)


def test_log_prob_is_latent_density_over_brute_force_volume(model):
    theta = torch.randn(5, 2)
    x = model.sample(theta)
    u = model.chart.encode(x)
    volume = [gram_log_volume(jacobian_by_backward_passes(model.chart.decode, row)) for row in u]
    expected = model.latent.log_prob(u, theta) - torch.stack(volume)
    torch.testing.assert_close(model.log_prob(x, theta), expected, rtol=0, atol=1e-8)


def test_float32_agrees_with_float64_to_a_thousandth(model):
    theta = torch.randn(20, 2)
    x = model.sample(theta)
    expected = model.log_prob(x, theta)
    measured = model.float().log_prob(x.float(), theta.float())
    torch.testing.assert_close(measured.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dims", [1, 2])
def test_latent_density_integrates_to_one(dims):
    density = perturbed(latent(dims), 0.05)
    line = torch.linspace(-12, 12, 241 if dims == 2 else 4001)
    grid = torch.cartesian_prod(*[line] * dims).reshape(-1, dims)
    theta = torch.tensor([[0.3, -0.5]]).expand(len(grid), 2)
    mass = density.log_prob(grid, theta).exp().sum() * (line[1] - line[0]) ** dims
    torch.testing.assert_close(mass, torch.ones(()), rtol=0, atol=2e-3)


def test_density_of_a_curve_integrates_to_one_over_its_length():
    """By arc lengths of a fine polygon, not by our own volume factor."""
    model = perturbed(MODELS["curve"](), 0.05)
    u = torch.linspace(-10, 10, 4001)[:, None]
    x = model.chart.decode(u)
    lengths = (x[1:] - x[:-1]).norm(dim=-1)
    middle = model.chart.decode((u[1:] + u[:-1]) / 2)
    density = model.log_prob(middle, torch.zeros(len(middle), 2)).exp()
    torch.testing.assert_close((density * lengths).sum(), torch.ones(()), rtol=0, atol=1e-3)


def test_density_of_a_surface_integrates_to_one_over_triangles():
    """By areas of a fine triangulation (cross products), not by our own volume factor."""
    model = perturbed(MODELS["manifold"](), 0.05)
    line = torch.linspace(-8, 8, 161)
    u = torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1)
    x = model.chart.decode(u)
    one, two, three, four = x[:-1, :-1], x[1:, :-1], x[:-1, 1:], x[1:, 1:]
    area = 0.5 * (
        torch.linalg.cross(two - one, three - one).norm(dim=-1)
        + torch.linalg.cross(two - four, three - four).norm(dim=-1)
    )
    middle = model.chart.decode((u[:-1, :-1] + u[1:, 1:]) / 2).flatten(0, 1)
    density = model.log_prob(middle, torch.zeros(len(middle), 2)).exp()
    torch.testing.assert_close((density * area.flatten()).sum(), torch.ones(()), rtol=0, atol=2e-3)


def test_samples_lie_on_the_manifold(model):
    x = model.sample(torch.randn(50, 2))
    torch.testing.assert_close(model.distance(x), torch.zeros(50), rtol=0, atol=1e-8)


def test_density_is_that_of_the_projection(model):
    theta = torch.randn(5, 2)
    x = torch.randn(5, model.chart.data_dim)
    torch.testing.assert_close(model.log_prob(x, theta), model.log_prob(model.project(x), theta))


def test_samples_follow_the_density():
    """Histogram of samples against the integrated density."""
    density = perturbed(latent(1), 0.1)
    theta = torch.tensor([[0.3, -0.5]])
    samples = density.sample(theta.expand(200_000, 2), torch.Generator().manual_seed(1))[:, 0]
    edges = torch.linspace(-3, 3, 13)
    fine = torch.linspace(-3, 3, 6001)
    values = density.log_prob(fine[:, None], theta.expand(6001, 2)).exp()
    cumulative = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(values, fine)])[::500]
    expected = cumulative.diff()
    observed = torch.histogram(samples, edges)[0] / 200_000
    error = (expected * (1 - expected) / 200_000).sqrt()
    assert ((observed - expected).abs() < 5 * error + 1e-6).all()


def test_the_score_is_the_derivative_in_theta(model):
    theta = torch.randn(4, 2)
    x = model.sample(theta)
    needs = theta.clone().requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(x, needs).sum(), needs)
    rows = [
        jacobian_by_differences(lambda t, i=i: model.log_prob(x[i : i + 1], t[None]), theta[i])[0] for i in range(4)
    ]
    torch.testing.assert_close(score, torch.stack(rows), rtol=0, atol=1e-6)


def test_far_away_the_density_is_a_number(model):
    x = torch.full((3, model.chart.data_dim), 1e3)
    value = model.log_prob(x, torch.full((3, 2), 50.0))
    assert not torch.isnan(value).any()


def test_a_single_theta_gives_a_single_x(model):
    assert model.sample(torch.zeros(2)).shape == (model.chart.data_dim,)


def test_one_generator_gives_one_sample(model):
    theta = torch.randn(5, 2)
    first, second = (model.sample(theta, torch.Generator().manual_seed(4)) for _ in range(2))
    assert (first == second).all()


def thick(data_dim, manifold_dim, parameters):
    """Return a model of data space around a manifold; with parameters its chart depends on theta."""
    chart = FlowChart(SMALL.build(data_dim, parameters), manifold_dim)
    standardized = Standardized(chart, torch.randn(data_dim), torch.rand(data_dim) + 0.5)
    return perturbed(AmbientModel(standardized, latent(manifold_dim), 0.3), 0.05)


@pytest.mark.parametrize("parameters", [0, 2])
def test_density_around_a_manifold_is_that_of_a_bijection(parameters):
    """By the change of variables with the whole Jacobian from backward passes."""
    model, theta = thick(3, 2, parameters), torch.randn(5, 2)
    x = model.sample(theta)

    def both(row, i):
        return torch.cat(model.chart_at(theta[i]).split(row)[:2])

    jacobian = torch.stack([jacobian_by_backward_passes(lambda row, i=i: both(row, i), x[i]) for i in range(5)])
    u, v = torch.stack([both(x[i], i) for i in range(5)]).split([2, 1], dim=-1)
    normal = torch.distributions.Normal(0.0, 0.3).log_prob(v).sum(-1)
    expected = model.latent.log_prob(u, theta) + normal + torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(model.log_prob(x, theta), expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("parameters", [0, 2])
def test_density_around_a_curve_integrates_to_one(parameters):
    model, line = thick(2, 1, parameters), torch.linspace(-12, 12, 401)
    grid = torch.cartesian_prod(line, line)
    density = model.log_prob(grid, torch.tensor([0.3, -0.5]).expand(len(grid), 2)).exp()
    torch.testing.assert_close(density.sum() * (line[1] - line[0]) ** 2, torch.ones(()), rtol=0, atol=2e-3)


def test_a_chart_that_depends_on_theta_has_the_volume_of_its_own_tangents():
    """Also on the manifold, where the volume then depends on theta."""
    model, theta = ManifoldModel(thick(3, 2, 2).chart, latent(2)), torch.randn(5, 2)
    x = model.sample(theta)
    volume = [
        gram_log_volume(jacobian_by_backward_passes(model.chart_at(theta[i]).decode, model.encode(x[i], theta[i])))
        for i in range(5)
    ]
    expected = model.latent.log_prob(model.encode(x, theta), theta) - torch.stack(volume)
    torch.testing.assert_close(model.log_prob(x, theta), expected, rtol=0, atol=1e-8)
    assert (
        volume[0]
        - gram_log_volume(jacobian_by_backward_passes(model.chart_at(theta[1]).decode, model.encode(x[0], theta[0])))
    ).abs() > 1e-3
