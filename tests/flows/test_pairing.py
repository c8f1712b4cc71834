"""Points that stay, with many theta: every way to it is the density of every pair."""

import copy
import pickle

import pytest
import torch
from torch import nn

from mfsbi.flows import (
    AffineCouplings,
    AutoregressiveMixtures,
    AutoregressiveSplines,
    Flow,
    SplineCouplings,
    Stacked,
    density_of,
)
from mfsbi.flows.densities import log_prob_of, pairing_of
from tests.laws import perturbed

pytestmark = pytest.mark.usefixtures("float64")

MIXTURE = AutoregressiveMixtures(components=2, width=8, start="linear", bends=2)
SPLINES = AutoregressiveSplines(3, 9, theta_width=9, sharpness=1.0)
CONFIGS = {
    "mixture": MIXTURE,
    "mixture without bends": AutoregressiveMixtures(components=3, width=8, bends=0),
    "splines": SPLINES,
    "splines, lu": AutoregressiveSplines(2, 9, theta_width=9, sharpness=1.0, lu=True),
    "couplings": SplineCouplings(layers=3, width=8),
    "couplings, lu": AffineCouplings(layers=2, width=8, lu=True),
    "stacked": Stacked((MIXTURE, SPLINES, SplineCouplings(layers=2, width=8))),
}


class Own(nn.Module):
    """A density of a user's, which has `log_prob` and `sample` alone."""

    def __init__(self, features, parameters):
        super().__init__()
        self.features, self.parameter_dim = features, parameters

    def log_prob(self, u, theta=None):
        return -(u - theta.sum(-1, keepdim=True)).abs().sum(-1)

    def sample(self, theta, generator=None):
        raise NotImplementedError


@pytest.fixture(params=[*CONFIGS, "own", "layers that meet theta twice"])
def density(request):
    torch.manual_seed(0)
    if request.param == "own":
        return Own(3, 2)
    if request.param == "layers that meet theta twice":
        stacks = [SPLINES.build(3, 2).layers[-1], *SplineCouplings(layers=2, width=8).build(3, 2).layers]
        return (
            perturbed(Flow([*stacks, SPLINES.build(3, 2).layers[-1]], 3, 2)).eval().requires_grad_(requires_grad=False)
        )
    return perturbed(density_of(CONFIGS[request.param], 3, 2)).eval().requires_grad_(requires_grad=False)


def test_a_pairing_is_the_density_of_every_pair(density):
    u, theta, which = torch.randn(4, 5, 3), torch.randn(2, 6, 2), torch.tensor([3, 1])
    pairs = u[which][:, None].expand(2, 6, 5, 3), theta[:, :, None].expand(2, 6, 5, 2)
    found = pairing_of(density, u)(theta, which)
    assert found.shape == (2, 6, 5)
    torch.testing.assert_close(found, log_prob_of(density, *pairs))


def test_gradients_in_theta_are_those_of_every_pair(density):
    u, which = torch.randn(2, 5, 3), torch.tensor([1, 0])
    theta = torch.randn(2, 4, 2, requires_grad=True)
    pairs = u[which][:, None].expand(2, 4, 5, 3), theta[:, :, None].expand(2, 4, 5, 2)
    expected = torch.autograd.grad(log_prob_of(density, *pairs).sum(), theta)[0]
    torch.testing.assert_close(torch.autograd.grad(pairing_of(density, u)(theta, which).sum(), theta)[0], expected)


def test_a_pairing_can_be_copied_and_pickled(density):
    u, theta, which = torch.randn(1, 5, 3), torch.randn(1, 4, 2), torch.tensor([0])
    pairing = pairing_of(density, u)
    for twin in (copy.deepcopy(pairing), pickle.loads(pickle.dumps(pairing))):
        assert (twin(theta, which) == pairing(theta, which)).all()


def test_without_parameters_there_is_one_density():
    torch.manual_seed(0)
    density = perturbed(MIXTURE.build(3))
    u = torch.randn(1, 5, 3)
    found = pairing_of(density, u)(torch.zeros(1, 2, 0), torch.tensor([0]))
    torch.testing.assert_close(found, density.log_prob(u[0]).expand(1, 2, 5))
