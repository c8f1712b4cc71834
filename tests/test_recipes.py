"""Recipes of CONTRIBUTING for a loss, a simulator and a sampler, followed once; test_own_parts.py has the others."""

import importlib.metadata

import torch
from torch.distributions import Independent, Normal

from mfsbi import ManifoldNLE, Phase, sample_chains
from mfsbi.inference.chains import Info
from mfsbi.seeds import seeded
from mfsbi.sources import source_of
from mfsbi.train.losses import latent_nll
from tests.problems import SPECS


class Blob:
    """A simulator: x ~ N(theta, 1/4) in two features, theta ~ N(0, 1)."""

    prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
    parameter_names = ("centre",)

    def simulate(self, theta, *, seed=None):
        return theta + 0.5 * torch.randn(len(theta), 2, generator=torch.Generator().manual_seed(seed or 0))


def tempered(model, batch):
    """A loss: half of -log p(u|theta)."""
    return latent_nll(model, batch) / 2


class Resampled:
    """A sampler: draws of the prior, resampled by their likelihood."""

    def draw(self, problem, draws, seed):
        with seeded(seed):
            theta = problem.prior.sample((20 * draws,))
            weight = problem.log_prob(theta) - problem.prior.log_prob(theta)
            chosen = torch.multinomial(weight.softmax(0), 4 * draws, replacement=True)
        return problem.chains(theta[chosen].view(4, draws, -1), Info("resampled", markov=False))


def test_a_loss_a_simulator_and_a_sampler_of_ones_own_lead_to_the_posterior(monkeypatch):
    entry = importlib.metadata.EntryPoint("blob", f"{__name__}:Blob", "mfsbi.simulators")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [entry])
    source = source_of(["blob"])
    trainer = ManifoldNLE(source.prior, SPECS["AF"], seed=0, show_progress_bars=False)
    trainer.append_simulations(source.for_likelihood(1000, seed=0))
    trainer.train([Phase(tempered, ("latent",), 30)], training_batch_size=50)
    assert trainer.history.losses == ["tempered"]
    x_o = torch.full((4, 2), 0.8)
    chains = sample_chains(trainer.build_posterior(), x_o, Resampled(), draws=200, seed=0)
    assert chains.info.sampler == "resampled"
    exact = 0.8 * 8 / (8 + 0.25)  # eight numbers of variance 1/4, and a prior of variance one
    assert abs(float(chains.mean) - exact) < 0.15
    assert 0.1 < float(chains.std) < 0.25  # exactly 0.174
