"""Commands that simulate into stores, and look into them."""

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated
from zipfile import ZipFile

import typer

from mfsbi.cli.common import MISTAKES, PriorOption, QuietOption, SeedOption, command, require_folder, say
from mfsbi.simulating import Plan, check, simulate_to_store, workers
from mfsbi.sources import prior_of, prior_of_store, simulator
from mfsbi.store import Store

__all__ = ["simulate", "store"]

store = typer.Typer(help="Look into simulations on disk.", no_args_is_help=True)

StoreArgument = Annotated[Path, typer.Argument(help="A folder of `mfsbi simulate`.")]


def _count(word: str | int) -> int:
    """Return the whole number that a word such as 1e7 stands for."""
    number = float(word)
    if not (1 <= number < 1e18 and number == int(number)):
        raise typer.BadParameter(f"should be a positive whole number, such as 100000 or 1e7; got {word}.")
    return int(number)


def _part(word: str) -> tuple[int, int]:
    """Return (i, N) of the word i/N."""
    i, _, count = word.partition("/")
    if not (i.isdecimal() and count.isdecimal() and int(i) < int(count)):
        raise ValueError(f"`--shard` should be i/N with i from 0 to N - 1; got {word}.")
    return int(i), int(count)


@dataclass(frozen=True, kw_only=True)
class WantedOptions:
    """What is simulated, and how often."""

    word: Annotated[str, typer.Argument(metavar="SIMULATOR", help="A registered simulator, or MODULE:NAME.")]
    rows: Annotated[int, typer.Option("-n", parser=_count, metavar="N", help="Simulations, such as 1e7.")]


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Who simulates which part of a store."""

    part: Annotated[
        str, typer.Option("--shard", metavar="i/N", help="Only shards i, i + N, ...; i from 0 as in job arrays.")
    ] = "0/1"
    processes: Annotated[int, typer.Option("--workers", min=1, help="Processes on this machine.")] = 1
    dask: Annotated[str, typer.Option(metavar="ADDRESS", help="A dask scheduler's, instead of --workers.")] = ""


@dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """What a shard holds, and how much of it may fail."""

    shard_rows: Annotated[int, typer.Option(min=0, help="Rows of a shard; 0 to choose by size.")] = 0
    no_gold: Annotated[bool, typer.Option("--no-gold", help="Leave out joint scores and joint log ratios.")]
    max_failures: Annotated[float, typer.Option(min=0, max=1, help="Fraction of simulations that may fail.")] = 0.1


@command(*MISTAKES)
def simulate(
    wanted: WantedOptions,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the store.")],
    prior: PriorOption,
    seed: SeedOption = 0,
    worker: WorkerOptions,
    shards: ShardOptions,
    quiet: QuietOption,
) -> None:
    """Simulate into a store on disk. The same line again goes on after whatever interrupted it.

    Theta comes from the prior, x from the simulator, and both from the seed alone: any number of workers, on any
    machines, in any order leave the same store. A simulation that fails is told in failed/*.jsonl of the store.

    mfsbi simulate polynomial -n 1e7 --out sims --workers 4

    mfsbi simulate mymodule:simulate -n 1e6 --prior -1:1 --prior 0:10 --out sims

    mfsbi simulate lhc -n 1e7 --out sims --shard $SLURM_ARRAY_TASK_ID/100     (sbatch --array=0-99)
    """
    require_folder(out)
    known = simulator(wanted.word, prior)
    plan = Plan(
        known,
        wanted.rows,
        prior=prior_of(known, prior),  # bounds replace the prior of a simulator that has one
        seed=seed,
        shard_rows=shards.shard_rows or None,
        gold=not shards.no_gold,
        name=wanted.word,
    )
    try:
        with _executor(worker.processes, worker.dask) as executor:
            found = simulate_to_store(
                plan,
                out,
                executor=executor,
                part=_part(worker.part),
                max_failures=shards.max_failures,
                show_progress_bar=False if quiet else None,
            )
    except KeyboardInterrupt as error:
        say("Interrupted. Finished shards are safe; the same line again goes on.")
        raise typer.Exit(130) from error
    say(_summary(found))


@store.command()
@command(*MISTAKES)
def info(path: StoreArgument) -> None:
    """Say what a store holds and where that came from."""
    found = Store(path)
    say(_summary(found))
    hidden = {"format", "prior_draws", "prior_log_probs", "prior" if found.attributes.get("prior_bounds") else ""}
    for name, value in found.attributes.items():
        if name not in hidden:
            say(f"{name.replace('_', ' ')}: {value}")


@store.command(name="check")
@command(*MISTAKES)
def check_store(
    path: StoreArgument,
    *,
    again: Annotated[int, typer.Option(min=0, help="Shards to simulate again and compare bit by bit.")] = 0,
    simulator_name: Annotated[str, typer.Option("--simulator", help="For --again, if not the store's word.")] = "",
    prior: PriorOption,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of shards.")] = 0,
) -> None:
    """Read every finished shard and see whether it is what was written. Exit code 1 if one is not."""
    found = Store(path)
    plan = _plan_of(found, simulator_name, prior) if again else None
    faults = check(found, plan, again=again, seed=seed)
    say(_summary(found))
    for fault in faults:
        say(fault)
    if faults:
        say("Remove marks/c.<shard>.0 of these and run the line that made the store: they are made again.")
        raise typer.Exit(1)
    say("No fault found" + (f"; {again} shards came out the same again." if again else "."))


def _plan_of(found: Store, word: str, prior: list[str]) -> Plan:
    """Return the plan that a store was made by, of the simulator that a word stands for if it is not the store's."""
    stored = found.attributes
    ends = prior or [f"{low}:{high}" for low, high in stored.get("prior_bounds") or ()]  # which a function needs
    known = simulator(word or stored["simulator"], ends)
    settings = {name: stored[name] for name in ("rows", "seed", "shard_rows", "gold")}
    return Plan(known, prior=prior_of_store(found, known, prior), name=word or stored["simulator"], **settings)


@contextmanager
def _executor(count: int, dask: str) -> Iterator[Executor | None]:
    """Lend an executor of processes on this machine, or of the workers of a dask scheduler, if there is an address.

    The latter are sent the modules of the working folder by distributed's plugin `UploadFile`, also those that join
    later. Its `UploadDirectory` would send the whole folder, stores included, and only to workers that have a nanny.
    """
    if not dask:
        with workers(count) as executor:
            yield executor
        return
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ValueError("`--dask` needs dask.distributed: pip install 'mfsbi[dask]'.") from error
    with Client(dask) as client, TemporaryDirectory() as folder:
        if files := _modules_here():
            client.upload_file(_zipped(files, Path(folder)))
        yield client.get_executor()


def _modules_here() -> list[Path]:
    """Return the files of modules and packages imported from the working folder, which workers elsewhere do not see."""
    modules = list(sys.modules.items())  # other threads may import
    tops = [module for name, module in modules if "." not in name and name not in ("mfsbi", "simulators")]
    places = {Path(place) for top in tops for place in getattr(top, "__path__", [getattr(top, "__file__", None) or ""])}
    here = sorted(place for place in places if place.parent == Path.cwd())
    return [file for place in here for file in (sorted(place.rglob("*.py")) if place.is_dir() else [place])]


def _zipped(files: list[Path], folder: Path) -> str:
    """Return the path of an archive of modules, named by what is in it so that a new one is not taken for an old."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    path = folder / f"modules-{digest}.zip"
    inside = {file.relative_to(Path.cwd()) for file in files}
    folders = {parent for file in inside for parent in file.parents}  # packages without __init__.py need theirs
    with ZipFile(path, "w") as archive:
        for each in sorted(inside | folders - {Path()}):
            archive.write(each)
    return str(path)


def _summary(found: Store) -> str:
    """Return in one line how much of a store is there."""
    shards = f"{len(found.finished)} of {found.layout.shards} shards are finished"
    failed = f", {found.failed:,} failed" if found.failed else ""
    return f"{found.path} holds {len(found):,} of {found.rows:,} simulations{failed}; {shards}."
