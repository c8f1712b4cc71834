"""What is unusual but right: no warning of what simulations cannot tell."""

import warnings

import pytest
import torch
from torch.distributions import Dirichlet, Exponential, MultivariateNormal, StudentT

from mfsbi.plugin.parameter_prior import parameter_prior
from mfsbi.train.data import Batch
from mfsbi.train.reach import Reach, warn_of_observations, warn_of_outliers, warn_of_simulations

ROWS = 400


def tails(rows, seed, kind=None):
    torch.manual_seed(seed)
    return (kind or StudentT(3.0)).sample((rows, 10))


def observed(rows, simulations, kind=None):
    """Look at observations from the distribution that the simulations have."""
    reach = Reach.of(Batch(torch.zeros(simulations, 1), tails(simulations, 0, kind)))
    warn_of_observations(tails(rows, 1, kind), reach, lambda x: x)


def simulated(prior, rows=ROWS, x=lambda theta: theta + 0.5 * torch.randn_like(theta)):
    """Look at simulations of theta from a prior."""
    theta = prior.sample((rows,))
    batch = Batch(theta, x(theta))
    warn_of_outliers(batch.x)
    warn_of_simulations(batch, parameter_prior(prior), all_from_prior=True, discrete=False)


NORMAL = MultivariateNormal(torch.zeros(3), torch.eye(3))
INNOCENT = {
    "observations with heavy tails": lambda: observed(500, 5000),
    "observations with long tails": lambda: observed(1000, 1000, Exponential(1.0)),
    "one observation of many features": lambda: observed(1, 1000),
    "features that are nearly always zero": lambda: warn_of_outliers(
        torch.where(torch.rand(4000, 3) < 0.01, torch.rand(4000, 3), torch.zeros(4000, 3))
    ),
    "features with heavy tails": lambda: simulated(NORMAL, x=lambda theta: StudentT(3.0).sample(theta.shape)),
    "an offset that leaves few digits": lambda: simulated(NORMAL, x=lambda theta: 1e5 + torch.randn_like(theta)),
    "a prior with correlations": lambda: simulated(
        MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.999], [0.999, 1.0]]))
    ),
    "a prior on a simplex": lambda: simulated(Dirichlet(torch.tensor([1.0, 0.3, 0.1]))),
    "few simulations": lambda: simulated(NORMAL, 30),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_is_unusual_but_right_has_no_word(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        INNOCENT[name]()
