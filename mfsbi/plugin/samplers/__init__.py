"""Samplers as values: each is a frozen dataclass of its settings, with one method, `draw`.

| value | word | who does it | at its best |
|---|---|---|---|
| `SMC()` | `smc` | `mfsbi.inference.run_smc` | the default: several modes, some tens of parameters, the evidence |
| `Slice()` | `slice` | sbi, vectorised over chains | its MCMC, with the settings of the posterior |
| `NUTS()`, `HMC()` | `nuts`, `hmc` | Pyro | many parameters: follows the gradient |
| `Emcee()` | `emcee` | emcee, vectorised over walkers | stretched posteriors of few parameters, no gradients |
| `Rejection()` | `rejection` | sbi | independent draws of a posterior not much narrower than the prior |
| `Importance()` | `importance` | sbi | the same, in one sweep: prior draws, resampled by their weights |
| `Variational()` | `vi` | sbi, by a density fitted and then resampled | a posterior much narrower than the prior |
| `Grid()` | `grid` | `mfsbi.inference.grid` | one to three parameters: exact but for the spacing |

Your own is any object with that method: see `mfsbi.inference.samplers`. Independent draws come as four chains, so that
one report serves all samplers; Markov chains begin at draws of the prior.
"""

from collections.abc import Callable

from mfsbi.inference.run_emcee import Emcee
from mfsbi.inference.run_pyro import HMC, NUTS
from mfsbi.inference.run_smc import SMC
from mfsbi.inference.samplers import Sampler, leave_out
from mfsbi.plugin.samplers.grid import Grid
from mfsbi.plugin.samplers.of_sbi import Importance, Rejection, Slice, Variational

__all__ = [
    "HMC",
    "NUTS",
    "SAMPLERS",
    "SMC",
    "Emcee",
    "Grid",
    "Importance",
    "Rejection",
    "Slice",
    "Variational",
    "sampler_of",
]

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "slice": Slice,
    "smc": SMC,
    "nuts": NUTS,
    "hmc": HMC,
    "emcee": Emcee,
    "rejection": Rejection,
    "importance": Importance,
    "vi": Variational,
    "grid": Grid,
}
"""The samplers by word."""


def sampler_of(sampler: str | Sampler, **settings: object) -> Sampler:
    """Return a sampler as a value.

    Arguments:
        sampler: a word of `SAMPLERS`, or the value
        settings: those of the word

    Raises:
        ValueError: if there is no sampler of that word, or a setting is out of range
        TypeError: if the sampler has no such setting, settings come beside a value, or it has no method `draw`
    """
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ValueError(f"`sampler` should be one of {sorted(SAMPLERS)}; got {sampler!r}.")
        return SAMPLERS[sampler](**settings)
    if isinstance(sampler, type) or not isinstance(sampler, Sampler):
        raise TypeError(f"`sampler` should be a word, or a value such as NUTS(chains=8); got {sampler!r}.")
    leave_out(settings, f"`sampler` has its own settings, {sampler}")
    return sampler
