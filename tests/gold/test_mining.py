import math
import random
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.plate_messenger import block_plate
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import AffineTransform

from mfsbi.gold import mine

STEPS = 5


def normal(x, mean, log_std):
    """log N(x; mean, std^2), written out."""
    return -0.5 * ((x - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def bernoulli(bit, logit):
    return bit * logit - torch.nn.functional.softplus(logit)


def linear(theta):
    z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
    y = pyro.sample("y", dist.Normal(2 * z + theta[..., 1], 0.5))
    return torch.stack([z, y], -1)


def linear_density(x, theta):
    (z, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return normal(z, a, torch.zeros(())) + normal(y, 2 * z + b, torch.tensor(0.5).log())


def linear_score(x, theta):
    (z, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return torch.stack([z - a, (y - 2 * z - b) / 0.25], -1)


def mixture(theta):
    k = pyro.sample("k", dist.Bernoulli(logits=theta[..., 0]))
    y = pyro.sample("y", dist.Normal(torch.where(k == 1, theta[..., 1], -1.0), 1.0))
    return torch.stack([k, y], -1)


def mixture_density(x, theta):
    (k, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return bernoulli(k, a) + normal(y, torch.where(k == 1, b, -1.0), torch.zeros(()))


def mixture_score(x, theta):
    (k, y), (a, b) = x.unbind(-1), theta.unbind(-1)
    return torch.stack([k - a.sigmoid(), k * (y - b)], -1)


def walk_in_a_plate(theta):
    with pyro.plate("steps", STEPS):
        steps = pyro.sample("step", dist.Normal(theta[..., 0], theta[..., 1].exp()))
    return steps.cumsum(0).T


def walk_in_a_loop(theta):
    positions = [torch.zeros(())]
    for i in range(STEPS):
        positions.append(pyro.sample(f"position {i}", dist.Normal(positions[-1] + theta[..., 0], theta[..., 1].exp())))
    return torch.stack(positions[1:], -1)


def walk_in_a_vector(theta):
    mean, std = theta[..., :1].expand(-1, STEPS), theta[..., 1:].exp()
    steps = pyro.sample("steps", dist.Normal(mean, std).to_event(1))
    steps += 1.0  # in place: not done to the value that is held
    return pyro.deterministic("path", (steps - 1.0).cumsum(-1))


def walk_density(x, theta):
    steps = torch.diff(x, dim=-1, prepend=torch.zeros(len(x), 1))
    return normal(steps, theta[:, :1], theta[:, 1:]).sum(-1)


def walk_score(x, theta):
    offsets = torch.diff(x, dim=-1, prepend=torch.zeros(len(x), 1)) - theta[:, :1]
    variance = (2 * theta[:, 1:]).exp()
    return torch.stack([(offsets / variance).sum(-1), (offsets**2 / variance - 1).sum(-1)], -1)


def galton(theta):
    """A ball turns right at each nail with odds that depend on where it is."""
    place, turns = torch.zeros(()), []
    for i in range(STEPS):
        turns.append(pyro.sample(f"nail {i}", dist.Bernoulli(logits=theta[..., 0] + theta[..., 1] * place)))
        place = place + turns[-1] - 0.5
    return torch.stack(turns, -1)


def places(turns):
    return (turns - 0.5).cumsum(-1) - turns + 0.5


def galton_density(x, theta):
    return bernoulli(x, theta[:, :1] + theta[:, 1:] * places(x)).sum(-1)


def galton_score(x, theta):
    surprise = x - (theta[:, :1] + theta[:, 1:] * places(x)).sigmoid()
    return torch.stack([surprise.sum(-1), (surprise * places(x)).sum(-1)], -1)


PROGRAMS = {
    "linear Gaussian": (linear, linear_density, linear_score),
    "mixture with a discrete site": (mixture, mixture_density, mixture_score),
    "walk in a plate": (walk_in_a_plate, walk_density, walk_score),
    "walk in a loop": (walk_in_a_loop, walk_density, walk_score),
    "walk in a vector": (walk_in_a_vector, walk_density, walk_score),
    "Galton board": (galton, galton_density, galton_score),
}


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


def smuggled(theta):
    z = dist.Normal(theta[..., 0], 1.0).rsample()
    return pyro.sample("bad", dist.Normal(z, 1.0))


def smuggled_from_another_run():
    kept = {}

    def model(theta):
        z = kept.setdefault(len(theta), theta[..., 0].square())
        return pyro.sample("bad", dist.Normal(z, 1.0))

    return model


def detached(theta):
    pyro.sample("good", dist.Normal(theta[..., 1], 1.0))
    return pyro.sample("bad", dist.Normal(theta[..., 0].detach(), 1.0))


def by_way_of_numpy(theta):
    rate = torch.from_numpy(np.exp(theta[..., 0].detach().numpy()))
    pyro.sample("good", dist.Normal(theta[..., 1], 1.0))
    return pyro.sample("bad", dist.Poisson(rate))


def transformed_outside(theta):
    z = pyro.sample("bad", dist.Normal(0.0, 1.0))
    return theta[..., 0] + theta[..., 1].exp() * z


def hidden_by_detach(theta):
    z = pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))
    return z + theta[..., 0].detach()


def hidden_by_size(theta):
    z = pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))
    return 1e7 * z + theta[..., 0]


def hidden_by_where(theta):
    z = pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))
    return torch.where(theta[..., 0] > 0, z, 1.0)


