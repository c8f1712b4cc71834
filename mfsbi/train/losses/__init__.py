"""Losses: values that are called with a model and a batch, and know what they measure.

`plain` needs x and theta alone, `scores` adds the joint score to a likelihood, `ratios` classifies.
"""

from mfsbi.train.losses.plain import (
    RECONSTRUCTION_WEIGHT,
    AbstractLoss,
    Kind,
    Loss,
    as_loss,
    joint,
    joint_nll,
    latent_nll,
    nll,
    reconstruction,
    robust_reconstruction,
)
from mfsbi.train.losses.ratios import Alices
from mfsbi.train.losses.scores import Scandal, ScoreLoss

__all__ = [
    "RECONSTRUCTION_WEIGHT",
    "AbstractLoss",
    "Alices",
    "Kind",
    "Loss",
    "Scandal",
    "ScoreLoss",
    "as_loss",
    "joint",
    "joint_nll",
    "latent_nll",
    "nll",
    "reconstruction",
    "robust_reconstruction",
]
