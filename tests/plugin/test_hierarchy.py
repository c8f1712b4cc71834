import sys
import warnings

import cloudpickle
import numpy as np
import pyro
import pyro.distributions as dist
import pytensor
import pytensor.tensor as pt
import pytest
import torch
from pyro import poutine

from mfsbi import GroupLikelihood
from mfsbi.inference.to_pytensor import to_pytensor
from mfsbi.plugin import hierarchy
from tests.plugin.test_priors import NOISE
from tests.plugin.test_priors import likelihood as exact_estimator
from tests.problems import SPECS, plane

pytestmark = pytest.mark.usefixtures("as_users_have_it")
SIZES = 4, 0, 1, 7
"""Events of each group."""


@pytest.fixture(autouse=True)
def _nothing_compiled():
    """Let PyTensor run Python: compilers take longer than all the rest."""
    with pytensor.config.change_flags(mode="FAST_COMPILE"):
        yield


def estimator_of(name):
    """Return an estimator of two parameters that has not learned, in float64."""
    return SPECS[name](*plane(theta_dim=2)).double()


@pytest.fixture
def theta():
    return torch.randn(len(SIZES), 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def groups():
    return list(plane(sum(SIZES), seed=2, theta_dim=2)[1].double().split(SIZES))


def reaching(low, high):
    """Return an exact estimator that says its simulations had theta between these ends."""
    estimator = exact_estimator(2).double()
    x = [-9.0, -9.0], [9.0, 9.0]
    estimator.training_record = {"reach": {"rows": 1000, "theta": (low, high), "x": x}}
    return estimator


@pytest.mark.parametrize("name", SPECS)
def test_each_group_has_the_likelihood_of_its_own_events_at_its_own_theta(name, groups, theta):
    estimator = estimator_of(name)
    model = estimator.model
    found = GroupLikelihood(estimator, groups)(theta)
    for events, row, value in zip(groups, theta, found, strict=True):
        if name == "PAE":
            expected = model.latent.log_prob(model.encode(events), row.expand(len(events), 2)).sum()
        else:
            expected = estimator.log_prob(events, row.expand(len(events), 2)).sum()
        torch.testing.assert_close(value, expected)


def test_groups_of_one_size_may_be_one_tensor(theta):
    events = plane(12, theta_dim=2)[1].double().view(4, 3, 3)
    whole, apart = (GroupLikelihood(estimator_of("MFlow"), x)(theta) for x in (events, list(events)))
    assert (whole == apart).all()


def test_the_value_has_the_type_of_theta(groups, theta):
    likelihood = GroupLikelihood(estimator_of("AF").float(), groups)
    assert likelihood(theta).dtype == torch.float64
    torch.testing.assert_close(likelihood(theta.float()).double(), likelihood(theta))


@pytest.mark.parametrize("name", ["MFlow", "PIE, conditional"])
def test_its_gradient_is_that_of_finite_differences(name, groups, theta):
    torch.autograd.gradcheck(GroupLikelihood(estimator_of(name), groups), theta.requires_grad_())


def test_training_on_changes_nothing(groups, theta):
    estimator = estimator_of("AF")
    likelihood = GroupLikelihood(estimator, groups)
    before = likelihood(theta)
    with torch.no_grad():
        for weights in estimator.parameters():
            weights.add_(0.1)
    assert (likelihood(theta) == before).all()
    assert not (GroupLikelihood(estimator, groups)(theta) == before).all()


def test_other_processes_can_have_it(groups, theta):
    likelihood = GroupLikelihood(estimator_of("MFlow"), groups)
    assert (cloudpickle.loads(cloudpickle.dumps(likelihood))(theta) == likelihood(theta)).all()


def test_a_factor_of_pyro_is_the_likelihood(groups):
    likelihood = GroupLikelihood(estimator_of("MFlow"), groups)
    prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)

    def model():
        with pyro.plate("groups", len(groups)):
            theta = pyro.sample("theta", prior)
            pyro.factor("events", likelihood(theta))

    trace = poutine.trace(model).get_trace()
    theta = trace.nodes["theta"]["value"]
    torch.testing.assert_close(trace.log_prob_sum(), (likelihood(theta) + prior.log_prob(theta)).sum())


def test_pytensor_has_the_same_values_and_gradients(groups, theta):
    likelihood = GroupLikelihood(estimator_of("MFlow"), groups)
    at = pt.matrix("theta", dtype="float64")
    found = pytensor.function([at], likelihood.in_pytensor(at))(theta.numpy())
    torch.testing.assert_close(torch.tensor(found), likelihood(theta))
    pytensor.gradient.verify_grad(likelihood.in_pytensor, [theta.numpy()], rng=np.random.default_rng(0))


def test_value_and_gradient_of_pytensor_take_one_call(theta):
    calls = []

    def counted(theta):
        calls.append(theta)
        return theta.square().sum(-1)

    at = pt.matrix("theta", dtype="float64")
    value = (to_pytensor(counted, at) * pt.arange(4.0)).sum()
    found, gradient = pytensor.function([at], [value, pt.grad(value, at)])(theta.numpy())
    weights = torch.arange(4.0)[:, None]
    torch.testing.assert_close(torch.tensor(gradient), 2 * weights * theta)
    torch.testing.assert_close(torch.tensor(found), (weights * theta.square()).sum())
    assert len(calls) == 1


