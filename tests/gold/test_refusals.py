import math
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.plate_messenger import block_plate
from torch.distributions import constraints
from torch.distributions.transforms import AffineTransform

from mfsbi.gold import mine
from tests.gold.programs import STEPS, linear, walk_in_a_plate


@pytest.fixture
def theta():
    return torch.randn(20, 2, generator=torch.Generator().manual_seed(0))


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


def drawn_by_inversion(theta):
    u = pyro.sample("u", dist.Uniform(0.0, 1.0))
    return pyro.sample("bad", dist.Normal(2.0 * (u < theta[..., 0].sigmoid()) + 0.3 * theta[..., 0], 0.5))


def triggered(theta):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    trigger = torch.stack([1.0 * (z > theta[..., 0]), theta[..., 0]], -1)
    return pyro.sample("bad", dist.Normal(trigger, 0.3).to_event(1))


def rooted(theta):
    first = theta[..., 0]
    return pyro.sample("bad", dist.Normal(torch.where(first > 0, first.sqrt(), 0.0), 1.0))


HELD = "although the values of all sites are held fixed"
REFUSED = {
    "a reparameterised value outside of a site": (smuggled, f"probability of site 'bad' changes.*{HELD}.*`rsample`"),
    "a value with the graph of another run": (smuggled_from_another_run(), "log probability of site 'bad'"),
    "a detached parameter": (detached, "site 'bad' should change.*where the gradient says 0"),
    "a parameter in numpy": (by_way_of_numpy, "site 'bad' should change.*where the gradient says 0"),
    "a value compared with theta": (drawn_by_inversion, "site 'bad' should be continuous in theta.*jumps by"),
    "a threshold at theta": (triggered, "site 'bad' should be continuous in theta.*jumps by"),
    "a root of what torch.where leaves out": (
        rooted,
        "site 'bad' should have a finite gradient.*the first of them row",
    ),
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


def a_derivative_of_five_sevenths(theta):
    return pyro.sample("bad", dist.Normal(theta[..., 0] + 0.4 * theta[..., 0].detach(), 1.0))


def detached_if_rare(theta):
    k = pyro.sample("good", dist.Bernoulli(0.2))
    first = theta[..., 0]
    return pyro.sample("bad", dist.Normal(torch.where(k == 1, first.detach(), 0.2 * first), 1.0))


@pytest.mark.parametrize("model", [a_derivative_of_five_sevenths, detached_if_rare])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_derivative_that_is_missing_by_little_or_in_few_rows_is_noticed(model, dtype):
    theta = torch.randn(500, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="site 'bad' should change with theta as its gradient says"):
        mine(model, theta)


def test_a_reference_shows_what_the_same_theta_in_all_rows_does_not():
    with pytest.raises(ValueError, match="site 'bad' should be continuous"):
        mine(triggered, torch.zeros(50, 2), theta_ref=torch.ones(2))


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
        raise ValueError("no solution")

    with pytest.raises(ValueError, match="no solution") as error:
        mine(model, theta)
    assert error.value.__notes__ == [
        "`mine` was running the program where it was drawn, 20 rows at once under a plate at dim=-1; the last site "
        "passed was 'good'."
    ]
