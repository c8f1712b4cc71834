"""Running a table: train every row with every seed, judge it by the simulator's truth, keep what was measured.

An experiment is a row of a table with a seed. What was measured is a small JSON file, whose name holds a hash of
everything that decides the result, so that a table can be finished over several sittings and a changed setting never
meets an old number.
"""

import hashlib
import json
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import chdir
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch.distributions import Distribution

from mfsbi.bench.judge import Candidate, of_model, of_ratio, of_sbi
from mfsbi.bench.rows import HELD_OUT, Budget, RatioNetwork, Row
from mfsbi.bench.tables import TABLES
from mfsbi.gold import simulate
from mfsbi.plugin.host import NLE_A
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES
from mfsbi.plugin.specs import Spec
from mfsbi.seeds import derived, seeded
from mfsbi.simulations import Simulations
from mfsbi.types import Prior

__all__ = ["Experiment", "experiments", "read_results", "run_table"]

VERSION = 2
"""To be raised when the judge or the training changes in a way that settings do not show."""


@dataclass(frozen=True)
class Experiment:
    """A row of a table with a seed.

    Arguments:
        table: its name
        preset: the budget's name
        budget: how much it may cost
        row: what is built and how it is trained
        seed: of the data, the weights and the order of the rows
    """

    table: str
    preset: str
    budget: Budget
    row: Row
    seed: int

    @property
    def description(self) -> dict[str, Any]:
        """All that decides the result, as plain values."""
        phases = [phase._asdict() | {"loss": phase.loss.__name__} for phase in self.row.schedule]
        return {
            "table": self.table,
            "row": self.row.name,
            "spec": re.sub(r"<[^<>]*>", "function", repr(self.row.spec)),
            "phases": phases,
            "cpu_seconds": self.row.cpu_seconds,
            "simulations": self.budget.simulations,
            "seed": self.seed,
            "version": VERSION,
        } | ({} if self.budget.sets == Budget.sets else {"sets": self.budget.sets})

    @property
    def name(self) -> str:
        """Row, seed and the hash of the description: `mflow-sequential.0.1a2b3c4d`."""
        text = json.dumps(self.description, sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.row.name.lower()).strip("-")
        return f"{slug}.{self.seed}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def path(self, folder: Path) -> Path:
        """Return where the result lies or will lie."""
        return folder / f"{self.table}-{self.preset}" / f"{self.name}.json"

    def write(self, folder: Path, result: dict[str, Any]) -> None:
        """Write the result aside and move it into place, so that no half of it is ever read.

        Arguments:
            folder: of all tables; this one's is created in it
            result: what was measured, as JSON can hold it
        """
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps({"experiment": self.description, "result": result}, indent=1) + "\n")
        draft.replace(path)


def read_results(folder: Path, experiments: Iterable[Experiment]) -> list[dict[str, Any]]:
    """Return the results of these experiments: dictionaries with `experiment` and `result`, by row and seed.

    Arguments:
        folder: where the tables' folders lie
        experiments: those asked for; what has not been run is left out, and so is whatever else lies there

    Raises:
        ValueError: if a file is not such a result
    """
    results = []
    for path in (each.path(folder) for each in experiments):
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        if not (isinstance(found, dict) and {"experiment", "result"} <= set(found)):
            raise ValueError(f"{path} should hold an `experiment` and its `result`; it does not.")
        results.append(found)
    return sorted(results, key=lambda found: (found["experiment"]["row"], found["experiment"]["seed"]))


def experiments(table: str, preset: str) -> list[Experiment]:
    """Return the experiments of a table, the first seed of each row first.

    Raises:
        ValueError: if there is no such table or preset
    """
    if table not in TABLES:
        raise ValueError(f"there is no table {table!r}; there are {', '.join(TABLES)}.")
    presets = TABLES[table].presets
    if preset not in presets:
        raise ValueError(f"there is no preset {preset!r}; there are {', '.join(presets)}.")
    budget = presets[preset]
    rows = TABLES[table].rows(budget)
    seeds = range(max(row.seeds for row in rows))
    return [Experiment(table, preset, budget, row, seed) for seed in seeds for row in rows if seed < row.seeds]


