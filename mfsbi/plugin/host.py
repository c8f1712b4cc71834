"""What mfsbi uses of sbi, imported without side effects on anybody else."""

from mfsbi.seeds import undisturbed

with undisturbed():
    from sbi.inference import (
        NLE_A,
        EnsemblePosterior,
        ImportanceSamplingPosterior,
        MCMCPosterior,
        RejectionPosterior,
        VIPosterior,
    )
    from sbi.inference.posteriors.base_posterior import NeuralPosterior
    from sbi.inference.posteriors.posterior_parameters import (
        ImportanceSamplingPosteriorParameters,
        MCMCPosteriorParameters,
        RejectionPosteriorParameters,
        VIPosteriorParameters,
    )
    from sbi.inference.potentials.base_potential import BasePotential
    from sbi.inference.potentials.likelihood_based_potential import LikelihoodBasedPotential
    from sbi.inference.potentials.ratio_based_potential import RatioBasedPotential
    from sbi.neural_nets.estimators import ConditionalDensityEstimator
    from sbi.neural_nets.ratio_estimators import RatioEstimator
    from sbi.samplers.importance.importance_sampling import importance_sample
    from sbi.samplers.rejection.rejection import rejection_sample
    from sbi.utils import within_support
    from sbi.utils.user_input_checks_utils import move_distribution_to_device

__all__ = [
    "NLE_A",
    "BasePotential",
    "ConditionalDensityEstimator",
    "EnsemblePosterior",
    "ImportanceSamplingPosterior",
    "ImportanceSamplingPosteriorParameters",
    "LikelihoodBasedPotential",
    "MCMCPosterior",
    "MCMCPosteriorParameters",
    "NeuralPosterior",
    "RatioBasedPotential",
    "RatioEstimator",
    "RejectionPosterior",
    "RejectionPosteriorParameters",
    "VIPosterior",
    "VIPosteriorParameters",
    "importance_sample",
    "move_distribution_to_device",
    "rejection_sample",
    "within_support",
]
