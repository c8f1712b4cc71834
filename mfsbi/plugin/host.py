"""What mfsbi uses of sbi, imported without the side effects of doing so.

Importing sbi imports zuko, which switches torch.distributions' argument checks off for the whole process.
"""

from torch.distributions import Distribution

_VALIDATION = Distribution._validate_args
from sbi.inference import (  # noqa: E402
    ImportanceSamplingPosterior,
    MCMCPosterior,
    RejectionPosterior,
    VIPosterior,
)
from sbi.inference.posteriors.base_posterior import NeuralPosterior  # noqa: E402
from sbi.inference.posteriors.posterior_parameters import (  # noqa: E402
    ImportanceSamplingPosteriorParameters,
    MCMCPosteriorParameters,
    RejectionPosteriorParameters,
    VIPosteriorParameters,
)
from sbi.inference.potentials.base_potential import BasePotential  # noqa: E402
from sbi.neural_nets.estimators import ConditionalDensityEstimator  # noqa: E402
from sbi.utils import mcmc_transform, process_prior  # noqa: E402

Distribution.set_default_validate_args(_VALIDATION)

__all__ = [
    "BasePotential",
    "ConditionalDensityEstimator",
    "ImportanceSamplingPosterior",
    "ImportanceSamplingPosteriorParameters",
    "MCMCPosterior",
    "MCMCPosteriorParameters",
    "NeuralPosterior",
    "RejectionPosterior",
    "RejectionPosteriorParameters",
    "VIPosterior",
    "VIPosteriorParameters",
    "mcmc_transform",
    "process_prior",
]
