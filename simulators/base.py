"""What every simulator needs: a source of randomness that touches nobody else's, and argument checks."""

from typing import NamedTuple

import torch
from torch import Generator, Tensor

__all__ = ["Gold", "generator_from", "reference_for", "require_last_axis"]


class Gold(NamedTuple):
    """Simulations with what the simulator knows of each run, latents z included.

    Arguments:
        x: features, shape `(*, data)`
        joint_score: t(x, z|theta) = d/dtheta log p(x, z|theta), shape `(*, parameter)`
        joint_log_ratio: log r(x, z|theta, theta_ref) = log p(x, z|theta) - log p(x, z|theta_ref), shape `(*)`
    """

    x: Tensor
    joint_score: Tensor
    joint_log_ratio: Tensor


def generator_from(seed: int | Generator | None) -> Generator:
    """Return a torch generator: a given one as it is, a seeded one, or a freshly and randomly seeded one."""
    if isinstance(seed, Generator):
        return seed
    generator = Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator


def require_last_axis(name: str, value: Tensor, size: int) -> None:
    """Raise ValueError unless the last axis of `value` has `size` entries and all of them are finite."""
    if value.ndim == 0 or value.shape[-1] != size:
        raise ValueError(f"`{name}` should have {size} features on its last axis; got shape {tuple(value.shape)}.")
    if not torch.isfinite(value).all():
        raise ValueError(f"`{name}` should be finite; got NaN or infinity.")


def reference_for(theta: Tensor, theta_ref: Tensor | None) -> Tensor:
    """Return the reference of a log ratio in the shape of theta, zeros if none is given.

    Raises:
        ValueError: if it does not broadcast to that shape or is not finite
    """
    if theta_ref is None:
        return torch.zeros_like(theta)
    require_last_axis("theta_ref", theta_ref, theta.shape[-1])
    try:
        return theta_ref.expand_as(theta)
    except RuntimeError as error:
        raise ValueError(
            f"`theta_ref` should broadcast to the shape of theta, {tuple(theta.shape)}; got {tuple(theta_ref.shape)}."
        ) from error
