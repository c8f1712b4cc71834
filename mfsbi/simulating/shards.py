"""One shard: theta from the prior, x from the simulator, and which rows failed; see `mfsbi.simulating`."""

import errno
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfsbi.seeds import alone, distinct, seeded, spawned
from mfsbi.simulating.plan import Plan
from mfsbi.store import Layout
from mfsbi.types import ProgramError
from mfsbi.warp import lost_digits

__all__ = ["Drawn", "allowed_failures", "draw", "seed_of_x", "shapes_of"]

GRACE = 10
"""Failures that never are too many, unless none is allowed."""

WHOLE = 2**24
"""Whole numbers up to this one differ in float32."""

TRIES = 4
"""Pairs of theta at which a simulator may fail before nothing more is tried."""


class Drawn(NamedTuple):
    """One shard.

    Arguments:
        arrays: by name, a row for each simulation, NaN where one failed
        reasons: row in the store, theta, error and traceback of each failure
    """

    arrays: dict[str, NDArray]
    reasons: list[dict[str, Any]]


def draw(plan: Plan, layout: Layout, shard: int, *, max_failures: float = 1.0) -> Drawn:
    """Simulate one shard of a plan.

    Arguments:
        plan: what to simulate
        layout: of the store
        shard: its number
        max_failures: the fraction of rows that may fail

    Raises:
        ValueError: if theta is not finite, or x has another shape than in the rest of the store
        RuntimeError: if too many rows fail; the message holds the first traceback
    """
    rows, first = layout.rows_of(shard), shard * layout.shard_rows
    with alone():
        theta = _theta(plan, rows, distinct(plan.seed, 2 * shard))
        making = _Making(plan, theta, seed_of_x(plan.seed, shard), allowed_failures(max_failures, rows), first)
        arrays = {name: np.full((rows, *shape), np.nan, np.float32) for name, shape in layout.shapes.items()}
        arrays["theta"][:] = theta.cpu().numpy()
        for start, end, found in making.pieces(0, rows):
            for name, values in found.items():
                expected = (end - start, *layout.shapes[name])
                if values.shape != expected:
                    raise ValueError(
                        f"`{name}` should have shape {expected}, as in the rest of the store; the simulator's has "
                        f"{values.shape}."
                    )
                arrays[name][start:end] = values
    failed = np.zeros(rows, dtype=bool)
    failed[[reason["row"] - first for reason in making.reasons]] = True
    return Drawn({**arrays, "failed": failed}, sorted(making.reasons, key=lambda reason: reason["row"]))


def seed_of_x(seed: int, shard: int) -> int:
    """Return the seed by which `simulate(theta, seed=...)` gives x of a shard again, if none of its calls failed."""
    return distinct(seed, 2 * shard + 1)


