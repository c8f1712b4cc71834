"""Running a table: train every row with every seed, judge it by the simulator's truth, keep what was measured."""

import math
import time
import warnings
from collections.abc import Callable
from contextlib import chdir
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch.distributions import Distribution

from mfsbi.bench.experiment import Experiment
from mfsbi.bench.judge import Candidate, of_model, of_ratio, of_sbi
from mfsbi.bench.rows import HELD_OUT, RatioNetwork, Row
from mfsbi.bench.tables import TABLES
from mfsbi.gold import simulate
from mfsbi.plugin.host import NLE_A
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES
from mfsbi.plugin.specs import Spec
from mfsbi.seeds import derived, seeded
from mfsbi.simulations import Simulations
from mfsbi.types import Prior

__all__ = ["experiments", "run_table"]


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