def hidden_by_rounding(theta):
    z = pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))
    return torch.stack([z, (4 * theta[..., 0]).long() + z], -1)


def delta(theta):
    z = pyro.sample("bad", dist.Delta(theta[..., 0]))
    return pyro.sample("x", dist.Normal(z, 1.0))


def uniform(theta):
    z = pyro.sample("bad", dist.Uniform(0.0, theta[..., 0].exp()))
    return pyro.sample("x", dist.Normal(z, 1.0))


def scaled_uniform(theta):
    base = dist.Uniform(0.0, 1.0)
    z = pyro.sample("bad", dist.TransformedDistribution(base, [AffineTransform(0.0, theta[..., 0].exp())]))
    return pyro.sample("x", dist.Normal(z, 1.0))


def pareto(theta):
    return pyro.sample("bad", dist.Pareto(theta[..., 0].exp(), 1.0))


class Late(dist.TorchDistribution):
    """An exponential that begins at theta and does not tell."""

    support = constraints.real
    arg_constraints: ClassVar = {}

    def __init__(self, start):
        self.start = start
        super().__init__(start.shape)

    def sample(self, shape=()):
        return self.start + dist.Exponential(1.0).sample((*shape, *self.start.shape))

    def log_prob(self, value):
        return torch.where(value > self.start, self.start - value, -math.inf)


def silent_edge(theta):
    return pyro.sample("bad", Late(theta[..., 0]))


def sometimes(theta):
    z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
    if (theta[..., 0] > 0).any():
        z = pyro.sample("bad", dist.Normal(z, 1.0))
    return z


def sometimes_not(theta):
    z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
    if (theta[..., 0] < 0).all():
        z = pyro.sample("bad", dist.Normal(z, 1.0))
    return z


def in_two_orders(theta):
    names = ["good", "bad"] if (theta[..., 0] > 0).any() else ["bad", "good"]
    return torch.stack([pyro.sample(name, dist.Normal(theta[..., 0], 1.0)) for name in names], -1)


def longer(theta):
    with pyro.plate("steps", 3 if (theta[..., 0] > 0).any() else 2):
        return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0)).sum(0)


def noise_beside_sites(theta):
    return pyro.sample("z", dist.Normal(theta[..., 0], 1.0)) + 0.1 * torch.randn(len(theta))


def standardised(theta):
    theta = theta - theta.mean(0)
    pyro.sample("good", dist.Normal(0.0, 1.0))
    return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))


def standardised_x(theta):
    x = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
    return x - x.mean()


def rows_as_event(theta):
    return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0).to_event(1))


def a_plate_of_its_own_over_rows(theta):
    with pyro.plate("batch", len(theta)):
        return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))


def outside_of_the_rows(theta):
    with block_plate("rows of theta"):
        z = pyro.sample("bad", dist.Normal(0.0, 1.0))
    return pyro.sample("x", dist.Normal(z + theta[..., 0], 1.0))


def observed(theta):
    x = pyro.sample("x", dist.Normal(theta[..., 0], 1.0))
    pyro.sample("bad", dist.Normal(theta[..., 0], 1.0), obs=torch.zeros(()))
    return x


