"""sbi's posteriors for a potential of ours: which class, and with which settings."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import Any, TypeAlias, cast

from torch import Tensor

from mfsbi.checks import warn
from mfsbi.inference.samplers import FEW_VALUES
from mfsbi.plugin import host
from mfsbi.plugin.host import BasePotential, NeuralPosterior
from mfsbi.plugin.parameter_prior import ParameterPrior
from mfsbi.plugin.potential import with_all_digits

__all__ = ["PosteriorParameters", "posterior_of"]

PosteriorParameters: TypeAlias = (
    host.MCMCPosteriorParameters
    | host.RejectionPosteriorParameters
    | host.VIPosteriorParameters
    | host.ImportanceSamplingPosteriorParameters
)

DEFAULTS: dict[str, Callable[[], PosteriorParameters]] = {
    "mcmc": lambda: host.MCMCPosteriorParameters(init_strategy_parameters={"num_candidate_samples": 1000}),
    "rejection": host.RejectionPosteriorParameters,
    "vi": host.VIPosteriorParameters,
    "importance": host.ImportanceSamplingPosteriorParameters,
}
"""sbi's settings, but for chain starts drawn from 1,000 candidates each instead of 10,000."""


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
        sample_with: "mcmc", "rejection", "vi" or "importance"; the kind of parameters decides if they are given
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
    parameters = DEFAULTS[sample_with]() if parameters is None else parameters
    kind = next((kind for settings, kind in KINDS.items() if isinstance(parameters, settings)), None)
    if kind is None:
        raise TypeError(
            "`posterior_parameters` should be MCMC-, Rejection-, VI- or ImportanceSamplingPosteriorParameters of sbi; "
            f"got {type(parameters).__name__}."
        )
    if kind in (MCMCPosterior, VIPosterior) and own.discrete:
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


class MCMCPosterior(_WithAllDigits, host.MCMCPosterior):
    """sbi's class of this name, which keeps the digits of observations."""


class RejectionPosterior(_WithAllDigits, host.RejectionPosterior):
    """sbi's class of this name, which keeps the digits of observations."""


class VIPosterior(_WithAllDigits, host.VIPosterior):
    """sbi's class of this name, which keeps the digits of observations."""

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


class ImportanceSamplingPosterior(_WithAllDigits, host.ImportanceSamplingPosterior):
    """sbi's class of this name, which keeps the digits of observations."""


KINDS: dict[type, type[NeuralPosterior]] = {
    host.MCMCPosteriorParameters: MCMCPosterior,
    host.RejectionPosteriorParameters: RejectionPosterior,
    host.VIPosteriorParameters: VIPosterior,
    host.ImportanceSamplingPosteriorParameters: ImportanceSamplingPosterior,
}
"""Posteriors by the type of their settings."""
