import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import AffineTransform

from mfsbi.gold import mine
from tests.gold.programs import PROGRAMS, STEPS, linear


@pytest.fixture(params=PROGRAMS)
def program(request):
    return PROGRAMS[request.param]


@pytest.fixture
def theta():
    return torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rows", [1, 2, STEPS, 100])
def test_gold_is_what_the_closed_form_says(program, rows):
    model, log_density, score = program
    theta, theta_ref = torch.randn(rows, 2), torch.tensor([0.3, -0.2])
    gold = mine(model, theta, theta_ref=theta_ref, seed=1)
    ratio = log_density(gold.x, theta) - log_density(gold.x, theta_ref.expand(rows, 2))
    torch.testing.assert_close(gold.joint_score, score(gold.x, theta), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gold.joint_log_ratio, ratio, rtol=1e-12, atol=1e-12)


def test_gold_in_single_precision_is_what_the_closed_form_says(program, theta):
    model, log_density, score = program
    gold = mine(model, theta, theta_ref=theta[:1])
    ratio = log_density(gold.x, theta) - log_density(gold.x, theta[:1].expand(20, 2))
    assert gold.x.dtype == gold.joint_score.dtype == gold.joint_log_ratio.dtype == torch.float32
    torch.testing.assert_close(gold.joint_score, score(gold.x, theta), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(gold.joint_log_ratio, ratio, rtol=1e-4, atol=1e-3)


def test_a_program_without_constants_of_its_own_works_in_the_precision_of_theta(theta):
    def model(theta):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return torch.stack([z, pyro.sample("x", dist.Normal(theta[..., 0], 1.0))], -1)

    gold = mine(model, theta.double())
    assert gold.x.dtype == gold.joint_score.dtype == torch.float64
    assert (gold.x != gold.x.float()).all()
    torch.testing.assert_close(gold.joint_score[:, 0], gold.x[:, 1] - theta[:, 0].double(), rtol=1e-12, atol=1e-12)


def test_the_joint_score_is_zero_on_average(program):
    gold = mine(program[0], torch.tensor([0.4, -0.3]).repeat(5000, 1), seed=2)
    error = gold.joint_score.std(0) / 5000**0.5
    assert (gold.joint_score.mean(0).abs() < 4 * error).all()
    assert (error > 0).all()


def test_the_joint_score_at_given_x_is_the_score_on_average():
    """z ~ N(theta, 1), x ~ N(z, 1/2): log p(x|theta) has the slope (x - theta) / 1.25; the joint score is z - theta."""

    def model(theta):
        z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5))

    theta = 2 * torch.rand(20_000, 1) - 1
    gold = mine(model, theta, seed=3)
    regressors = torch.cat([torch.ones_like(gold.x), gold.x, theta], 1)
    fit = torch.linalg.lstsq(regressors, gold.joint_score).solution[:, 0]
    torch.testing.assert_close(fit, torch.tensor([0.0, 0.8, -0.8]), rtol=0, atol=0.03)


def test_the_joint_ratio_at_given_x_is_the_ratio_on_average():
    """Over x ~ p(x|theta_ref), E[p(x|theta)/p(x|theta_ref) f(x)] is the mean of f at theta; r is its inverse."""

    def model(theta):
        z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
        return pyro.sample("x", dist.Normal(z, 0.5))

    gold = mine(model, torch.zeros(20_000, 1), theta_ref=torch.full((1,), 0.5), seed=4)
    weights = (-gold.joint_log_ratio).exp()
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0), rtol=0, atol=0.03)
    torch.testing.assert_close((weights * gold.x[:, 0]).mean(), torch.tensor(0.5), rtol=0, atol=0.05)


def test_without_a_reference_there_is_no_ratio_and_one_feature_may_be_a_vector(theta):
    gold = mine(lambda theta: pyro.sample("x", dist.Normal(theta[..., 0], 1.0)), theta)
    assert gold.x.shape == (20, 1)
    assert gold.joint_log_ratio is None
    assert not gold.x.requires_grad
    assert not gold.joint_score.requires_grad


