"""What a table is made of: rows, and how they are trained with how much.

Budgets are counted in steps. What is learned by reconstruction takes 500 rows a step, and what is learned by
likelihood 1,000; alternating training, which passes over the data for the density as often as for the chart, takes
2,000, and shows the density four times as many rows. Peers get a tenth of the reference's CPU time, which is more than
our rows take, with sbi's own settings, which nobody tuned.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from mfsbi.bench.judge import Candidate
from mfsbi.plugin.specs import Spec
from mfsbi.registry import named
from mfsbi.train.losses import Scandal, reconstruction
from mfsbi.train.schedules import Phase, Schedule, alternating, ambient, density_only, sequential, simultaneous
from mfsbi.types import KnownLikelihood

__all__ = ["HELD_OUT", "PRESETS", "Budget", "RatioNetwork", "Row", "Table"]

CHART_ROWS, DENSITY_ROWS = 500, 1000
HELD_OUT = 0.1


@dataclass(frozen=True)
class Budget:
    """How much a row may cost, and the schedules that cost it.

    Arguments:
        simulations: to learn from, a tenth of them held out
        chart_steps: on a chart alone
        density_steps: on a latent density alone
        ambient_steps: on a density of data space
        peer_seconds: CPU time of a peer
        seeds: how often each row is run
        many_seeds: how often the rows that matter most are
        sets: of events at each truth whose posteriors are judged
    """

    simulations: int
    chart_steps: int
    density_steps: int
    ambient_steps: int
    peer_seconds: float
    seeds: int
    many_seeds: int
    sets: int = 10

    @property
    def sequential(self) -> Schedule:
        """The chart's steps, then the density's."""
        return self._schedule(sequential(2), self.chart_steps, self.density_steps)

    @property
    def alternating(self) -> Schedule:
        """Both in turns, pass by pass: as many passes for the density, of twice the rows a step."""
        turns = self.passes(self.chart_steps, CHART_ROWS)
        return [phase._replace(rows=_rows(phase, 2)) for phase in alternating(2 * turns)]

    @property
    def simultaneous(self) -> Schedule:
        """Half of the chart's steps, an eighth of both together, then the density's."""
        half = self.chart_steps // 2
        return self._schedule(simultaneous(3), half, half // 4, self.density_steps)

    @property
    def ambient(self) -> Schedule:
        """The steps of a density of data space."""
        return self._schedule(ambient(1), self.ambient_steps)

    @property
    def density(self) -> Schedule:
        """The steps of a density on a given chart."""
        return self._schedule(density_only(1), self.density_steps)

    def passes(self, steps: int, rows: int = DENSITY_ROWS) -> int:
        """Return how many passes over the data make so many steps.

        Arguments:
            steps: wanted; at least one pass is made, which may be more
            rows: of each step, of the nine tenths of the simulations that are learned from
        """
        return max(1, round(steps * rows / ((1 - HELD_OUT) * self.simulations)))

    def _schedule(self, phases: Schedule, *steps: int) -> Schedule:
        """Return the phases with as many passes over the data as make these steps."""
        return [
            phase._replace(rows=_rows(phase), epochs=self.passes(number, _rows(phase)))
            for phase, number in zip(phases, steps, strict=True)
        ]


def _rows(phase: Phase, factor: int = 1) -> int:
    return CHART_ROWS if phase.loss is reconstruction else factor * DENSITY_ROWS


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
        model: the name without the training, where the name tells both
    """

    name: str
    spec: Spec | RatioNetwork | str
    schedule: Schedule
    seeds: int
    cpu_seconds: float = 0.0
    model: str = ""

    @property
    def golden(self) -> bool:
        """Whether it learns from joint scores."""
        scored = any(isinstance(phase.loss, Scandal) for phase in self.schedule)
        return scored or isinstance(self.spec, RatioNetwork)


@dataclass(frozen=True)
class Table:
    """A benchmark.

    Arguments:
        simulator: its name
        rows: for a budget
        judge: what is measured, as columns, by so many sets of events
        theta: where simulations are made; at draws of the prior if not given
        options: the simulator is made with these
        presets: budgets by name
        curve: those whose results show what each number of simulations teaches
    """

    simulator: str
    rows: Callable[[Budget], list[Row]]
    judge: Callable[[Candidate, Any, int], dict[str, Any]]
    theta: tuple[float, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    presets: dict[str, Budget] = field(default_factory=lambda: PRESETS)
    curve: tuple[str, ...] = ("paper",)

    @cached_property
    def truth(self) -> KnownLikelihood:
        """The simulator, whose likelihood is known; always the same, so that what is known of it is found once."""
        return cast(KnownLikelihood, named(self.simulator, **self.options))
