import pytest
import torch

from mfsbi.flows.splines import spline, spline_inverse, spline_inverse_with_gradient

pytestmark = pytest.mark.usefixtures("float64")
BOUND, BINS = 3.0, 5


@pytest.fixture
def raw():
    return 2 * torch.randn(3 * BINS - 1, 2, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def x():
    inside = torch.linspace(-1.1 * BOUND, 1.1 * BOUND, 16).view(2, 8)  # the first and last lie outside
    return inside + 0.01 * torch.randn(2, 8, generator=torch.Generator().manual_seed(1))


def textbook(x, raw):
    """Return y of one coordinate of one row: Durkan et al., arXiv:1906.04032, eq. 4, bin by bin."""
    if abs(x) > BOUND:
        return x
    parts = (raw[:BINS].softmax(0), raw[BINS : 2 * BINS].softmax(0))
    widths, heights = (2 * BOUND * (1e-3 + (1 - BINS * 1e-3) * part) for part in parts)
    inner = 1e-3 + torch.log1p(torch.exp(raw[2 * BINS :]) * torch.expm1(torch.tensor(1 - 1e-3)))
    slopes = torch.cat([torch.ones(1), inner, torch.ones(1)])
    left, bottom = -BOUND, -BOUND
    for k in range(BINS):
        if x <= left + widths[k] or k == BINS - 1:
            break
        left, bottom = left + widths[k], bottom + heights[k]
    s, xi = heights[k] / widths[k], (x - left) / widths[k]
    top = heights[k] * (s * xi**2 + slopes[k] * xi * (1 - xi))
    return bottom + top / (s + (slopes[k + 1] + slopes[k] - 2 * s) * xi * (1 - xi))


def entries(function, x, raw):
    """Return function(entry of x, entry of raw) for every entry of x."""
    values = [torch.as_tensor(function(x[i, j], raw[:, i, j])) for i in range(2) for j in range(8)]
    return torch.stack(values).view(2, 8)


def test_values_are_those_of_the_textbook(x, raw):
    torch.testing.assert_close(spline(x, raw, BOUND)[0], entries(textbook, x, raw), rtol=0, atol=1e-12)


def test_values_in_float32_are_those_of_the_textbook_to_six_digits(x, raw):
    y, _ = spline(x.float(), raw.float(), BOUND)
    torch.testing.assert_close(y.double(), entries(textbook, x, raw), rtol=0, atol=3e-6)


def test_log_slope_is_the_derivative_of_the_textbook(x, raw):
    slope = entries(torch.func.grad(lambda x, raw: torch.as_tensor(textbook(x, raw)) * 1.0), x, raw)
    torch.testing.assert_close(spline(x, raw, BOUND)[1], slope.log(), rtol=0, atol=1e-9)


def test_second_derivatives_are_those_of_the_textbook(x, raw):
    first = torch.func.grad(lambda x, raw: textbook(x, raw) * 1.0)
    expected = entries(torch.func.grad(first), x, raw)
    x = x.requires_grad_()
    (slope,) = torch.autograd.grad(spline(x, raw, BOUND)[0].sum(), x, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(slope.sum(), x)[0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("function", [spline, spline_inverse])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_derivatives_pass_gradcheck(function, check, x, raw):
    assert check(lambda x, raw: function(x, raw, BOUND), (x.requires_grad_(), raw.requires_grad_()))


@pytest.mark.parametrize("function", [spline, spline_inverse])
def test_forward_mode_agrees_with_reverse_mode(function, x, raw):
    by_rows = torch.func.jacrev(function, argnums=1)(x, raw, BOUND)
    by_columns = torch.func.jacfwd(function, argnums=1)(x, raw, BOUND)
    torch.testing.assert_close(by_columns, by_rows)


@pytest.mark.parametrize("function", [spline, spline_inverse])
def test_written_out_gradients_are_those_of_autograd(function, x, raw):
    """For the losses of each result alone and of both; with `create_graph` autograd goes through the formulas."""
    x, raw = x.requires_grad_(), raw.requires_grad_()
    weights = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(2))
    for used in ([0], [1], [0, 1]):
        loss = sum((weights[i] * function(x, raw, BOUND)[i]).sum() for i in used)
        written = torch.autograd.grad(loss, (x, raw), retain_graph=True)
        torch.testing.assert_close(written, torch.autograd.grad(loss, (x, raw), create_graph=True))


def test_the_gradient_that_comes_with_the_inverse_is_the_splines(x, raw):
    for context in (torch.enable_grad, torch.no_grad):
        with context():
            at, log_slope, by_raw = spline_inverse_with_gradient(x, raw, BOUND)
        y, pull = torch.func.vjp(lambda raw, at=at: spline(at, raw, BOUND)[0], raw)
        torch.testing.assert_close(y, x)
        torch.testing.assert_close(log_slope, spline(at, raw, BOUND)[1])
        torch.testing.assert_close(by_raw, pull(torch.ones_like(y))[0])


def test_inverse_undoes_the_spline_with_the_same_slope(x, raw):
    y, log_slope = spline(x, raw, BOUND)
    back, same = spline_inverse(y, raw, BOUND)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(same, log_slope)


@pytest.mark.parametrize("scale", [10.0, 1e3])
def test_extreme_parameters_give_finite_values_and_gradients_in_float32(scale, x, raw):
    x, raw = x.float(), (scale * raw.float()).requires_grad_()
    for function in (spline, spline_inverse):
        y, log_slope = function(x, raw, BOUND)
        (gradient,) = torch.autograd.grad(y.sum() + log_slope.sum(), raw)
        assert all(torch.isfinite(value).all() for value in (y, log_slope, gradient))


def test_zeros_make_the_identity(x):
    y, log_slope = spline(x, torch.zeros(3 * BINS - 1, 2, 8), BOUND)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(log_slope, torch.zeros(2, 8))