@pytest.mark.parametrize("seed", range(6))
def test_a_program_that_branches_on_what_it_drew_is_mined_row_by_row(seed):
    def model(theta):
        z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
        y = pyro.sample("y", dist.Normal(3 * z + theta[..., 0], 1.0)) if z > 0 else torch.zeros(1)
        return torch.stack([z, y], -1)

    gold = mine(model, torch.zeros(1, 1), seed=seed)
    z, y = gold.x[0]
    assert gold.joint_score.item() == pytest.approx(float(y - 2 * z if z > 0 else z), abs=1e-5)


def test_a_site_may_have_a_kink(theta):
    gold = mine(lambda theta: pyro.sample("x", dist.Laplace(theta[..., 0], 0.001)), theta)
    torch.testing.assert_close(gold.joint_score[:, 0], 1000 * (gold.x[:, 0] - theta[:, 0]).sign())


@pytest.mark.parametrize("seed", [0, 18, 48, 66])
def test_a_kink_within_a_small_step_is_not_within_smaller_ones(seed):
    gold = mine(lambda theta: pyro.sample("x", dist.Laplace(theta[..., 0], 1e-4)), torch.tensor([[0.7]]), seed=seed)
    torch.testing.assert_close(gold.joint_score, 1e4 * (gold.x - 0.7).sign())


@pytest.mark.parametrize("seed", range(5))
def test_rounding_of_large_numbers_is_not_taken_for_a_mistake(seed):
    theta = torch.tensor([[0.7]])
    gold = mine(lambda theta: pyro.sample("x", dist.Poisson((10 + theta[..., 0]).exp())), theta, seed=seed)
    torch.testing.assert_close(gold.joint_score, gold.x - (10 + theta).exp(), rtol=0, atol=0.1)


def test_a_site_may_be_as_narrow_as_single_precision_allows(theta):
    gold = mine(lambda theta: pyro.sample("x", dist.Normal(100 * theta[..., 0], 0.0003)), theta)
    torch.testing.assert_close(gold.joint_score[:, 0], (gold.x[:, 0] - 100 * theta[:, 0]) * (100 / 0.0003**2))


def test_scales_of_many_orders_of_magnitude_are_taken():
    theta = torch.logspace(-6, 2, 50)[torch.randperm(50), None]
    gold = mine(lambda theta: pyro.sample("x", dist.Normal(0.0, theta[..., 0])), theta)
    torch.testing.assert_close(gold.joint_score, ((gold.x / theta) ** 2 - 1) / theta, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "site",
    [
        lambda theta: dist.LogNormal(theta[..., 0], 1.0),
        lambda theta: dist.HalfNormal(theta[..., 0].exp()),
        lambda theta: dist.Gumbel(theta[..., 0], 1.0),
        lambda theta: dist.Weibull(theta[..., 0].exp(), 1.5),
        lambda theta: dist.Poisson(theta[..., 0].exp()),
        lambda theta: dist.Binomial(7, logits=theta[..., 0]),
        lambda theta: dist.StudentT(4.0, theta[..., 0], 1.0),
        lambda theta: dist.Beta(theta[..., 0].exp(), 2.0),
        lambda theta: dist.Uniform(0.0, 1.0).expand(theta.shape).to_event(1),
        lambda theta: dist.Dirichlet(theta.exp()),
        lambda theta: dist.MultivariateNormal(theta, torch.eye(2)),
        lambda theta: dist.VonMises(theta[..., 0], 2.0),
        lambda theta: dist.MixtureSameFamily(dist.Categorical(logits=theta), dist.Normal(torch.arange(2.0), 1.0)),
        lambda theta: dist.TransformedDistribution(dist.Normal(theta[..., 0], 1.0), [AffineTransform(1.0, 2.0)]),
    ],
)
def test_sites_whose_support_is_fixed_are_taken(site, theta):
    def model(theta):
        x = pyro.sample("x", site(theta))
        pyro.sample("y", dist.Normal(theta[..., 1], 1.0))
        return x

    assert torch.isfinite(mine(model, theta).joint_score).all()


