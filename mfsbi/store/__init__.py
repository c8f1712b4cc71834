r"""Simulations on disk: sharded, safe against interruption, larger than memory.

A store is a folder, one Zarr v3 group whose arrays have one chunk for each *shard*, a run of rows that was simulated
together:

| array | shape | what |
|---|---|---|
| `theta` | `(row, parameter)` | float32 |
| `x` | `(row, feature)` | float32, drawn at theta |
| `joint_score`, `joint_log_ratio` | `(row, parameter)`, `(row,)` | float32, where the simulator knows them |
| `failed` | `(row,)` | whether the simulator failed at that row, which then counts for nothing |
| `marks` | `(shard, mark)` | uint64: the seed x was simulated by, how many rows failed, and the digest of the chunks |

The group's attributes say where the data come from. `xarray.open_zarr(path)` shows one dataset; rows that are not there
yet are NaN in it, those that failed are flagged by `failed`, with reasons in `failed/<shard>.jsonl`. A shard whose
writer died may show some of its arrays there before it is made again; its `marks` are zero until it is finished.
Random numbers do not compress, so chunks are raw little-endian numbers, and `Store` maps them into memory as they lie.

**Why nothing is half-written.** A chunk is written aside in the same folder, forced to disk and renamed into place; the
chunk of `marks` comes last, when everything else of its shard is on disk. A shard is *finished* if and only if that
chunk exists, and is then never written again. Whenever a writer dies, its shard either is finished or is made again by
somebody else, and it comes out the same, since data are a function of the store's seed and the shard's number alone
(`mfsbi.simulating`). Two writers at one shard write the same bytes. Writers need no locks and do not know each other.
"""

from mfsbi.store.layout import Layout
from mfsbi.store.reading import Store

__all__ = ["Layout", "Store"]
