"""Priors on boxes: from words, to bounds, and from what a store noted of the prior it was made with."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.distributions import Distribution, Independent, Uniform

from mfsbi.seeds import seeded
from mfsbi.types import Prior

__all__ = ["bounds_of", "box", "prior_of_record", "record_of"]

DRAWS = 16
"""Draws by which priors are compared."""


def box(bounds: Sequence[str]) -> Distribution:
    """Return the uniform prior between bounds, one word `low:high` for each parameter.

    Raises:
        ValueError: if a word is not that, or there is none

    Example:
        >>> box(["-1:1", "0:10"]).base_dist.high
        tensor([ 1., 10.])
    """
    if not bounds:
        raise ValueError("The prior is missing: say one --prior LOW:HIGH for each parameter, or name a simulator.")
    ends = []
    for word in bounds:
        low, _, high = word.partition(":")
        try:
            ends.append((float(low), float(high)))
        except ValueError:
            ends.append((np.nan, np.nan))
        if not -np.inf < ends[-1][0] < ends[-1][1] < np.inf:
            raise ValueError(f"`--prior` should be LOW:HIGH with numbers LOW < HIGH, such as -1:1; got {word!r}.")
    return _uniform(ends)


def _uniform(bounds: Sequence[Sequence[float]]) -> Distribution:
    lows, highs = torch.tensor(bounds).unbind(-1)
    return Independent(Uniform(lows, highs), 1)


def bounds_of(prior: Prior) -> list[tuple[float, float]]:
    """Return (low, high) of each parameter of a prior on a box.

    Raises:
        ValueError: if the prior is not bounded
    """
    support: Any = getattr(prior, "support", None)
    interval: Any = getattr(support, "base_constraint", support)
    if not hasattr(interval, "lower_bound") or not hasattr(interval, "upper_bound"):
        raise ValueError("A grid needs a prior with bounds; this one has none. Take another sampler.")
    low, high = (torch.as_tensor(end).reshape(-1) for end in (interval.lower_bound, interval.upper_bound))
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def record_of(prior: Prior) -> dict[str, Any]:
    """Return what tells a prior from others, for JSON; it draws from torch's global generator."""
    draws = prior.sample((DRAWS,))
    try:
        bounds = bounds_of(prior)
    except (ValueError, NotImplementedError):
        bounds = None
    return {
        "prior": repr(prior),
        "prior_draws": draws.tolist(),
        "prior_log_probs": torch.as_tensor(prior.log_prob(draws)).reshape(DRAWS, -1).sum(-1).tolist(),
        "prior_bounds": bounds,
    }


def prior_of_record(record: Mapping[str, Any], known: Prior | None = None) -> Prior | None:
    """Return the prior of a record: uniform between its bounds or a known one, if one of them has these densities."""
    draws, log_probs = torch.tensor(record["prior_draws"]), np.array(record["prior_log_probs"])
    bounds = record.get("prior_bounds")
    candidates: list[Prior | None] = [known]
    if bounds is not None and np.isfinite(bounds).all():
        candidates.insert(0, _uniform(bounds))
    for prior in candidates:
        if prior is None:
            continue
        try:
            with seeded(0):
                there = draws.to(prior.sample((1,)).device)
            found = torch.as_tensor(prior.log_prob(there)).reshape(len(draws), -1).sum(-1).cpu()
        except (ValueError, RuntimeError):  # another number of parameters, or outside
            continue
        if np.allclose(found.numpy(), log_probs, rtol=1e-4, atol=1e-6):
            return prior
    return None
