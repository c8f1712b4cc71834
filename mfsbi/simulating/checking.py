"""Check a store: sizes, digests, seeds and finiteness of every shard, and that some come out the same again."""

import numpy as np

from mfsbi.simulating.plan import Plan, require_same
from mfsbi.simulating.shards import draw, seed_of_x
from mfsbi.store import Store
from mfsbi.store.writing import digest_of

__all__ = ["check"]


def check(store: Store, plan: Plan | None = None, *, again: int = 0, seed: int = 0) -> list[str]:
    """Return what is wrong with the finished shards, a sentence each; nothing if all is well.

    Arguments:
        store: to be read from the first shard to the last
        plan: that it was made by, for `again`
        again: how many shards, chosen at random, to simulate again and compare bit by bit
        seed: of that choice

    Raises:
        ValueError: if the store was made by another plan, or `again` comes without one
    """
    if again and plan is None:
        raise ValueError("Simulating again needs the `plan` that the store was made by.")
    if plan is not None:
        require_same(store.path, store.attributes, plan, plan.attributes())
    wrong = {shard: _fault(store, shard) for shard in store.finished.tolist()}
    sound = [shard for shard, fault in wrong.items() if not fault]
    chosen = np.random.default_rng(seed).permutation(sound)[:again]
    if plan is not None:
        wrong |= {shard: _difference(store, plan, shard) for shard in chosen.tolist()}
    return [f"Shard {shard}: {fault}" for shard, fault in wrong.items() if fault]


def _fault(store: Store, shard: int) -> str:
    """Return what is wrong with a shard as it lies there; nothing if all is well."""
    mark = store.marks[shard]
    try:
        arrays, reasons = store.chunks_of(shard), store.reasons(shard)
    except (ValueError, OSError) as error:
        return f"cannot be read: {error}"
    if mark["seed"] != seed_of_x(store.attributes["seed"], shard):
        return "its seed is not the one that the store's seed gives."
    files = [store.path / store.layout.file_of(name, shard) for name in store.layout.arrays]
    if mark["digest"] != digest_of(file.read_bytes() for file in files):
        return "its bytes are not those that were written."
    failed = arrays.pop("failed")
    if failed.sum() != mark["failed"] or len(reasons) != mark["failed"]:
        return f"{mark['failed']} rows failed, {failed.sum()} are flagged, {len(reasons)} have reasons."
    infinite = [name for name, values in arrays.items() if not np.isfinite(values[~failed]).all()]
    return f"{', '.join(infinite)} not finite in rows that did not fail." if infinite else ""


def _difference(store: Store, plan: Plan, shard: int) -> str:
    """Return in which arrays a shard differs from one made again."""
    arrays = draw(plan, store.layout, shard).arrays
    differing = [name for name, values in arrays.items() if store.chunk(name, shard).tobytes() != values.tobytes()]
    return f"made again, it differs in {', '.join(differing)}." if differing else ""
