"""Runs that stop: too many failures, executors that fail, interrupts."""

import signal
from concurrent.futures import Executor, Future

import numpy as np
import pytest

from mfsbi.simulating import Plan, running, simulate_to_store
from mfsbi.store import Store
from tests.simulating.problems import Fragile, Noisy

PLAN = Plan(Noisy(), rows=45, shard_rows=10, seed=3)


def test_too_many_failures_stop_the_run_and_show_the_first(tmp_path):
    plan = Plan(Fragile(share=0.5), rows=60, shard_rows=30)
    with pytest.raises(RuntimeError, match=r"(?s)simulations failed, more than `max_failures` allows.*theta = \["):
        simulate_to_store(plan, tmp_path / "store")
    assert not len(Store(tmp_path / "store").finished)
    assert simulate_to_store(plan, tmp_path / "store", max_failures=1.0).complete


def test_failures_add_up_over_small_shards(tmp_path):
    plan = Plan(Fragile(share=0.5), rows=200, shard_rows=5)
    with pytest.raises(RuntimeError, match=r"simulations of this run failed, more than `max_failures` = 0.2.*jsonl"):
        simulate_to_store(plan, tmp_path / "store", max_failures=0.2)
    assert 0 < len(Store(tmp_path / "store").finished) < 10


def test_one_failure_is_one_too_many_where_none_is_allowed(tmp_path):
    with pytest.raises(RuntimeError, match="max_failures"):
        simulate_to_store(Plan(Fragile(), rows=300, shard_rows=100), tmp_path / "store", max_failures=0.0)


class Lost(Exception):  # noqa: N818
    """What an executor of others raises for a worker that was killed."""


def test_an_executors_own_errors_are_explained_and_nothing_goes_on(tmp_path):
    class Losing(Executor):
        def __init__(self):
            self.futures = []

        def submit(self, make, shard):
            self.futures.append(Future())
            if shard == 0:
                self.futures[-1].set_exception(Lost("3 tries"))
            return self.futures[-1]

    pool = Losing()
    with pytest.raises(RuntimeError, match="A worker failed by Lost: 3 tries. Finished shards are safe"):
        simulate_to_store(PLAN, tmp_path / "store", executor=pool)
    assert [future.cancelled() for future in pool.futures] == [False, *[True] * 4]


def test_after_too_many_failures_nothing_goes_on(tmp_path):
    class Slow(Executor):
        def __init__(self):
            self.futures = []

        def submit(self, make, shard):
            self.futures.append(Future())
            if shard == 0:
                self.futures[-1].set_result(running.Made(PLAN.shard_rows, 20, "bad"))
            return self.futures[-1]

    pool = Slow()
    with pytest.raises(RuntimeError, match="20 of 10 simulations of this run failed"):
        simulate_to_store(PLAN, tmp_path / "store", executor=pool)
    assert all(future.cancelled() for future in pool.futures[1:])


def test_in_an_interrupted_run_what_waits_is_cancelled(tmp_path):
    class Interrupting(Executor):
        def __init__(self):
            self.futures = []

        def submit(self, make, shard):
            future = Future()
            if shard == 0:
                future.set_exception(KeyboardInterrupt())
            self.futures.append(future)
            return future

    pool = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        simulate_to_store(PLAN, tmp_path / "store", executor=pool)
    assert [future.cancelled() for future in pool.futures] == [False, *[True] * 4]
    assert np.array_equal(Store(tmp_path / "store").finished, [])


def blocked():
    """Return the signals that wait in this process."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_interrupts_reach_the_caller_alone():
    with running.workers(2) as pool:
        assert signal.SIGINT in pool.submit(blocked).result()
        assert signal.SIGINT not in blocked()
