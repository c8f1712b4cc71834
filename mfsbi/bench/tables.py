"""The paper's tables as lists of rows: what is built, how it is trained, and with how much.

Budgets are counted in steps. What is learned by reconstruction takes 500 rows a step, and what is learned by
likelihood 1,000; alternating training, which passes over the data for the density as often as for the chart, takes
2,000, and shows the density four times as many rows. Peers get a tenth of the reference's CPU time, which is more than
our rows take, with sbi's own settings, which nobody tuned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from mfsbi.bench.judge import CIRCLE_THETA, Candidate, judge_circle, judge_posteriors
from mfsbi.flows import SplineCouplings
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow, Spec
from mfsbi.registry import named, registered
from mfsbi.train.losses import reconstruction
from mfsbi.train.schedules import Phase, Schedule, alternating, ambient, density_only, sequential, simultaneous
from mfsbi.types import KnownLikelihood

__all__ = ["PRESETS", "TABLES", "Budget", "RatioNetwork", "Row", "Table"]

CHART_ROWS, DENSITY_ROWS = 500, 1000
HELD_OUT = 0.1


@dataclass(frozen=True)
class Budget:
    """How much a row may cost.

    Arguments:
        simulations: to learn from, a tenth of them held out
        chart_steps: on a chart alone
        density_steps: on a latent density alone
        ambient_steps: on a density of data space
        peer_seconds: CPU time of a peer
        seeds: how often each row is run
        many_seeds: how often the rows that matter most are
    """

    simulations: int
    chart_steps: int
    density_steps: int
    ambient_steps: int
    peer_seconds: float
    seeds: int
    many_seeds: int


PRESETS = {
    "smoke": Budget(2_000, 150, 40, 40, 2.25, 1, 1),
    "quick": Budget(50_000, 2_000, 700, 700, 30.0, 1, 1),
    "paper": Budget(100_000, 8_000, 2_500, 3_000, 300.0, 5, 10),
}


@dataclass(frozen=True)
class RatioNetwork:
    """ALICES: half of the events are drawn at the mean of the prior, which is the reference.

    Arguments:
        epochs: passes over the data
        rows: per step
        width: units in each hidden layer
        depth: hidden layers
    """

    epochs: int
    rows: int = DENSITY_ROWS
    width: int = 100
    depth: int = 3


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Arguments:
        name: as the paper has it
        spec: what is built, or for a peer the name of sbi's network
        schedule: how it is trained, with joint scores where its losses are `Scandal`; a peer is given `cpu_seconds`
        seeds: how often
        cpu_seconds: what a peer may take
    """

    name: str
    spec: Spec | RatioNetwork | str
    schedule: Schedule
    seeds: int
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Table:
    """A benchmark.

    Arguments:
        simulator: its name
        rows: for a budget
        judge: what is measured, as columns
        theta: where simulations are made; at draws of the prior if not given
        options: the simulator is made with these
    """

    simulator: str
    rows: Callable[[Budget], list[Row]]
    judge: Callable[[Candidate, Any], dict[str, Any]]
    theta: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def truth(self) -> KnownLikelihood:
        """The simulator, whose likelihood is known."""
        return cast(KnownLikelihood, named(self.simulator, **self.options))


def _polynomial(budget: Budget) -> list[Row]:
    """Return the rows of the paper's table on the polynomial surface, FOM besides, and sbi's own networks."""
    surface = registered("polynomial")
    manifold_dim = surface.manifold_dim
    mflow, meflow = MFlow(manifold_dim), MeFlow(manifold_dim)
    prescribed = FOM(surface.decode, surface.encode)
    wide = SplineCouplings(layers=5, width=64, depth=3, sharpness=2.0)
    rows = [
        Row("AF", AF(SplineCouplings(layers=8, width=64, depth=3, sharpness=3.0)), _ambient(budget), 1),
        Row("FOM", prescribed, _density(budget), 1),
        Row("PIE (original)", PIE(manifold_dim, conditional_chart=True, chart=wide), _ambient(budget), 1),
        Row("PIE (unconditional manifold)", PIE(manifold_dim, chart=wide), _ambient(budget), 1),
        Row("PAE", PAE(manifold_dim), _sequential(budget), 1),
        *[
            Row(f"{name} {scheme}", spec, schedule(budget), 1)
            for name, spec in (("MFlow", mflow), ("MeFlow", meflow))
            for scheme, schedule in SCHEMES.items()
        ],
        *[Row(f"sbi NLE, {net}", net, [], 1, cpu_seconds=budget.peer_seconds) for net in ("maf", "nsf", "zuko_nsf")],
    ]
    return [replace(row, seeds=budget.many_seeds if row.name == "MFlow sequential" else budget.seeds) for row in rows]


def _sequential(budget: Budget) -> Schedule:
    return _budgeted(sequential(2), [budget.chart_steps, budget.density_steps], budget)


def _alternating(budget: Budget) -> Schedule:
    turns = _passes(budget.chart_steps, CHART_ROWS, budget)  # as many passes for the density, of twice the rows a step
    return [phase._replace(rows=_rows(phase, 2)) for phase in alternating(2 * turns)]


def _simultaneous(budget: Budget) -> Schedule:
    half = budget.chart_steps // 2
    return _budgeted(simultaneous(3), [half, half // 4, budget.density_steps], budget)


def _ambient(budget: Budget) -> Schedule:
    return _budgeted(ambient(1), [budget.ambient_steps], budget)


def _density(budget: Budget) -> Schedule:
    return _budgeted(density_only(1), [budget.density_steps], budget)


SCHEMES = {"simultaneous": _simultaneous, "alternating": _alternating, "sequential": _sequential}


def _budgeted(schedule: Schedule, steps: list[int], budget: Budget) -> Schedule:
    """Return the schedule with as many passes over the data as make these steps."""
    return [
        phase._replace(rows=_rows(phase), epochs=_passes(number, _rows(phase), budget))
        for phase, number in zip(schedule, steps, strict=True)
    ]


def _rows(phase: Phase, factor: int = 1) -> int:
    return CHART_ROWS if phase.loss is reconstruction else factor * DENSITY_ROWS


def _passes(steps: int, rows: int, budget: Budget) -> int:
    return max(1, round(steps * rows / ((1 - HELD_OUT) * budget.simulations)))


def _circle(budget: Budget) -> list[Row]:
    """Return the rows of the paper's example, a Gaussian on a circle."""
    circle = registered("circle")
    rows = [
        Row("AF", AF(SplineCouplings(layers=8, width=64, depth=3, sharpness=3.0)), _ambient(budget), 1),
        Row("FOM", FOM(circle.decode, circle.encode), _density(budget), 1),
        Row("PIE", PIE(1, chart=SplineCouplings(layers=5, width=64, depth=3, sharpness=2.0)), _ambient(budget), 1),
        Row("PAE", PAE(1), _sequential(budget), 1),
        Row("MFlow sequential", MFlow(1), _sequential(budget), 1),
        Row("MeFlow sequential", MeFlow(1), _sequential(budget), 1),
    ]
    return [replace(row, seeds=budget.seeds) for row in rows]


TABLES = {
    "polynomial": Table("polynomial", _polynomial, judge_posteriors),
    "circle": Table("circle", _circle, judge_circle, CIRCLE_THETA),
}