def test_second_derivatives_of_pytensor_are_refused(theta):
    at = pt.matrix("theta", dtype="float64")
    slope = pt.grad(to_pytensor(lambda rows: rows.square().sum(-1), at).sum(), at)
    with pytest.raises(NotImplementedError, match="no second derivatives in PyTensor"):
        pt.grad(slope.sum(), at)


def test_outside_the_simulations_it_falls_from_the_nearest_point():
    likelihood = GroupLikelihood(reaching([-1.0, -2.0], [1.0, 2.0]), torch.zeros(2, 3, 2))
    theta = torch.tensor([[1.5, 0.5], [0.3, -2.4]], dtype=torch.float64, requires_grad=True)
    nearest = torch.tensor([[1.0, 0.5], [0.3, -2.0]])
    values = likelihood(theta)
    normal = torch.distributions.Normal(nearest.double(), NOISE).log_prob(torch.zeros(2, 2)).sum(-1)
    torch.testing.assert_close(values, 3 * normal - torch.tensor([0.5 / 0.02, 0.4 / 0.04], dtype=torch.float64))
    (slope,) = torch.autograd.grad(values.sum(), theta)
    torch.testing.assert_close(
        slope, torch.tensor([[-50.0, -3 * 0.5 / NOISE**2], [-3 * 0.3 / NOISE**2, 25.0]], dtype=torch.float64)
    )


@pytest.mark.parametrize("estimator", [exact_estimator(2).double(), reaching([0.0, -9.0], [0.0, 9.0])])
def test_parameters_that_are_not_known_to_have_a_range_have_no_walls(estimator):
    theta = torch.tensor([[1.5, 0.5]], dtype=torch.float64)
    normal = torch.distributions.Normal(theta, NOISE).log_prob(torch.zeros(1, 2)).sum(-1)
    torch.testing.assert_close(GroupLikelihood(estimator, torch.zeros(1, 1, 2))(theta), normal)


def called(likelihood, *rounds):
    """Call a likelihood so many times outside its walls and then inside them, for each pair of numbers."""
    inside, outside = torch.zeros(2, 2), torch.tensor([[0.0, 0.0], [0.0, 2.5]])
    for beyond, within in rounds:
        for theta in beyond * [outside] + within * [inside]:
            likelihood(theta)


def test_theta_that_keeps_lying_outside_is_told_of_once(monkeypatch):
    monkeypatch.setattr(hierarchy, "CALLS", 50)
    likelihood = GroupLikelihood(reaching([-1.0, -2.0], [1.0, 2.0]), torch.zeros(2, 3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(likelihood, (50, 0), (1, 49))  # while a sampler adapts, and by chance later
    with pytest.warns(UserWarning, match="Parameter 1 of a group lay outside -2 to 2, .* in 20 % of the last 50 calls"):
        called(likelihood, (10, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        called(likelihood, (50, 50))


def test_events_out_of_reach_are_told_of():
    with pytest.warns(UserWarning, match="Observation 3 lies outside all simulations"):
        GroupLikelihood(reaching([-1.0, -2.0], [1.0, 2.0]), [torch.zeros(3, 2), torch.full((1, 2), 40.0)])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 2), ValueError, r"shape \(groups, events, 2\), or be a list .* got shape \(3, 2\)"),
        ([torch.zeros(3, 2), torch.zeros(3)], ValueError, r"`x\[1\]` should have shape \(rows, 2\)"),
        ([torch.zeros(3, 3)], ValueError, r"`x\[0\]` should have shape \(rows, 2\)"),
        ([[0.0, 1.0]], TypeError, r"`x\[0\]` should be a torch tensor"),
        ([], ValueError, "an event; got 0 groups"),
        ([torch.zeros(0, 2)], ValueError, "an event; got 1 group without any"),
        ([torch.tensor([[0.0, torch.nan]])], ValueError, "`x` should be finite; 1 of 1 rows"),
    ],
)
def test_x_that_does_not_fit_is_refused(x, error, message):
    with pytest.raises(error, match=message):
        GroupLikelihood(exact_estimator(2), x)


@pytest.mark.parametrize("shape", [(2,), (2, 1), (3, 2), (1, 2, 2)])
def test_theta_that_does_not_fit_is_refused(shape):
    with pytest.raises(ValueError, match=r"`theta` should have shape \(2, 2\), a row .* for each group; got \("):
        GroupLikelihood(exact_estimator(2), torch.zeros(2, 3, 2))(torch.zeros(shape))


def test_what_is_no_estimator_is_refused():
    with pytest.raises(TypeError, match=r"`estimator` should be an estimator, as `ManifoldNLE.train\(\)` returns it"):
        GroupLikelihood(exact_estimator(2).model, torch.zeros(2, 3, 2))


def test_a_vector_of_pytensor_is_refused():
    likelihood = GroupLikelihood(exact_estimator(2), torch.zeros(2, 3, 2))
    with pytest.raises(ValueError, match=r"a matrix of PyTensor's, .* it has 1 axis\. Write `theta\[:, None\]`"):
        likelihood.in_pytensor(pt.vector("theta"))


def test_without_pytensor_the_extra_is_named(monkeypatch):
    likelihood = GroupLikelihood(exact_estimator(2), torch.zeros(2, 3, 2))
    monkeypatch.delitem(sys.modules, "mfsbi.inference.to_pytensor")
    monkeypatch.setitem(sys.modules, "pytensor.tensor", None)
    with pytest.raises(ImportError, match=r"pip install 'mfsbi\[pymc\]'"):
        likelihood.in_pytensor(torch.zeros(2, 2))
