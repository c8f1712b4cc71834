"""Where things lie in a store: arrays, shards, and the file of each chunk."""

import errno
import glob
import json
import math
import os
import secrets
import shutil
import socket
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mfsbi.checks import require_positive_integer
from mfsbi.files import require_format

__all__ = ["ASIDE", "KINDS", "MARKS", "Layout", "aside", "create", "force", "read_attributes", "sweep_beside"]

FORMAT = "mfsbi store 1"
MARKS = ("seed", "failed", "digest")
"""Columns of `marks`."""

ASIDE = ".aside."
"""How the names of files begin that are being written."""

UNFORCED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
"""What some network file systems, and Windows, answer to whoever wants to force a folder to disk."""

AXES = {"theta": "parameter", "joint_score": "parameter", "x": "feature"}
"""Name of the axis after rows."""


class Kind(NamedTuple):
    """The numbers of an array: their type on disk, and what stands where there is none yet."""

    dtype: str
    empty: float


KINDS = defaultdict(lambda: Kind("<f4", np.nan), failed=Kind("?", empty=False))
"""The kind of each array by its name."""


@dataclass(frozen=True)
class Layout:
    """Sizes and shapes of a store.

    Arguments:
        rows: of all shards
        shard_rows: rows of each shard; the last may have fewer
        shapes: of one row of each array of numbers, such as `{"theta": (2,), "x": (40,)}`
    """

    rows: int
    shard_rows: int
    shapes: dict[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        require_positive_integer("rows", self.rows)
        require_positive_integer("shard_rows", self.shard_rows)

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> "Layout":
        """Return the layout that a store's attributes describe."""
        shapes = {name: tuple(shape) for name, shape in attributes["shapes"].items()}
        return cls(attributes["rows"], attributes["shard_rows"], shapes)

    @property
    def shards(self) -> int:
        """How many there are."""
        return math.ceil(self.rows / self.shard_rows)

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays that have rows."""
        return [*self.shapes, "failed"]

    @property
    def bytes_per_row(self) -> int:
        """What one row takes on disk."""
        return 1 + sum(4 * math.prod(shape) for shape in self.shapes.values())

    def rows_of(self, shard: int) -> int:
        """Return how many rows a shard has."""
        return min(self.shard_rows, self.rows - shard * self.shard_rows)

    def file_of(self, name: str, shard: int) -> Path:
        """Return the chunk's file, relative to the store."""
        further = {**self.shapes, "marks": (len(MARKS),)}.get(name, ())
        return Path(name, ".".join(["c", str(shard), *["0"] * len(further)]))

    @staticmethod
    def reasons_of(shard: int) -> Path:
        """Return the file of a shard's failures, relative to the store."""
        return Path("failed", f"{shard}.jsonl")


def aside(path: Path) -> Path:
    """Return a name in the same folder that nobody else uses."""
    return path.with_name(f"{ASIDE}{path.name}~{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}")


def force(folder: Path) -> None:
    """Make renames in a folder outlast a power failure, where that can be done."""
    try:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
    except OSError as error:
        if error.errno not in UNFORCED:
            raise


def create(path: Path, layout: Layout, attributes: dict[str, Any]) -> None:
    """Make an empty store, unless somebody else makes one at the same moment.

    Raises:
        OSError: if it cannot be written
    """
    place = aside(path)
    try:
        _create(place, layout, attributes)
        for file in place.rglob("zarr.json"):
            with file.open("r+b") as opened:
                os.fsync(opened.fileno())
        place.rename(path)
        force(path.parent)
    except OSError as error:
        if not (path / "zarr.json").is_file():
            raise OSError(f"Cannot make the store {path}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sweep_beside(path: Path) -> None:
    """Remove what killed makers of a store have left beside it, once it is there; who still makes it is too late."""
    for left in path.parent.glob(f"{ASIDE}{glob.escape(path.name)}~*"):
        shutil.rmtree(left, ignore_errors=True)


def _create(place: Path, layout: Layout, attributes: dict[str, Any]) -> None:
    import zarr  # noqa: PLC0415 - slow, and whoever only reads or simulates does without

    described = {"format": FORMAT, "rows": layout.rows, "shard_rows": layout.shard_rows, "shapes": layout.shapes}
    group = zarr.create_group(place, attributes={**described, **attributes})
    common: dict[str, Any] = {"compressors": None, "chunk_key_encoding": {"name": "default", "separator": "."}}
    for name in layout.arrays:
        shape = layout.shapes.get(name, ())
        group.create_array(
            name,
            shape=(layout.rows, *shape),
            chunks=(layout.shard_rows, *shape),
            dtype=KINDS[name].dtype,
            fill_value=KINDS[name].empty,
            dimension_names=["row", *([AXES[name]] if len(shape) == 1 else [f"axis_{i}" for i in range(len(shape))])],
            **common,
        )
    shape, chunks = (layout.shards, len(MARKS)), (1, len(MARKS))
    of_marks: dict[str, Any] = {"dimension_names": ["shard", "mark"], "attributes": {"columns": MARKS}}
    group.create_array("marks", shape=shape, chunks=chunks, dtype=np.uint64, fill_value=0, **of_marks, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr 3 says that what xarray looks for is no standard
        zarr.consolidate_metadata(place)


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the attributes of a store.

    Raises:
        FileNotFoundError: if there is none
        ValueError: if it is something else, or of a format this version does not know
    """
    file = path / "zarr.json"
    if not file.is_file():
        raise FileNotFoundError(f"There is no store {path}.")
    try:
        attributes: dict[str, Any] = json.loads(file.read_text())["attributes"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is not a store of mfsbi: {error}.") from error
    require_format(path, attributes.get("format"), FORMAT)
    return attributes
