"""What every simulator needs: a source of randomness that touches nobody else's, and argument checks."""

import torch
from torch import Generator, Tensor

__all__ = ["generator_from", "require_last_axis"]


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
