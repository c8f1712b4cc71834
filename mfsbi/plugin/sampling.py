"""Roads from one potential to draws of theta: `sample_chains` knows them by name, and each is a function here.

| sampler | who does it | at its best |
|---|---|---|
| `slice` | sbi, vectorised over chains | the default: no settings, no gradients, few parameters |
| `nuts`, `hmc` | Pyro | many parameters: follows the gradient |
| `emcee` | emcee, vectorised over walkers | stretched posteriors of a few parameters, no gradients |
| `rejection` | sbi | independent draws where the posterior is not much narrower than the prior |
| `importance` | sbi | the same, in one sweep: prior draws, resampled by their weights |
| `vi` | sbi, by a density fitted to the posterior, then resampled | a posterior much narrower than the prior |
| `grid` | `mfsbi.inference.grid` | one to three parameters: exact but for the spacing |

All return `Chains`, on the processor. Independent draws come as four chains, so that one report serves every road:
effective sample sizes, R-hat for chains, and the share of proposals accepted (for resampling and VI: the effective
share of the candidates). Markov chains begin at draws of the prior.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from mfsbi.checks import require_finite, require_positive_integer, require_seed, require_tensor
from mfsbi.inference.chains import Chains
from mfsbi.inference.grid import grid_posterior, warn_of_grid
from mfsbi.inference.run_emcee import run_emcee
from mfsbi.inference.run_pyro import run_pyro
from mfsbi.inference.to_arviz import diagnose
from mfsbi.plugin.host import (
    BasePotential,
    MCMCPosterior,
    NeuralPosterior,
    RatioBasedPotential,
    importance_sample,
    rejection_sample,
)
from mfsbi.plugin.posteriors import VIPosterior, require_continuous
from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.seeds import derived, seeded

__all__ = [
    "SAMPLERS",
    "sample_chains",
    "sample_emcee",
    "sample_grid",
    "sample_hmc",
    "sample_importance",
    "sample_nuts",
    "sample_rejection",
    "sample_slice",
    "sample_vi",
]

CHAINS = 4
"""Into which independent draws are dealt."""

VI_SETTINGS = {"max_num_iters": 500, "n_particles": 64, "learning_rate": 1e-2}
"""A tenth of the work of sbi's defaults; what the fit misses is made up for by weights."""

GRID_POINTS = {1: 1000, 2: 300, 3: 60}
"""Along each of so many parameters."""

LEAST_SHARE = 0.01
"""Of steps accepted by a Markov chain; with fewer it stands still."""


