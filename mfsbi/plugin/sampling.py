"""`sample_chains`: draws of theta by any sampler, kept apart by chain and examined."""

import time
from copy import deepcopy
from dataclasses import replace

from torch import Tensor

from mfsbi.checks import require_finite, require_positive_integer, require_seed, require_tensor
from mfsbi.inference.chains import Chains
from mfsbi.inference.doubts import warn_of_chains
from mfsbi.inference.samplers import Problem, Sampler, bars_shown, leave_out
from mfsbi.plugin.host import BasePotential, EnsemblePosterior, MCMCPosterior, NeuralPosterior, RatioBasedPotential
from mfsbi.plugin.posteriors import SMCPosterior
from mfsbi.plugin.potential import OwnPotential
from mfsbi.plugin.samplers import Slice, sampler_of

__all__ = ["require_observations", "require_posterior", "sample_chains"]


def sample_chains(
    posterior: NeuralPosterior,
    x: Tensor,
    how: int | str | Sampler | None = None,
    *,
    draws: int | None = None,
    sampler: str | Sampler | None = None,
    seed: int = 0,
    show_progress_bars: bool | None = None,
    **settings: object,
) -> Chains:
    """Sample theta given observations that share one theta, by any sampler; the draws depend on `seed` alone.

        sample_chains(posterior, x)
        sample_chains(posterior, x, NUTS(chains=8), draws=1000)
        sample_chains(posterior, x, "nuts", draws=1000, chains=8)
        sample_chains(posterior, x, 1000, sampler="nuts", chains=8)

    `posterior.sample` pools its chains; here they stay apart, and chains that have not converged by R-hat and effective
    sample sizes, or too few independent draws, are a warning with these numbers.

    The sampler works on a copy of the posterior, which stays as it is: give `posterior.potential(theta, x)` the
    observations as well, or set them by `posterior.potential_fn.set_x(x)`.

    Arguments:
        posterior: as `build_posterior()` returns it
        x: iid observations, shape `(observations, data)`
        how: the draws or the sampler, without their name
        draws: of each chain after its warm-up; 250 if not given
        sampler: as a value, or a word of `mfsbi.plugin.samplers.SAMPLERS`; if not given `SMC()`, but
            `Importance()` where theta takes few values, and `Slice()` for posteriors that were built to draw by MCMC
        seed: of everything random
        show_progress_bars: the sampler's, True, False, or None for "only on a terminal"
        settings: those of the sampler, if it is given by word

    Returns:
        the chains, on the processor

    Raises:
        ValueError: if there is no such sampler, no observation, one that is not finite, draws is no positive integer,
            theta takes few values and the sampler moves continuously, or the sampler refuses its settings
        TypeError: if x is not a tensor, or the posterior not one of a `ManifoldNLE` or of `ALICES`, or for `Slice` not
            sampled by MCMC, or the sampler has no such setting, or something is given twice
    """
    if isinstance(how, str | Sampler):
        leave_out([] if sampler is None else ["sampler"], f"The sampler came after `x`, {how!r}")
        sampler = how
    elif how is not None:
        leave_out([] if draws is None else ["draws"], f"The draws came after `x`, {how!r}")
        draws = how
    chosen = sampler_of(_default(posterior) if sampler is None else sampler, **settings)
    draws = 250 if draws is None else draws
    require_positive_integer("draws", draws)
    require_seed(seed)
    require_observations(x)
    require_posterior(posterior, chosen)
    own = deepcopy(posterior)
    own.potential_fn.set_x(x, x_is_iid=True)
    own.potential_fn.evaluations = 0
    prior, transform = own.potential_fn.prior, own.theta_transform
    start = time.perf_counter()
    bars = bars_shown(wanted=show_progress_bars)
    chains = chosen.draw(Problem(own.potential_fn, prior, transform, x, own, bars), draws, seed)
    info = chains.info._replace(
        sampler=chains.info.sampler or type(chosen).__name__,
        seed=seed,
        seconds=time.perf_counter() - start,
        evaluations=own.potential_fn.evaluations if isinstance(own.potential_fn, OwnPotential) else None,
    )
    chains = replace(chains, draws=chains.draws.cpu(), log_prob=chains.log_prob.cpu(), info=info)
    warn_of_chains(chains)
    return chains


def _default(posterior: NeuralPosterior) -> str:
    """Return the word of the sampler for a posterior if none is given."""
    potential = getattr(posterior, "potential_fn", None)
    if not isinstance(potential, OwnPotential | RatioBasedPotential):
        return "slice"  # sbi's own potential, which only its own sampler takes
    if isinstance(posterior, MCMCPosterior) and not isinstance(posterior, SMCPosterior):
        return "slice"  # with settings that somebody chose
    return "importance" if getattr(potential.prior, "discrete", False) else "smc"


def require_posterior(posterior: NeuralPosterior, sampler: Sampler) -> None:
    """Raise TypeError unless the posterior has a potential that the sampler can use."""
    potential = getattr(posterior, "potential_fn", None)
    if isinstance(posterior, EnsemblePosterior):
        raise TypeError(
            "`posterior` should be one posterior; got an ensemble. Take each of its `posteriors`, or call its `sample`."
        )
    if not isinstance(potential, BasePotential if isinstance(sampler, Slice) else OwnPotential | RatioBasedPotential):
        raise TypeError(
            "`posterior` should come from build_posterior() of a ManifoldNLE or of ALICES; got "
            f"{type(posterior).__name__} with the potential {type(potential).__name__}."
        )


def require_observations(x: Tensor) -> None:
    """Raise ValueError or TypeError unless there are observations to sample by."""
    require_tensor("x", x)
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"`x` should have shape (observations, data), with an observation; got {tuple(x.shape)}.")
    require_finite("x", x, "An observation without numbers has no likelihood: take it out.")
