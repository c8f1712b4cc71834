"""Reasons to doubt draws, whichever sampler made them, in words that say what to do."""

from collections.abc import Iterator

import torch
from torch import Tensor

from mfsbi.checks import warn
from mfsbi.inference.chains import Chains
from mfsbi.inference.to_arviz import APART, diagnose

__all__ = ["warn_of_chains", "warn_of_populations"]

LEAST_SHARE = 0.01
"""Share of accepted steps below which a Markov chain hardly moves."""

MANY = 100
"""Draws of each chain from which on R-hat says something of independent ones."""


FAR_APART = 1.1
"""R-hat of populations of a hundred particles that is no chance in any of a thousand data sets."""


def warn_of_chains(chains: Chains) -> None:
    """Warn of each reason to doubt chains: no convergence, few effective draws, low acceptance, divergences.

    Arguments:
        chains: as a sampler returned them
    """
    for complaint in filter(None, _complaints(chains)):
        warn(complaint)


def warn_of_populations(theta: Tensor) -> None:
    r"""Warn of data sets whose populations of particles disagree by more than so few particles do by chance.

    By R-hat of the means, the root of (n - 1) / n + var(means) / mean(variances), n the draws of each.

    Arguments:
        theta: shape `(sets, populations, draws, parameter)`, two populations or more
    """
    draws = theta.shape[2]
    within = theta.var(2).mean(1)
    r_hat = ((draws - 1) / draws + theta.mean(2).var(1) / within.clamp(min=torch.finfo(theta.dtype).tiny)).sqrt()
    disagree = (r_hat > FAR_APART).any(-1)
    if disagree.any():
        warn(
            f"In {int(disagree.sum())} of {len(theta)} data sets populations of particles disagree, worst in number "
            f"{int(r_hat.amax(-1).argmax())} with R-hat {float(r_hat.max()):.2f}: regions of these posteriors, such as "
            "separate modes, have too many or too few draws. Draw from these one by one, with more particles, as in "
            '`sample_chains(posterior, x, "smc", particles=1000)`.'
        )


def _complaints(chains: Chains) -> Iterator[str]:
    """Yield reasons to doubt chains: no convergence, low acceptance, divergences; an empty text is no reason."""
    info, (count, draws, _) = chains.info, chains.draws.shape
    if count > 1 and draws >= 4:
        found = diagnose(chains)
        if info.markov:
            yield found.complaint
        elif info.sampler == "smc" and draws >= MANY and max(found.r_hat) > APART:
            yield (
                f"Populations of particles disagree: {found}. Regions of the posterior, such as separate modes, have "
                'too many or too few draws. Take more particles, as in `sample_chains(posterior, x, "smc", '
                "particles=2000)`, and compare with another seed."
            )
        elif not found.enough:
            other = "" if info.sampler == "smc" else ", or another sampler, such as smc"
            yield f"There are few independent draws: {found.sizes}. Take more{other}."
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
