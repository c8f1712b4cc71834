"""Losses: values that are called with a model and a batch, and know what they measure.

`plain` needs x and theta alone, `scores` adds the joint score to a likelihood, `ratios` classifies.
"""

from mfsbi.train.losses.plain import RECONSTRUCTION_WEIGHT as RECONSTRUCTION_WEIGHT
from mfsbi.train.losses.plain import AbstractLoss as AbstractLoss
from mfsbi.train.losses.plain import Kind as Kind
from mfsbi.train.losses.plain import Loss as Loss
from mfsbi.train.losses.plain import as_loss as as_loss
from mfsbi.train.losses.plain import joint as joint
from mfsbi.train.losses.plain import joint_nll as joint_nll
from mfsbi.train.losses.plain import latent_nll as latent_nll
from mfsbi.train.losses.plain import nll as nll
from mfsbi.train.losses.plain import reconstruction as reconstruction
from mfsbi.train.losses.plain import robust_reconstruction as robust_reconstruction
from mfsbi.train.losses.ratios import Alices as Alices
from mfsbi.train.losses.scores import Scandal as Scandal
from mfsbi.train.losses.scores import ScoreLoss as ScoreLoss