def sample_chains(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    sampler: str = "slice",
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: Any,  # noqa: ANN401 - those of the sampler
) -> Chains:
    """Sample theta given observations that share one theta, by any road; the draws depend on `seed` alone.

    `posterior.sample` pools its chains and says nothing about them; here they stay apart, and chains that have not
    converged by R-hat and effective sample sizes, or too few independent draws, are a warning with these numbers.

    Arguments:
        posterior: as `build_posterior()` returns it
        x: iid observations, shape `(observations, data)`
        draws: draws of each chain, after warm-up
        sampler: one of `SAMPLERS`
        seed: of everything random
        show_progress_bars: show the sampler's progress bar
        settings: those of the sampler's function here

    Raises:
        ValueError: if there is no such sampler, no observation, one that is not finite, draws is no positive integer,
            theta takes few values and the sampler moves continuously, or the sampler refuses its settings
        TypeError: if x is no tensor, or the posterior not one of a `ManifoldNLE` or of `ALICES`, or for `slice` not
            sampled by MCMC, or the sampler has no such setting
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"`sampler` should be one of {sorted(SAMPLERS)}; got {sampler!r}.")
    require_continuous(posterior, sampler)
    return SAMPLERS[sampler](posterior, x, draws, seed=seed, show_progress_bars=show_progress_bars, **settings)


def sample_slice(
    posterior: NeuralPosterior, x: Tensor, draws: int = 250, *, seed: int = 0, show_progress_bars: bool = False
) -> Chains:
    """Sample by the MCMC of the posterior itself, with its own number of chains and warm-up."""
    if not isinstance(posterior, MCMCPosterior):
        raise TypeError(f"`posterior` should be sbi's MCMCPosterior; got {type(posterior).__name__}.")
    _require_observations(x, draws, seed)
    start = time.perf_counter()
    with seeded(seed):
        pooled = posterior.sample((posterior.num_chains * draws,), x=x, show_progress_bars=show_progress_bars)
    theta = pooled.view(posterior.num_chains, draws, -1)
    about = {"sampler": posterior.method, "warmup_steps": posterior.warmup_steps, "seed": seed}
    return _chains(theta, posterior.potential_fn, about, start)


def sample_rejection(
    posterior: NeuralPosterior, x: Tensor, draws: int = 250, *, seed: int = 0, show_progress_bars: bool = False
) -> Chains:
    """Draw from the prior and keep each draw with a chance that grows with its likelihood; exact and independent."""
    potential, start = _potential(posterior, x, draws, seed), time.perf_counter()
    with seeded(seed):
        theta, share = rejection_sample(
            potential,
            potential.prior,
            theta_transform=posterior.theta_transform,
            num_samples=CHAINS * draws,
            num_samples_to_find_max=1000,
            show_progress_bars=show_progress_bars,
            device=potential.device,
        )
    info = {"sampler": "rejection", "seed": seed, "acceptance": float(share)}
    return _chains(theta.view(CHAINS, draws, -1), potential, info, start)


def sample_importance(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    oversampling: int = 32,
    seed: int = 0,
    show_progress_bars: bool = False,
) -> Chains:
    """Draw `oversampling` candidates from the prior for each draw and resample them by their weights (SIR)."""
    potential, start = _potential(posterior, x, draws, seed), time.perf_counter()
    require_positive_integer("oversampling", oversampling)
    with seeded(seed), torch.no_grad():
        candidates, weight = importance_sample(
            potential, potential.prior, oversampling * CHAINS * draws, show_progress_bars=show_progress_bars
        )
        theta, share = _resampled(candidates, weight, CHAINS * draws)
    info = {"sampler": "importance", "seed": seed, "acceptance": share}
    return _chains(theta.view(CHAINS, draws, -1), potential, info, start)


def sample_vi(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    q: str | None = None,
    oversampling: int = 8,
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: Any,  # noqa: ANN401 - those of sbi's `VIPosterior.train`
) -> Chains:
    """Fit sbi's variational density `q` to the posterior, and resample its draws by their weights.

    One candidate for each draw comes from the prior, which covers what q misses: so weights are bounded by the
    likelihood and make up for it (a defensive mixture; Hesterberg 1995). The effective share says how well q fits.

    Arguments:
        posterior: as `build_posterior()` returns it
        x: iid observations, shape `(observations, data)`
        draws: of each of four chains
        q: sbi's name of a density; "gaussian" for one parameter and "maf" for several if not given
        oversampling: candidates from q for each draw
        seed: of everything random
        show_progress_bars: show sbi's progress bar
        settings: of sbi's `VIPosterior.train`; by default 500 steps of 64 draws at a learning rate of 0.01
    """
    potential, start = _potential(posterior, x, draws, seed), time.perf_counter()
    require_positive_integer("oversampling", oversampling)
    if q is None:
        q = "gaussian" if potential.prior.event_shape[0] == 1 else "maf"
    with seeded(seed):
        fitted = VIPosterior(potential, potential.prior, q, posterior.theta_transform, device=potential.device)
        fitted.set_default_x(x)
        fitted.train(show_progress_bar=show_progress_bars, quality_control=False, **(VI_SETTINGS | settings))
        candidates = fitted.sample((oversampling * CHAINS * draws,), show_progress_bars=False).detach()
        candidates = torch.cat([candidates, potential.prior.sample((CHAINS * draws,))])
        with torch.no_grad():
            of_q = fitted.q.log_prob(candidates).nan_to_num(-torch.inf) + torch.tensor(oversampling).log()
            of_both = torch.logaddexp(of_q, potential.prior.log_prob(candidates))
            weight = potential(candidates, track_gradients=False) - of_both
        theta, share = _resampled(candidates, weight, CHAINS * draws)
    return _chains(
        theta.view(CHAINS, draws, -1), potential, {"sampler": "vi", "seed": seed, "acceptance": share}, start
    )


def sample_nuts(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    chains: int = 4,
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: Any,  # noqa: ANN401 - those of `run_pyro`
) -> Chains:
    """Sample by Pyro's NUTS in unconstrained coordinates; `settings` are those of `run_pyro`."""
    potential = _potential(posterior, x, draws, seed)
    starts = _starts(potential, chains, derived(seed, 0))
    result = run_pyro(
        potential,
        starts,
        draws,
        transform=posterior.theta_transform,
        seed=derived(seed, 1),
        show_progress_bars=show_progress_bars,
        **settings,
    )
    return _checked(Chains(result.draws, result.log_prob, result.info | {"seed": seed}))


