"""Features of any scale: which are bent or shifted, that the map is what it says, and that densities count it."""

import math

import pytest
import torch
from torch.distributions import (
    Cauchy,
    Exponential,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
    Uniform,
)

from mfsbi import AF, PIE, MeFlow, MFlow, load, save
from mfsbi.models import AmbientModel
from mfsbi.warp import Warp, as_data, converted, lost_digits

ROWS = 4000


def drawn(distribution, rows=ROWS):
    torch.manual_seed(0)
    return distribution.sample((rows, 1))


def spoiled(share, size):
    x = drawn(Normal(2.0, 1.0))
    return torch.where(torch.rand_like(x) < share, size * torch.rand_like(x), x)


@pytest.mark.parametrize(
    "values",
    [
        drawn(Normal(3.0, 2.0)),
        drawn(Uniform(0.0, 1.0)),
        drawn(Exponential(1.0)),
        drawn(Laplace(0.0, 1.0)),
        drawn(StudentT(5.0)),
        drawn(LogNormal(0.0, 0.5)),
        drawn(Normal(0.0, 1.0)).sign(),
        torch.zeros(ROWS, 1),
        torch.zeros(1, 1),
    ],
    ids=["normal", "uniform", "exponential", "Laplace", "Student 5", "lognormal 0.5", "binary", "constant", "one row"],
)
def test_features_of_one_size_stay_as_they_are(values):
    assert Warp.of(values).plain
    assert Warp.of(values)(values) is values


@pytest.mark.parametrize(
    "values",
    [
        10 ** drawn(Uniform(-4.0, 2.0)),
        -(10 ** drawn(Uniform(-4.0, 2.0))),
        5 + 10 ** drawn(Uniform(-4.0, 2.0)),
        drawn(LogNormal(0.0, 2.5)),
        drawn(Cauchy(3.0, 0.1)),
        drawn(Pareto(1.0, 1.5)),
        spoiled(0.003, 1e6),
        spoiled(0.003, -1e6),
        spoiled(0.0005, 1e8),
    ],
    ids=["decades", "negative", "moved", "lognormal", "Cauchy", "Pareto", "spoiled", "below", "rarely"],
)
def test_features_over_decades_are_bent_until_their_bulk_is_told_apart(values):
    warp = Warp.of(values)
    assert warp.bent == [0]
    assert Warp.of_data(values).bent == [0]
    order = values[:, 0].argsort()
    assert (warp(values)[order, 0].diff() >= 0).all()
    bulk = warp(values).quantile(0.75) - warp(values).quantile(0.25)
    assert bulk > 0.4 * warp(values).std()


def test_the_map_and_its_slope_are_those_of_the_formula():
    torch.manual_seed(0)
    values = torch.stack([10 ** (6 * torch.rand(ROWS) - 4), torch.randn(ROWS), 40 * torch.randn(ROWS)], 1).double()
    values[:, 2] += 1e9
    warp = Warp.of(values)
    assert (warp.bent, warp.shifted) == ([0], [2])
    torch.testing.assert_close(warp(values)[:, 0], ((values[:, 0] - warp.centre[0]) * warp.rate[0]).asinh())
    torch.testing.assert_close(warp(values)[:, 1], values[:, 1])
    torch.testing.assert_close(warp(values)[:, 2], values[:, 2] - values[:, 2].median(), atol=1e-6, rtol=0)
    torch.testing.assert_close(warp.inverse(warp(values)), values, rtol=1e-12, atol=0)
    at = values[:50].requires_grad_()
    (slope,) = torch.autograd.grad(warp(at).sum(), at)
    torch.testing.assert_close(warp.log_slope(at), slope.log())
    torch.testing.assert_close(warp.log_slope_at(warp(at)), slope.log())


def test_offsets_are_subtracted_before_digits_are_lost():
    torch.manual_seed(0)
    clock = 1.7e9 + 40 * torch.randn(ROWS, 1, dtype=torch.float64)
    assert len(clock.float().unique()) < 10
    assert converted(clock, torch.float32).dtype == torch.float64
    warp = Warp.of(converted(clock, torch.float32), torch.float32)
    assert warp.wide == [0]
    seen = warp(clock)
    assert seen.dtype == torch.float32
    torch.testing.assert_close(seen.double(), clock - clock.median(), atol=1e-4, rtol=1e-6)
    torch.testing.assert_close(warp.inverse(seen), clock, atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="should be of float64, as the simulations were"):
        as_data(clock.float(), torch.zeros(()), warp)
    assert list(lost_digits(clock.float()))
    assert not list(lost_digits(clock))
    assert converted(torch.randn(5, 2, dtype=torch.float64), torch.float32).dtype == torch.float32


def data(rows=600):
    """A curve in three features: one over decades, one of one size, one with an offset."""
    torch.manual_seed(0)
    theta = 2 * torch.rand(rows, 1, dtype=torch.float64) - 1
    u = theta + 0.3 * torch.randn(rows, 1, dtype=torch.float64)
    return theta, torch.cat([(6 * u).exp(), u + 0.1 * u.square(), 1e9 + 40 * u.sin()], 1)


