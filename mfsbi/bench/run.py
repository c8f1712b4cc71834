"""Running a table: train every row with every seed, judge it by the simulator's truth, keep what was measured.

The judgement is that of the paper (Brehmer & Cranmer, arXiv:2003.13913, §4.2), with definitions that do not vary
between rows: everything at theta = 0, 10,000 points, 10 sets of 20 observations, posteriors on a grid.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mfsbi import metrics
from mfsbi.bench.experiment import Experiment
from mfsbi.bench.tables import HELD_OUT, PRESETS, TABLES, Row
from mfsbi.inference.grid import grid_posterior
from mfsbi.inference.potential import EncodedLikelihood
from mfsbi.models import AbstractModel, AmbientModel, DensityModel
from mfsbi.plugin.host import NLE_A, ConditionalDensityEstimator
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.specs import Spec
from mfsbi.registry import registered
from mfsbi.seeds import derived, seeded
from mfsbi.types import KnownTruth

__all__ = ["experiments", "run_table"]

POINTS, SETS, EVENTS, CELLS = 10_000, 10, 20, 400
TRUTH_SEED = 20
"""The observed sets and the points that judge are the same for all rows and seeds."""


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
        result = _run(experiment, show_progress_bars)
        experiment.write(folder, result)
        tell(f"{where}: " + ", ".join(f"{k} {v:.3g}" for k, v in result.items() if isinstance(v, float)))


@runtime_checkable
class Candidate(Protocol):
    """What can be judged: anything that draws x and says how likely x is."""

    def sample(self, theta: Tensor) -> Tensor:
        """Draw one x for each row of theta."""

    def potential(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Return theta -> sum_j log p(x_j|theta) up to a constant."""

    def distance(self, x: Tensor, theta: Tensor) -> Tensor | None:
        """Return the reconstruction distance, or None for what has no manifold."""

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor | None:
        """Return log p(x|theta), or None for what has no density in data space."""


class _Ours:
    """A model of mfsbi's as a candidate."""

    def __init__(self, model: AbstractModel) -> None:
        self.model = model

    def sample(self, theta: Tensor) -> Tensor:
        return self.model.sample(theta)

    def potential(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        return EncodedLikelihood(self.model, x).iid

    def distance(self, x: Tensor, theta: Tensor) -> Tensor | None:
        whole = self.model.chart.manifold_dim == self.model.chart.data_dim
        return None if whole else self.model.distance(x, theta)

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor | None:
        ambient = isinstance(self.model, AmbientModel) or self.model.chart.manifold_dim == self.model.chart.data_dim
        return self.model.log_prob(x, theta) if ambient and isinstance(self.model, DensityModel) else None


class _Stock:
    """An estimator of sbi's as a candidate."""

    def __init__(self, estimator: ConditionalDensityEstimator) -> None:
        self.estimator = estimator

    def sample(self, theta: Tensor) -> Tensor:
        return self.estimator.sample(torch.Size([1]), theta)[0]

    def potential(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        def potential(theta: Tensor) -> Tensor:
            return (
                self.log_prob(x.repeat(len(theta), 1), theta.repeat_interleave(len(x), 0)).view(len(theta), -1).sum(-1)
            )

        return potential

    def distance(self, x: Tensor, theta: Tensor) -> Tensor | None:  # noqa: ARG002
        return None

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        return self.estimator.log_prob(x[None], theta)[0]


def _run(experiment: Experiment, show_progress_bars: bool | None) -> dict[str, Any]:  # noqa: FBT001
    """Train and judge one row with one seed."""
    simulator = registered(TABLES[experiment.table].simulator)
    rows, seed = experiment.budget.simulations, experiment.seed
    with seeded(derived(seed, 0)):
        theta = simulator.prior.sample((rows,))
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
        return _judge(candidate, simulator) | notes


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
    estimator = trainer.train(row.schedule, learning_rate=row.learning_rate, validation_fraction=HELD_OUT)
    return _Ours(estimator.model), {"collapses": len(trainer.history.collapses)}


def _train_stock(
    row: Row, simulator: KnownTruth, theta: Tensor, x: Tensor, seed: int
) -> tuple[Candidate, dict[str, Any]]:
    """Train sbi's own network by sbi's own trainer, its settings untouched, until the CPU time is spent."""
    with seeded(derived(seed, 3)), TemporaryDirectory() as folder, chdir(folder):  # sbi writes its logs where it runs
        trainer = NLE_A(simulator.prior, density_estimator=row.spec, show_progress_bars=False)
        trainer.append_simulations(theta, x)
        deadline = time.process_time() + row.cpu_seconds
        estimator = trainer.train(max_num_epochs=1)
        epochs = 2
        while time.process_time() < deadline:
            estimator = trainer.train(max_num_epochs=epochs, resume_training=True)
            if trainer.summary["epochs_trained"][-1] < epochs:  # sbi found that it had converged
                break
            epochs += 1
    return _Stock(estimator.eval()), {"epochs": int(trainer.summary["epochs_trained"][-1])}


def _judge(candidate: Candidate, surface: KnownTruth) -> dict[str, Any]:
    """Return the columns of the table: means over points, and over sets with each set's value."""
    theta = torch.zeros(POINTS, len(surface.parameter_names))
    inside = surface.simulate(theta, seed=derived(TRUTH_SEED, 0))
    outside = surface.out_of_distribution(POINTS, seed=derived(TRUTH_SEED, 1), noise=0.1)
    drawn = candidate.sample(theta)
    result: dict[str, Any] = {
        "distance": float(surface.vertical_distance(drawn).clamp(max=10).mean()),
        "euclidean_distance": float(surface.distance(drawn[:2000]).clamp(max=10).mean()),
    }
    near, far = candidate.distance(inside, theta), candidate.distance(outside, theta)
    if near is not None and far is not None:
        result |= {"reconstruction": float(near.mean()), "auc": metrics.auc(near, far)}
    likely, unlikely = candidate.log_prob(inside, theta), candidate.log_prob(outside, theta)
    if likely is not None and unlikely is not None:
        result["auc_likelihood"] = metrics.auc(-likely, -unlikely)
    sets = list(_posteriors(candidate, surface))
    names = ("tv", "kl", "mmd2")
    result |= {f"{name}s": values for name, values in zip(names, map(list, zip(*sets, strict=True)), strict=True)}
    return result | {name: sum(result[f"{name}s"]) / SETS for name in names}


def _posteriors(candidate: Candidate, surface: KnownTruth) -> Iterator[tuple[float, float, float]]:
    """Yield TV, KL(exact || model) and MMD^2 of the posterior of each set."""
    for number in range(SETS):
        x = surface.simulate(torch.zeros(EVENTS, 1), seed=derived(TRUTH_SEED, 2, number))
        exact = grid_posterior(_exact(surface, x), [-1], [1], CELLS)
        model = grid_posterior(candidate.potential(x), [-1], [1], CELLS)
        p, q = exact.probability, model.probability
        yield metrics.total_variation(p, q), metrics.kl_divergence(p, q), metrics.mmd2_on_grid(exact.theta, p, q)


def _exact(simulator: KnownTruth, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return theta -> sum_j log p(x_j|theta) of the simulator."""
    return lambda theta: simulator.log_prob(x, theta[:, None]).double().sum(-1)
