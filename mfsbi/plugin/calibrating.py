"""`calibrate`: the exam of `mfsbi.inference.calibration` for any posterior, in one call."""

import warnings

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
    require_whole,
)
from mfsbi.inference.calibration import Calibration, closeness, levels, ranks
from mfsbi.plugin.host import MCMCPosterior, NeuralPosterior
from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.plugin.sampling import sample_chains
from mfsbi.seeds import derived, seeded

__all__ = ["calibrate"]

CHAINS = 2
"""For each data set, where chains of all data sets run at once."""


def calibrate(  # noqa: PLR0913 - what an exam must be told
    posterior: NeuralPosterior,
    theta: Tensor,
    x: Tensor,
    draws: int = 200,
    *,
    sampler: str | None = None,
    warmup: int = 20,
    seed: int = 0,
    show_progress_bars: bool = False,
) -> Calibration:
    """Examine whether a posterior is calibrated, on data whose theta is known.

    By default the posterior's own way of sampling is used; MCMC of a `ManifoldNLE` walks on all data sets at once.

    Arguments:
        posterior: any of sbi's, as `build_posterior()` returns them
        theta: draws of the prior, shape `(sets, parameter)`; more sets show smaller faults
        x: simulated from them, shape `(sets, data)`, or `(sets, events, data)` where events share one theta
        draws: of each posterior
        sampler: one of `mfsbi.plugin.sampling.SAMPLERS` to take each data set through, one after the other
        warmup: steps of each chain before its draws where MCMC walks on all sets at once; they begin at candidates
            resampled by their posterior, so few are needed
        seed: of everything random
        show_progress_bars: show a bar over data sets

    Returns:
        ranks, levels and closeness of the truth, with p-values; `print` shows the verdict

    Raises:
        ValueError: if shapes do not fit, or theta, x or a draw is not finite
        TypeError: if posterior is none, or theta or x no tensor
    """
    require_positive_integer("draws", draws)
    require_whole("warmup", warmup)
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
    if sampler is None and _walks_at_once(posterior):
        theta_drawn = _walk_at_once(posterior, x, draws, warmup, seed)
    else:
        bar = enumerate(tqdm(x, disable=not show_progress_bars, desc="data sets"))
        theta_drawn = torch.stack([_one_set(posterior, one, draws, sampler, derived(seed, i)) for i, one in bar])
    theta, theta_drawn = theta.to(theta_drawn.dtype).cpu(), theta_drawn.cpu()
    potential, values = posterior.potential_fn, []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Observation .* lies outside all")  # said when they were drawn for
        for one, truth, drawn in zip(x, theta, theta_drawn, strict=True):
            potential.set_x(one if one.ndim > 1 else one[None])
            rows = torch.cat([truth[None], drawn]).to(potential.device)
            values.append(potential(rows, track_gradients=False).cpu())
    log_prob = torch.stack(values)
    return Calibration(
        draws=theta_drawn,
        ranks=ranks(theta, theta_drawn),
        levels=levels(log_prob[:, 1:], log_prob[:, 0]),
        closeness=closeness(theta, theta_drawn, seed=derived(seed, len(x))),
    )


def _walks_at_once(posterior: NeuralPosterior) -> bool:
    return (
        isinstance(posterior, MCMCPosterior)
        and posterior.method == "slice_np_vectorized"
        and isinstance(posterior.potential_fn, ManifoldPotential)
    )


def _walk_at_once(posterior: MCMCPosterior, x: Tensor, draws: int, warmup: int, seed: int) -> Tensor:
    """Return draws of the posterior of each data set by chains that walk together, shape `(sets, draws, parameter)`."""
    with seeded(seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Note that for batched sampling")  # many chains are the point
        drawn = posterior.sample_batched(
            (draws,), x=x, num_chains=CHAINS, warmup_steps=warmup, show_progress_bars=False
        )
    return drawn.transpose(0, 1)


def _one_set(posterior: NeuralPosterior, x: Tensor, draws: int, sampler: str | None, seed: int) -> Tensor:
    """Return draws of the posterior of one data set, shape `(draws, parameter)`."""
    events = x if x.ndim > 1 else x[None]
    if sampler is not None:
        return sample_chains(posterior, events, -(-draws // 4), sampler=sampler, seed=seed).pooled[:draws]
    with seeded(seed):
        return posterior.sample((draws,), x=events, show_progress_bars=False)