def test_a_transform_that_remembers_its_last_value_does_not_hide_theta(theta):
    def model(theta):
        base = dist.Normal(torch.zeros(()), 1.0)
        return pyro.sample("x", dist.TransformedDistribution(base, [AffineTransform(theta[..., 0], 1.0, cache_size=1)]))

    gold = mine(model, theta)
    torch.testing.assert_close(gold.joint_score[:, 0], gold.x[:, 0] - theta[:, 0])


def test_one_seed_gives_one_result(program, theta):
    first, second, other = (mine(program[0], theta, theta_ref=theta[:1], seed=seed) for seed in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not (first.x == other.x).all()


def numpy_state():
    return np.random.get_state()[1]  # noqa: NPY002 - the global state is the point


@pytest.mark.parametrize("outcome", ["gold", "refused"])
@pytest.mark.parametrize("checks", [True, False])
def test_the_global_state_is_left_alone(outcome, checks, theta, monkeypatch):
    def model(theta):
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        pyro.param("kept")
        x = pyro.sample("x", dist.Normal(theta[..., 0], scale))
        return x if outcome == "gold" else x / 0

    monkeypatch.setattr(Distribution, "_validate_args", checks)
    store = pyro.get_param_store()
    with store.scope():
        kept = pyro.param("kept", torch.ones(2))
        before = torch.random.get_rng_state(), numpy_state(), random.getstate(), theta.clone()
        try:
            mine(model, theta.requires_grad_())
        except ValueError:
            assert outcome == "refused"
        assert list(store) == ["kept"]
        assert store["kept"].unconstrained() is kept.unconstrained()
        assert kept.grad is theta.grad is None
    assert torch.get_default_dtype() == torch.float32
    assert Distribution._validate_args == checks
    assert (torch.random.get_rng_state() == before[0]).all()
    assert (numpy_state() == before[1]).all()
    assert random.getstate() == before[2]
    assert (theta == before[3]).all()


def test_handlers_around_the_call_see_nothing_of_it_and_no_grad_does_not_matter(theta):
    with pyro.poutine.trace() as tape, pyro.condition(data={"z": torch.zeros(())}), torch.no_grad():
        gold = mine(linear, theta)
    assert list(tape.trace.nodes) == []
    assert (gold.x == mine(linear, theta).x).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "site",
    [
        lambda theta: dist.Laplace(theta[..., 0], 0.1),
        lambda theta: dist.Cauchy(theta[..., 0], 0.01),
        lambda theta: dist.Normal(theta[..., 0].relu() + theta[..., 1].abs(), 0.1),
        lambda theta: dist.Normal(theta.max(-1).values, 0.02),
        lambda theta: dist.Poisson((3 * theta[..., 0]).exp()),
        lambda theta: dist.Normal(91.19 + theta[..., 0], 0.01),
        lambda theta: dist.Normal(100 + theta[..., 0], 1e-3),
        lambda theta: dist.Beta(1e4 * theta[..., 0].sigmoid(), 1e4 * (-theta[..., 0]).sigmoid()),
        lambda theta: dist.Gamma(torch.full_like(theta[..., 0], 1e4), 1e4 * theta[..., 0].exp()),
    ],
)
def test_kinks_and_narrow_densities_are_not_taken_for_jumps(site, dtype):
    theta = torch.randn(2000, 2, dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert mine(lambda theta: pyro.sample("x", site(theta)), theta).joint_score.any()


def test_a_parameter_without_effect_at_these_theta_has_a_score_of_zero():
    gold = mine(lambda theta: pyro.sample("x", dist.Normal(theta[..., 0].clamp(max=0.0), 1.0)), torch.ones(2, 1))
    assert not gold.joint_score.any()


def test_one_run_may_turn_where_theta_plays_no_part():
    def model(theta):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        return pyro.sample("x", dist.Normal(theta[..., 0] if k else torch.zeros(1), 1.0))

    scores = torch.cat([mine(model, torch.ones(1, 1), seed=seed).joint_score for seed in range(20)])
    assert 0 < int((scores == 0).sum()) < 20
