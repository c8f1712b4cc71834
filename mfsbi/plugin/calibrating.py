"""`calibrate`: the exam of `mfsbi.inference.calibration` for any posterior, in one call."""

import warnings
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import (
    require_finite,
    require_kind,
    require_matching_rows,
    require_positive_integer,
    require_seed,
    require_tensor,
)
from mfsbi.inference.calibration import Calibration, closeness, levels, ranks
from mfsbi.inference.run_smc import SMC
from mfsbi.inference.samplers import Sampler, bars_shown, leave_out
from mfsbi.plugin.host import MCMCPosterior, NeuralPosterior
from mfsbi.plugin.posteriors import draws_of_sets
from mfsbi.plugin.potential import OwnPotential
from mfsbi.plugin.samplers import sampler_of
from mfsbi.plugin.sampling import sample_chains
from mfsbi.seeds import derived, seeded

__all__ = ["calibrate"]


def calibrate(
    posterior: NeuralPosterior,
    theta: Tensor,
    x: Tensor,
    draws: int = 200,
    *,
    sampler: str | Sampler | None = None,
    seed: int = 0,
    show_progress_bars: bool | None = None,
    **settings: object,
) -> Calibration:
    """Examine whether a posterior is calibrated, on data whose theta is known.

    Posteriors of ours that draw by SMC or MCMC are drawn by SMC of all data sets at once, whatever their settings of
    MCMC, unless theta takes few values; others by their own way, one data set after the other. A sampler that is given
    examines the draws of that one, as "slice" does those of MCMC. The posterior stays as it is.

    Arguments:
        posterior: any of sbi's, as `build_posterior()` returns them
        theta: draws of the prior, shape `(sets, parameter)`; more sets reveal smaller errors
        x: simulated from them, shape `(sets, data)`, or `(sets, events, data)` where events share one theta
        draws: of each posterior
        sampler: as in `sample_chains`; `SMC()` takes all data sets at once, others one after the other
        seed: of everything random
        show_progress_bars: a bar over data sets, True, False, or None for "only on a terminal"
        settings: those of the sampler, if it is given by word

    Returns:
        ranks, levels and closeness of the truth, with p-values; `print` shows the verdict

    Raises:
        ValueError: if shapes do not fit, or theta, x or a draw is not finite
        TypeError: if posterior is not a posterior, theta or x is not a tensor, or there is no such setting
    """
    require_positive_integer("draws", draws)
    require_seed(seed)
    require_kind("posterior", posterior, NeuralPosterior, "a posterior, as `build_posterior()` returns it")
    require_tensor("theta", theta)
    require_tensor("x", x)
    parameters = posterior.potential_fn.prior.event_shape[0]
    if theta.ndim != 2 or theta.shape[1] != parameters or len(theta) < 2 or x.ndim not in (2, 3):
        raise ValueError(
            f"`theta` should have shape (sets, {parameters}) with two sets or more, and `x` (sets, data) or "
            f"(sets, events, data); got {tuple(theta.shape)} and {tuple(x.shape)}."
        )
    require_matching_rows("theta", theta, "x", x)
    require_finite("theta", theta, "The truth of a data set is known.")
    require_finite("x", x, "Leave these data sets out.")
    if sampler is None:
        leave_out(settings, "Settings are those of a sampler, and none is given")
    chosen = None if sampler is None else sampler_of(sampler, **settings)
    posterior = deepcopy(posterior)  # sampling sets observations
    sets, bars = x if x.ndim > 2 else x[:, None], bars_shown(wanted=show_progress_bars)
    if _all_at_once(posterior, chosen):
        smc = cast(SMC | None, chosen)
        theta_drawn = draws_of_sets(posterior, sets, draws, seed=seed, sampler=smc, show_progress_bars=bars)
    else:
        numbered = enumerate(tqdm(sets, disable=not bars, desc="data sets"))
        theta_drawn = torch.stack([_one_set(posterior, one, draws, chosen, derived(seed, i)) for i, one in numbered])
    theta, theta_drawn = theta.to(theta_drawn.dtype).cpu(), theta_drawn.cpu()
    potential, values = posterior.potential_fn, []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation .* lies outside all")  # said when they were drawn for
        for one, truth, drawn in zip(sets, theta, theta_drawn, strict=True):
            potential.set_x(one)
            rows = torch.cat([truth[None], drawn]).to(potential.device)
            values.append(potential(rows, track_gradients=False).cpu())
    log_prob = torch.stack(values)
    return Calibration(
        draws=theta_drawn,
        ranks=ranks(theta, theta_drawn),
        levels=levels(log_prob[:, 1:], log_prob[:, 0]),
        closeness=closeness(theta, theta_drawn, seed=derived(seed, len(x))),
    )


def _all_at_once(posterior: NeuralPosterior, sampler: Sampler | None) -> bool:
    """Return whether all data sets are drawn for at once, by SMC."""
    potential = posterior.potential_fn
    if not isinstance(potential, OwnPotential) or getattr(potential.prior, "discrete", False):
        return False
    return isinstance(sampler, SMC) or (sampler is None and isinstance(posterior, MCMCPosterior))


def _one_set(posterior: NeuralPosterior, x: Tensor, draws: int, sampler: Sampler | None, seed: int) -> Tensor:
    """Return draws of the posterior of one data set, shape `(draws, parameter)`."""
    if sampler is not None:
        each = -(-draws // getattr(sampler, "chains", 4))
        return sample_chains(posterior, x, each, sampler=sampler, seed=seed, show_progress_bars=False).pooled[:draws]
    with seeded(seed):
        return posterior.sample((draws,), x=x, show_progress_bars=False)
