"""sbi's posteriors for a potential of ours: which class, and with which settings."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any, TypeAlias, cast

import torch
from torch import Size, Tensor

from mfsbi.checks import warn
from mfsbi.inference.doubts import warn_of_chains, warn_of_populations
from mfsbi.inference.run_smc import SMC
from mfsbi.inference.samplers import FEW_VALUES, Problem, bars_shown
from mfsbi.plugin import host
from mfsbi.plugin.host import BasePotential, NeuralPosterior
from mfsbi.plugin.parameter_prior import ParameterPrior
from mfsbi.plugin.potential import with_all_digits
from mfsbi.seeds import derived

__all__ = ["PosteriorParameters", "SMCPosterior", "draws_of_sets", "posterior_of"]

PosteriorParameters: TypeAlias = (
    host.MCMCPosteriorParameters
    | host.RejectionPosteriorParameters
    | host.VIPosteriorParameters
    | host.ImportanceSamplingPosteriorParameters
)


def _of_mcmc() -> PosteriorParameters:
    """Return sbi's settings, but for chain starts drawn from 1,000 candidates each instead of 10,000."""
    return host.MCMCPosteriorParameters(init_strategy_parameters={"num_candidate_samples": 1000})


POPULATIONS, PARTICLES, PARTICLES_PER_PARAMETER = 2, 100, 5
"""Of SMC for each of many data sets: populations, and particles of each at least."""

SETS, MOST_PARTICLES = 500, 200_000
"""Data sets that are worked on at once, and particles of all of them: at most."""

DEFAULTS: dict[str, Callable[[], PosteriorParameters]] = {
    "smc": _of_mcmc,
    "mcmc": _of_mcmc,
    "rejection": host.RejectionPosteriorParameters,
    "vi": host.VIPosteriorParameters,
    "importance": host.ImportanceSamplingPosteriorParameters,
}
"""Settings of each way to sample; a posterior sampled by SMC has those of MCMC, too, for when it is asked for that."""


def posterior_of(
    potential_with: Callable[[ParameterPrior], BasePotential],
    prior: ParameterPrior | None,
    sample_with: str,
    parameters: PosteriorParameters | None,
    device: str,
) -> NeuralPosterior:
    """Return sbi's posterior of a potential.

    Arguments:
        potential_with: returns the potential with a prior, which is its own copy
        prior: the prior, as `parameter_prior` returns it
        sample_with: "smc", "mcmc", "rejection", "vi" or "importance"; the kind of parameters decides if they are given
        parameters: settings of the sampler
        device: where to evaluate

    Raises:
        ValueError: if sample_with is unknown, or there is no prior
        TypeError: if parameters are not the settings of a sampler
    """
    if sample_with not in DEFAULTS:
        raise ValueError(f"`sample_with` should be one of {sorted(DEFAULTS)}; got {sample_with!r}.")
    if prior is None:
        raise ValueError("A posterior needs a `prior`; this trainer was made without one, for data without parameters.")
    own = deepcopy(prior).to(device)
    given, parameters = parameters, DEFAULTS[sample_with]() if parameters is None else parameters
    kind = next((kind for settings, kind in KINDS.items() if isinstance(parameters, settings)), None)
    if kind is None:
        raise TypeError(
            "`posterior_parameters` should be MCMC-, Rejection-, VI- or ImportanceSamplingPosteriorParameters of sbi; "
            f"got {type(parameters).__name__}."
        )
    if kind is MCMCPosterior and given is None and sample_with == "smc":
        kind = SMCPosterior
    if kind in (SMCPosterior, MCMCPosterior, VIPosterior) and own.discrete:
        warn(f"{kind.__name__} moves through theta continuously, and {FEW_VALUES}")
    settings = asdict(parameters) | {"prior" if kind is VIPosterior else "proposal": own, "device": device}
    settings["theta_transform"] = settings.get("theta_transform") or own.unconstrained
    return cast(NeuralPosterior, cast(Any, kind)(potential_with(own), **settings))


