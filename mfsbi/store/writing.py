"""Write a shard: aside, forced to disk, renamed into place, the mark last."""

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mfsbi.store.layout import ASIDE, KINDS, Layout, aside, force

__all__ = ["digest_of", "finish", "is_finished", "require_writable", "sweep"]


def finish(
    path: Path, layout: Layout, shard: int, *, seed: int, arrays: dict[str, NDArray], reasons: list[dict[str, Any]]
) -> bool:
    """Write one shard, unless it is finished.

    Arguments:
        path: of the store
        layout: of the store
        shard: its number
        seed: the one that x was simulated by
        arrays: those of the layout and `failed`, a row for each of the shard, as `mfsbi.simulating.shards.draw` checks
            them
        reasons: of failures, whatever JSON can hold of each

    Returns:
        whether this call finished it

    Raises:
        OSError: if it cannot be written; nothing of it stays
    """
    if is_finished(path, layout, shard):
        return False
    chunks = {name: _chunk(layout, name, arrays[name]) for name in layout.arrays}
    contents = {layout.file_of(name, shard): chunk for name, chunk in chunks.items()}
    if reasons:
        contents[layout.reasons_of(shard)] = "".join(json.dumps(reason) + "\n" for reason in reasons).encode()
    marks = np.array([seed, arrays["failed"].sum(), digest_of(chunks.values())], dtype="<u8").tobytes()
    try:
        _place(path, contents)
        for folder in {(path / name).parent for name in contents}:
            force(folder)
        _place(path, {layout.file_of("marks", shard): marks})
    except FileNotFoundError:
        if is_finished(path, layout, shard):  # by somebody else, who swept up
            return False
        raise
    except OSError as error:
        raise OSError(error.errno, _complaint(path, error)) from error
    return True


def digest_of(chunks: Iterable[bytes]) -> int:
    """Return a number that tells whether chunks are as they were written."""
    total = hashlib.blake2b(digest_size=8)
    for chunk in chunks:
        total.update(chunk)
    return int.from_bytes(total.digest(), "little")


def is_finished(path: Path, layout: Layout, shard: int) -> bool:
    """Return whether a shard is there."""
    return (path / layout.file_of("marks", shard)).is_file()


def require_writable(path: Path) -> None:
    """Raise OSError unless files can be made in a store."""
    probe = aside(path / "marks" / "probe")
    try:
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(error.errno, _complaint(path, error)) from error


def sweep(path: Path) -> None:
    """Remove what killed writers have left of shards that others finished; for a store with nothing left to write."""
    with suppress(OSError):  # of a store that may only be read nothing needs to be removed
        for left in path.glob(f"*/{ASIDE}*"):
            left.unlink(missing_ok=True)


def _place(path: Path, contents: dict[Path, bytes]) -> None:
    """Bring files to disk under their names, all of them whole or none of them there."""
    places = {aside(path / name): path / name for name in contents}
    try:
        for place, content in zip(places, contents.values(), strict=True):
            with place.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for place, final in places.items():
            place.replace(final)
    finally:
        for place in places:
            place.unlink(missing_ok=True)


def _chunk(layout: Layout, name: str, array: NDArray) -> bytes:
    """Return the bytes of a chunk, filled up where the last shard ends early."""
    kind = KINDS[name]
    if len(array) == layout.shard_rows:
        return array.astype(kind.dtype, copy=False).tobytes()
    whole = np.full((layout.shard_rows, *array.shape[1:]), kind.empty, dtype=kind.dtype)
    whole[: len(array)] = array
    return whole.tobytes()


def _complaint(path: Path, error: OSError) -> str:
    """Return why a store cannot be written, and what to do about it."""
    full = "Make room and run the same again: finished shards are safe."
    advice = {
        errno.ENOSPC: full,
        errno.EDQUOT: full,
        errno.EROFS: "The file system is read-only.",
        errno.EACCES: "You may read it but not write.",
    }.get(error.errno or 0, "Finished shards are safe.")
    return f"Cannot write to the store {path}: {error.strerror or error}. {advice}"
