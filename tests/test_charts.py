from copy import deepcopy

import pytest
import torch

from mfsbi.charts import (
    AmbientChart,
    AutoencoderChart,
    EncoderChart,
    FlowChart,
    PrescribedChart,
    Standardized,
)
from mfsbi.flows import AffineCouplings, SplineCouplings
from mfsbi.networks import ResidualNetwork
from tests.laws import gram_log_volume, jacobian_by_differences, perturbed

pytestmark = pytest.mark.usefixtures("float64")


def frame(dims):
    axes, _ = torch.linalg.qr(torch.randn(dims, dims))
    return torch.randn(dims), torch.rand(dims) + 0.5, axes


def prescribed():
    chart = PrescribedChart((polar, angles), 2, 2)
    chart.mean, chart.std = 0.1 * torch.randn(2), torch.rand(2) + 0.3
    return chart


CHARTS = {
    "ambient": lambda: Standardized(AmbientChart(3), torch.randn(3), torch.rand(3) + 0.5),
    "flow": lambda: FlowChart(SplineCouplings(layers=4).build(3), 2),
    "affine": lambda: FlowChart(AffineCouplings().build(3, cut=2), 2),
    "affine in many dimensions": lambda: Standardized(
        FlowChart(AffineCouplings(layers=4, lu=True).build(9, cut=8), 8), *frame(9)
    ),
    "flow of a line": lambda: FlowChart(SplineCouplings(layers=4).build(4), 1),
    "standardized flow": lambda: Standardized(FlowChart(SplineCouplings(layers=4).build(3), 2), *frame(3)),
    "encoder": lambda: EncoderChart(FlowChart(SplineCouplings(layers=4).build(3), 2), ResidualNetwork(3, 2, width=16)),
    "standardized encoder": lambda: Standardized(
        EncoderChart(FlowChart(SplineCouplings(layers=2).build(5), 2), ResidualNetwork(5, 2, width=16)), *frame(5)
    ),
}
CHARTS |= {
    "prescribed": prescribed,
    "autoencoder": lambda: Standardized(
        AutoencoderChart(ResidualNetwork(2, 4, width=16), ResidualNetwork(4, 2, width=16), 4, 2), *frame(4)
    ),
    "along the features": lambda: Standardized(FlowChart(SplineCouplings(layers=3).build(3), 2), *frame(3)[:2]),
    "truncated": lambda: truncated(FlowChart(SplineCouplings(layers=3).build(3), 2), 6),
    "truncated, of many dimensions": lambda: truncated(FlowChart(AffineCouplings(layers=2).build(9, cut=8), 8), 10),
    "at theta": lambda: Standardized(FlowChart(SplineCouplings(layers=3).build(3, 2), 2), *frame(3)).at(
        torch.tensor([0.4, -0.7])
    ),
}
CHARTS |= {
    "linear coordinates": lambda: straightened(plain_of_four()),
    "linear coordinates, truncated": lambda: straightened(
        truncated(FlowChart(AffineCouplings().build(3, cut=2), 2), 5)
    ),
}
INVERTIBLE = [name for name in CHARTS if "encoder" not in name]


def polar(u):
    return u[..., :1].exp() * torch.stack([u[..., 1].cos(), u[..., 1].sin()], -1)


def angles(x):
    return torch.stack([x.norm(dim=-1).log(), torch.atan2(x[..., 1], x[..., 0])], -1)


def truncated(chart, dims):
    """Return a chart in the first axes of a frame of more dimensions."""
    mean, std, axes = frame(dims)
    return Standardized(chart, mean, std, axes[:, : chart.data_dim])


def plain_of_four():
    return Standardized(FlowChart(AffineCouplings(layers=2).build(4, cut=2), 2), *frame(4))


def straightened(chart):
    """Return a chart in a frame with coordinates that are linear functions of the data, slanted to its first axes."""
    slanted = torch.eye(chart.chart.data_dim, chart.manifold_dim)
    slanted[-1], slanted[0, 0] = 0.3, 1.7
    chart.linear.take(slanted, torch.eye(chart.manifold_dim + 1, chart.manifold_dim))
    return chart


@pytest.fixture(params=CHARTS)
def chart(request):
    torch.manual_seed(2)
    return perturbed(CHARTS[request.param](), 0.05)


@pytest.fixture
def u(chart):
    return torch.randn(6, chart.manifold_dim)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_decode_then_encode_returns_the_coordinates(name):
    chart = perturbed(CHARTS[name](), 0.05)
    u = torch.randn(6, chart.manifold_dim)
    torch.testing.assert_close(chart.encode(chart.decode(u)), u)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_projecting_twice_is_projecting_once(name):
    chart = perturbed(CHARTS[name](), 0.05)
    once = chart.project(torch.randn(6, chart.data_dim))
    torch.testing.assert_close(chart.project(once), once)


def test_log_volume_is_the_growth_of_a_small_cell(chart, u):
    """By finite differences, not by our own Jacobian."""
    expected = torch.stack([gram_log_volume(jacobian_by_differences(chart.decode, row)) for row in u])
    torch.testing.assert_close(chart.log_volume(u), expected, rtol=0, atol=1e-6)


def test_normals_are_taken_where_they_cost_less(monkeypatch):
    chart = CHARTS["affine in many dimensions"]()
    expected = chart.log_volume(torch.ones(2, 8))
    monkeypatch.setattr(Standardized, "tangents", None)
    torch.testing.assert_close(chart.log_volume(torch.ones(2, 8)), expected)


def test_shapes_follow_the_batch_axes(chart):
    x = torch.randn(2, 3, chart.data_dim)
    assert chart.encode(x).shape == (2, 3, chart.manifold_dim)
    assert chart.project(x).shape == x.shape
    assert chart.log_volume(chart.encode(x)).shape == chart.squared_distance(x).shape == (2, 3)


