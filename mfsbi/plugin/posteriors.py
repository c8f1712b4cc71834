"""sbi's posteriors for a potential of ours: which class, and with which settings."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import TypeAlias

from mfsbi.plugin.host import (
    BasePotential,
    ImportanceSamplingPosterior,
    ImportanceSamplingPosteriorParameters,
    MCMCPosterior,
    MCMCPosteriorParameters,
    NeuralPosterior,
    RejectionPosterior,
    RejectionPosteriorParameters,
    VIPosterior,
    VIPosteriorParameters,
)
from mfsbi.plugin.parameter_prior import ParameterPrior

__all__ = ["PosteriorParameters", "posterior_of"]

PosteriorParameters: TypeAlias = (
    MCMCPosteriorParameters
    | RejectionPosteriorParameters
    | VIPosteriorParameters
    | ImportanceSamplingPosteriorParameters
)

DEFAULTS: dict[str, Callable[[], PosteriorParameters]] = {
    "mcmc": lambda: MCMCPosteriorParameters(init_strategy_parameters={"num_candidate_samples": 1000}),
    "rejection": RejectionPosteriorParameters,
    "vi": VIPosteriorParameters,
    "importance": ImportanceSamplingPosteriorParameters,
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
        sample_with: "mcmc", "rejection", "vi" or "importance"; what parameters say if they are given
        parameters: settings of the sampler
        device: where to evaluate

    Raises:
        ValueError: if sample_with is unknown, or there is no prior
        TypeError: if parameters are no settings of a sampler
    """
    if sample_with not in DEFAULTS:
        raise ValueError(f"`sample_with` should be one of {sorted(DEFAULTS)}; got {sample_with!r}.")
    if prior is None:
        raise ValueError("A posterior needs a `prior`; this trainer was made without one, for data without parameters.")
    own = deepcopy(prior).to(device)
    parameters = DEFAULTS[sample_with]() if parameters is None else parameters
    shared = {"potential_fn": potential_with(own), "device": device}
    transform = own.unconstrained
    match parameters:
        case MCMCPosteriorParameters():
            return MCMCPosterior(proposal=own, theta_transform=transform, **shared, **asdict(parameters))
        case RejectionPosteriorParameters():
            return RejectionPosterior(proposal=own, theta_transform=transform, **shared, **asdict(parameters))
        case VIPosteriorParameters():
            return VIPosterior(prior=own, theta_transform=transform, **shared, **asdict(parameters))
        case ImportanceSamplingPosteriorParameters():
            settings = asdict(parameters) | {"theta_transform": parameters.theta_transform or transform}
            return ImportanceSamplingPosterior(proposal=own, **shared, **settings)
    raise TypeError(
        "`posterior_parameters` should be MCMC-, Rejection-, VI- or ImportanceSamplingPosteriorParameters of sbi; "
        f"got {type(parameters).__name__}."
    )
