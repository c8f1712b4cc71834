"""Simulations in training: split, shuffled and handed out in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256

import numpy as np
import torch
from torch import Generator, Tensor

from mfsbi.checks import require_number
from mfsbi.simulations import Simulations

__all__ = ["Batch", "in_chunks", "joined", "require_fraction", "split", "steps_per_epoch"]


@dataclass(frozen=True, eq=False)
class Batch(Simulations):
    """Simulations to learn from, and what training adds to them.

    Arguments:
        theta: shape `(rows, parameter)`
        x: shape `(rows, data)`
        joint_score: t(x, z|theta), shape `(rows, parameter)`; None without such gold
        joint_log_ratio: log r(x, z|theta, theta_ref), shape `(rows,)`; None without such gold
        from_theta: 1 where x was drawn at theta, 0 where at the reference, shape `(rows,)`; None if all were at theta
        u: coordinates of x on a chart that stands still, shape `(rows, manifold)`; None while the chart moves
        other_theta: theta of another row, shape `(rows, parameter)`; None unless `paired`
    """

    u: Tensor | None = None
    other_theta: Tensor | None = None

    @classmethod
    def of(cls, simulations: Simulations) -> "Batch":
        """Return simulations, or what a subclass has of them, as a batch."""
        return cls(**{each.name: getattr(simulations, each.name) for each in fields(Simulations)})

    @property
    def paired(self) -> "Batch":
        """The rows, each with the theta of its neighbour, which in random order is that of any other row."""
        return replace(self, other_theta=self.theta.roll(1, 0))

    @property
    def excerpt(self) -> "Batch":
        """Rows that stand for all in what is measured: here all of them."""
        return self

    @property
    def digest(self) -> str:
        """A hash of ten thousand rows at most, by which processes tell whether they have the same."""
        digest = sha256()
        for value in self.select(slice(None, None, 1 + self.rows // 10_000)).fields.values():
            digest.update(np.ascontiguousarray(value.detach().cpu()).data)
        return digest.hexdigest()

    def minibatches(self, size: int, generator: Generator, skip: int = 0) -> Iterator["Batch"]:
        """Yield the rows in random order, `size` at a time; a smaller last batch is left for another epoch's order.

        Arguments:
            size: rows of a batch
            generator: of the order
            skip: batches to leave out at the beginning
        """
        order = torch.randperm(self.rows, generator=generator).to(self.theta.device)
        for start in range(skip * size, steps_per_epoch(self.rows, size) * size, size):
            yield self.select(order[start : start + size])


def split(
    parts: Sequence[Batch], fraction: float, generator: Generator, kept: Sequence[bool] | None = None
) -> tuple[Batch, Batch]:
    """Return the rows to train on and those held out, of each part a random `fraction`.

    Each part is split by itself and in order, so that rows trained on stay training rows when parts are added or left
    out. But if all parts are so small that nothing would be held out, one row of the largest is.

    Arguments:
        parts: with the same fields
        fraction: of the rows to hold out
        generator: of the choice
        kept: which parts to return; all if None

    Raises:
        ValueError: if fraction is not between 0 and 1, or fewer than two rows came
    """
    require_fraction(fraction)
    orders = [torch.randperm(part.rows, generator=generator) for part in parts]
    chosen = [i for i in range(len(parts)) if kept is None or kept[i]]
    rows = [parts[i].rows for i in chosen]
    if sum(rows) < 2:
        raise ValueError(f"Training needs at least 2 rows, one of them for validation; got {sum(rows)}.")
    held_out = [min(round(fraction * size), size - 1) for size in rows]
    if not any(held_out):
        held_out[rows.index(max(rows))] = 1
    places = list(zip(chosen, held_out, strict=True))
    training = joined([parts[i].select(orders[i][held:]) for i, held in places])
    return training, joined([parts[i].select(orders[i][:held]) for i, held in places])


def require_fraction(fraction: float) -> None:
    """Raise ValueError unless some rows are held out by it, and not all."""
    require_number("validation_fraction", fraction)
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` should be between 0 and 1; got {fraction}.")


def joined(parts: Sequence[Batch]) -> Batch:
    """Return all rows of several parts as one batch; parts have the same fields."""
    return replace(parts[0], **{name: torch.cat([part.fields[name] for part in parts]) for name in parts[0].fields})


def steps_per_epoch(rows: int, size: int) -> int:
    """Return how many minibatches of this size a pass over rows has."""
    return max(1, rows // size)


def in_chunks(function: Callable[[Batch], Tensor], data: Batch, size: int = 10_000) -> Tensor:
    """Return function(data) row by row, with at most `size` rows at work at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([function(data.select(slice(i, i + size))) for i in range(0, data.rows, size)])
