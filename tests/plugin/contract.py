"""A plane whose posterior is known, for what sbi's own tests (v0.27) state of trainers, posteriors and diagnostics.

x lies on a plane, u ~ N(theta, 1/4) there and theta is uniform in a wide box, so n observations leave
theta ~ N(mean of u, 1/(4 n)).
"""

import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import BoxUniform, RestrictedPrior, get_density_thresholder

from mfsbi import AffineCouplings, ManifoldNLE, MFlow, density_only
from mfsbi.inference.grid import grid_posterior
from tests.problems import off_plane, on_plane

SMALL = AffineCouplings(2, 32)
SPEC = MFlow(2, SMALL, SMALL)
PRIOR = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2))
TRUTH = torch.tensor([0.6, -0.4])
TRAINING = {"training_batch_size": 100, "learning_rate": 1e-2}
QUIET = {"show_progress_bars": False}
FEW = {"num_candidate_samples": 50}


def simulate(theta):
    return on_plane(theta + 0.5 * torch.randn_like(theta))


def observed(rows):
    """Return iid observations at the true parameters."""
    generator = torch.Generator().manual_seed(rows)
    return on_plane(TRUTH + 0.5 * torch.randn(rows, 2, generator=generator))


def assert_exact(draws, x, effective):
    """Assert that mean and spread are those of the posterior, for about so many independent draws."""
    mean, std = off_plane(x).mean(0), 0.5 / len(x) ** 0.5
    assert ((draws.mean(0) - mean).abs() < (0.3 + 4 / effective**0.5) * std).all()
    assert ((draws.std(0) - std).abs() < (0.2 + 3 / (2 * effective) ** 0.5) * std).all()


def train(device="cpu"):
    """Return a trainer that knows the plane, trained there."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = PRIOR.sample((2000,))
        trainer = ManifoldNLE(PRIOR, SPEC, device=device, show_progress_bars=False)
        trainer.append_simulations(theta, simulate(theta))
    trainer.train(schedule=density_only(20), weight_decay=0.0, **TRAINING)
    return trainer


def chains(trained, number=10, warmup=5):
    """Return a posterior that is sampled by short chains."""
    return trained.build_posterior(
        posterior_parameters=MCMCPosteriorParameters(
            num_chains=number, warmup_steps=warmup, init_strategy_parameters=dict(FEW)
        )
    )


def truncated(posterior):
    """Return draws of the prior where the posterior is not small, and log p of them and of a point far away."""
    inside = get_density_thresholder(posterior, quantile=0.05, num_samples_to_estimate_support=200)
    proposal = RestrictedPrior(PRIOR, inside)
    theta = proposal.sample((40,))
    return theta, proposal.log_prob(torch.cat([theta, -TRUTH[None]]), norm_restricted_prior=False)


def grid_of(posterior, x):
    return grid_posterior(lambda theta: posterior.potential(theta, x=x), [-2, -2], [2, 2], 60)
