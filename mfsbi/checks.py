"""Refusals: every message names the argument, what was expected, what came and what to do."""

import torch
from torch import Tensor

__all__ = [
    "require_features",
    "require_finite",
    "require_matching_rows",
    "require_positive",
    "require_positive_integer",
]


def require_positive(name: str, value: float) -> None:
    """Raise ValueError unless `value` is above zero."""
    if not value > 0:
        raise ValueError(f"`{name}` should be positive; got {value}.")


def require_positive_integer(name: str, value: float) -> None:
    """Raise ValueError unless `value` is a whole number above zero."""
    if not (value > 0 and value == int(value)):
        raise ValueError(f"`{name}` should be a positive integer; got {value}.")


def require_features(name: str, value: Tensor, features: int, of: str) -> None:
    """Raise ValueError unless `value` has shape (rows, features)."""
    if value.ndim != 2 or value.shape[-1] != features:
        raise ValueError(
            f"`{name}` should have shape (rows, {features}), {features} being the features of {of}; "
            f"got shape {tuple(value.shape)}."
        )


def require_matching_rows(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise ValueError unless both tensors have as many rows."""
    if len(a) != len(b):
        raise ValueError(
            f"`{first}` and `{second}` should have one row per simulation each; "
            f"got {len(a)} rows of `{first}` and {len(b)} of `{second}`."
        )


def require_finite(name: str, value: Tensor, advice: str) -> None:
    """Raise ValueError if a row holds NaN or infinity, naming how many and the first one."""
    bad = ~torch.isfinite(value).flatten(1).all(dim=1) if value.ndim > 1 else ~torch.isfinite(value)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ValueError(
            f"`{name}` should be finite; {int(bad.sum())} of {len(bad)} rows hold NaN or infinity, "
            f"the first of them row {first}: {value[first].tolist()}. {advice}"
        )