class _WithAllDigits:
    """A posterior of sbi that leaves observations in the type in which they came, whose digits a model may need."""

    def set_default_x(self, x: object) -> NeuralPosterior:
        """Set the observations to draw for where none are given: a tensor, or what makes one."""
        posterior = cast(Any, super()).set_default_x(x)
        posterior._x = with_all_digits(x).to(posterior._device)
        posterior.potential_fn.set_x(posterior._x)  # so that it recognises their float32 version
        return cast(NeuralPosterior, posterior)

    def _x_else_default_x(self, x: object) -> Tensor:
        found = cast(Any, super())._x_else_default_x(x)
        if x is None:
            return cast(Tensor, found)
        found = with_all_digits(x)
        cast(Any, self).potential_fn.set_x(found)
        return found


class _Moved(_WithAllDigits):
    """One that can be moved: sbi's own `to` looks for a transform of the prior among torch's, and there is none."""

    def to(self, device: str | torch.device) -> NeuralPosterior:
        """Move the estimator, the prior and the observations to a device, and return the posterior."""
        own = cast(Any, self)
        observed, prior = own._x, own.potential_fn.prior
        own.potential_fn.to(device)
        own.proposal.to(device)
        own.device = own._device = str(torch.empty(0, device=device).device)
        own.theta_transform, own._map = prior.unconstrained, None
        if observed is not None:
            self.set_default_x(observed)
        return cast(NeuralPosterior, self)


class MCMCPosterior(_Moved, host.MCMCPosterior):
    """sbi's class of this name, which keeps the digits of observations."""

    def to(self, device: str | torch.device) -> NeuralPosterior:
        """Move the estimator, the prior and the observations to a device, and return the posterior."""
        super().to(device)
        own = cast(Any, self)
        own._posterior_sampler = own._mcmc_init_params = None
        own.potential_ = own._prepare_potential(own.method)
        return cast(NeuralPosterior, self)


