"""Check arguments, and warn. Every message names the argument, what was expected, what came, and what to do."""

import math
import sys
import warnings
from collections.abc import Container
from dataclasses import fields
from numbers import Integral, Real
from types import FrameType, UnionType

import torch
from torch import Tensor

__all__ = [
    "require_device",
    "require_features",
    "require_finite",
    "require_kind",
    "require_last_axis",
    "require_matching_rows",
    "require_not_negative",
    "require_number",
    "require_positive",
    "require_positive_integer",
    "require_seed",
    "require_sizes",
    "require_tensor",
    "require_whole",
    "warn",
]

OURS = "mfsbi.", "sbi.", "torch.", "emcee.", "pyro.", "typer.", "click."
"""How the names of modules begin whose lines are not the user's: this package, and those it calls or is called by."""


def require_number(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a number; True and False are not numbers."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"`{name}` should be a number; got {_told(value)}.")


def require_positive(name: str, value: float) -> None:
    """Raise TypeError unless `value` is a number, and ValueError unless it is finite and above zero."""
    require_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"`{name}` should be positive{' and finite' if value > 0 else ''}; got {value}.")


def require_not_negative(name: str, value: float) -> None:
    """Raise TypeError unless `value` is a number, and ValueError unless it is finite and not negative."""
    require_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"`{name}` should not be negative{' but finite' if value > 0 else ''}; got {value}.")


def require_positive_integer(name: str, value: float) -> None:
    """Raise TypeError unless `value` is a number, and ValueError unless it is an integer above zero."""
    require_number(name, value)
    if not (isinstance(value, Integral) and value > 0):
        raise ValueError(f"`{name}` should be a positive integer; got {value}.")


def require_kind(name: str, value: object, kind: type | UnionType, wanted: str) -> None:
    """Raise TypeError unless `value` is of a type, which the message calls `wanted`."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` should be {wanted}; got {_told(value)}.")


def require_whole(name: str, value: float) -> None:
    """Raise TypeError unless `value` is a number, and ValueError unless it is an integer and not negative."""
    require_number(name, value)
    if not (isinstance(value, Integral) and value >= 0):
        what = "should not be negative" if value < 0 else "should be a whole number"
        raise ValueError(f"`{name}` {what}; got {value}.")


def require_seed(seed: int) -> None:
    """Raise TypeError unless `seed` is an integer, and ValueError unless it lies between 0 and 2^63."""
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"`seed` should be a non-negative integer; got {_told(seed)}.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"`seed` should be a non-negative integer{' below 2^63' if seed > 0 else ''}; got {seed}.")


def require_sizes(settings: object, *, or_zero: Container[str] = ()) -> None:
    """Raise TypeError or ValueError unless a dataclass has positive numbers where its fields are `int` or `float`.

    Arguments:
        settings: the dataclass
        or_zero: integers among them that may be zero as well
    """
    for kind, check in ((int, require_positive_integer), (float, require_positive)):
        for name in (each.name for each in fields(settings) if each.type is kind):  # type: ignore[arg-type]
            (require_whole if name in or_zero else check)(f"{type(settings).__name__}.{name}", getattr(settings, name))


def require_tensor(name: str, value: object) -> None:
    """Raise TypeError unless `value` is a dense tensor of real numbers."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` should be a torch tensor; got {_told(value)}. Try torch.as_tensor.")
    if value.is_complex() or value.is_meta or value.layout is not torch.strided:
        raise TypeError(
            f"`{name}` should be a dense tensor of real numbers; got {value.dtype}, {value.layout}, on {value.device}."
        )


def require_features(name: str, value: Tensor, features: int, of: str) -> None:
    """Raise ValueError unless `value` has shape (rows, features)."""
    if value.ndim != 2 or value.shape[-1] != features:
        raise ValueError(
            f"`{name}` should have shape (rows, {features}), {features} being the features of {of}; "
            f"got shape {tuple(value.shape)}."
        )


def require_last_axis(name: str, value: Tensor, features: int, of: str) -> None:
    """Raise ValueError unless the last axis of `value` has that many features; torch would broadcast a single one."""
    if value.shape[-1:] != (features,):
        raise ValueError(
            f"`{name}` should have shape (*, {features}), {features} being the features of {of}; "
            f"got shape {tuple(value.shape)}."
        )


def require_matching_rows(first: str, a: Tensor, second: str, b: Tensor) -> None:
    """Raise ValueError unless both tensors have as many rows."""
    if a.shape[:1] != b.shape[:1] or a.ndim == 0:
        rows, others = (str(len(each)) if each.ndim else "a number instead of" for each in (a, b))
        raise ValueError(
            f"`{first}` and `{second}` should have one row per simulation each; "
            f"got {rows} rows of `{first}` and {others}{'' if b.ndim else ' rows'} of `{second}`."
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


def require_device(device: str) -> None:
    """Raise ValueError unless torch has that device."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"`device` should be one that torch has here, such as 'cpu'; got {device!r}. {reason}"
        ) from error


def warn(message: str) -> None:
    """Warn of something at the line of the user's that led to it, however many calls lie between."""
    frame = sys._getframe(1)
    while _is_ours(frame) and frame.f_back is not None:
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__")
    warnings.warn_explicit(message, UserWarning, frame.f_code.co_filename, frame.f_lineno, module, registry)


def _is_ours(frame: FrameType) -> bool:
    return f"{frame.f_globals.get('__name__')}.".startswith(OURS)


def _told(value: object) -> str:
    """Return a value with its type, cut short, for a message."""
    text, kind = " ".join(repr(value).split()), type(value).__name__
    return f"{text if len(text) < 40 else text[:37] + '...'}, {'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