def run_table(
    table: str,
    preset: str,
    folder: Path,
    *,
    only: str = "",
    show_progress_bars: bool | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Run what a table lacks; what lies in the folder is not run again.

    Arguments:
        table: its name
        preset: its budget's name
        folder: where results lie
        only: rows whose name holds these letters
        show_progress_bars: True, False, or None for "only on a terminal"
        tell: called with a line about each experiment

    Raises:
        ValueError: if there is no such table, preset or row
    """
    chosen = [each for each in experiments(table, preset) if only in each.row.name]
    if not chosen:
        raise ValueError(f"no row of {table!r} has {only!r} in its name.")
    for number, experiment in enumerate(chosen, start=1):
        where = f"{number}/{len(chosen)} {experiment.name}"
        if experiment.path(folder).exists():
            tell(f"{where}: done before")
            continue
        try:
            result = _run(experiment, show_progress_bars=show_progress_bars)
        except (ArithmeticError, ValueError) as error:  # a run that fails is a result, too
            result = {"failed": str(error)}
        experiment.write(folder, result)
        tell(f"{where}: " + ", ".join(f"{k} {v:.3g}" for k, v in result.items() if isinstance(v, float)))


def _run(experiment: Experiment, *, show_progress_bars: bool | None) -> dict[str, Any]:
    """Train and judge one row with one seed."""
    table, row, seed = TABLES[experiment.table], experiment.row, experiment.seed
    ratio = isinstance(row.spec, RatioNetwork)
    data = _simulations(experiment.table, experiment.budget.simulations, seed, with_reference=ratio)
    prior = table.truth.prior
    began, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        match row.spec:
            case Spec() as spec:
                trainer = ManifoldNLE(prior, spec, seed=seed, show_progress_bars=show_progress_bars)
                candidate, notes = _train(trainer, row, data)
            case RatioNetwork(epochs, rows, width, depth):
                network = ALICES(prior, width=width, depth=depth, seed=seed, show_progress_bars=show_progress_bars)
                candidate, notes = _train_ratio(network, data, epochs, rows)
            case str():
                candidate, notes = _train_stock(prior, row, data, seed)
    notes |= {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    notes["warnings"] = sorted({str(warning.message) for warning in caught if warning.category is UserWarning})
    with torch.no_grad(), seeded(derived(seed, 2)):
        return table.judge(candidate, table.truth, experiment.budget.sets) | notes


@lru_cache(maxsize=1)
def _simulations(table: str, rows: int, seed: int, *, with_reference: bool) -> Simulations:
    """Return simulations with what gold there is; half of them at the mean of the prior if a ratio is to be learned."""
    simulator, theta = TABLES[table].truth, TABLES[table].theta
    with seeded(derived(seed, 0)):
        at = simulator.prior.sample((rows,)) if theta is None else torch.tensor([theta]).expand(rows, -1)
    reference, from_theta = None, None
    if with_reference:
        reference, from_theta = cast(Distribution, simulator.prior).mean, torch.arange(rows) % 2 == 0
    return simulate(simulator, at, theta_ref=reference, from_theta=from_theta, seed=derived(seed, 1))


def _train(trainer: ManifoldNLE, row: Row, data: Simulations) -> tuple[Candidate, dict[str, Any]]:
    trainer.append_simulations(data.theta, data.x, joint_score=data.joint_score if row.golden else None)
    estimator = trainer.train(row.schedule, validation_fraction=HELD_OUT)
    if trainer.history.interrupted:
        raise KeyboardInterrupt
    return of_model(estimator.model), {"collapses": len(trainer.history.collapses)}


def _train_ratio(trainer: ALICES, data: Simulations, epochs: int, rows: int) -> tuple[Candidate, dict[str, Any]]:
    estimator = trainer.append_simulations(data).train(
        training_batch_size=rows, max_num_epochs=epochs, validation_fraction=HELD_OUT
    )
    if trainer.history.interrupted:
        raise KeyboardInterrupt
    return of_ratio(estimator.model), {}


class _Timed(NLE_A):
    """sbi's own trainer, which also ends, with its best weights, when the CPU time is spent."""

    deadline = math.inf

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        converged: bool = super()._converged(epoch, stop_after_epochs)
        if not converged and epoch > 0 and time.process_time() > self.deadline:
            self._neural_net.load_state_dict(self._best_model_state_dict)
            return True
        return converged


def _train_stock(prior: Prior, row: Row, data: Simulations, seed: int) -> tuple[Candidate, dict[str, Any]]:
    """Train sbi's own network by sbi's own trainer, its settings untouched, until the CPU time is spent."""
    with seeded(derived(seed, 3)), TemporaryDirectory() as folder, chdir(folder):  # sbi writes its logs where it runs
        trainer = _Timed(prior, density_estimator=row.spec, show_progress_bars=False)
        trainer.deadline = time.process_time() + row.cpu_seconds
        estimator = trainer.append_simulations(data.theta, data.x.to(data.theta)).train()
    return of_sbi(estimator.eval()), {"epochs": int(trainer.summary["epochs_trained"][-1])}
