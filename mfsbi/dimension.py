r"""How many dimensions has the manifold? A search for n.

For some n a chart is trained by reconstruction, as an M-flow's is, and judged by rows it has not seen:

    e(n) = sqrt(mean |x - project(x)|^2) in standardised units,    e(0) = sqrt(mean |x - mean|^2),

with the standard error of each. Below the true n a manifold of n dimensions cannot follow the data and e(n) is of
the order of e(0); at the true n it falls to what noise and training leave (Brehmer & Cranmer, arXiv:2003.13913, §3.4,
suggest to look for that elbow). The rule here is

    suggested n = the smallest n with e(n) <= tolerance * e(0),

where the tolerance, 0.1 by default, is what counts as noise relative to the spread of the data. Since e(n) falls with
n, halving finds it, between zero and the number of principal axes that pass: a chart begins there and does no worse.
Those are six charts for forty features. The n after it is tried as well.

A warning tells of two doubts. If no n passes, there may be no manifold, or the training was too short. If the next n is
ten times better, and more than half of the squared error at the suggested n sits in a hundredth of the rows, the
manifold may be closed or branched: a circle has one dimension, but one chart leaves a gap in it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    warn,
)
from mfsbi.plugin.specs import MFlow
from mfsbi.seeds import derived, seeded
from mfsbi.train.course import rows_of_chart, steps_of_chart
from mfsbi.train.data import Batch, in_chunks, split, steps_per_epoch
from mfsbi.train.loop import fit
from mfsbi.train.losses import reconstruction
from mfsbi.train.schedules import Phase, Settings
from mfsbi.warp import Warp, converted, require_digits

__all__ = ["DimensionScan", "dimension_scan"]

ROWS = 500
MUCH_BETTER = 10.0
LEAST_ROWS = 100


NOTHING_PASSES = (
    "No number of dimensions reconstructs the data within the tolerance: there may be no manifold of fewer dimensions, "
    "or the charts need more `steps`."
)


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

    @classmethod
    def of(cls, squared: Mapping[int, Tensor], spread: float, tolerance: float = 0.1) -> "DimensionScan":
        """Return the scan of measured distances.

        Arguments:
            squared: |x - project(x)|^2 of held-out rows for each n, in rising order, shape `(rows,)`
            spread: e(0)
            tolerance: what counts as noise, relative to the spread
        """
        errors = {n: float(each.mean().sqrt()) for n, each in squared.items()}
        doubts = (float(each.std() / len(each) ** 0.5) / (2 * errors[n]) for n, each in squared.items())
        suggested = next((n for n, error in errors.items() if error <= tolerance * spread), None)
        doubt = NOTHING_PASSES if suggested is None else _doubt(suggested, squared[suggested], errors)
        return cls(tuple(squared), tuple(errors.values()), tuple(doubts), spread, suggested, doubt)

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
    steps: int | None = None,
    seed: int = 0,
    show_progress_bars: bool | None = None,
) -> DimensionScan:
    """Train charts of some numbers of dimensions and suggest one.

    Arguments:
        x: data, shape `(rows, data)`; a tenth of the rows is held out
        dims: the n to try, each below the number of features; those that halving comes to if not given
        tolerance: what counts as noise, relative to the spread of the data
        steps: of training for each n; if not given half of those that a chart gets of so many rows otherwise
        seed: of the split, the weights and the order of the rows
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if x is not a finite matrix with two features or more, or an n is not below their number

    Example:
        >>> plane = torch.randn(2000, 2) @ torch.randn(2, 3)
        >>> dimension_scan(plane, steps=20).suggested
        2
    """
    require_positive("tolerance", tolerance)
    if steps is not None:
        require_positive_integer("steps", steps)
    require_seed(seed)
    _require_data(x)
    if dims is not None:
        _require_dims(dims, x.shape[1])
    x = converted(x.cpu(), torch.get_default_dtype())
    require_digits("x", x)
    data = Batch(torch.zeros(len(x), 0), x)
    parts = split([data], 0.1, Generator().manual_seed(derived(seed, 0)))
    warp = Warp.of_data(parts[0].x, torch.get_default_dtype())
    training, validation = (replace(part, x=warp(part.x)) for part in parts)
    steps = steps_of_chart(training.rows) // 2 if steps is None else steps
    mean, std = training.x.double().mean(0), training.x.double().std(0)
    seen, held_out = (training.x.double() - mean) / std, (validation.x.double() - mean) / std
    spread = float(held_out.square().sum(-1).mean().sqrt())
    hidden = None if show_progress_bars is None else not show_progress_bars
    with tqdm(disable=hidden, desc="dimensions", unit="chart", leave=False) as bar:
        charts = _Charts(training, validation, steps, seed, bar)
        if dims is None:
            _search(charts.error, tolerance * spread, _enough_axes(seen, held_out, tolerance * spread))
        else:
            for n in sorted(set(dims)):
                charts.error(n)
    scan = DimensionScan.of(dict(sorted(charts.squared.items())), spread, tolerance)
    if scan.doubt:
        warn(scan.doubt)
    return scan


def _require_data(x: Tensor) -> None:
    """Raise ValueError unless x is a finite matrix with two features and a hundred rows or more."""
    require_tensor("x", x)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"`x` should have shape (rows, features) with at least 2 features; got {tuple(x.shape)}.")
    require_finite("x", x, "Remove these rows first.")
    if len(x) < LEAST_ROWS:
        raise ValueError(f"`x` should have at least {LEAST_ROWS} rows, a tenth to judge by; got {len(x)}.")


def _require_dims(dims: Sequence[int], features: int) -> None:
    """Raise ValueError or TypeError unless dims are whole numbers below the number of features."""
    require_kind("dims", dims, Sequence, "whole numbers in a list")
    if not dims or not all(isinstance(n, Integral) and 1 <= n < features for n in dims):
        raise ValueError(
            f"`dims` should be whole numbers between 1 and {features - 1}, below the number of features; got "
            f"{tuple(dims)}."
        )


@dataclass
class _Charts:
    """Charts of some numbers of dimensions, each trained when it is first asked for.

    Arguments:
        training: rows to learn from, straightened
        validation: rows to judge by
        steps: of each training
        seed: of weights and orders
        bar: that shows them

    Attributes:
        squared: squared distances of held-out rows for each n, shape `(rows,)`
    """

    training: Batch
    validation: Batch
    steps: int
    seed: int
    bar: tqdm
    squared: dict[int, Tensor] = field(default_factory=dict)

    def error(self, n: int) -> float:
        """Return e(n)."""
        if n not in self.squared:
            self.bar.set_postfix(n=n)
            self.squared[n] = self._squared(n)
            self.bar.update()
        return float(self.squared[n].mean().sqrt())

    def _squared(self, n: int) -> Tensor:
        """Return the squared distances of held-out rows to a manifold of n dimensions, standardised, in float64."""
        training, seed = self.training, derived(self.seed, 1, n)
        with seeded(seed):
            model = MFlow(n).build(training.theta, training.x)
        rows = rows_of_chart(training.rows, ROWS)
        epochs = max(1, round(self.steps / steps_per_epoch(training.rows, rows)))
        settings = Settings(rows, seed=seed, show_progress_bars=False)
        schedule = [Phase(reconstruction, ("chart",), epochs, decay=0.0)]
        if fit(model, (training, self.validation), schedule, settings).interrupted:
            raise KeyboardInterrupt
        return in_chunks(lambda some: reconstruction(model, some), self.validation).double()


def _search(error: Callable[[int], float], enough: float, highest: int) -> None:
    """Measure the errors of the n that tell the smallest one to pass, and of the one after it.

    Arguments:
        error: of a number of dimensions
        enough: error with which it passes
        highest: the largest n to look at
    """
    fails, passes = 0, highest
    while passes - fails > 1:
        middle = (fails + passes) // 2
        fails, passes = (fails, middle) if error(middle) <= enough else (middle, passes)
    if error(passes) <= enough and passes < highest:
        error(passes + 1)


def _enough_axes(seen: Tensor, held_out: Tensor, enough: float) -> int:
    """Return how many principal axes leave no larger error of held-out rows, one less than features at most."""
    axes = torch.linalg.svd(seen, full_matrices=False).Vh
    left = (held_out @ axes.T).square().mean(0).flip(0).cumsum(0).flip(0)  # what axes from each one on hold
    found = (left.sqrt() <= enough).nonzero()
    return max(1, int(found[0, 0])) if len(found) else seen.shape[1] - 1


def _doubt(suggested: int, squared: Tensor, errors: Mapping[int, float]) -> str:
    """Return what speaks against the suggested dimension, or nothing."""
    better = errors[suggested] / max(errors.get(suggested + 1, torch.inf), 1e-300)
    worst = squared.sort(descending=True).values
    if better <= MUCH_BETTER or worst[: max(1, len(worst) // 100)].sum() <= 0.5 * worst.sum():
        return ""
    return (
        f"{suggested} dimensions reconstruct nearly all rows, but more than half of the squared error sits in a "
        f"hundredth of them, and {suggested + 1} dimensions are {better:.0f} times better: the manifold may be closed "
        "or branched, so that one chart cannot cover it without a gap. Look at the rows with the largest distance."
    )
