"""Simulating on any `concurrent.futures.Executor`: this process, loky, dask.distributed, mpi4py.futures."""

import math
import shutil
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import NamedTuple, TypeVar

from tqdm.auto import tqdm

from mfsbi.checks import require_kind, require_number, require_positive_integer
from mfsbi.simulating.plan import Plan, require_same
from mfsbi.simulating.shards import allowed_failures, draw, seed_of_x, shapes_of
from mfsbi.store import Layout, Store
from mfsbi.store.layout import create, read_attributes, sweep_beside
from mfsbi.store.writing import finish, is_finished, require_writable, sweep

__all__ = ["simulate_to_store", "workers"]

Result = TypeVar("Result")

SHARD_BYTES = 16_000_000
SHARDS = 64
IDLE = 60
"""Seconds after which a worker without work ends, also where whoever started it was killed."""

IN_FLIGHT = 1024
"""Shards submitted at a time: more than most clusters have workers, and little to keep."""

ENDS_ITS_WORK = {"loky"}
"""Libraries whose executors end what they were given when they are shut down, and trip over cancelled futures."""

SAFE = (
    "Finished shards are safe, and the same again goes on. If a worker ran out of memory, take fewer "
    "workers or smaller shards."
)


class Made(NamedTuple):
    """What became of a shard: its rows, how many of them failed, and theta and error of the first."""

    rows: int
    failed: int
    reason: str


def simulate_to_store(
    plan: Plan,
    path: Path | str,
    *,
    executor: Executor | None = None,
    part: tuple[int, int] = (0, 1),
    max_failures: float = 0.1,
    show_progress_bar: bool | None = None,
) -> Store:
    """Simulate what is not yet in a store; call it again, anywhere, to go on after whatever happened.

    Arguments:
        plan: what to simulate
        path: the store's folder, on a file system that all workers see; made if there is none
        executor: anything with `submit`: `workers(k)`, `dask.distributed.Client(...).get_executor()`,
            `mpi4py.futures.MPIPoolExecutor()`; this process if None. Workers are processes of one thread each: those
            that share a process take turns
        part: (i, N) for the shards i, i + N, i + 2 N, ..., i from 0 as in SLURM's job arrays
        max_failures: the fraction of rows that may fail, in a shard and in this run; ten always may, unless it is 0
        show_progress_bar: if None, only in a terminal

    Returns:
        the store as it is then

    Raises:
        ValueError: if the store was made by another plan, or x has another shape than in it
        RuntimeError: if too many simulations fail; the message holds the first traceback
        OSError: if there is no room, or the store cannot be written
    """
    require_kind("plan", plan, Plan, "a `Plan`")
    if executor is not None and not hasattr(executor, "submit"):
        raise TypeError(f"`executor` should have `submit`, as `workers(4)` has; got {executor!r}.")
    _require_range(part, max_failures)
    path = Path(path).resolve()
    layout = _opened(plan, path)
    there, mine = set(Store(path).marks), range(part[0], layout.shards, part[1])
    todo = [shard for shard in mine if shard not in there]
    if todo:
        require_writable(path)
        _require_room(path, len(todo) * layout.shard_rows * layout.bytes_per_row)
    rows, missing = (sum(map(layout.rows_of, shards)) for shards in (mine, todo))
    make = partial(make_shard, plan, path, layout, max_failures)
    with closing(_made(make, todo, executor)) as made:  # so that nothing goes on after an error
        _follow(made, rows - missing, rows, max_failures, show=show_progress_bar)
    store = Store(path)
    if store.complete:
        sweep(path)
    return store


@contextmanager
def workers(count: int) -> Iterator[Executor | None]:
    """Lend an executor of so many processes on this machine; None, which is this process, for one.

    Ctrl-C is for the caller alone, although a terminal sends it to all: what leaves the block by it ends the workers.

    Raises:
        ValueError: if count is not positive
    """
    require_positive_integer("workers", count)
    if count == 1:
        yield None
        return
    from loky import ProcessPoolExecutor  # noqa: PLC0415 - most processes do without

    class Pool(ProcessPoolExecutor):
        def submit(self, task: Callable[..., Result], /, *given: object, **named: object) -> Future[Result]:
            with _blocked_interrupts():  # processes and the thread that are begun here inherit it
                return super().submit(task, *given, **named)

    pool = Pool(count, timeout=IDLE)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise
    pool.shutdown(wait=True)


@contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Let SIGINT wait, where signals can."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # which in Python 3.11 lets SIGINT through when it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_shard(plan: Plan, path: Path, layout: Layout, max_failures: float, shard: int) -> Made:
    """Simulate and write one shard, unless somebody else has finished it meanwhile; runs in a worker."""
    rows = layout.rows_of(shard)
    if is_finished(path, layout, shard):
        return Made(rows, 0, "")
    drawn = draw(plan, layout, shard, max_failures=max_failures)
    seed = seed_of_x(plan.seed, shard)
    finish(path, layout, shard, seed=seed, arrays=drawn.arrays, reasons=drawn.reasons)
    reason = "theta = {theta}: {error}".format(**drawn.reasons[0]) if drawn.reasons else ""
    return Made(rows, len(drawn.reasons), reason)


def _opened(plan: Plan, path: Path) -> Layout:
    """Return the layout of the store, which is made if there is none and is this plan's."""
    ours = plan.attributes()  # before the simulator is called, and may remember it
    if not (path / "zarr.json").exists():
        layout = _sized(plan, shapes_of(plan))
        _require_room(path, layout.rows * layout.bytes_per_row)
        create(path, layout, ours)
    attributes = read_attributes(path)  # somebody else may have been first
    sweep_beside(path)
    require_same(path, attributes, plan, ours)
    return Layout.of(attributes)


def _sized(plan: Plan, shapes: dict[str, tuple[int, ...]]) -> Layout:
    """Return the layout of a plan, which must not depend on who carries it out."""
    fitting = SHARD_BYTES // Layout(1, 1, shapes).bytes_per_row
    rows = plan.shard_rows or max(1, min(fitting, math.ceil(plan.rows / SHARDS)))
    return Layout(plan.rows, min(rows, plan.rows), shapes)


def _made(make: Callable[[int], Made], todo: Sequence[int], executor: Executor | None) -> Generator[Made]:
    """Yield what became of each shard, in the order they are finished."""
    if executor is None:
        yield from map(make, todo)
        return
    waiting, pending = iter(todo), set[Future[Made]]()
    try:
        with _explained():
            while True:
                room = IN_FLIGHT - len(pending)
                pending |= {executor.submit(make, shard) for shard in islice(waiting, room)}
                if not pending:
                    return
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
    finally:
        if ENDS_ITS_WORK.isdisjoint(kind.__module__.partition(".")[0] for kind in type(executor).__mro__):
            for future in pending:
                future.cancel()


@contextmanager
def _explained() -> Iterator[None]:
    """Say what to do where workers, not simulations, have failed."""
    try:
        yield
    except BrokenExecutor as error:
        raise RuntimeError(f"The workers broke down: {str(error).rstrip('.')}. {SAFE}") from error
    except (ValueError, TypeError, OSError, RuntimeError):
        raise  # told by whoever raised it
    except Exception as error:  # such as dask's KilledWorker
        raise RuntimeError(f"A worker failed by {type(error).__name__}: {str(error).rstrip('.')}. {SAFE}") from error


def _follow(made: Iterator[Made], before: int, rows: int, max_failures: float, *, show: bool | None) -> None:
    """Show progress until all is made, or too much of it failed."""
    failed = total = 0
    disable = None if show is None else not show
    with tqdm(total=rows, initial=before, unit=" rows", unit_scale=True, desc="simulating", disable=disable) as bar:
        for shard in made:
            failed, total = failed + shard.failed, total + shard.rows
            bar.set_postfix_str(f"{failed:,} failed", refresh=False)
            bar.update(shard.rows)
            if failed > allowed_failures(max_failures, total):
                raise RuntimeError(
                    f"{failed} of {total} simulations of this run failed, more than `max_failures` = {max_failures} "
                    f"allows. The latest: {shard.reason.rstrip('.')}. Finished shards are kept, with all reasons in "
                    "failed/*.jsonl of the store."
                )


def _require_room(path: Path, needed: int) -> None:
    """Raise OSError if the disk is clearly too small; quotas are met when they are met."""
    place = next(folder for folder in [path, *path.parents] if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise OSError(
            f"The store {path} needs {needed / 1e9:.2f} GB more and {free / 1e9:.2f} GB are free. Make room, or choose "
            "another place."
        )


def _require_range(part: tuple[int, int], max_failures: float) -> None:
    """Raise ValueError unless there is such a part, and such a fraction."""
    whole = isinstance(part, tuple) and len(part) == 2 and all(isinstance(number, int) for number in part)
    if not whole or not 0 <= part[0] < part[1]:
        raise ValueError(f"`part` should be (i, N) with 0 <= i < N; got {part}.")
    require_number("max_failures", max_failures)
    if not 0 <= max_failures <= 1:
        raise ValueError(f"`max_failures` should be a fraction between 0 and 1; got {max_failures}.")