def sample_hmc(posterior: NeuralPosterior, x: Tensor, draws: int = 250, **settings: Any) -> Chains:  # noqa: ANN401
    """Sample by Pyro's HMC with a fixed length of trajectories; settings as for `sample_nuts`."""
    return sample_nuts(posterior, x, draws, kernel="hmc", **settings)


def sample_emcee(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    walkers: int | None = None,
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: Any,  # noqa: ANN401 - those of `run_emcee`
) -> Chains:
    """Sample by emcee, by default with 16 walkers or four times the parameters; `settings` are those of `run_emcee`."""
    potential = _potential(posterior, x, draws, seed)
    parameters = potential.prior.event_shape[0]
    starts = _starts(potential, max(16, 4 * parameters) if walkers is None else walkers, derived(seed, 0))
    result = run_emcee(
        lambda theta: potential(theta, track_gradients=False),
        starts,
        draws,
        transform=posterior.theta_transform,
        seed=derived(seed, 1),
        show_progress_bars=show_progress_bars,
        **settings,
    )
    return _checked(Chains(result.draws, result.log_prob, result.info | {"seed": seed}))


def sample_grid(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int = 250,
    *,
    bounds: Sequence[tuple[float, float]],
    points: int | None = None,
    seed: int = 0,
    show_progress_bars: bool = False,  # noqa: ARG001
) -> Chains:
    """Draw cells of a grid, and a point within each: by default 1,000 of one parameter, 300^2 of two, 60^3 of three."""
    potential, start = _potential(posterior, x, draws, seed), time.perf_counter()
    parameters = potential.prior.event_shape[0]
    if len(posterior.theta_transform(potential.prior.somewhere)[0]) < parameters:
        raise ValueError("A grid cannot cover parameters that sum to one: take another sampler, such as slice.")
    points = GRID_POINTS.get(parameters, 1) if points is None else points
    require_positive_integer("points", points)
    if len(bounds) != parameters or not all(len(pair) == 2 and -inf < pair[0] < pair[1] < inf for pair in bounds):
        raise ValueError(
            f"`bounds` should be {parameters} finite pairs (low, high) with low < high, one for each parameter; "
            f"got {bounds}."
        )
    low, high = zip(*bounds, strict=True)
    grid = grid_posterior(lambda theta: potential(theta.to(potential.device), track_gradients=False), low, high, points)
    warn_of_grid(grid, low, high, lambda theta: potential.prior.inside(theta.to(potential.device)).cpu())
    width = (torch.tensor(high, dtype=torch.float64) - torch.tensor(low, dtype=torch.float64)) / points
    with seeded(seed):
        cells = grid.theta[torch.multinomial(grid.probability, CHAINS * draws, replacement=True)]
        theta = (cells + width * (torch.rand_like(cells) - 0.5)).to(torch.get_default_dtype())
    inside = potential.prior.inside(theta.to(potential.device)).cpu()  # a cell may reach over the edge
    theta = torch.where(inside[:, None], theta, cells.to(theta))
    return _chains(theta.view(CHAINS, draws, -1), potential, {"sampler": "grid", "seed": seed}, start)


SAMPLERS: dict[str, Callable[..., Chains]] = {
    "slice": sample_slice,
    "nuts": sample_nuts,
    "hmc": sample_hmc,
    "emcee": sample_emcee,
    "rejection": sample_rejection,
    "importance": sample_importance,
    "vi": sample_vi,
    "grid": sample_grid,
}
"""The roads by name."""


