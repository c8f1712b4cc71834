import pytest
import torch
from scipy import stats

from mfsbi import MFlow, interpolate, outlier_p_value
from tests.laws import perturbed
from tests.problems import SMALL, plane


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return perturbed(MFlow(2, SMALL, SMALL).build(*plane()), 0.05)


def test_p_values_of_ordinary_points_are_uniform_whatever_the_model(model):
    x = plane(4000, seed=1)[1] + 0.1 * torch.randn(4000, 3, generator=torch.Generator().manual_seed(2))
    p = outlier_p_value(model, x[:2000], x[2000:])
    assert stats.kstest(p.numpy(), "uniform").pvalue > 0.01


def test_p_values_of_outliers_are_small(model):
    x = plane(1000, seed=1)[1]
    assert outlier_p_value(model, x[:500] + 5 * torch.tensor([1.0, -1.0, 1.0]), x[500:]).max() < 0.05


def test_a_p_value_counts_what_is_as_far_and_is_never_zero(model):
    x = plane(9, seed=3)[1]
    p = outlier_p_value(model, x, x)
    torch.testing.assert_close(p.sort().values, torch.arange(2, 11) / 10)
    assert outlier_p_value(model, x[:1] + 1e3, x).item() == pytest.approx(0.1)


def test_a_curve_between_two_points_stays_on_the_manifold(model):
    start, end = plane(4, seed=4)[1], plane(4, seed=5)[1]
    curve = interpolate(model, start, end, steps=7)
    assert curve.shape == (4, 7, 3)
    torch.testing.assert_close(curve[:, 0], model.project(start), rtol=0, atol=1e-4)
    torch.testing.assert_close(curve[:, -1], model.project(end), rtol=0, atol=1e-4)
    assert model.distance(curve).max() < 1e-4
    middle = model.encode(curve[:, 3])
    torch.testing.assert_close(middle, (model.encode(start) + model.encode(end)) / 2, rtol=0, atol=1e-3)
