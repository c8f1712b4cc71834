"""sbi's posteriors for a potential of ours: which class, and with which settings."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from typing import TypeAlias

import torch
from torch.distributions import Distribution

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
    mcmc_transform,
    move_distribution_to_device,
)
from mfsbi.seeds import seeded

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
    potential_with: Callable[[Distribution], BasePotential],
    prior: Distribution | None,
    sample_with: str,
    parameters: PosteriorParameters | None,
    device: str,
) -> NeuralPosterior:
    """Return sbi's posterior of a potential.

    Arguments:
        potential_with: returns the potential with a prior, which is its own copy
        prior: the prior, as `process_prior` returns it
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
    with seeded(0):
        own = moved_prior(deepcopy(prior), device)
    parameters = DEFAULTS[sample_with]() if parameters is None else parameters
    shared = {"potential_fn": potential_with(own), "device": device}
    with seeded(0):  # sbi draws from the prior to measure its spread
        transform = mcmc_transform(own, device=device)
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


def moved_prior(prior: Distribution, device: str) -> Distribution:
    """Return a prior that draws on a device: itself, or moved there by sbi.

    Raises:
        ValueError: if it draws elsewhere and cannot be moved
    """
    found, wanted = prior.sample().device, torch.empty(0, device=device).device
    if found == wanted:
        return prior
    try:
        return move_distribution_to_device(prior, device)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"`prior` draws on {found} and should on {wanted}, but sbi cannot move a {type(prior).__name__}: {error} "
            "Pass one of torch's distributions, or one that has a method `to`."
        ) from error
