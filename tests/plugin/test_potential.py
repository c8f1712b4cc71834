import copy
import pickle

import pytest
import torch
from sbi.utils import process_prior
from torch.distributions import Independent, Uniform

from mfsbi import MFlow
from mfsbi.flows import SplineCouplings
from mfsbi.plugin.potential import ManifoldPotential
from tests.laws import perturbed
from tests.problems import plane


@pytest.fixture
def prior():
    return process_prior(Independent(Uniform(-torch.ones(2), torch.ones(2)), 1))[0]


@pytest.fixture
def estimator():
    torch.manual_seed(0)
    return perturbed(MFlow(2, SplineCouplings(layers=2), SplineCouplings(layers=2))(*plane(theta_dim=2)), 0.03)


@pytest.fixture
def x():
    return plane(4, seed=2)[1]


@pytest.fixture
def theta():
    return torch.rand(6, 2) * 1.8 - 0.9


def test_it_is_sbis_potential_up_to_a_constant(estimator, prior, x, theta):
    from sbi.inference.potentials.likelihood_based_potential import LikelihoodBasedPotential

    ours, theirs = ManifoldPotential(estimator, prior, x), LikelihoodBasedPotential(estimator, prior, x)
    difference = ours(theta) - theirs(theta)
    torch.testing.assert_close(difference, difference[:1].expand(6), rtol=0, atol=1e-3)


def test_outside_the_prior_it_is_minus_infinity(estimator, prior, x):
    potential = ManifoldPotential(estimator, prior, x)
    assert potential(torch.tensor([[0.0, 2.0]])).item() == -torch.inf


def test_observations_that_are_not_iid_are_paired_with_rows(estimator, prior, x, theta):
    potential = ManifoldPotential(estimator, prior)
    potential.set_x(x, x_is_iid=False)
    together = potential(theta[:4])
    for i in range(4):
        alone = ManifoldPotential(estimator, prior, x[i : i + 1])
        torch.testing.assert_close(together[i], alone(theta[i : i + 1])[0])
    with pytest.raises(ValueError, match="one row for each of the 4 observations.*got 6"):
        potential(theta)


@pytest.mark.parametrize("track", [True, False])
def test_gradients_are_tracked_on_demand(estimator, prior, x, theta, track):
    value = ManifoldPotential(estimator, prior, x)(theta.requires_grad_(), track_gradients=track)
    assert value.requires_grad is track


def test_it_owns_a_frozen_copy(estimator, prior, x, theta):
    potential = ManifoldPotential(estimator, prior, x)
    before = potential(theta)
    perturbed(estimator, 1.0)
    torch.testing.assert_close(potential(theta), before)
    assert not any(weight.requires_grad for weight in potential.likelihood_estimator.parameters())


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p)), lambda p: p.to("cpu")])
def test_copies_are_equal(estimator, prior, x, theta, twin):
    potential = ManifoldPotential(estimator, prior, x)
    torch.testing.assert_close(twin(potential)(theta), potential(theta))


def test_without_observations_it_says_so(estimator, prior, theta):
    with pytest.raises(ValueError, match="No observations are set"):
        ManifoldPotential(estimator, prior)(theta)


def test_observations_with_other_features_are_refused(estimator, prior):
    with pytest.raises(ValueError, match=r"`x` should have shape \(rows, 3\)"):
        ManifoldPotential(estimator, prior, torch.zeros(2, 4))
