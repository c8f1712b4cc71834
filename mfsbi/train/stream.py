r"""Training rows that are larger than memory: a store, read in blocks.

`Stream` stands where a `Batch` of training rows stands. A pass takes the shards of the store in a random order, a block
of them at a time, and the rows of a block in a random order (`mfsbi.store.reading` says how good such a shuffle is).
What is measured rather than learned, such as means, spreads and principal axes, is measured on a sample of the rows,
and coordinates on a chart are computed as they are needed, since all of them may not fit.

Memory: one block at a time while it is learned from, and two while the next is read (`notebooks/measurements.md`).
"""

from collections.abc import Iterator
from functools import cached_property
from hashlib import sha256
from typing import TypeAlias

import torch
from torch import Generator

from mfsbi.simulations import Simulations
from mfsbi.store import Store
from mfsbi.train.data import Batch, joined

__all__ = ["Split", "Stream", "TrainingData", "rows_of_excerpt"]

BLOCK = 2**26
"""Bytes of the blocks that are read: some hundred thousand rows of forty features."""

EXCERPT = 100_000
"""Rows that are enough to measure means, spreads and principal axes on."""

EXCERPT_BYTES = 2**28
"""Bytes of these at most: rows of 670 features or more are fewer."""


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
        """Yield all rows once in random order, `size` at a time; a smaller last batch is left out, unless it is all.

        Arguments:
            size: rows of a batch
            generator: of the order
            skip: batches to leave out at the beginning
        """
        for number, batch in enumerate(self._minibatches(size, int(torch.randint(2**31, (), generator=generator)))):
            if number >= skip:
                yield batch

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
            rest = batch.select(slice(whole, None)).map(torch.Tensor.clone) if whole < batch.rows else None
        if rest is not None and self.rows < size:
            yield rest

    def _batch(self, rows: Simulations) -> Batch:
        """Return rows with their joint scores in torch's default type, on the device."""
        batch = Batch(rows.theta, rows.x, rows.joint_score)
        return batch.map(lambda field: field.to(self.device, torch.get_default_dtype()))


def rows_of_excerpt(store: Store) -> int:
    """Return how many rows of a store may be held in memory to stand for all, or to judge by."""
    return min(EXCERPT, max(1, EXCERPT_BYTES // store.layout.bytes_per_row))


TrainingData: TypeAlias = Batch | Stream
"""Rows to learn from, in memory or not."""

Split: TypeAlias = tuple[TrainingData, Batch]
"""Rows to learn from, and rows to judge by."""
