"""Groups with theta of their own, below hyperparameters, in Pyro and PyMC: against the exact posterior of all of them.

The model is linear and Gaussian, in each of two parameters by itself: mu ~ N(0, 1), tau ~ |N(0, 1)|, theta_g ~ N(mu,
tau^2), and events of variance s^2 about theta_g. Given tau everything is Gaussian; over tau sums a fine grid.
"""

import math
from typing import NamedTuple

import numpy as np
import pymc as pm
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch import Tensor
from torch.distributions import Independent, Uniform

from mfsbi import AF, GroupLikelihood, ManifoldNLE, MFlow
from mfsbi.charts import AmbientChart
from mfsbi.flows import Flow
from mfsbi.models import Latent, ManifoldModel
from mfsbi.plugin.estimator import ManifoldEstimator
from tests.statistical.linear_gaussian import SHIFT, SPREAD, LinearGaussian

GAUSSIAN = LinearGaussian(2)
PRIOR = Independent(Uniform(-5 * torch.ones(2), 5 * torch.ones(2)), 1)
"""Of the simulations."""

EVENTS = 3, 4, 5, 6, 8, 10, 12, 16
DRAWS, WARMUP, CHAINS = 2000, 400, 1


class Moments(NamedTuple):
    """Means and standard deviations; of theta shape `(groups, parameter)`, of the others `(parameter,)`."""

    theta: tuple[Tensor, Tensor]
    mu: tuple[Tensor, Tensor]
    tau: tuple[Tensor, Tensor]


def observed():
    """Return u of each group, shape `(events, 2)`."""
    generator = torch.Generator().manual_seed(7)
    theta = torch.tensor([0.5, -0.5]) + torch.tensor([0.8, 0.7]) * torch.randn(len(EVENTS), 2, generator=generator)
    spreads = [SPREAD * torch.randn(events, 2, generator=generator) for events in EVENTS]
    return [row + SHIFT + spread for row, spread in zip(theta, spreads, strict=True)]


def exact_moments(u):
    """Return the exact posterior's; axes are (tau, group, parameter)."""
    mean = torch.stack([each.double().mean(0) - SHIFT for each in u])
    noise = torch.tensor([SPREAD**2 / len(each) for each in u], dtype=torch.float64)[:, None]
    tau = torch.linspace(0.0, 6.0, 6001, dtype=torch.float64)[1:, None, None]
    variance = tau**2 + noise
    precision = 1 + (1 / variance).sum(1)
    centre = (mean / variance).sum(1) / precision
    log = -(variance.log().sum(1) + precision.log() + (mean**2 / variance).sum(1) - precision * centre**2) / 2
    weight = (log - tau[:, 0] ** 2 / 2).softmax(0)

    def moments(means, variances):
        weights = weight.view(len(tau), *[1] * (means.ndim - 2), 2)
        first = (weights * means).sum(0)
        return first, ((weights * (variances + means**2)).sum(0) - first**2).sqrt()

    pull = tau**2 / variance
    thetas = pull * mean + (1 - pull) * centre[:, None]
    spreads = (1 - pull) * tau**2 + (1 - pull) ** 2 / precision[:, None]
    flat = tau[:, 0].expand(-1, 2)
    return Moments(moments(thetas, spreads), moments(centre, 1 / precision), moments(flat, torch.zeros_like(flat)))


class Exact(torch.nn.Module):
    """The layer of a flow with which p(u|theta) = N(theta - 1, 0.3) to the last digit."""

    def forward(self, x, theta):
        return (x - theta - SHIFT) / SPREAD, x.new_full((), -len(x) * math.log(SPREAD))


def likelihood_of(kind, u):
    """Return the likelihood of the groups: exact, or learned from u or from x on a plane in six dimensions."""
    if kind == "exact":
        latent = Latent(Flow([Exact()], 2, 2), torch.zeros(2), torch.ones(2))
        return GroupLikelihood(ManifoldEstimator(ManifoldModel(AmbientChart(2), latent)), u)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = PRIOR.sample((30_000,))
        x = GAUSSIAN.simulate(theta) if kind == "MFlow" else theta + SHIFT + SPREAD * torch.randn_like(theta)
    spec = MFlow(2) if kind == "MFlow" else AF()
    trainer = ManifoldNLE(PRIOR, spec, seed=0, show_progress_bars=False).append_simulations(theta, x)
    return GroupLikelihood(trainer.train(), [GAUSSIAN.embed(each) for each in u] if kind == "MFlow" else u)


def by_pyro(likelihood):
    """Return draws by name, shape `(draws, ...)`."""

    def model():
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        tau = pyro.sample("tau", dist.HalfNormal(torch.ones(2)).to_event(1))
        with pyro.plate("groups", len(EVENTS)):
            theta = pyro.sample("theta", dist.Normal(mu, tau).to_event(1))
            pyro.factor("events", likelihood(theta))

    pyro.set_rng_seed(0)
    chains = []
    for _ in range(CHAINS):
        walk = MCMC(NUTS(model), num_samples=DRAWS, warmup_steps=WARMUP, disable_progbar=True)
        walk.run()
        chains.append(walk.get_samples())
    return {name: torch.cat([each[name] for each in chains]).double() for name in chains[0]}


def by_pymc(likelihood):
    """Return the same of PyMC."""
    with pm.Model():
        mu = pm.Normal("mu", 0, 1, shape=2)
        tau = pm.HalfNormal("tau", 1, shape=2)
        theta = pm.Normal("theta", mu, tau, shape=(len(EVENTS), 2))
        pm.Potential("events", likelihood.in_pytensor(theta).sum())
        found = pm.sample(
            DRAWS,
            tune=WARMUP,
            chains=CHAINS,
            cores=1,
            random_seed=1,
            progressbar=False,
            compile_kwargs={"mode": "FAST_COMPILE"},
        ).posterior
    return {name: torch.tensor(np.concatenate(found[name].values)) for name in ("mu", "tau", "theta")}


PROGRAMS = {"Pyro": by_pyro, "PyMC": by_pymc}


@pytest.fixture(scope="module", params=["exact", "AF", "MFlow"])
def likelihood(request):
    return likelihood_of(request.param, observed())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*convergence")
@pytest.mark.parametrize("program", PROGRAMS)
def test_marginals_of_a_hierarchy_are_the_exact_ones(program, likelihood):
    draws = PROGRAMS[program](likelihood)
    for name, (mean, spread) in exact_moments(observed())._asdict().items():
        off = (draws[name].mean(0) - mean) / spread
        ratio = draws[name].std(0) / spread
        print(f"{program} {name} means off by {off.flatten().numpy().round(3)} sd")  # noqa: T201 - for pytest -rP
        print(f"{program} {name} sd over exact {ratio.flatten().numpy().round(2)}")  # noqa: T201
        assert off.abs().max() < 0.1
        assert (ratio - 1).abs().max() < 0.1


def test_groups_that_learn_nothing_of_each_other_would_fail():
    u = observed()
    mean, spread = exact_moments(u).theta
    alone = torch.stack([each.double().mean(0) - SHIFT for each in u])
    assert ((alone - mean) / spread).abs().max() > 0.3
