"""What a flow is as a latent density, whether it is a bijection to the standard normal or a `Density` by itself."""

import math

import torch
from torch import Generator, Tensor

from mfsbi.flows.flow import Bijection, Density

__all__ = ["log_normal", "log_prob_of", "sample_of"]


def log_normal(base: Tensor) -> Tensor:
    """Return log N(base; 0, I), shape `(*)`, for rows of shape `(*, d)`."""
    return -0.5 * base.square().sum(-1) - 0.5 * base.shape[-1] * math.log(2 * math.pi)


def log_prob_of(flow: Bijection | Density, u: Tensor, theta: Tensor | None = None) -> Tensor:
    """Return log p(u|theta), shape `(*)`.

    Arguments:
        flow: a density, or a bijection u -> N(0, I)
        u: shape `(*, d)`
        theta: shape `(*, parameter)`, if the flow takes any
    """
    if not isinstance(flow, Bijection):
        return flow.log_prob(u, theta)
    base, log_det = flow.forward_and_log_det(u, theta)
    return log_det + log_normal(base)


def sample_of(flow: Bijection | Density, theta: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw one u for each row of theta, shape `(*, d)`.

    Arguments:
        flow: a density, or a bijection u -> N(0, I)
        theta: shape `(*, parameter)`
        generator: of the device of theta; torch's own if not given
    """
    if not isinstance(flow, Bijection):
        return flow.sample(theta, generator)
    shape = *theta.shape[:-1], flow.features
    return flow.inverse(torch.randn(shape, generator=generator, dtype=theta.dtype, device=theta.device), theta)