def built(spec, seed=0):
    theta, x = data()
    torch.manual_seed(seed)
    estimator = spec(theta, x)
    with torch.no_grad():  # away from the plane that charts start as
        for weight in estimator.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    assert estimator.model.chart.warp.bent == [0]
    assert estimator.model.chart.warp.shifted == [2]
    return estimator


@pytest.mark.parametrize("spec", [MFlow(1), MeFlow(1), AF()], ids=lambda spec: type(spec).__name__)
def test_the_density_is_that_of_the_surface_by_brute_force(spec):
    model = built(spec).model
    theta, x = (value[:20] for value in data())
    u = model.encode(x, theta)
    jacobian = torch.stack([torch.autograd.functional.jacobian(model.chart.decode, row) for row in u])
    volume = 0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian)[1]
    torch.testing.assert_close(model.log_prob(x, theta), model.latent.log_prob(u, theta) - volume, rtol=1e-6, atol=1e-6)


def test_the_density_around_a_manifold_counts_the_slope():
    model = built(PIE(1)).model
    assert isinstance(model, AmbientModel)
    theta, x = (value[:20] for value in data())
    jacobian = torch.stack(
        [torch.autograd.functional.jacobian(lambda row: torch.cat(model.chart.split(row)[:2], -1), row) for row in x]
    )
    u, v, log_det = model.chart.split(x)
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1])
    torch.testing.assert_close(model.chart.merge(u, v), x)


@pytest.mark.parametrize("dims", [1, 2], ids=["by tangents", "by normals"])
def test_normals_of_a_warped_chart_are_its_complement(dims):
    chart = built(MFlow(dims)).model.chart
    u = chart.encode(data()[1][:10])
    normals, tangents = chart.normals(u), chart.tangents(u)
    torch.testing.assert_close(
        normals.rows @ tangents, torch.zeros(10, 3 - dims, dims, dtype=u.dtype), atol=1e-7, rtol=0
    )
    by_normals = 0.5 * torch.linalg.slogdet(normals.rows @ normals.rows.mT)[1] - normals.log_det
    torch.testing.assert_close(by_normals, chart.log_volume(u), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", [MFlow(1), MeFlow(1), AF(), PIE(1)], ids=lambda spec: type(spec).__name__)
def test_a_saved_estimator_keeps_the_map(spec, tmp_path):
    estimator = built(spec).eval()
    save(estimator, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    theta, x = (value[:20] for value in data())
    torch.testing.assert_close(again.log_prob(x, theta), estimator.log_prob(x, theta), rtol=0, atol=0)
    assert math.isclose(float(again.model.chart.warp.rest[2]), float(estimator.model.chart.warp.rest[2]))


def sparse(share):
    x = drawn(Uniform(0.0, 1.0))
    return torch.where(torch.rand_like(x) < share, x, torch.zeros_like(x))


@pytest.mark.parametrize(
    "values",
    [sparse(0.01), sparse(0.5), drawn(Normal(0.0, 1.0)).clamp(min=0), drawn(Normal(0.0, 3.0)).round()],
    ids=["nearly always zero", "half zeros", "clipped", "counts"],
)
def test_a_value_that_many_rows_have_does_not_bend_the_others(values):
    assert Warp.of(values).plain


@pytest.mark.parametrize("offset", [1e9, 2.0**30, 1.7e9], ids=["round in decimals", "round in bits", "neither"])
@pytest.mark.parametrize("decades", [False, True], ids=["straight", "bent"])
def test_an_offset_is_told_however_round_it_is(offset, decades):
    torch.manual_seed(0)
    varies = 40 * torch.randn(ROWS, 1, dtype=torch.float64)
    varies = varies.div(10).exp() if decades else varies.round()
    x = offset + torch.where(torch.rand_like(varies) < 0.2, torch.zeros_like(varies), varies)
    warp = Warp.of_data(converted(x, torch.float32), torch.float32)
    assert warp.wide == [0]
    assert warp.bent == ([0] if decades else [])
    torch.testing.assert_close(warp.inverse(warp(x)) - offset, x - offset, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="should be of float64"):
        as_data(x.float(), torch.zeros(()), warp)


def test_few_rows_keep_their_digits_as_well():
    torch.manual_seed(0)
    x = 1.7e9 + 40 * torch.randn(30, 1, dtype=torch.float64)
    assert Warp.of_data(converted(x, torch.float32), torch.float32).wide == [0]


@pytest.mark.parametrize("smallest", [1e-36, 1e-44])
def test_the_slope_of_the_steepest_map_is_not_lost(smallest):
    torch.manual_seed(0)
    values = torch.distributions.Gamma(0.1, 1.0).sample((ROWS, 1)).clamp(min=smallest)
    warp = Warp.of(values)
    assert warp.bent == [0]
    at = torch.tensor([[0.5]], requires_grad=True)
    (slope,) = torch.autograd.grad(warp(at).sum(), at)
    torch.testing.assert_close(slope, warp.log_slope(at).exp(), rtol=1e-4, atol=0)
    assert float(slope) == pytest.approx(2.0, rel=0.01)
