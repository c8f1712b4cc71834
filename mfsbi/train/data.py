r"""Simulations in training: split, shuffled and handed out in batches, from memory or from a store read in blocks.

`Stream` stands where a `Batch` of training rows stands if they are larger than memory. A pass takes the shards of the
store in a random order, a block of them at a time, and the rows of a block in a random order (`mfsbi.store.reading`
says how good such a shuffle is). What is measured rather than learned, such as means, spreads and principal axes, is
measured on a sample of the rows, and coordinates on a chart are computed as they are needed, since all of them may not
fit. One block is in memory at a time while it is learned from, and two while the next is read
(`notebooks/measurements.md`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from mfsbi.checks import require_number
from mfsbi.simulations import Simulations
from mfsbi.store import Store

__all__ = [
    "Batch",
    "Split",
    "Stream",
    "TrainingData",
    "in_chunks",
    "joined",
    "require_fraction",
    "rows_of_excerpt",
    "split",
    "steps_per_epoch",
]

BLOCK = 2**26
"""Bytes of the blocks that are read: some hundred thousand rows of forty features."""

EXCERPT = 100_000
"""Rows that are enough to measure means, spreads and principal axes on."""

EXCERPT_BYTES = 2**28
"""Bytes of these at most: rows of 670 features or more are fewer."""


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


class Stream:
    """The rows of a store to learn from.

    Arguments:
        store: where they are
        memory: bytes of a block, which has one shard at least; 64 MiB if None
        device: where they are wanted
    """

    u = None

    def __init__(self, store: Store, memory: int | None = None, device: str | torch.device = "cpu") -> None:
        self.store, self.memory, self.device = store, BLOCK if memory is None else memory, device

    def __repr__(self) -> str:
        return f"Stream({self.store!r}, {self.memory / 2**20:.0f} MiB at a time)"

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.store)

    def to(self, device: str | torch.device) -> "Stream":
        """Return the same rows for another device."""
        return Stream(self.store, self.memory, device)

    @cached_property
    def excerpt(self) -> Batch:
        """Some of the rows, which stand for all in what is measured."""
        return self.first(rows_of_excerpt(self.store))

    def first(self, rows: int) -> Batch:
        """Return so many rows, in the order in which they are stored."""
        return self._batch(self.store.read(slice(0, rows)))

    @property
    def digest(self) -> str:
        """A hash of which shards there are, by which processes tell whether they have the same."""
        return sha256(repr((self.store.marks, self.store.skipped)).encode()).hexdigest()

    def minibatches(self, size: int, generator: Generator, skip: int = 0) -> Iterator[Batch]:
        """Return all rows once in random order, `size` at a time; a smaller last batch is left out, unless it is all.

        Arguments:
            size: rows of a batch
            generator: of the order
            skip: batches to leave out at the beginning
        """
        return islice(self._minibatches(size, int(torch.randint(2**31, (), generator=generator))), skip, None)

    def _minibatches(self, size: int, seed: int) -> Iterator[Batch]:
        rest: Batch | None = None
        at_once = max(self.store.layout.shard_rows, self.memory * self.rows // self.store.bytes)
        for block in self.store.blocks(at_once, seed=seed):
            batch = self._batch(block)
            if rest is not None:
                missing = size - rest.rows
                first, batch = joined([rest, batch.select(slice(0, missing))]), batch.select(slice(missing, None))
                if first.rows < size:
                    rest = first
                    continue
                yield first
            whole = batch.rows - batch.rows % size
            for start in range(0, whole, size):
                yield batch.select(slice(start, start + size))
            rest = batch.select(slice(whole, None)).map(Tensor.clone) if whole < batch.rows else None
        if rest is not None and self.rows < size:
            yield rest

    def _batch(self, rows: Simulations) -> Batch:
        """Return rows with their joint scores in torch's default type, on the device."""
        batch = Batch(rows.theta, rows.x, rows.joint_score)
        return batch.map(lambda field: field.to(self.device, torch.get_default_dtype()))


def rows_of_excerpt(store: Store) -> int:
    """Return how many rows of a store may be held in memory to stand for all, or to judge by.

    100,000, or fewer where these would take more than 256 MiB; at least one.
    """
    return min(EXCERPT, max(1, EXCERPT_BYTES // store.layout.bytes_per_row))


TrainingData: TypeAlias = Batch | Stream
"""Rows to learn from, in memory or not."""

Split: TypeAlias = tuple[TrainingData, Batch]
"""Rows to learn from, and rows to judge by."""


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
    """Return all rows of several parts as one batch; parts have the same fields.

    Arguments:
        parts: in order; rows are copied
    """
    return replace(parts[0], **{name: torch.cat([part.fields[name] for part in parts]) for name in parts[0].fields})


def steps_per_epoch(rows: int, size: int) -> int:
    """Return how many minibatches of this size a pass over rows has.

    Arguments:
        rows: of the data
        size: of a minibatch; fewer rows than that are one, smaller, minibatch
    """
    return max(1, rows // size)


def in_chunks(function: Callable[[Batch], Tensor], data: Batch, size: int = 10_000) -> Tensor:
    """Return function(data) row by row, with at most `size` rows at work at a time and without gradients.

    Arguments:
        function: of a batch, row by row, to a tensor of as many rows
        data: at least one row
        size: bounds the memory; numbers depend on it by no more than rounding
    """
    with torch.no_grad():
        return torch.cat([function(data.select(slice(i, i + size))) for i in range(0, data.rows, size)])