def conditioned(theta):
    return pyro.poutine.condition(linear, data={"z": theta[..., 0]})(theta)


def factor(theta):
    pyro.factor("bad", theta[..., 0])
    return pyro.sample("x", dist.Normal(theta[..., 0], 1.0))


def masked(theta):
    with pyro.poutine.mask(mask=theta[..., 0] > 0):
        return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))


def masked_itself(theta):
    return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0).mask(theta[..., 0] > 0))


def subsampled(theta):
    with pyro.plate("many", 100, subsample_size=3):
        return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0)).T


def scaled(theta):
    with pyro.poutine.scale(scale=2.0):
        return pyro.sample("bad", dist.Normal(theta[..., 0], 1.0))


def twice(theta):
    return sum(pyro.sample("bad", dist.Normal(theta[..., 0], 1.0)) for _ in range(2))


def a_function(theta):
    return pyro.sample("bad", lambda: torch.randn(len(theta)))


def infinite(theta):
    z = pyro.sample("bad", dist.LogNormal(1000.0, 1.0))
    return pyro.sample("x", dist.Normal(theta[..., 0], 1.0)) + 0 * z


def of_no_density(theta):
    return pyro.sample("bad", Late(theta[..., 0] * math.nan))


HELD = "although the values of all sites are held fixed"
REFUSED = {
    "a reparameterised value outside of a site": (smuggled, f"probability of site 'bad' changes.*{HELD}.*`rsample`"),
    "a value with the graph of another run": (smuggled_from_another_run(), "log probability of site 'bad'"),
    "a detached parameter": (detached, "site 'bad' should change.*where the gradient says 0"),
    "a parameter in numpy": (by_way_of_numpy, "site 'bad' should change.*where the gradient says 0"),
    "a location outside of the site": (transformed_outside, r"feature 0 of x depends.*\['bad'\] are held"),
    "x that depends on theta unseen by autograd": (hidden_by_detach, r"feature 0 of x depends.*\['bad'\] are held"),
    "x that depends on theta a little": (hidden_by_size, r"feature 0 of x depends.*\['bad'\] are held"),
    "x that depends on theta by a choice": (hidden_by_where, r"feature 0 of x depends.*\['bad'\] are held"),
    "x that depends on theta by an integer": (hidden_by_rounding, r"feature 1 of x depends.*\['bad'\] are held"),
    "noise beside sites": (noise_beside_sites, rf"feature 0 of x, at none of the sites \['z'\], changes.*{HELD}"),
    "a delta at theta": (delta, "Site 'bad'.*-inf"),
    "an edge at theta": (uniform, r"support of site 'bad'.*edges are \[0.0"),
    "an edge moved by a transform": (scaled_uniform, "support of site 'bad'"),
    "a power law from theta on": (pareto, "support of site 'bad'"),
    "an edge that the distribution does not tell": (silent_edge, "Site 'bad'.*-inf"),
    "a site passed for some rows": (sometimes, "same sites.*site 'bad' is (not )?passed"),
    "a site not passed for some rows": (sometimes_not, "same sites.*site 'bad' is (not )?passed"),
    "parameters standardised over rows": (standardised, "Rows should be independent; .* site 'bad' changes"),
    "x standardised over rows": (standardised_x, "Rows should be independent; feature 0 of x"),
    "rows taken for an event": (rows_as_event, "any number of rows.*site 'bad' has shape"),
    "another plate over rows": (a_plate_of_its_own_over_rows, "any number of rows.*site 'bad' has shape"),
    "a site outside of the rows": (outside_of_the_rows, "Site 'bad' lacks the axis of rows"),
    "an observed site": (observed, "Site 'bad' is observed"),
    "a conditioned site": (conditioned, "Site 'z' is observed"),
    "a factor": (factor, "Site 'bad' is a factor"),
    "a masked site": (masked, "Site 'bad' is masked"),
    "a masked distribution": (masked_itself, "Site 'bad' is masked"),
    "a subsampled plate": (subsampled, "Site 'bad' is subsampled"),
    "a scaled site": (scaled, "Site 'bad' is subsampled or scaled"),
    "one name for two sites": (twice, "'bad' is drawn twice"),
    "a function instead of a distribution": (a_function, "Site 'bad' has no log probability"),
    "an infinite value": (infinite, "Site 'bad' should draw finite values"),
    "a value that is not a number": (of_no_density, "Site 'bad' should draw finite values"),
    "a program without theta": (lambda theta: pyro.sample("x", dist.Normal(0.0, 1.0)), r"enters none of \['x'\]"),
    "a program without sites": (lambda theta: theta, "has none"),
    "a program without x": (lambda theta: pyro.sample("x", dist.Normal(theta, 1.0).to_event(1)).tolist(), "got list"),
    "the rows last": (lambda theta: walk_in_a_plate(theta).T, r"`model` should return x of shape \(20, data\)"),
    "x without rows": (lambda theta: linear(theta).sum(), r"should return x of shape \(20, data\).*shape \(\)"),
    "x that is not a number": (lambda theta: linear(theta) / 0, "`x` should be finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_gold_is_refused_by_the_name_of_its_site(name, theta):
    model, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        mine(model, theta)


def half_detached(theta):
    z = pyro.sample("good", dist.Normal(theta[..., 1], 1.0))
    return pyro.sample("bad", dist.Normal(z + theta[..., 0], theta[..., 1].exp().detach()))


@pytest.mark.parametrize(("dtype", "rows"), [(torch.float32, 100), (torch.float64, 100), (torch.float64, 1)])
def test_a_derivative_that_is_missing_in_part_is_noticed_in_either_precision(dtype, rows):
    theta = torch.randn(rows, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="site 'bad' should change with theta as its gradient says"):
        mine(half_detached, theta)


@pytest.mark.parametrize("model", [sometimes, sometimes_not, in_two_orders, longer])
def test_a_reference_at_which_other_sites_are_passed_is_refused_by_their_name(model):
    theta = torch.full((3, 2), -1.0)
    with pytest.raises(ValueError, match="same sites.*site 'bad'"):
        mine(model, theta, theta_ref=-theta)


def test_a_reference_at_which_x_is_another_is_refused():
    with pytest.raises(ValueError, match=r"feature 0 of x depends.*\['bad'\] are held"):
        mine(hidden_by_where, torch.ones(3, 2), theta_ref=-torch.ones(2))


@pytest.mark.parametrize("model", [transformed_outside, uniform, scaled_uniform, delta])
def test_one_row_alone_shows_what_is_no_gold(model):
    with pytest.raises(ValueError, match=r"'bad'"):
        mine(model, torch.tensor([[0.5, 0.0]]))


@pytest.mark.parametrize("rows", [STEPS, 7])
def test_rows_and_steps_are_not_taken_for_each_other_if_there_are_as_many(rows):
    with pytest.raises(ValueError, match="the rows last"):
        mine(lambda theta: walk_in_a_plate(theta).T, torch.zeros(rows, 2))


@pytest.mark.parametrize(
    ("theta", "message"),
    [
        (torch.zeros(3), r"`theta` should be floating numbers of shape \(rows, parameter\)"),
        (torch.zeros(0, 2), r"got shape \(0, 2\)"),
        (torch.zeros(3, 2).long(), "got .*int64"),
        (torch.full((3, 2), math.nan), "`theta` should be finite"),
    ],
)
def test_wrong_parameters_are_refused(theta, message):
    with pytest.raises(ValueError, match=message):
        mine(linear, theta)


@pytest.mark.parametrize("theta_ref", [torch.zeros(3), torch.zeros(7, 2), torch.full((2,), math.inf)])
def test_a_wrong_reference_is_refused(theta_ref, theta):
    with pytest.raises(ValueError, match="`theta_ref` should"):
        mine(linear, theta, theta_ref=theta_ref)


def test_an_error_of_the_program_says_how_far_it_came(theta):
    def model(theta):
        pyro.sample("good", dist.Normal(theta[..., 0], 1.0))
        return pyro.sample("bad", dist.Normal(theta, 1.0))

    with pytest.raises(ValueError, match="at site bad") as error:
        mine(model, theta)
    assert error.value.__notes__ == [
        "`mine` was running the program where it was drawn, 20 rows at once under a plate at dim=-1; the last site "
        "passed was 'good'."
    ]


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
