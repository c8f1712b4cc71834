r"""How many dimensions has the manifold? A scan over n.

For each n a chart is trained by reconstruction, as an M-flow's is, and judged by rows it has not seen:

    e(n) = sqrt(mean |x - project(x)|^2) in standardised units,    e(0) = sqrt(mean |x - mean|^2),

with the standard error of each. Below the true n a manifold of n dimensions cannot follow the data and e(n) is of
the order of e(0); at the true n it falls to what noise and training leave (Brehmer & Cranmer, arXiv:2003.13913, §3.4,
suggest to look for that elbow). The rule here is

    suggested n = the smallest n with e(n) <= tolerance * e(0),

where the tolerance, 0.1 by default, is what counts as noise relative to the spread of the data. Two things are looked
at besides, and a warning says what was found. If no n passes there may be no manifold, or the training was too short.
If the next n is ten times better, and more than half of the squared error at the suggested n sits in a hundredth of the
rows, the manifold may be closed or branched: a circle has one dimension, but one chart leaves a gap in it.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from mfsbi.checks import (
    require_finite,
    require_kind,
    require_positive,
    require_positive_integer,
    require_seed,
    require_tensor,
)
from mfsbi.plugin.specs import MFlow
from mfsbi.seeds import derived, seeded
from mfsbi.train.data import Batch, in_chunks, split, steps_per_epoch
from mfsbi.train.loop import fit
from mfsbi.train.losses import reconstruction
from mfsbi.train.record import Settings
from mfsbi.train.schedules import Phase
from mfsbi.warp import Warp, converted, require_digits

__all__ = ["DimensionScan", "dimension_scan"]

ROWS = 500
MUCH_BETTER = 10.0
LEAST_ROWS = 100


@dataclass(frozen=True)
class DimensionScan:
    """What a scan found; errors are root mean squares of held-out rows in standardised units.

    Arguments:
        dims: the n that were tried
        errors: e(n) of each
        standard_errors: theirs
        spread: e(0)
        suggested: the smallest n that passes the rule, or None
        doubt: what speaks against it, or nothing
    """

    dims: tuple[int, ...]
    errors: tuple[float, ...]
    standard_errors: tuple[float, ...]
    spread: float
    suggested: int | None
    doubt: str = ""

    def __str__(self) -> str:
        lines = [
            f"n = {n}: reconstruction error {error:.4f} +- {doubt:.4f}"
            for n, error, doubt in zip(self.dims, self.errors, self.standard_errors, strict=True)
        ]
        found = "no n passes" if self.suggested is None else f"suggested n = {self.suggested}"
        return "\n".join(
            [*lines, f"spread of the data {self.spread:.4f}: {found}", *([self.doubt] if self.doubt else [])]
        )


def dimension_scan(
    x: Tensor,
    dims: Sequence[int] | None = None,
    *,
    tolerance: float = 0.1,
    steps: int = 2000,
    seed: int = 0,
    show_progress_bars: bool | None = None,
) -> DimensionScan:
    """Train a chart for each number of dimensions and suggest one.

    Arguments:
        x: data, shape `(rows, data)`; a tenth of the rows is held out
        dims: the n to try, each below the number of features; all from 1 if not given
        tolerance: what counts as noise, relative to the spread of the data
        steps: of training for each n, of 500 rows or all there are
        seed: of the split, the weights and the order of the rows
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if x is not a finite matrix with two features or more, or an n is not below their number

    Example:
        >>> plane = torch.randn(2000, 2) @ torch.randn(2, 3)
        >>> dimension_scan(plane, steps=100).suggested
        2
    """
    require_positive("tolerance", tolerance)
    require_positive_integer("steps", steps)
    require_seed(seed)
    require_tensor("x", x)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"`x` should have shape (rows, features) with at least 2 features; got {tuple(x.shape)}.")
    require_finite("x", x, "Remove these rows first.")
    if len(x) < LEAST_ROWS:
        raise ValueError(f"`x` should have at least {LEAST_ROWS} rows, a tenth to judge by; got {len(x)}.")
    x = converted(x.cpu(), torch.get_default_dtype())
    require_digits("x", x)
    wanted = range(1, x.shape[1]) if dims is None else dims
    require_kind("dims", wanted, Sequence, "whole numbers in a list")
    dims = tuple(wanted)
    if not dims or not all(isinstance(n, Integral) and 1 <= n < x.shape[1] for n in dims):
        raise ValueError(
            f"`dims` should be whole numbers between 1 and {x.shape[1] - 1}, below the number of features; got {dims}."
        )
    dims = tuple(sorted(dims))
    data = Batch(torch.zeros(len(x), 0), x)
    parts = split([data], 0.1, Generator().manual_seed(derived(seed, 0)))
    warp = Warp.of_data(parts[0].x, torch.get_default_dtype())
    training, validation = (replace(part, x=warp(part.x)) for part in parts)
    hidden = None if show_progress_bars is None else not show_progress_bars
    squared = [
        _squared_errors(n, training, validation, steps, derived(seed, 1, n))
        for n in tqdm(dims, disable=hidden, desc="dimensions", leave=False)
    ]
    errors = [float(each.mean().sqrt()) for each in squared]
    doubts = [float(each.std() / len(each) ** 0.5) / (2 * error) for each, error in zip(squared, errors, strict=True)]
    mean, std = training.x.double().mean(0), training.x.double().std(0)
    spread = float(((validation.x.double() - mean) / std).square().sum(-1).mean().sqrt())
    passing = [i for i, error in enumerate(errors) if error <= tolerance * spread]
    doubt = _doubt(passing[0], squared, errors, dims) if passing else NOTHING_PASSES
    if doubt:
        warnings.warn(doubt, stacklevel=2)
    suggested = dims[passing[0]] if passing else None
    return DimensionScan(dims, tuple(errors), tuple(doubts), spread, suggested, doubt)


NOTHING_PASSES = (
    "No number of dimensions reconstructs the data within the tolerance: there may be no manifold of fewer dimensions, "
    "or the charts need more `steps`."
)


def _squared_errors(n: int, training: Batch, validation: Batch, steps: int, seed: int) -> Tensor:
    """Return the squared distances of held-out rows to a manifold of n dimensions, standardised, in float64."""
    with seeded(seed):
        model = MFlow(n).build(training.theta, training.x)
    epochs = max(1, round(steps / steps_per_epoch(training.rows, ROWS)))
    settings = Settings(ROWS, seed=seed, show_progress_bars=False)
    schedule = [Phase(reconstruction, ("chart",), epochs, decay=0.0)]
    if fit(model, training, validation, schedule, settings).interrupted:
        raise KeyboardInterrupt
    return in_chunks(lambda rows: reconstruction(model, rows), validation).double()


def _doubt(at: int, squared: list[Tensor], errors: list[float], dims: tuple[int, ...]) -> str:
    """Return what speaks against the suggested dimension, or nothing."""
    following = dims[at + 1 : at + 2] == (dims[at] + 1,)
    if not following or errors[at] <= MUCH_BETTER * errors[at + 1]:
        return ""
    worst = squared[at].sort(descending=True).values
    if worst[: max(1, len(worst) // 100)].sum() <= 0.5 * worst.sum():
        return ""
    return (
        f"{dims[at]} dimensions reconstruct nearly all rows, but more than half of the squared error sits in a "
        f"hundredth of them, and {dims[at] + 1} dimensions are {errors[at] / errors[at + 1]:.0f} times better: the "
        "manifold may be closed or branched, so that one chart cannot cover it without a gap. Look at the rows with "
        "the largest distance."
    )