def shapes_of(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one row of each array, found by two rows or, if they fail, a few more.

    Raises:
        RuntimeError: if the simulator fails at all of them
        ValueError: if its x has no rows
    """
    with alone():
        for attempt in range(TRIES):
            theta = _theta(plan, 2, spawned(plan.seed, 0, attempt))
            making = _Making(plan, theta, spawned(plan.seed, 1, attempt), allowed=2, first=0)
            for _, _, found in making.pieces(0, 2):
                return {"theta": tuple(theta.shape[1:]), **{name: value.shape[1:] for name, value in found.items()}}
    raise RuntimeError(
        f"The simulator failed at {2 * TRIES} of {2 * TRIES} theta from the prior, so nothing was written. The last "
        f"time:\n{_told(making.reasons[-1])}"
    )


def allowed_failures(fraction: float, rows: int) -> float:
    """Return how many of so many rows may fail."""
    return fraction * rows + (GRACE if fraction > 0 else 0)


@dataclass
class _Making:
    """Simulations of given theta, and what went wrong so far."""

    plan: Plan
    theta: Tensor
    seed: int
    allowed: float
    first: int
    reasons: list[dict[str, Any]] = field(default_factory=list)

    def pieces(self, start: int, end: int) -> Iterator[tuple[int, int, dict[str, NDArray]]]:
        """Yield runs of rows that did not raise an exception, and their arrays; keep infinite rows as failures.

        All rows are tried twice: what fails once for reasons outside should not change x, as calls with fewer rows do.
        """
        found = None
        whole = end - start == len(self.theta)
        seed = self.seed if whole else spawned(self.seed, start, end)
        for last in (False, True) if whole else (True,):
            try:
                found = self._call(self.theta[start:end].clone(), seed)
                break
            except SystemExit as error:
                raise RuntimeError(
                    f"The simulator ended the program, by exit code {error.code}. Let it raise an error where it fails."
                ) from error
            except Exception as error:  # whatever a simulator raises is its failure at some rows
                if isinstance(error, ProgramError) or _out_of_memory(error):
                    raise  # the program's failure, or the machine's, not that of a row
                if last and end - start == 1:
                    self._record(start, f"{type(error).__name__}: {error}", traceback.format_exc())
                    return
        if found is None:
            middle = (start + end) // 2
            yield from self.pieces(start, middle)
            yield from self.pieces(middle, end)
            return
        arrays = {name: _array(name, value, end - start) for name, value in found.items()}
        bad = {name: ~np.isfinite(values).reshape(len(values), -1).all(axis=1) for name, values in arrays.items()}
        for row in np.flatnonzero(np.any(list(bad.values()), axis=0)).tolist():
            names = [name for name, rows in bad.items() if rows[row]]
            self._record(start + row, f"not finite: {', '.join(names)}", "")
        yield start, end, arrays

    def _call(self, theta: Tensor, seed: int) -> dict[str, Any]:
        simulator: Any = self.plan.simulator
        with seeded(seed):
            if not self.plan.has_gold:
                return {"x": simulator.simulate(theta, seed=seed)}
            found = simulator.simulate_with_gold(theta, seed=seed)
        return {name: getattr(found, name) for name in ("x", "joint_score", "joint_log_ratio")}

    def _record(self, row: int, error: str, trace: str) -> None:
        """Keep a failure, unless it is one too many."""
        theta = self.theta[row].tolist()
        self.reasons.append({"row": self.first + row, "theta": theta, "error": error, "traceback": trace})
        if len(self.reasons) > self.allowed:
            raise RuntimeError(
                f"{len(self.reasons)} of {len(self.theta)} simulations failed, more than `max_failures` allows. The "
                f"first of them:\n{_told(self.reasons[0])}"
            )


def _theta(plan: Plan, rows: int, seed: int) -> Tensor:
    """Return draws of the prior, in float32."""
    with seeded(seed):
        theta = plan.prior_of_theta.sample((rows,)).to(torch.float32)
    names = list(plan.simulator.parameter_names)
    if theta.shape != (rows, len(names)) or not torch.isfinite(theta).all():
        raise ValueError(
            f"The prior should draw finite theta of shape {(rows, len(names))}, one column for each of {names}; got "
            f"shape {tuple(theta.shape)}, {int(torch.isfinite(theta).sum())} of {theta.numel()} numbers finite."
        )
    return theta


def _out_of_memory(error: BaseException) -> bool:
    """Return whether there was too little memory; torch raises a `RuntimeError` for that on a processor."""
    no_room = isinstance(error, OSError) and error.errno == errno.ENOMEM
    return no_room or isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _array(name: str, value: object, rows: int) -> NDArray:
    """Return what a simulator returned, in float32, or raise ValueError if a store cannot keep it."""
    axes = {"joint_log_ratio": 1}.get(name, 2)
    fault, shape = _fault(value, rows, axes), ("(rows,)", "(rows, features)")[axes - 1]
    if fault or not isinstance(value, Tensor):
        raise ValueError(f"A simulator's `{name}` should be a tensor of shape {shape}, rows being {rows}{fault}")
    return np.asarray(value.detach().cpu().to(torch.float32))


def _fault(value: object, rows: int, axes: int) -> str:
    """Return what is wrong with what a simulator returned, as the end of a sentence; nothing if it can be kept."""
    if not isinstance(value, Tensor):
        return f"; got {type(value).__name__}."
    if value.layout != torch.strided or value.is_complex():
        return f", of real numbers; got {value.dtype}, {value.layout}."
    if value.ndim < axes or len(value) != rows or 0 in value.shape:
        return f"; got shape {tuple(value.shape)}."
    if not value.is_floating_point() and (value.double().abs() > WHOLE).any():
        return (
            f", which is kept in float32; got whole numbers beyond {WHOLE:,}, some of which would become the same. Let "
            "the simulator return their logarithms, or parts of them."
        )
    if value.dtype == torch.float64 and value.ndim == 2:
        for number, offset, std in lost_digits(value[value.isfinite().all(-1)], torch.float32):
            return (
                f", which is kept in float32; got {offset:.6g} +- {std:.3g} for feature {number}, whose values would "
                "become the same. Let the simulator subtract the offset."
            )
    return ""


def _told(reason: dict[str, Any]) -> str:
    """Return theta of a failure, and the traceback if there is one."""
    return f"theta = {reason['theta']}\n{reason['traceback'] or reason['error']}"