class SMCPosterior(MCMCPosterior):
    """sbi's `MCMCPosterior` whose draws come from `mfsbi.SMC`, unless a setting of MCMC is given with the call."""

    def __init__(self, *args: object, **settings: object) -> None:
        super().__init__(*args, **settings)
        self._purpose = "It draws by tempered SMC, and evaluates the unnormalised posterior with `.potential()`."

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        x: object = None,
        *others: object,
        show_progress_bars: bool | None = True,
        **settings: object,
    ) -> Tensor:
        """Draw theta for observations that share one, shape `(*sample_shape, parameter)`, from torch's generator.

        A warning says so if the draws are to be doubted.

        Arguments:
            sample_shape: of the draws
            x: the observations; those of `set_default_x` if None
            others: settings of sbi's MCMC in its order, with which that is used
            show_progress_bars: True, False, or None for "only on a terminal"
            settings: the same by name, such as `method="nuts_pyro"` or `num_chains=4`
        """
        if others or settings:
            shown = bool(bars_shown(wanted=show_progress_bars))
            return cast(Tensor, super().sample(sample_shape, x, *others, show_progress_bars=shown, **settings))
        observed, count = self._x_else_default_x(x), Size(sample_shape).numel()
        sampler, potential = SMC(), cast(Any, self).potential_fn
        potential.set_x(observed)
        bars = bars_shown(wanted=show_progress_bars)
        problem = Problem(potential, potential.prior, cast(Any, self).theta_transform, observed, self, bars)
        chains = sampler.draw(problem, max(sampler.particles, -(-count // sampler.chains)), _seed())
        warn_of_chains(chains)
        return chains.draws.transpose(0, 1).flatten(0, 1)[:count].reshape(*sample_shape, chains.draws.shape[-1])

    def sample_batched(
        self,
        sample_shape: Sequence[int],
        x: Tensor,
        *others: object,
        show_progress_bars: bool | None = True,
        **settings: object,
    ) -> Tensor:
        """Draw theta for each row of x, or each set of rows, shape `(*sample_shape, rows, parameter)`, all at once.

        Each has two populations of a hundred particles, or as many as the draws ask for, where `sample` takes four of
        250; a warning says in how many they disagree. Other arguments are those of `sample`.
        """
        if others or settings:
            shown = bool(bars_shown(wanted=show_progress_bars))
            return cast(Tensor, super().sample_batched(sample_shape, x, *others, show_progress_bars=shown, **settings))
        count, bars = Size(sample_shape).numel(), bars_shown(wanted=show_progress_bars)
        draws = draws_of_sets(self, with_all_digits(x), count, seed=_seed(), show_progress_bars=bars)
        return draws.transpose(0, 1).reshape(*sample_shape, *draws.shape[::2])


def draws_of_sets(
    posterior: NeuralPosterior,
    x: Tensor,
    draws: int,
    *,
    seed: int,
    sampler: SMC | None = None,
    show_progress_bars: bool = False,
) -> Tensor:
    """Return draws of the posterior of each of many data sets by SMC, shape `(sets, draws, parameter)`.

    A warning says in how many of them populations of particles disagree.

    Arguments:
        posterior: of one of our potentials, whose observations are set
        x: shape `(sets, data)`, or `(sets, events, data)` where events share one theta
        draws: of each posterior
        seed: of everything random
        sampler: how; two populations of a hundred particles for each set, or as many as the draws or parameters ask for
        show_progress_bars: whether to show one
    """
    potential = cast(Any, posterior).potential_fn
    prior, transform = potential.prior, cast(Any, posterior).theta_transform
    if sampler is None:
        enough = max(-(-draws // POPULATIONS), PARTICLES, PARTICLES_PER_PARAMETER * prior.event_shape[0])
        sampler = SMC(chains=POPULATIONS, particles=enough)
    each, found = max(sampler.particles, -(-draws // sampler.chains)), []
    sets = max(1, min(SETS, MOST_PARTICLES // (sampler.chains * each)))
    for number, some in enumerate(x.split(sets)):
        potential.set_x(some, x_is_iid=False)
        problem = Problem(potential, prior, transform, some, posterior, show_progress_bars, len(some), number * sets)
        found.append(sampler.draw_each(problem, each, derived(seed, number)).theta)
    theta = torch.cat(found)
    warn_of_populations(theta)
    return theta.transpose(1, 2).flatten(1, 2)[:, :draws]


def _seed() -> int:
    """Return a seed that torch's generator decides."""
    return int(torch.randint(2**31, ()))


class RejectionPosterior(_Moved, host.RejectionPosterior):
    """sbi's class of this name, which keeps the digits of observations."""


class VIPosterior(_WithAllDigits, host.VIPosterior):
    """sbi's class of this name, which keeps the digits of observations."""

    def to(self, device: str | torch.device) -> NeuralPosterior:
        """Move the fitted density, the estimator, the prior and the observations to a device."""
        own = cast(Any, self)
        own.potential_fn.to(device)
        own.theta_transform = own.potential_fn.prior.unconstrained
        return cast(NeuralPosterior, super().to(device))

    def train(self, x: object = None, *args: object, **settings: object) -> "VIPosterior":
        """Fit the density, as sbi does, and remember the observations as they came, not as float32."""
        observed = self._x_else_default_x(x).to(self._device)
        potential = cast(Any, self).potential_fn
        potential.set_x(observed)
        potential.keeps_digits = True
        try:
            super().train(x, *args, **settings)
        finally:
            potential.keeps_digits = False
        cast(Any, self)._trained_on = observed
        return self


class ImportanceSamplingPosterior(_Moved, host.ImportanceSamplingPosterior):
    """sbi's class of this name, which keeps the digits of observations."""


KINDS: dict[type, type[NeuralPosterior]] = {
    host.MCMCPosteriorParameters: MCMCPosterior,
    host.RejectionPosteriorParameters: RejectionPosterior,
    host.VIPosteriorParameters: VIPosterior,
    host.ImportanceSamplingPosteriorParameters: ImportanceSamplingPosterior,
}
"""Posteriors by the type of their settings."""