def _potential(posterior: NeuralPosterior, x: Tensor, draws: int, seed: int) -> BasePotential:
    """Return the posterior's potential with these observations, which share one theta."""
    _require_observations(x, draws, seed)
    potential = getattr(posterior, "potential_fn", None)
    if not isinstance(potential, ManifoldPotential | RatioBasedPotential):
        raise TypeError(
            "`posterior` should come from build_posterior() of a ManifoldNLE or of ALICES; got a "
            f"{type(posterior).__name__}, its potential being a {type(potential).__name__}."
        )
    potential.set_x(x, x_is_iid=True)
    return potential


def _require_observations(x: Tensor, draws: int, seed: int) -> None:
    """Raise ValueError or TypeError unless there are observations to sample by, draws to take and a seed."""
    require_positive_integer("draws", draws)
    require_seed(seed)
    require_tensor("x", x)
    if x.ndim == 0 or x.numel() == 0:
        raise ValueError(f"`x` should have shape (observations, data), with an observation; got {tuple(x.shape)}.")
    require_finite("x", x, "An observation without numbers has no likelihood: take it out.")


def _starts(potential: BasePotential, count: int, seed: int) -> Tensor:
    """Return draws of the prior at which the posterior is not zero."""
    require_positive_integer("chains", count)
    with seeded(seed), torch.no_grad():
        theta = potential.prior.sample((100 * count,))
        possible = theta[torch.isfinite(potential(theta, track_gradients=False))]
    if len(possible) < count:
        raise ValueError(
            f"The posterior is zero at all but {len(possible)} of {len(theta)} draws of the prior; {count} starts "
            "are needed. Is x within reach of the prior?"
        )
    return possible[:count]


def _chains(theta: Tensor, potential: BasePotential, info: dict[str, Any], start: float) -> Chains:
    """Return chains with their log posterior and how long they took, checked."""
    seconds = time.perf_counter() - start
    with torch.no_grad():
        rows = theta.flatten(0, 1).to(potential.device)
        log_prob = potential(rows, track_gradients=False).view(theta.shape[:2])
    return _checked(Chains(theta, log_prob, info | {"seconds": seconds}))


def _checked(chains: Chains) -> Chains:
    """Return the chains, on the processor wherever they were drawn, with a warning if something speaks against them."""
    chains = replace(chains, draws=chains.draws.cpu(), log_prob=chains.log_prob.cpu())
    count, draws, _ = chains.draws.shape
    if count > 1 and draws >= 4:
        diagnostics = diagnose(chains)
        complaint = diagnostics.complaint
        if "warmup_steps" not in chains.info:
            few = f"There are few independent draws: {diagnostics.sizes}. Take more, or another sampler, as slice."
            complaint = "" if diagnostics.enough else few
        if complaint:
            warnings.warn(complaint, stacklevel=4)
    share = chains.info.get("acceptance", 1.0)
    if share < LEAST_SHARE and "warmup_steps" in chains.info:
        warnings.warn(
            f"Only {share:.2%} of the steps of {chains.info['sampler']!r} were accepted. Take another sampler, such as "
            "slice or nuts.",
            stacklevel=4,
        )
    if chains.info.get("divergences", 0) > 0:
        warnings.warn(
            f"{chains.info['divergences']} trajectories diverged: part of the posterior may be missing. Raise "
            "`target_accept_prob`, or sample by slice.",
            stacklevel=4,
        )
    return chains


def _resampled(candidates: Tensor, log_weight: Tensor, draws: int) -> tuple[Tensor, float]:
    """Return draws of the candidates by their weights, and the share of candidates that count.

    That share is (sum w)^2 / (rows sum w^2) (Kong 1992).
    """
    weight = log_weight.double().softmax(0)
    share = float(1 / (len(weight) * weight.square().sum()))
    if share * len(weight) < draws:
        warnings.warn(
            f"Only {share * len(weight):.0f} of {len(weight)} candidates make {draws} draws of the posterior. Raise "
            "`oversampling`, or take another sampler, such as slice or nuts.",
            stacklevel=4,
        )
    return candidates[torch.multinomial(weight, draws, replacement=True)], share
