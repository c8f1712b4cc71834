import errno
import os
import re
import stat
from collections import namedtuple
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Independent, Uniform

from mfsbi.simulating import Plan, running, simulate_to_store
from mfsbi.store import Store, layout, writing
from tests.simulating.problems import Forgetful, Noisy, contents

PLAN = Plan(Noisy(), rows=45, shard_rows=10, seed=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of an uninterrupted store."""
    path = tmp_path_factory.mktemp("whole") / "store"
    simulate_to_store(PLAN, path)
    return contents(path)


class Backwards(Executor):
    """An executor that has nothing but `submit`, and does the last first."""

    def __init__(self):
        self.jobs = []

    def submit(self, function, *arguments):
        self.jobs.append((Future(), function, arguments))
        if len(self.jobs) == 5:
            for future, make, what in reversed(self.jobs):
                future.set_result(make(*what))
        return self.jobs[-1][0]


class Idle(Executor):
    """Is interrupted before it has done anything."""

    def submit(self, function, *arguments):
        raise KeyboardInterrupt


def open_store(plan, path):
    """Make a store of which no shard is written."""
    with pytest.raises(KeyboardInterrupt):
        simulate_to_store(plan, path, executor=Idle())
    return Store(path)


def by_threads(plan, path):
    with ThreadPoolExecutor(3) as pool:
        simulate_to_store(plan, path, executor=pool)


def few_at_a_time(plan, path):
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(running, "IN_FLIGHT", 2)
        simulate_to_store(plan, path, executor=pool)


def by_parts(plan, path):
    for i in (2, 0, 1):
        simulate_to_store(plan, path, part=(i, 3))


def in_float64(plan, path):
    torch.set_default_dtype(torch.float64)
    try:
        simulate_to_store(plan, path)
    finally:
        torch.set_default_dtype(torch.float32)


LAYOUTS = {
    "threads": by_threads,
    "few at a time": few_at_a_time,
    "last first": lambda plan, path: simulate_to_store(plan, path, executor=Backwards()),
    "parts": by_parts,
    "another default type": in_float64,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_any_layout_of_workers_leaves_the_same_bytes(name, whole, tmp_path):
    LAYOUTS[name](PLAN, tmp_path / "other")
    assert contents(tmp_path / "other") == whole


def test_simulators_that_use_global_generators_are_seeded_too_and_touch_nobody_elses(tmp_path):
    plan = Plan(Forgetful(), rows=40, shard_rows=5)
    state = torch.get_rng_state()
    simulate_to_store(plan, tmp_path / "one")
    by_threads(plan, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (torch.get_rng_state() == state).all()


def test_shards_do_not_repeat_each_other(tmp_path):
    store = simulate_to_store(PLAN, tmp_path / "store")
    assert len(store.x.unique(dim=0)) == len(store.theta.unique(dim=0)) == 45
    noise = store.x[:, 1:] - store.x[:, :1]
    assert len(noise.unique(dim=0)) == 45
    assert (Noisy().simulate(store.theta[10:20], seed=store.marks[1]["seed"]) == store.x[10:20]).all()
    assert len({mark["seed"] for mark in store.marks.values()}) == 5


def test_another_seed_gives_other_simulations(tmp_path):
    other = simulate_to_store(Plan(Noisy(), rows=45, shard_rows=10, seed=4), tmp_path / "other")
    store = simulate_to_store(PLAN, tmp_path / "store")
    assert (other.theta != store.theta).all()


@pytest.mark.parametrize("stop", range(0, 16, 3))
def test_a_writer_that_dies_between_any_two_steps_costs_nothing(stop, whole, tmp_path, monkeypatch):
    path, steps = tmp_path / "store", []
    force = os.fsync

    class Killed(BaseException):
        """Not caught by anybody, like a signal."""

    def fsync(number):
        steps.append(number)
        if len(steps) > stop:
            raise Killed
        force(number)

    open_store(PLAN, path)
    monkeypatch.setattr(writing.os, "fsync", fsync)
    monkeypatch.setattr(writing.Path, "unlink", lambda *_, **__: None)  # the dead do not tidy up
    with pytest.raises(Killed):
        simulate_to_store(PLAN, path)
    monkeypatch.undo()
    unfinished = Store(path)
    assert not unfinished.complete
    assert all(name in whole or "/." in name for name in contents(path))
    written = {file.name: file.stat().st_mtime_ns for file in (path / "marks").glob("c.*")}
    simulate_to_store(PLAN, path)
    assert contents(path) == whole
    assert all((path / "marks" / name).stat().st_mtime_ns == time for name, time in written.items())


def test_shards_with_missing_or_damaged_chunks_but_no_mark_are_made_again(whole, tmp_path):
    path = tmp_path / "store"
    simulate_to_store(PLAN, path)
    (path / "marks" / "c.3.0").unlink()
    (path / "x" / "c.3.0").write_bytes(b"torn")
    (path / "theta" / "c.3.0").unlink()
    assert simulate_to_store(PLAN, path).complete
    assert contents(path) == whole


def test_what_killed_makers_and_writers_have_left_is_swept_up(tmp_path):
    path, twin = tmp_path / "store", tmp_path / ".aside.store.b~host.1.ab"
    for folder in (tmp_path / ".aside.store~host.1.ab", twin):
        (folder / "x").mkdir(parents=True)
    simulate_to_store(PLAN, path)
    assert {place.name for place in tmp_path.iterdir()} == {"store", twin.name}
    left = path / "x" / ".aside.c.1.0~host.1.ab"
    left.touch()
    simulate_to_store(PLAN, path)
    assert not left.exists()


def test_a_complete_store_is_not_simulated_again(tmp_path, monkeypatch):
    simulate_to_store(PLAN, tmp_path / "store")
    monkeypatch.setattr(running, "draw", None)
    assert simulate_to_store(PLAN, tmp_path / "store").complete


Narrow = Independent(Uniform(torch.zeros(2), torch.tensor([1.0, 0.9])), 1)
OTHERS = {
    "rows": Plan(Noisy(), rows=46, shard_rows=10, seed=3),
    "shard_rows": Plan(Noisy(), rows=45, shard_rows=11, seed=3),
    "seed": Plan(Noisy(), rows=45, seed=4),
    "prior_draws": Plan(Noisy(), rows=45, prior=Narrow, seed=3),
    "simulator_hash": Plan(Noisy(scale=2.0), rows=45, seed=3),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_plan_is_refused_by_name_before_anything_is_written(name, whole, tmp_path):
    path = tmp_path / "store"
    simulate_to_store(PLAN, path, part=(0, 2))
    before = contents(path)
    with pytest.raises(ValueError, match=f"`{name}` of the store .* here it is .* choose another place"):
        simulate_to_store(OTHERS[name], path)
    assert contents(path) == before


def test_a_shard_that_could_hold_more_holds_all(tmp_path):
    plan = Plan(Noisy(), rows=45, shard_rows=100)
    assert simulate_to_store(plan, tmp_path / "store").layout.shards == 1
    assert simulate_to_store(plan, tmp_path / "store").complete


def test_the_size_of_shards_need_not_be_said_again(whole, tmp_path):
    simulate_to_store(PLAN, tmp_path / "store", part=(0, 2))
    simulate_to_store(Plan(Noisy(), rows=45, seed=3), tmp_path / "store")
    assert contents(tmp_path / "store") == whole


def test_changed_code_is_refused(tmp_path):
    simulate_to_store(PLAN, tmp_path / "store")
    with pytest.raises(ValueError, match="`simulator_hash`.*its code or its attributes"):
        simulate_to_store(Plan(Forgetful(), rows=45, seed=3), tmp_path / "store")


def test_a_full_disk_leaves_nothing_half_written(whole, tmp_path, monkeypatch):
    path, calls = tmp_path / "store", []
    force = os.fsync

    def full(number):
        calls.append(number)
        if len(calls) == 15:
            raise OSError(errno.ENOSPC, "No space left on device")
        force(number)

    monkeypatch.setattr(writing.os, "fsync", full)
    with pytest.raises(OSError, match="Cannot write to the store .*No space left.*Make room and run the same again"):
        simulate_to_store(PLAN, path)
    monkeypatch.undo()
    assert set(contents(path)) < set(whole)
    shards = Store(path).finished
    assert 0 < len(shards) < 5
    assert {int(file.name.split(".")[1]) for file in (path / "x").glob("c.*")} == set(shards.tolist())
    simulate_to_store(PLAN, path)
    assert contents(path) == whole


def test_all_that_describes_a_store_is_forced_to_disk(tmp_path, monkeypatch):
    forced, force = set(), os.fsync

    def fsync(number):
        forced.add(os.fstat(number).st_ino)
        force(number)

    monkeypatch.setattr(os, "fsync", fsync)
    simulate_to_store(PLAN, tmp_path / "store", part=(5, 6))
    described = list((tmp_path / "store").rglob("zarr.json"))
    assert len(described) == 5
    assert {file.stat().st_ino for file in [tmp_path, *described]} <= forced


@pytest.mark.parametrize(("answer", "bears"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_folders_that_cannot_be_forced_to_disk_are_no_reason_to_fail(answer, bears, tmp_path, monkeypatch):
    force = os.fsync

    def fsync(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(answer, "no")
        force(number)

    simulate_to_store(PLAN, tmp_path / "store", part=(5, 6))
    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if bears else pytest.raises(OSError, match="Cannot write to the store"):
        assert simulate_to_store(PLAN, tmp_path / "store").complete


def test_a_disk_too_small_is_seen_before_anything_is_made(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(running.shutil, "disk_usage", lambda _: usage(900))
    with pytest.raises(OSError, match=r"needs 0.00 GB more and 0.00 GB are free"):
        simulate_to_store(PLAN, tmp_path / "store")
    assert not list(tmp_path.iterdir())


def test_a_store_that_cannot_be_written_is_refused_before_simulating(tmp_path, monkeypatch):
    path = tmp_path / "store"
    simulate_to_store(PLAN, path, part=(0, 2))
    before = contents(path)
    monkeypatch.setattr(running, "draw", None)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(writing.Path, "write_bytes", refuse)  # root may write anywhere
    with pytest.raises(OSError, match="Cannot write to the store .*Permission denied. You may read it but not write"):
        simulate_to_store(PLAN, path)
    monkeypatch.undo()
    assert contents(path) == before


def test_whoever_makes_the_store_second_uses_the_first_ones(whole, tmp_path):
    path = tmp_path / "store"
    simulate_to_store(PLAN, path, part=(0, 2))
    described = Store(path)
    layout.create(path, described.layout, {"seed": 99})
    assert Store(path).attributes == described.attributes
    simulate_to_store(PLAN, path)
    assert contents(path) == whole


class Shrinking(Noisy):
    """Returns fewer features for larger batches."""

    def simulate(self, theta, *, seed=None):
        return super().simulate(theta, seed=seed)[:, : 3 if len(theta) < 5 else 2]


def test_another_shape_in_a_later_shard_is_refused_and_not_written(tmp_path):
    expected = re.escape("`x` should have shape (10, 3), as in the rest of the store; the simulator's has (10, 2).")
    with pytest.raises(ValueError, match=expected):
        simulate_to_store(Plan(Shrinking(), rows=30, shard_rows=10), tmp_path / "store")
    assert not len(Store(tmp_path / "store").finished)


def test_shards_are_sixteen_megabytes_or_a_sixty_fourth(tmp_path, monkeypatch):
    monkeypatch.setattr(running.shutil, "disk_usage", lambda _: SimpleNamespace(free=1e12))
    small, large = (open_store(Plan(Noisy(), rows=rows), tmp_path / str(rows)).layout for rows in (6400, 10**8))
    assert small.shards == 64
    assert 15e6 < large.shard_rows * large.bytes_per_row < 16e6
