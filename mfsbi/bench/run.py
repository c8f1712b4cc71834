"""Running a table: train every row with every seed, judge it by the simulator's truth, keep what was measured."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from mfsbi.bench.experiment import Experiment
from mfsbi.bench.judge import Candidate, Ours, Stock
from mfsbi.bench.tables import HELD_OUT, PRESETS, TABLES, Row
from mfsbi.plugin.host import NLE_A
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.specs import Spec
from mfsbi.registry import registered
from mfsbi.seeds import derived, seeded
from mfsbi.types import KnownTruth

__all__ = ["experiments", "run_table"]


def experiments(table: str, preset: str) -> list[Experiment]:
    """Return the experiments of a table, the first seed of each row first.

    Raises:
        ValueError: if there is no such table or preset
    """
    for what, name, known in (("table", table, TABLES), ("preset", preset, PRESETS)):
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}.")
    budget = PRESETS[preset]
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
            result = _run(experiment, show_progress_bars)
        except (ArithmeticError, ValueError) as error:  # a run that fails is a result, too
            result = {"failed": str(error)}
        experiment.write(folder, result)
        tell(f"{where}: " + ", ".join(f"{k} {v:.3g}" for k, v in result.items() if isinstance(v, float)))


def _run(experiment: Experiment, show_progress_bars: bool | None) -> dict[str, Any]:  # noqa: FBT001
    """Train and judge one row with one seed."""
    table = TABLES[experiment.table]
    simulator, rows, seed = registered(table.simulator), experiment.budget.simulations, experiment.seed
    with seeded(derived(seed, 0)):
        theta = simulator.prior.sample((rows,)) if table.theta is None else torch.tensor([table.theta]).expand(rows, -1)
    x = simulator.simulate(theta, seed=derived(seed, 1))
    began, cpu = time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(experiment.row.spec, Spec):
            candidate, notes = _train(experiment.row, simulator, theta, x, seed, show_progress_bars)
        else:
            candidate, notes = _train_stock(experiment.row, simulator, theta, x, seed)
    notes |= {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - began}
    notes["warnings"] = sorted({str(warning.message) for warning in caught if warning.category is UserWarning})
    with torch.no_grad(), seeded(derived(seed, 2)):
        return table.judge(candidate, simulator) | notes


def _train(
    row: Row,
    simulator: KnownTruth,
    theta: Tensor,
    x: Tensor,
    seed: int,
    show_progress_bars: bool | None,  # noqa: FBT001
) -> tuple[Candidate, dict[str, Any]]:
    assert isinstance(row.spec, Spec)
    trainer = ManifoldNLE(simulator.prior, row.spec, seed=seed, show_progress_bars=show_progress_bars)
    trainer.append_simulations(theta, x)
    estimator = trainer.train(row.schedule, validation_fraction=HELD_OUT)
    if trainer.history.interrupted:
        raise KeyboardInterrupt
    return Ours(estimator.model), {"collapses": len(trainer.history.collapses)}


class _Timed(NLE_A):
    """sbi's own trainer, which also ends, with its best weights, when the CPU time is spent."""

    deadline = math.inf

    def _converged(self, epoch: int, stop_after_epochs: int) -> bool:
        converged: bool = super()._converged(epoch, stop_after_epochs)
        if not converged and epoch > 0 and time.process_time() > self.deadline:
            self._neural_net.load_state_dict(self._best_model_state_dict)
            return True
        return converged


def _train_stock(
    row: Row, simulator: KnownTruth, theta: Tensor, x: Tensor, seed: int
) -> tuple[Candidate, dict[str, Any]]:
    """Train sbi's own network by sbi's own trainer, its settings untouched, until the CPU time is spent."""
    with seeded(derived(seed, 3)), TemporaryDirectory() as folder, chdir(folder):  # sbi writes its logs where it runs
        trainer = _Timed(simulator.prior, density_estimator=row.spec, show_progress_bars=False)
        trainer.deadline = time.process_time() + row.cpu_seconds
        estimator = trainer.append_simulations(theta, x).train()
    return Stock(estimator.eval()), {"epochs": int(trainer.summary["epochs_trained"][-1])}
