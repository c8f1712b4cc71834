"""`sample_chains`: draws of theta by any sampler, kept apart by chain and examined."""

import time
import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace

from torch import Tensor

from mfsbi.checks import require_finite, require_positive_integer, require_seed, require_tensor
from mfsbi.inference.chains import Chains
from mfsbi.inference.samplers import Problem, Sampler, bars_shown
from mfsbi.inference.to_arviz import diagnose
from mfsbi.plugin.host import BasePotential, NeuralPosterior, RatioBasedPotential
from mfsbi.plugin.potential import OwnPotential
from mfsbi.plugin.samplers import Slice, sampler_of

__all__ = ["sample_chains"]

LEAST_SHARE = 0.01
"""Of steps accepted by a Markov chain; with fewer it stands still."""


def sample_chains(
    posterior: NeuralPosterior,
    x: Tensor,
    how: int | Sampler = 250,
    *,
    draws: int | None = None,
    sampler: str | Sampler = "slice",
    seed: int = 0,
    show_progress_bars: bool | None = None,
    **settings: object,
) -> Chains:
    """Sample theta given observations that share one theta, by any sampler; the draws depend on `seed` alone.

        sample_chains(posterior, x)
        sample_chains(posterior, x, NUTS(chains=8), draws=1000)
        sample_chains(posterior, x, 1000, sampler="nuts", chains=8)

    `posterior.sample` pools its chains and says nothing about them; here they stay apart, and chains that have not
    converged by R-hat and effective sample sizes, or too few independent draws, are a warning with these numbers.

    The sampler works on a copy of the posterior: observations that the caller has set stay as they are. Where none
    were set, `posterior.potential_fn` has those of x afterwards, as after sbi's `posterior.sample(x=x)`.

    Arguments:
        posterior: as `build_posterior()` returns it
        x: iid observations, shape `(observations, data)`
        how: draws of each chain after warm-up, or the sampler as a value
        draws: the former by name; 250 if they are not given
        sampler: the latter by name, or a word of `mfsbi.plugin.samplers.SAMPLERS`
        seed: of everything random
        show_progress_bars: the sampler's, True, False, or None for "only on a terminal"
        settings: those of the sampler, if it is given by word

    Returns:
        the chains, on the processor

    Raises:
        ValueError: if there is no such sampler, no observation, one that is not finite, draws is no positive integer,
            theta takes few values and the sampler moves continuously, or the sampler refuses its settings
        TypeError: if x is not a tensor, or the posterior not one of a `ManifoldNLE` or of `ALICES`, or for `Slice` not
            sampled by MCMC, or the sampler has no such setting
    """
    chosen = sampler_of(how if isinstance(how, Sampler) else sampler, **settings)
    if draws is None:
        draws = 250 if isinstance(how, Sampler) else how
    require_positive_integer("draws", draws)
    require_seed(seed)
    _require_observations(x)
    potential = getattr(posterior, "potential_fn", None)
    if not isinstance(potential, BasePotential if isinstance(chosen, Slice) else OwnPotential | RatioBasedPotential):
        raise TypeError(
            "`posterior` should come from build_posterior() of a ManifoldNLE or of ALICES; got a "
            f"{type(posterior).__name__}, its potential being a {type(potential).__name__}."
        )
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
        evaluations=own.potential_fn.evaluations if isinstance(potential, OwnPotential) else None,
    )
    if potential.return_x_o() is None:
        with warnings.catch_warnings(action="ignore"):  # said before
            potential.set_x(x)
    return _checked(replace(chains, draws=chains.draws.cpu(), log_prob=chains.log_prob.cpu(), info=info))


def _require_observations(x: Tensor) -> None:
    """Raise ValueError or TypeError unless there are observations to sample by."""
    require_tensor("x", x)
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"`x` should have shape (observations, data), with an observation; got {tuple(x.shape)}.")
    require_finite("x", x, "An observation without numbers has no likelihood: take it out.")


def _checked(chains: Chains) -> Chains:
    """Return the chains, with a warning of each thing that speaks against them."""
    for complaint in filter(None, _complaints(chains)):
        warnings.warn(complaint, stacklevel=3)
    return chains


def _complaints(chains: Chains) -> Iterator[str]:
    """Yield what speaks against chains, by their convergence, acceptance and divergences; an empty text is nothing."""
    info, (count, draws, _) = chains.info, chains.draws.shape
    if count > 1 and draws >= 4:
        found = diagnose(chains)
        if info.markov:
            yield found.complaint
        elif not found.enough:
            yield f"There are few independent draws: {found.sizes}. Take more, or another sampler, as slice."
    if info.markov and info.acceptance is not None and info.acceptance < LEAST_SHARE:
        yield (
            f"Only {info.acceptance:.2%} of the steps of {info.sampler!r} were accepted. Take another sampler, such as "
            "slice or nuts."
        )
    if info.divergences:
        yield (
            f"{info.divergences} trajectories diverged: part of the posterior may be missing. Raise "
            "`target_accept_prob`, or sample by slice."
        )