def test_a_standardised_distance_does_not_depend_on_the_axes():
    mean, std, axes = frame(3)
    chart = Standardized(perturbed(FlowChart(SplineCouplings(layers=2).build(3), 2), 0.05), mean, std, axes)
    x = mean + std * torch.randn(5, 3)
    expected = ((x - chart.project(x)) / std).square().sum(-1)
    torch.testing.assert_close(chart.squared_distance(x), expected)


def test_a_truncated_frame_counts_what_it_drops_in_distances_and_cannot_be_split():
    chart, x = perturbed(CHARTS["truncated"](), 0.05), torch.randn(5, 6)
    expected = ((x - chart.project(x)) / chart.std).square().sum(-1)
    torch.testing.assert_close(chart.squared_distance(x), expected)
    with pytest.raises(TypeError, match="has no split: it drops what data have beside 3 axes"):
        chart.split(x)


def test_linear_coordinates_are_what_they_say_and_leave_projections_alone():
    chart, x = perturbed(CHARTS["linear coordinates"](), 0.05), torch.randn(5, 4)
    torch.testing.assert_close(chart.encode(x), chart.inward(x) @ chart.linear.directions)
    torch.testing.assert_close(chart.project(x), chart.outward(chart.chart.project(chart.inward(x))))
    with pytest.raises(TypeError, match="has no split: its coordinates are linear"):
        chart.split(x)


def test_a_point_of_linear_coordinates_follows_them_and_the_weights():
    """The gradient through Newton's method is that by finite differences."""
    chart = perturbed(CHARTS["linear coordinates"](), 0.05)
    w, weight = torch.randn(3, 2, requires_grad=True), chart.chart.flow.layers[0].network.last.bias
    assert torch.autograd.gradcheck(chart.decode, (w,), atol=1e-6)
    (slope,) = torch.autograd.grad(chart.decode(w).sum(), weight)
    with torch.no_grad():
        up, down = (_moved(chart, weight, 0, step).decode(w).sum() for step in (1e-5, -1e-5))
    assert float(slope[0]) == pytest.approx(float(up - down) / 2e-5, rel=1e-4)


def test_a_few_coordinates_that_belong_to_no_point_are_passed_over_and_many_are_told_of():
    def decode(u):
        return torch.cat([u.sin(), u.cos()], -1)

    chart = Standardized(PrescribedChart((decode, lambda x: x[..., :1].arcsin()), 2, 1), torch.zeros(2), torch.ones(2))
    chart.linear.take(torch.eye(2)[:, :1], torch.eye(2)[:, :1])
    w = torch.linspace(-0.9, 0.9, 2000).unsqueeze(-1)
    torch.testing.assert_close(chart.decode(w)[:, :1], w)
    w[0] = 1.1
    chart.decode(w)  # a warning would be an error
    with pytest.warns(UserWarning, match="1 of 10 rows have coordinates that belong to no point .* `max_num_epochs`"):
        x = chart.decode(w[:10])
    assert float(x[0, 0]) == pytest.approx(1, abs=0.1)


def _moved(chart, weight, index, step):
    """Return a copy of a chart, one of whose weights is another."""
    name = next(name for name, value in chart.named_parameters() if value is weight)
    copy = deepcopy(chart)
    copy.get_parameter(name)[index] += step
    return copy


def test_linear_coordinates_come_and_go_with_the_tensors_of_a_chart():
    straight, plain = CHARTS["linear coordinates"](), plain_of_four()
    names = set(plain.state_dict())
    plain.load_state_dict(straight.state_dict())
    u = torch.randn(5, 2)
    torch.testing.assert_close(plain.decode(u), straight.decode(u), rtol=0, atol=0)
    plain.load_state_dict({name: value for name, value in straight.state_dict().items() if name in names})
    assert not plain.linear.given
    torn = straight.state_dict()
    del torn["linear.start"]
    with pytest.raises(RuntimeError, match=r"linear coordinates should have shapes .*'directions': \(4, 2\)"):
        plain.load_state_dict(torn)


def test_charts_that_are_no_bijection_cannot_be_split():
    with pytest.raises(TypeError, match="Only a chart that is half of a bijection can be split"):
        CHARTS["autoencoder"]().split(torch.randn(5, 4))


@pytest.mark.parametrize("dims", [2, 3, 6])
def test_a_new_standardised_chart_projects_on_the_first_axes_of_its_frame(dims):
    mean, std, axes = frame(dims)
    chart = Standardized(FlowChart(SplineCouplings().build(dims), 1), mean, std, axes)
    x = torch.randn(4, dims)
    first = axes[:, :1]
    expected = mean + std * (((x - mean) / std) @ first @ first.T)
    torch.testing.assert_close(chart.project(x), expected)


@pytest.mark.parametrize("name", CHARTS)
def test_state_makes_a_twin_of_a_chart_built_from_other_data(name):
    chart, twin = perturbed(CHARTS[name](), 0.05), CHARTS[name]()
    x = torch.randn(3, chart.data_dim)
    assert not torch.allclose(twin.encode(x), chart.encode(x))
    twin.load_state_dict(chart.state_dict())
    torch.testing.assert_close(twin.encode(x), chart.encode(x))


def test_a_point_without_volume_is_named_by_its_row_in_the_whole_batch():
    chart = FlowChart(AffineCouplings(layers=1).build(3, cut=2), 2)
    u = torch.zeros(2, 1500, 2)
    u[1, 1400] = torch.nan
    with pytest.raises(ArithmeticError, match=r"row \(1, 1400\)"):
        chart.log_volume(u)
