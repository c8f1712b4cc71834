import math

import pytest
import torch

from mfsbi.charts import FlowChart
from mfsbi.density import log_volume, noisy_log_volume, tangents
from mfsbi.flows import Flow, SplineCoupling, SplineCouplings
from tests.laws import gram_log_volume, jacobian_by_backward_passes, perturbed
from tests.problems import Permutation


def three_cycles():
    keep = torch.tensor([True, False, False])
    layers = []
    for mask in (keep, ~keep, keep):
        layers += [SplineCoupling(mask, 0, SplineCouplings()), Permutation(torch.tensor([1, 2, 0]))]
    return Flow(layers, 3)


CHARTS = {
    "3-cycles, d=3, n=2": lambda: FlowChart(three_cycles(), 2),
    "d=3, n=1": lambda: FlowChart(SplineCouplings(layers=4).build(3), 1),
    "LU, d=40, n=14": lambda: FlowChart(SplineCouplings(layers=6, bins=8, lu=True).build(40), 14),
}


@pytest.fixture(params=CHARTS)
def chart(request):
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    yield perturbed(CHARTS[request.param](), 0.05)
    torch.set_default_dtype(torch.float32)


def brute_force(chart, u):
    return torch.stack([gram_log_volume(jacobian_by_backward_passes(chart.decode, row)) for row in u])


def test_log_volume_equals_brute_force_in_float64(chart):
    u = torch.randn(5, chart.manifold_dim)
    torch.testing.assert_close(chart.log_volume(u), brute_force(chart, u), rtol=0, atol=1e-8)


def test_log_volume_in_float32_stays_within_a_thousandth(chart):
    u = torch.randn(5, chart.manifold_dim)
    expected = brute_force(chart, u)
    measured = chart.float().log_volume(u.float())
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured.double(), expected, rtol=0, atol=1e-3)


def test_the_brute_force_test_notices_a_transposed_layer(chart):
    """The mistake of the original code: a rotation differentiated as its transpose."""
    u = torch.randn(5, chart.manifold_dim)
    cycle = torch.roll(torch.eye(chart.data_dim), 1, dims=0)
    stretch = torch.linspace(0.5, 2.0, chart.data_dim)

    def right(rows):
        return (chart.decode(rows) @ cycle.T) * stretch

    def wrong(rows):
        return (chart.decode(rows) @ cycle) * stretch

    expected = torch.stack([gram_log_volume(jacobian_by_backward_passes(right, row)) for row in u])
    torch.testing.assert_close(log_volume(tangents(right, u)), expected, rtol=0, atol=1e-8)
    assert (log_volume(tangents(wrong, u)) - expected).abs().max() > 1e-3


def test_polar_coordinates_have_the_volume_r():
    def polar(u):
        return u[..., :1] * torch.stack([u[..., 1].cos(), u[..., 1].sin()], dim=-1)

    u = torch.tensor([[0.5, 1.0], [3.0, -2.0]])
    torch.testing.assert_close(log_volume(tangents(polar, u)), u[:, 0].log())


@pytest.mark.parametrize("way", ["closed form", "forward mode"])
def test_tangents_are_the_columns_of_the_jacobian(chart, way):
    u = torch.randn(3, chart.manifold_dim)
    expected = torch.stack([jacobian_by_backward_passes(chart.decode, row) for row in u])
    measured = chart.tangents(u) if way == "closed form" else tangents(chart.decode, u)
    torch.testing.assert_close(measured, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_log_volume_works_without_gradients(chart, mode):
    u = torch.randn(3, chart.manifold_dim)
    expected = chart.log_volume(u).detach()
    with mode():
        torch.testing.assert_close(chart.log_volume(u), expected)


def test_log_volume_has_gradients(chart):
    chart.log_volume(torch.randn(3, chart.manifold_dim)).sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in chart.parameters())


def test_a_singular_chart_is_an_error_that_names_the_row():
    u = torch.tensor([[1.0, 2.0], [0.0, 3.0]])
    with pytest.raises(ArithmeticError, match=r"row \(1,\)"):
        log_volume(tangents(lambda rows: torch.cat([rows[..., :1] * rows, rows[..., :1]], -1) * rows[..., :1], u))


def test_a_chart_that_is_not_finite_is_an_error():
    with pytest.raises(ArithmeticError, match="not finite"):
        log_volume(tangents(lambda rows: rows * math.nan, torch.ones(2, 1)))


def test_normals_give_the_volume_of_the_tangents(chart):
    u = torch.randn(5, chart.manifold_dim)
    normals = chart.normals(u)
    assert normals.rows.shape == (5, chart.data_dim - chart.manifold_dim, chart.data_dim)
    torch.testing.assert_close(normals.rows @ chart.tangents(u), torch.zeros(5, *normals.rows.shape[1:2], u.shape[1]))
    by_normals = log_volume(normals.rows.mT) - normals.log_det
    torch.testing.assert_close(by_normals, log_volume(chart.tangents(u)), rtol=0, atol=1e-8)


def test_blocks_change_nothing(chart, monkeypatch):
    u = torch.randn(2, 4, chart.manifold_dim)
    whole = chart.log_volume(u)
    monkeypatch.setattr("mfsbi.charts.abstract.rows_at_work", lambda *sizes: 3)
    torch.testing.assert_close(chart.log_volume(u), whole)


@pytest.fixture
def signs():
    """Return all sign vectors of length 3: averages over them are exact expectations."""
    return torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 3)


def noisy_gradients(jacobian, change, signs):
    """Return the estimated gradient in s of the log-volume of J + s dJ for each sign vector."""
    gradients = []
    for sign in signs:
        s = torch.zeros((), dtype=torch.float64, requires_grad=True)
        value = noisy_log_volume(jacobian[None], ((jacobian + s * change) @ sign)[None], sign[None])
        torch.testing.assert_close(value.detach(), log_volume(jacobian[None]))
        gradients.append(*torch.autograd.grad(value.sum(), s))
    return torch.stack(gradients)


def test_noisy_gradients_average_to_the_exact_one_with_the_stated_variance(signs):
    jacobian, change = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = noisy_gradients(jacobian, change, signs)
    exact = torch.func.grad(lambda s: log_volume(jacobian + s * change))(torch.zeros((), dtype=torch.float64))
    torch.testing.assert_close(gradients.mean(), exact)
    product = torch.linalg.pinv(jacobian) @ change
    symmetric = (product + product.T) / 2
    variance = 2 * (symmetric.square().sum() - symmetric.diagonal().square().sum())
    torch.testing.assert_close(gradients.var(correction=0), variance)


def test_a_charts_noisy_volume_is_exact_in_value_and_for_a_curve_also_in_gradient(chart):
    u = torch.randn(3, chart.manifold_dim)
    exact, noisy = chart.log_volume(u), chart.noisy_log_volume(u, torch.Generator().manual_seed(0))
    torch.testing.assert_close(noisy, exact)
    weights = list(chart.parameters())
    gradients = [
        torch.autograd.grad(value.sum(), weights, allow_unused=True, materialize_grads=True) for value in (exact, noisy)
    ]
    same = all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))
    assert same == (chart.manifold_dim == 1)
