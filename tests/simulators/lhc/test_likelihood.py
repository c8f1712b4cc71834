import pytest
import torch

from simulators.lhc import likelihood
from simulators.lhc.detector import ETA, PHI, encode
from simulators.lhc.likelihood import QuadraticForm, cross_section, quadratic_form
from simulators.lhc.process import WBFHiggs

EVENTS = torch.tensor(
    [
        *(335.774896, -0.555375, 2.608872, 28.007154, -0.160897, 1.289166),
        *(219.618209, -3.040523, -0.600729, 22.325206, 105.383062, 3.116120, -0.649225, 20.795538),
        *(314.507411, -0.803088, -1.745034, 46.657295, 0.060110, -2.274176),
        *(251.623712, -2.015767, 1.169142, 39.802567, 71.503927, 4.120130, 1.865274, 4.749870),
        *(86.265691, -0.884641, 1.862808, 33.847590, -1.999859, -0.982279),
        *(41.173115, -1.219858, -0.862125, 2.514506, 31.581218, 1.248432, -2.721986, 2.662777),
        *(166.776303, 0.444947, -1.528553, 34.431182, -0.490071, 0.010790),
        *(234.529942, 2.266727, 2.812245, 33.126545, 190.508796, -3.000957, 0.455803, 33.249867),
    ],
    dtype=torch.float64,
).view(4, 14)
MATRICES = torch.tensor(  # 01, 02, 03, 11, 12, 13, 22, 23, 33
    [
        [10.39736, 0.4321012, -8.884161, 108.1288, 4.469007, -92.33327, 1.08241, -3.798643, 79.00018],
        [13.17609, -6.259439, -7.468955, 174.0606, -81.8958, -99.11173, 40.88303, 45.46293, 57.03168],
        [0.6522436, 1.650584, 0.6826301, 0.7533107, 1.321072, -0.2892675, 3.359169, 0.5393661, 2.583865],
        [2.523712, -11.66371, 11.75455, 6.587169, -29.90025, 29.28643, 137.1058, -136.4669, 139.235],
    ],
    dtype=torch.float64,
)
THETAS = torch.tensor([[0, 0, 0], [0.5, 0, 0], [-1, -1, 0], [0.3, -0.4, 0.5]], dtype=torch.float64)
LOG_PROBS = torch.tensor(
    [
        [-32.794304, -31.125757, -31.784643, -36.228899],
        [-34.037746, -31.962920, -33.961898, -33.897397],
        [-28.094743, -29.464946, -30.517759, -30.312694],
        [-37.161922, -37.499232, -36.095612, -34.685186],
    ],
    dtype=torch.float64,
)


@pytest.fixture(scope="module")
def charts():
    process = WBFHiggs()
    theta = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    return theta.double(), encode(process.simulate(theta, seed=1))


def test_tabulated_events():
    form = quadratic_form(EVENTS)
    rows, columns = torch.triu_indices(4, 4)[:, 1:]
    torch.testing.assert_close(form.matrix[:, rows, columns], MATRICES, rtol=1e-6, atol=1e-6)
    log_prob = QuadraticForm(form.matrix[:, None], form.log_factor[:, None]).log_prob(THETAS)
    torch.testing.assert_close(log_prob, LOG_PROBS, rtol=0, atol=1e-3)


def test_cross_sections():
    theta = torch.tensor([[0.1, 0, 0], [0, 0.1, 0], [-1, -1, 0], [1, 1, 1], [0.3, -0.4, 0.5]])
    ratio = cross_section(theta) / cross_section(torch.zeros(3))
    expected = torch.tensor([1.5633, 1.2130, 35.5199, 60.0664, 12.7275], dtype=torch.float64)
    torch.testing.assert_close(ratio, expected, rtol=1e-4, atol=0)
    assert float(cross_section(torch.zeros(2))) == pytest.approx(0.58215, abs=1e-4)


def test_the_score_is_the_gradient(charts):
    theta, chart = charts
    form = quadratic_form(chart[:50])
    at = theta[:50].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(form.log_prob(at).sum(), at)
    torch.testing.assert_close(form.score(theta[:50]), gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("parameters", [2, 3])
def test_two_parameters_are_three_with_the_last_at_zero(charts, parameters):
    theta, chart = charts
    form = quadratic_form(chart[:50])
    padded = theta[:50] * (torch.arange(3) < parameters)
    torch.testing.assert_close(form.log_prob(theta[:50, :parameters]), form.log_prob(padded))
    torch.testing.assert_close(form.score(theta[:50, :parameters]), form.score(padded)[:, :parameters])


def test_the_quadrature_has_converged(charts):
    theta, chart = charts
    ours, finer = quadratic_form(chart), quadratic_form(chart, nodes=128)
    assert (ours.log_prob(theta) - finer.log_prob(theta)).abs().max() < 1e-6


def test_seven_standard_deviations_are_enough(charts, monkeypatch):
    theta, chart = charts
    ours = quadratic_form(chart).log_prob(theta)
    monkeypatch.setattr(likelihood, "WIDTHS", 9.0)
    assert (ours - quadratic_form(chart, nodes=128).log_prob(theta)).abs().max() < 1e-6


def test_symmetries(charts):
    theta, chart = charts
    mirrored, turned, rotated = chart.clone(), chart.clone(), chart.clone()
    mirrored[:, PHI] *= -1
    turned[:, PHI + ETA] *= -1
    rotated[:, PHI] += 1.234
    ours = quadratic_form(chart).log_prob(theta)
    flip = torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    for other, at in ((mirrored, theta * flip), (turned, theta), (rotated, theta)):
        torch.testing.assert_close(quadratic_form(other).log_prob(at), ours, rtol=0, atol=1e-9)
    reflected = chart.clone()
    reflected[:, ETA] *= -1
    assert (quadratic_form(reflected).log_prob(theta) - ours).abs().max() > 0.01


def test_what_cannot_be_has_no_probability():
    chart = EVENTS[0].repeat(3, 1)
    chart[0, 6] = 19.0  # not selected
    chart[1, 8] = chart[1, 2]  # the jet flies with the photon: momentum cannot balance
    chart[2, 0] *= 20  # the photons are too far from the mass of the Higgs boson for any energy split
    form = quadratic_form(chart)
    assert (form.log_prob(torch.zeros(3)) == -torch.inf).tolist()[:2] == [True, True]
    assert form.log_prob(torch.zeros(3))[2] < -1000
    assert torch.isfinite(form.matrix).all()


def test_a_grid_of_theta_is_algebra(charts):
    _, chart = charts
    form = quadratic_form(chart[:20])
    grid = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = form.log_likelihood(grid)
    torch.testing.assert_close(
        values[:50], torch.stack([form.log_prob(at.expand(20, -1)).sum() for at in grid[:50]]), rtol=1e-10, atol=1e-8
    )
    assert values.shape == (100_000,)
