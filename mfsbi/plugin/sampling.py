"""sbi's MCMC with its chains kept apart, seeded and checked."""

import time
import warnings

import torch
from torch import Tensor

from mfsbi.checks import require_positive
from mfsbi.inference.chains import Chains
from mfsbi.inference.to_arviz import diagnose
from mfsbi.plugin.host import MCMCPosterior
from mfsbi.seeds import seeded

__all__ = ["sample_chains"]


def sample_chains(
    posterior: MCMCPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    seed: int = 0,
    show_progress_bars: bool = False,
) -> Chains:
    """Sample theta given observations that share one theta, with the posterior's own chains and warm-up.

    `posterior.sample` pools its chains; here they stay apart, R-hat and effective sample sizes are computed, and chains
    that have not converged are a warning with these numbers. The draws depend on `seed` alone.

    Arguments:
        posterior: an `MCMCPosterior`, as `build_posterior()` returns it
        x: iid observations, shape `(observations, data)`
        draws: draws of each chain, after warm-up
        seed: of the starts and the sampler
        show_progress_bars: show sbi's progress bars

    Raises:
        TypeError: if the posterior is not sampled by MCMC
        ValueError: if draws is not positive
    """
    if not isinstance(posterior, MCMCPosterior):
        raise TypeError(f"`posterior` should be sbi's MCMCPosterior; got {type(posterior).__name__}.")
    require_positive("draws", draws)
    start = time.perf_counter()
    with seeded(seed):
        pooled = posterior.sample((posterior.num_chains * draws,), x=x, show_progress_bars=show_progress_bars)
    seconds = time.perf_counter() - start
    theta = pooled.view(posterior.num_chains, draws, -1)
    with torch.no_grad():
        log_prob = posterior.potential_fn(pooled, track_gradients=False).view(posterior.num_chains, draws)
    info = {"sampler": posterior.method, "warmup_steps": posterior.warmup_steps, "seed": seed, "seconds": seconds}
    chains = Chains(theta, log_prob, info)
    if posterior.num_chains > 1 and draws >= 4:
        diagnostics = diagnose(chains)
        if not diagnostics.converged:
            warnings.warn(
                f"The chains have not converged: {diagnostics}. Take more draws or a longer warm-up "
                "(MCMCPosteriorParameters(warmup_steps=...)), and look at the trace plot for separate modes.",
                stacklevel=2,
            )
    return chains
