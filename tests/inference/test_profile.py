"""Profile likelihoods whose maxima are known: by a formula, by brute force, or by scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import minimize

from mfsbi.inference.maximum import Likelihood, Support, maximise
from mfsbi.inference.profiling import likelihood_ratios, profile_likelihood

BEST = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
INFORMATION = torch.tensor([[90.0, 60.0, 10.0], [60.0, 120.0, -20.0], [10.0, -20.0, 50.0]], dtype=torch.float64)
NAMES = "mass", "width", "tilt"


def box(low, high, dims=3, draws=64):
    ends = [torch.full((dims,), end, dtype=torch.float64) for end in (low, high)]
    generator = torch.Generator().manual_seed(0)
    theta = low + (high - low) * torch.rand(draws, dims, generator=generator, dtype=torch.float64)
    return Support(*ends, theta, torch.full((dims,), (high - low) / 4, dtype=torch.float64))


def line(low=-1.0, high=1.0, points=41):
    return torch.linspace(low, high, points, dtype=torch.float64)


def parabola(theta, sets):
    away = theta - BEST[: theta.shape[1]]
    inner = INFORMATION[: theta.shape[1], : theta.shape[1]]
    return 7.0 - torch.einsum("ri,ij,rj->r", away, inner, away) / 2


def of(log_prob):
    return Likelihood(log_prob, 1)


def profiled(log_prob, axes, support=None):
    support = support or box(-3.0, 3.0)
    return profile_likelihood(of(log_prob), support, axes, NAMES[: len(support.low)])


@pytest.mark.parametrize("parameters", [(0,), (2,), (0, 1), (2, 0), (0, 1, 2)])
def test_q_of_a_normal_likelihood_is_that_of_its_marginal_covariance(parameters):
    found = profiled(parabola, {i: line(points=9) for i in parameters})
    psi = torch.cartesian_prod(*found.axes).view(-1, len(parameters)) - BEST[list(parameters)]
    covariance = INFORMATION.inverse()[list(parameters)][:, list(parameters)]
    expected = torch.einsum("ri,ij,rj->r", psi, covariance.inverse(), psi).view(found.q.shape)
    torch.testing.assert_close(found.q, expected, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(found.best, BEST, atol=1e-3, rtol=0)
    assert abs(found.log_likelihood - 7) < 1e-4
    value = parabola(found.theta.flatten(0, -2), None)
    torch.testing.assert_close(2 * (7 - value).view(found.q.shape), found.q, atol=1e-4, rtol=0)


@pytest.mark.parametrize("level", [0.683, 0.9, 0.95])
def test_an_interval_by_wilks_is_the_exact_one(level):
    found = profiled(parabola, {0: line()})
    ((low, high),) = found.intervals(level)
    half = float(INFORMATION.inverse()[0, 0].sqrt()) * stats.norm.ppf((1 + level) / 2)
    assert (low, high) == pytest.approx((0.3 - half, 0.3 + half), abs=1e-3)
    assert found.p_value(low) == pytest.approx(1 - level, abs=2e-3)
    assert found.p_value([0.3]) == pytest.approx(1, abs=2e-2)


def test_a_region_of_two_parameters_holds_what_is_below_the_quantile_of_two_degrees():
    found = profiled(parabola, {0: line(points=21), 1: line(points=21)})
    assert float(found.critical(0.95)[0, 0]) == pytest.approx(stats.chi2.ppf(0.95, 2))
    region = found.region(0.95)
    assert 9 < region.sum() < 200
    assert torch.equal(region, found.q <= stats.chi2.ppf(0.95, 2))
    assert found.p_value(BEST[:2]) == pytest.approx(1, abs=0.1)
    with pytest.raises(ValueError, match="Intervals are of one parameter of interest; got 2"):
        found.intervals(0.95)


def test_on_an_edge_maxima_are_those_of_scipy():
    support = box(-1.0, 0.4)
    found = profiled(parabola, {0: line(-1, 0.4, 15)}, support)
    for theta, q in zip(found.theta, found.q, strict=True):

        def lost(nuisances, psi=float(theta[0])):
            return -float(parabola(torch.tensor([[psi, *nuisances]], dtype=torch.float64), None))

        expected = minimize(lost, [0.0, 0.0], bounds=[(-1, 0.4)] * 2, tol=1e-12)
        assert 2 * (found.log_likelihood + expected.fun) == pytest.approx(float(q), abs=1e-3)
        assert theta[1:].tolist() == pytest.approx(expected.x.tolist(), abs=3e-3)
    assert float(found.best[2]) == 0.4


def ridges(theta, sets):
    """Two peaks in nu at each psi, of which the higher one changes, with ripples that trap an ascent."""
    psi, nu = theta.unbind(-1)
    left = -2 * psi - ((nu + 1 + psi / 2) / 0.1).square() / 2
    right = 2 * psi - ((nu - 1 + psi / 2) / 0.1).square() / 2
    return torch.logaddexp(left, right) + (20 * (nu + psi / 2)).cos()


def test_of_many_maxima_the_highest_is_found_at_every_point():
    found = profiled(ridges, {0: line(points=21)}, box(-2.0, 2.0, dims=2))
    psi, nu = torch.meshgrid(found.axes[0], line(-2, 2, 20_001), indexing="ij")
    highest = ridges(torch.stack([psi, nu], -1).flatten(0, 1), None).view(psi.shape).amax(1)
    torch.testing.assert_close(found.q - found.q.min(), 2 * (highest.max() - highest), atol=5e-3, rtol=0)


def test_what_a_point_missed_it_learns_from_its_neighbours():
    """A groove so narrow that one draw of the prior in a thousand lies in it; outside it is flat."""

    def groove(theta, sets):
        psi, nu = theta.unbind(-1)
        return 5 * torch.exp(-(((nu - psi) / 0.05) ** 2)) - psi.square()

    support = box(-2.0, 2.0, dims=2, draws=40)
    lucky = torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    bad = support.draws[(support.draws[:, 0] - support.draws[:, 1]).abs() > 0.5]
    found = profiled(groove, {0: line()}, support._replace(draws=torch.cat([bad, lucky])))
    torch.testing.assert_close(found.q, 2 * found.axes[0].square(), atol=5e-3, rtol=0)


def test_separate_pieces_are_separate_intervals():
    found = profiled(
        lambda theta, sets: -18 * (theta[:, 0].square() - 0.25).square() / 0.1, {0: line()}, box(-1.0, 1.0, 1)
    )
    first, second = found.intervals(0.95)
    edge = (stats.chi2.ppf(0.95, 1) / 360) ** 0.5
    assert [*first, *second] == pytest.approx(
        [-((0.25 + edge) ** 0.5), -((0.25 - edge) ** 0.5), (0.25 - edge) ** 0.5, (0.25 + edge) ** 0.5], abs=2e-3
    )
    assert "] and [" in str(found)


@pytest.mark.parametrize(
    ("axis", "support", "message"),
    [
        (line(0.2, 1.0), box(-3.0, 3.0), "mass is cut off at the low end of the grid, 0.2, and goes on beyond"),
        (line(-1.0, 0.3), box(-3.0, 3.0), "mass is cut off at the high end of the grid, 0.3, and"),
        (line(-3.0, 3.0, 7), box(-3.0, 3.0), "The grid is too coarse: q is below 4 at 0 of 7 points along mass"),
        (line(0.25, 1.0), box(0.25, 3.0), "on the edge of the prior's support, of mass, width: Wilks's theorem does"),
        (line(), box(-3.0, 0.5), "on the edge of the prior's support, of mass, tilt: Wilks's"),
    ],
)
def test_a_region_that_wilks_has_no_right_to_is_a_warning(axis, support, message):
    found = profiled(parabola, {0: axis}, support)
    with pytest.warns(UserWarning, match=message):
        found.region(0.95)


def test_outside_of_what_is_possible_q_is_infinite():
    def half(theta, sets):
        return parabola(theta, sets).where(theta[:, 0] > 0.25, -torch.inf)

    found = profiled(half, {0: line()}, box(-3.0, 3.0, 2))
    assert torch.isinf(found.q).tolist() == (found.axes[0] <= 0.25).tolist()
    ((low, high),) = found.intervals(0.95)
    assert low == pytest.approx(0.25)
    assert 0.3 < high < 1


def test_a_likelihood_of_nan_is_refused():
    with pytest.raises(ValueError, match=r"it is NaN at 64 of 64 points, the first of them theta = \["):
        profiled(lambda theta, sets: theta[:, 0] * torch.nan, {0: line()})
    with pytest.raises(ValueError, match="The likelihood is zero at all of 64 draws of the prior"):
        profiled(lambda theta, sets: theta[:, 0] - torch.inf, {0: line()})


@pytest.mark.parametrize("level", [0.0, 1.0, 68.3, -0.1])
def test_a_level_is_a_share(level):
    with pytest.raises(ValueError, match="`level` should be a share between 0 and 1"):
        profiled(parabola, {0: line(points=3)}).critical(level)


@pytest.mark.parametrize("psi", [[0.0, 0.0], [1.5], -3, [float("nan")]])
def test_a_p_value_is_of_a_point_within_the_grid(psi):
    with pytest.raises(ValueError, match="`psi` should have a value for each of mass, within"):
        profiled(parabola, {0: line(points=3)}).p_value(psi)


def test_of_toys_q_is_that_of_a_chi_squared_law():
    """x ~ N(theta, covariance): q of any parameter follows the chi-squared law exactly, and is known for each toy."""
    truth = torch.tensor([0.1, 0.2, -0.3], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    root = torch.linalg.cholesky(INFORMATION.inverse())
    x = truth + torch.randn(2000, 3, generator=generator, dtype=torch.float64) @ root.T

    def log_prob(theta, sets):
        away = theta - x[sets]
        return -torch.einsum("ri,ij,rj->r", away, INFORMATION, away) / 2

    q = likelihood_ratios(of(log_prob), 2000, truth, [1], box(-3.0, 3.0))
    expected = (x[:, 1] - truth[1]).square() / INFORMATION.inverse()[1, 1]
    torch.testing.assert_close(q, expected, atol=2e-3, rtol=1e-3)


def test_an_ascent_finds_a_curved_maximum_from_any_start():
    """Rosenbrock's valley, in nats."""

    def valley(theta, sets):
        return -100 * (theta[:, 1] - theta[:, 0] ** 2) ** 2 - (1 - theta[:, 0]) ** 2

    support = box(-2.0, 2.0, 2, draws=200)
    found = maximise(of(valley), torch.zeros(200).long(), support.draws, [0, 1], support)
    inner = found.theta[:, 1] < 1.999  # where the valley meets the edge there is a maximum, too
    assert inner.double().mean() > 0.9
    assert (found.value[inner] > -0.02).double().mean() > 0.95
    fixed = maximise(of(valley), torch.zeros(200).long(), support.draws, [1], support)
    np.testing.assert_array_equal(fixed.theta[:, 0], support.draws[:, 0])
    torch.testing.assert_close(fixed.theta[:, 1], support.draws[:, 0].square().clamp(max=2), atol=1e-3, rtol=0)
