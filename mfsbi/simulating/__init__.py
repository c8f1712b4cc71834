r"""From a simulator to a store, by any workers in any order.

A `Plan` says what is simulated; `simulate_to_store` does it, in this process or on whatever executor there is. Shard k
of a plan is a function of the plan's seed and of k alone:

    theta ~ prior, seeded by number 2 k of the plan's seeds,      x ~ p(x|theta), seeded by number 2 k + 1.

The seed of a number has 31 bits of `SeedSequence(seed, spawn_key=(number,))` and 32 that no other number has, because
torch's generators see only these (`mfsbi.seeds.distinct`): no two shards share their draws. Hence one worker or a
thousand, one run or twenty that were killed, leave the same bytes, as long as the simulator's numbers do not depend on
the machine. For that a shard is simulated by one thread of torch and in float32, whatever the process does otherwise,
and never two at a time in one process, because threads share the random generators of torch and numpy.

**Failures.** A call that fails is made once more, since what fails by chance should not change x. If it fails again,
its rows are halved and each half simulated by a seed of its own, down to the single rows that fail: one bad row among n
costs 2 log2(n) calls and not n. Those rows, and rows that are not finite, are flagged `failed` in the store and noted
with theta and traceback in `failed/<shard>.jsonl`; readers leave them out. A model learned from a store hence describes
x given that the simulator did not fail.
"""

from mfsbi.simulating.checking import check
from mfsbi.simulating.plan import Plan
from mfsbi.simulating.running import simulate_to_store, workers

__all__ = ["Plan", "check", "simulate_to_store", "workers"]
