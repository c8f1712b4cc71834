r"""Reading a store: plain arrays where they fit into memory, shuffled blocks where they do not.

Readers see the rows of finished shards that did not fail, numbered 0, 1, ... in the order of the store.

**How well `blocks` shuffles.** A pass takes the shards in a random order, loads as many at a time as fit into memory,
and puts the rows of these into a random order. Every row comes once. Rows of a store are independent draws, and shards
are cut without looking at them, so that each block is an independent sample of the same distribution as the whole
store, and the expected gradient over a block is that over all rows. Two things are not as in a shuffle of all rows: two
rows of one shard come in the same block in *every* pass, so that they meet in a batch (rows of the store) / (rows in
memory) times as often; and a block ends before the next begins, so that the rows of a batch are drawn without
replacement from a block. Both vanish when the store fits into one block. Neither biases an estimate; they would if
shards differed, such as the rounds of a sequential scheme, which belong into stores of their own.
"""

import json
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mfsbi.checks import require_positive_integer, require_seed
from mfsbi.simulations import Simulations
from mfsbi.store.layout import KINDS, MARKS, Layout, read_attributes

__all__ = ["Store"]


class Store:
    """Simulations on disk, as far as they are finished when the store is opened.

    Arguments:
        path: its folder

    Attributes:
        marks: seed, failures and digest of each finished shard, by its number
        skipped: rows of the first of them that are left out

    Raises:
        FileNotFoundError: if there is none
        ValueError: if it is something else

    Example:
        >>> from mfsbi.simulating import Plan, simulate_to_store
        >>> from simulators.polynomial import PolynomialSurface
        >>> folder = getfixture("tmp_path")
        >>> store = simulate_to_store(Plan(PolynomialSurface(), rows=50, shard_rows=20), folder / "store")
        >>> len(store), store.x.shape, store.read(slice(10, 30)).theta.shape
        (50, torch.Size([50, 3]), torch.Size([20, 1]))
        >>> sum(len(block.x) for block in store.blocks(40, seed=0))
        50
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.attributes = read_attributes(self.path)
        self.layout = Layout.of(self.attributes)
        self.marks = self._marks()
        self.skipped = 0

    def only(self, shards: Sequence[int]) -> "Store":
        """Return the same store as if only these of its finished shards were there."""
        return self._view({shard: self.marks[shard] for shard in shards}, 0)

    def after(self, rows: int) -> "Store":
        """Return the same store as if its first rows were not there."""
        require_positive_integer("rows", rows)
        place = int(np.searchsorted(self._ends, rows, side="right"))
        before = int(self._ends[place - 1]) if place else 0
        return self._view(dict(list(self.marks.items())[place:]), rows - before + (0 if place else self.skipped))

    def _view(self, marks: dict[int, dict[str, int]], skipped: int) -> "Store":
        view = object.__new__(type(self))
        view.path, view.attributes, view.layout = self.path, self.attributes, self.layout
        view.marks, view.skipped = marks, skipped
        return view

    def __repr__(self) -> str:
        return (
            f"Store({str(self.path)!r}: {len(self):,} of {self.rows:,} simulations of {self.attributes['simulator']}, "
            f"{self.failed:,} failed; {len(self.finished)} of {self.layout.shards} shards finished)"
        )

    def __len__(self) -> int:
        """How many rows can be read."""
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def rows(self) -> int:
        """How many rows the store is to have, finished or not, failed or not."""
        return self.layout.rows

    @cached_property
    def finished(self) -> NDArray:
        """The numbers of finished shards."""
        return np.array(list(self.marks), dtype=np.int64)

    @property
    def bytes(self) -> int:
        """How much memory the rows that can be read take."""
        return 4 * len(self) * sum(math.prod(shape) for shape in self.layout.shapes.values())

    @property
    def complete(self) -> bool:
        """Whether all shards are finished."""
        return len(self.marks) == self.layout.shards

    @property
    def failed(self) -> int:
        """How many rows of finished shards failed."""
        return sum(mark["failed"] for mark in self.marks.values())

    @property
    def theta(self) -> Tensor:
        """All theta, shape `(rows, parameter)`."""
        return self._gathered(np.arange(len(self)), "theta")["theta"]

    @property
    def x(self) -> Tensor:
        """All x, shape `(rows, data)`."""
        return self._gathered(np.arange(len(self)), "x")["x"]

    def read(self, rows: slice | Sequence[int] | NDArray | Tensor = slice(None)) -> Simulations:
        """Return rows by their numbers among those that can be read, in the order asked for.

        Raises:
            IndexError: if there is no such row
            TypeError: if rows are not whole numbers, such as a mask of True and False
        """
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise TypeError(f"`rows` should be a slice or a list of whole numbers; got {rows!r}.")
        if len(numbers) and not (-len(self) <= numbers.min() and numbers.max() < len(self)):
            raise IndexError(f"`rows` should lie below {len(self)}, the rows of {self.path} that can be read.")
        return Simulations(**self._gathered(numbers.astype(np.int64) % max(len(self), 1), *self.layout.shapes))

    def blocks(self, rows_in_memory: int, *, seed: int) -> Iterator[Simulations]:
        """Stream all rows once, in an order that the seed decides; see the module for how well they are shuffled.

        Arguments:
            rows_in_memory: of a block at most; one more shard is mapped while it is filled
            seed: another one for each pass

        Raises:
            ValueError: if not even one shard fits
        """
        require_positive_integer("rows_in_memory", rows_in_memory)
        require_seed(seed)
        if rows_in_memory < self.layout.shard_rows:
            raise ValueError(
                f"`rows_in_memory` should hold a shard, {self.layout.shard_rows} rows of {self.path}; "
                f"got {rows_in_memory}."
            )
        return self._blocks(int(rows_in_memory) // self.layout.shard_rows, np.random.default_rng(seed))

    def _blocks(self, together: int, generator: np.random.Generator) -> Iterator[Simulations]:
        order = generator.permutation(len(self.marks))
        for first in range(0, len(order), together):
            group = order[first : first + together]
            numbers = [np.arange(self._ends[place] - self._counts[place], self._ends[place]) for place in group]
            yield Simulations(**self._gathered(generator.permutation(np.concatenate(numbers)), *self.layout.shapes))

    def chunk(self, name: str, shard: int) -> NDArray:
        """Return an array of one finished shard, mapped from disk, failed rows included."""
        shape = (self.layout.shard_rows, *self.layout.shapes.get(name, ()))
        kind = np.dtype(KINDS[name].dtype)
        file = self.path / self.layout.file_of(name, shard)
        expected, got = math.prod(shape) * kind.itemsize, file.stat().st_size
        if got != expected:
            raise ValueError(f"{file} should have {expected} bytes; it has {got}. See `mfsbi store check`.")
        mapped: NDArray = np.memmap(file, dtype=kind, mode="r", shape=shape)
        return mapped[: self.layout.rows_of(shard)]

    def reasons(self, shard: int) -> list[dict[str, Any]]:
        """Return row, theta, error and traceback of each failure in a shard."""
        file = self.path / self.layout.reasons_of(shard)
        try:
            return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        except ValueError as error:
            raise ValueError(f"{file} should hold a line of JSON for each failure: {error}.") from error

    def _gathered(self, numbers: NDArray, *names: str) -> dict[str, Tensor]:
        """Return rows of arrays by their numbers, going through the shards one by one."""
        out = {name: np.empty((len(numbers), *self.layout.shapes[name]), dtype=np.float32) for name in names}
        order = np.argsort(numbers, kind="stable")
        cuts = np.searchsorted(numbers[order], self._ends)  # the rows of each shard lie between two of these
        for place in np.flatnonzero(np.diff(cuts, prepend=0)).tolist():
            wanted = order[cuts[place - 1] if place else 0 : cuts[place]]
            local = self._sound(place)[numbers[wanted] - (self._ends[place] - self._counts[place])]
            for name, values in out.items():
                values[wanted] = self.chunk(name, int(self.finished[place]))[local]
        return {name: torch.from_numpy(values) for name, values in out.items()}

    def _sound(self, place: int) -> NDArray:
        """Return the rows of a shard that did not fail."""
        shard, skipped = int(self.finished[place]), 0 if place else self.skipped
        if not self.marks[shard]["failed"]:
            return np.arange(skipped, self.layout.rows_of(shard))
        return np.flatnonzero(~self.chunk("failed", shard))[skipped:]

    @cached_property
    def _counts(self) -> NDArray:
        """How many rows of each finished shard can be read."""
        counts = [self.layout.rows_of(shard) - self.marks[shard]["failed"] for shard in self.finished.tolist()]
        counts[:1] = [count - self.skipped for count in counts[:1]]
        return np.array(counts, dtype=np.int64)

    @cached_property
    def _ends(self) -> NDArray:
        """The number of the row after the last of each finished shard."""
        return np.cumsum(self._counts)

    def _marks(self) -> dict[int, dict[str, int]]:
        """Return seed, failures and digest of each finished shard, in order."""
        marks = {}
        for file in (self.path / "marks").glob("c.*"):
            values = np.fromfile(file, dtype="<u8").tolist()
            if len(values) != len(MARKS):
                raise ValueError(f"{file} should hold {len(MARKS)} numbers; it holds {len(values)}. Remove that file.")
            marks[int(file.name.split(".")[1])] = dict(zip(MARKS, values, strict=True))
        return dict(sorted(marks.items()))

    def chunks_of(self, shard: int) -> dict[str, Any]:
        """Return all arrays of a finished shard by name, failed rows included."""
        return {name: self.chunk(name, shard) for name in self.layout.arrays}
