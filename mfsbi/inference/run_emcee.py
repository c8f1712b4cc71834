"""The door to emcee: ensembles of walkers, which need no gradient and evaluate many theta in one call.

An ensemble proposes a step for each walker from where the others are (Goodman & Weare 2010; Foreman-Mackey et al.,
arXiv:1202.3665), so it suits posteriors that are stretched in any direction. Walkers take the place of chains; as they
depend on each other, R-hat is a rougher guide than for separate chains, and the acceptance stands beside it.

By default half of the proposals go along differences of two walkers (`DEMove`, ter Braak 2006), and half are draws of a
kernel density of the others (`KDEMove`), which gave the most effective draws (`notebooks/measurements.md`).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import emcee
import numpy as np
import torch
from emcee.moves import DEMove, KDEMove
from torch import Tensor
from torch.distributions import Transform, identity_transform

from mfsbi.checks import require_positive_integer, require_whole, warn
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.samplers import Problem, leave_out
from mfsbi.seeds import derived

__all__ = ["Emcee", "run_emcee"]


@dataclass(frozen=True)
class Emcee:
    """The sampler of `run_emcee`, whose walkers begin at draws of the prior.

    Arguments:
        walkers: how many, at least twice the parameters; 16 or four times the parameters if None
        warmup: steps before the draws
        thin: steps for each draw
        moves: emcee's, one or a list with weights; half `DEMove` and half `KDEMove` if None
        backend: emcee's, which can keep the steps in a file

    Raises:
        ValueError: if walkers or thin is not a positive integer, or warmup is negative
    """

    walkers: int | None = None
    warmup: int = 500
    thin: int = 5
    moves: object = None
    backend: object = None

    def __post_init__(self) -> None:
        if self.walkers is not None:
            require_positive_integer("walkers", self.walkers)
        require_positive_integer("thin", self.thin)
        require_whole("warmup", self.warmup)

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return one chain for each walker."""
        problem.require_continuous("emcee")
        return run_emcee(
            problem.log_prob,
            problem.starts(self.walkers or max(16, 4 * problem.parameters), derived(seed, 0)),
            draws,
            sampler=self,
            transform=problem.transform,
            seed=derived(seed, 1),
            show_progress_bars=problem.show_progress_bars,
        )


def run_emcee(
    log_prob: Callable[[Tensor], Tensor],
    starts: Tensor,
    draws: int = 250,
    *,
    sampler: Emcee | None = None,
    transform: Transform = identity_transform,
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: object,
) -> Chains:
    """Sample by emcee's ensemble of walkers; Ctrl-C keeps the draws so far.

    Arguments:
        log_prob: theta of shape `(rows, parameter)` -> log posterior up to a constant, -inf outside the prior
        starts: where the walkers begin, shape `(walkers, parameter)`, at least twice as many walkers as parameters
        draws: of each walker
        sampler: settings as a value, whose `walkers` are not used: there is one for each start
        transform: theta -> unconstrained coordinates, in which the walkers move
        seed: of the moves
        show_progress_bars: show emcee's progress bar
        settings: those of `Emcee` by name, if there is no `sampler`: warmup, thin, moves, backend

    Returns:
        one chain for each walker

    Raises:
        ValueError: if there are too few walkers, log_prob is NaN, or -inf at a start
        TypeError: if there is no such setting, or settings come beside a sampler, or walkers beside starts
        KeyboardInterrupt: if interrupted before the first draw
    """
    require_positive_integer("draws", draws)
    how, kind = _settings_of(sampler, settings), starts.dtype

    def back(y: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return theta, and log |det dy/dtheta| in float64, of rows y."""
        rows = torch.from_numpy(y.copy()).to(starts)
        with torch.no_grad():
            theta = transform.inv(rows)
            volume = transform.log_abs_det_jacobian(theta, rows)
        return theta, volume.reshape(len(y), -1).sum(-1).double().cpu()

    def vectorised(y: np.ndarray) -> np.ndarray:
        theta, volume = back(y)
        with torch.no_grad():
            value = log_prob(theta).double().cpu() - volume
        return np.asarray(torch.where(volume.isfinite(), value, torch.full_like(value, -torch.inf)))

    begin = np.asarray(transform(starts).double().cpu())
    walkers, parameters = begin.shape
    if walkers < 2 * parameters:
        raise ValueError(f"`starts` should be at least {2 * parameters} walkers, twice the parameters; got {walkers}.")
    first = vectorised(begin)
    if not np.isfinite(first).all():
        raise ValueError(f"`log_prob` should be finite at every start; it is {first[~np.isfinite(first)][0]} at one.")
    began = time.perf_counter()
    moves = [(DEMove(), 0.5), (KDEMove(), 0.5)] if how.moves is None else how.moves
    ensemble = emcee.EnsembleSampler(walkers, parameters, vectorised, vectorize=True, moves=moves, backend=how.backend)
    state = emcee.State(begin, random_state=np.random.RandomState(seed).get_state())
    before = ensemble.iteration
    try:
        if how.warmup > 0:
            state = ensemble.run_mcmc(state, how.warmup, progress=show_progress_bars)
        ensemble.run_mcmc(state, draws, thin_by=how.thin, progress=show_progress_bars)
    except KeyboardInterrupt:
        done = ensemble.iteration - before - how.warmup
        if done < 1:
            raise
        warn(f"Sampling was interrupted; {done} of {draws} draws of each walker are kept.")
    discard = before + how.warmup
    chain = ensemble.get_chain(discard=discard).swapaxes(0, 1)
    theta, volume = back(chain.reshape(-1, parameters))
    log_posterior = torch.from_numpy(ensemble.get_log_prob(discard=discard).T.copy()) + volume.view(chain.shape[:2])
    info = Info(
        "emcee",
        warmup_steps=how.warmup,
        thin=how.thin,
        seed=seed,
        seconds=time.perf_counter() - began,
        acceptance=float(ensemble.acceptance_fraction.mean()),
    )
    return Chains(theta.to(kind).view(*chain.shape[:2], -1), log_posterior.to(kind), info)


def _settings_of(sampler: Emcee | None, settings: Mapping[str, object]) -> Emcee:
    """Return the sampler, or the one that has these settings; raise TypeError if something is given twice."""
    leave_out({"walkers"} & settings.keys(), "`starts` has a row for each walker")
    if sampler is None:
        return cast(Callable[..., Emcee], Emcee)(**settings)
    leave_out(settings, f"`sampler` has its own settings, {sampler}")
    return sampler
