"""Killed with signal 9 at random moments, a store comes out as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from mfsbi.simulating import Plan, check, simulate_to_store
from mfsbi.store import Store
from simulators.polynomial import PolynomialSurface
from tests.simulating.problems import contents

pytestmark = pytest.mark.slow

ROWS, SHARD_ROWS = 24_000, 40
PLAN = Plan(PolynomialSurface(), rows=ROWS, shard_rows=SHARD_ROWS, seed=7, name="polynomial")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a store that one process has written without interruption."""
    path = tmp_path_factory.mktemp("whole") / "store"
    simulate_to_store(PLAN, path)
    return contents(path)


def start(path, *options, **pipes):
    """Run the command in a process group of its own."""
    numbers = ["-n", str(ROWS), "--shard-rows", str(SHARD_ROWS), "--seed", "7", "--out", str(path)]
    words = ["-c", "from mfsbi.cli import app; app()", "simulate", "polynomial", *numbers, "--quiet", *options]
    return subprocess.Popen([sys.executable, *words], start_new_session=True, **{"stdout": subprocess.DEVNULL} | pipes)


def tell(line):
    """Say how it goes, for those who run exams with -s."""
    sys.stdout.write(line + "\n")


def marks(path):
    """Return when each finished shard was finished, by its file, which is never to change."""
    files = [(file.name, file.stat()) for file in (path / "marks").glob("c.*")] if path.exists() else []
    return {name: (found.st_ino, found.st_mtime_ns) for name, found in files}


def kill_at_work(process, path, dice, delay=1.0):
    """Kill a process group up to `delay` seconds after it has finished its first shard; say what it left."""
    before = len(marks(path))
    while len(marks(path)) == before and process.poll() is None:
        time.sleep(0.01)
    time.sleep(dice.uniform(0, delay))
    alive = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL) if alive else None
    process.wait()
    return alive


def left_behind(path):
    """Return how many files lie aside, and how many chunks belong to shards that are not finished."""
    finished = set(Store(path).marks)
    chunks = [file for file in (path / "theta").glob("c.*") if int(file.name.split(".")[1]) not in finished]
    return len(list(path.glob("*/.*"))), len(chunks)


def test_kills_at_twenty_random_moments_cost_nothing(whole, tmp_path):
    path, dice, seen, asides, torn = tmp_path / "store", random.Random(1), {}, 0, 0
    for _ in range(20):
        assert kill_at_work(start(path, "--workers", "2"), path, dice), "the run ended before it was killed"
        now = marks(path)
        assert seen.items() <= now.items(), "a finished shard was written again, or lost"
        seen = now
        here = left_behind(path)
        asides, torn = asides + (here[0] > 0), torn + (here[1] > 0)
        tell(f"{len(seen)} shards finished, {here[0]} files aside, {here[1]} torn shards")
    assert start(path, "--workers", "2").wait() == 0
    assert seen.items() <= marks(path).items()
    assert contents(path) == whole
    assert check(Store(path), PLAN, again=20) == []
    tell(f"kills that left files aside: {asides}, torn shards: {torn}, of 20")


def test_ctrl_c_with_workers_is_one_line_and_the_next_run_goes_on(whole, tmp_path):
    """As a terminal sends it, to all processes of the group."""
    path = tmp_path / "store"
    process = start(path, "--workers", "2", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while len(marks(path)) < 3:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == "Interrupted. Finished shards are safe; the same line again goes on.\n"
    assert err == ""
    assert start(path, "--workers", "2").wait() == 0
    assert contents(path) == whole


def test_two_processes_share_a_store_by_parts_whatever_kills_them(whole, tmp_path):
    path, dice = tmp_path / "store", random.Random(2)
    for _ in range(4):
        both = [start(path, "--shard", f"{i}/2") for i in (0, 1)]
        for process in both:
            kill_at_work(process, path, dice)
        tell(f"{len(marks(path))} shards finished, {left_behind(path)} aside and torn")
    both = [start(path, "--shard", f"{i}/2") for i in (0, 1)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(path) == whole


def test_two_processes_at_the_same_shards_do_no_harm(whole, tmp_path):
    both = [start(tmp_path / "store") for _ in (0, 1)]
    assert [process.wait() for process in both] == [0, 0]
    assert contents(tmp_path / "store") == whole


@pytest.mark.filterwarnings("ignore")
def test_dask_goes_on_when_its_workers_are_killed(whole, tmp_path):
    distributed = pytest.importorskip("distributed")
    path, dice, killed, over = tmp_path / "store", random.Random(3), [], threading.Event()

    def kill(cluster):
        """Kill a worker each time that seventy more shards are finished; dask gives up one killed while it starts."""
        while not over.wait(dice.uniform(0.01, 0.1)):
            if len(marks(path)) > 70 * (len(killed) + 1):
                pids = [nanny.pid for nanny in cluster.workers.values() if nanny.status.name == "running"]
                if pids:
                    killed.append(dice.choice(pids))
                    os.kill(killed[-1], signal.SIGKILL)

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        killer = threading.Thread(target=kill, args=(cluster,))
        killer.start()
        try:
            assert simulate_to_store(PLAN, path, executor=client.get_executor()).complete
        finally:
            over.set()
            killer.join()
    tell(f"{len(killed)} workers killed")
    assert len(killed) >= 6
    assert contents(path) == whole
