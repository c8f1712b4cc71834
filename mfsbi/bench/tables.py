"""The paper's tables as lists of rows: what is built, how it is trained, and with how much (`mfsbi.bench.rows`)."""

import math
from dataclasses import replace
from typing import Any, cast

from mfsbi.bench.judge import CIRCLE_THETA, judge_circle, judge_posteriors
from mfsbi.bench.judge_laws import judge_law
from mfsbi.bench.judge_lhc import judge_lhc
from mfsbi.bench.rows import Budget, RatioNetwork, Row, Table
from mfsbi.flows import AffineCouplings, AutoregressiveSplines, SplineCouplings
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, SPLINES, MeFlow, MFlow, Spec
from mfsbi.registry import named, registered
from mfsbi.train.losses import reconstruction, robust_reconstruction
from mfsbi.train.schedules import Schedule, with_score

__all__ = ["LHC_PRESETS", "PANEL", "TABLES"]

LHC_PRESETS = {
    "smoke": Budget(2_000, 40, 10, 10, 2.0, 1, 1, sets=2),
    "quick": Budget(100_000, 600, 200, 100, 60.0, 1, 1, sets=3),
    "paper": Budget(1_000_000, 6_000, 8_000, 3_000, 600.0, 3, 3),
    "1e3": Budget(1_000, 1_500, 500, 300, 60.0, 1, 1),
    "1e4": Budget(10_000, 3_000, 2_000, 1_000, 200.0, 1, 1),
    "1e5": Budget(100_000, 6_000, 4_000, 2_000, 400.0, 1, 1),
}
"""Budgets of the LHC process, whose forty features cost more than three.

The last three are for the figure of how a model improves with the number of simulations, whose last points are `paper`.
"""

LHC_OPTIONS = {"parameters": 2}
LHC_COORDINATES = (
    *(f"{name}_{each}" for each in ("j1", "j2", "aa", "a1") for name in ("px", "py")),
    "m_aa",
    "e_j1",
    *(f"eta_{each}" for each in ("aa", "a1", "j1", "j2")),
)
"""What an event is known by: momenta and directions of the jets, the Higgs boson and one of its photons.

The mass of the photons is nearly constant, and no other coordinate tells the 2 % that it varies by; jets weigh little,
so that their energy is hardly needed. In this order each is simple given those before it: scores depend most on the
jets' distance in eta, together with all momenta. The latent density takes the coordinates in this order
(`notebooks/measurements.md`).
"""

PANEL = (
    "linear",
    "banana",
    "modes",
    "mixture",
    "heteroscedastic",
    "queue",
    "ordered",
    "glm",
    "student",
    "shares",
    "spectrum",
    "counts",
)
"""The laws that are the panel (`simulators.laws`)."""

LIFT = 4
"""How many times as many features they have on curved manifolds."""

PANEL_PRESETS = {
    name: Budget(simulations, 0, 0, 0, math.inf, 1, 1, sets=sets)
    for name, simulations, sets in (("smoke", 200, 2), ("1e3", 1_000, 10), ("1e4", 10_000, 10), ("1e5", 100_000, 10))
}
"""Numbers of simulations; nothing else is set, and peers learn until they converge."""

SHARP = AffineCouplings(sharpness=2.0)
AMBIENT = AF(SplineCouplings(layers=8, width=64, depth=3, sharpness=3.0))
WIDE = SplineCouplings(layers=5, width=64, depth=3, sharpness=2.0)


def _polynomial(budget: Budget) -> list[Row]:
    """Return the rows of the paper's table on the polynomial surface, FOM besides, and sbi's own networks."""
    surface = registered("polynomial")
    n = surface.manifold_dim
    models = {
        "AF": (AMBIENT, budget.ambient),
        "FOM": (FOM(surface.decode, surface.encode, SPLINES), budget.density),
        "PIE (original)": (PIE(n, conditional_chart=True, chart=WIDE), budget.ambient),
        "PIE (unconditional manifold)": (PIE(n, chart=WIDE), budget.ambient),
        "PAE": (PAE(n, SPLINES), budget.sequential),
    }
    for name, spec in {"MFlow": MFlow(n, SHARP, SPLINES), "MeFlow": MeFlow(n, SHARP, SPLINES)}.items():
        models[f"{name} simultaneous"] = spec, budget.simultaneous
        models[f"{name} alternating"] = spec, budget.alternating
        models[f"{name} sequential"] = spec, budget.sequential
    seeds = {"MFlow sequential": budget.many_seeds}
    rows = [Row(name, *made, seeds.get(name, budget.seeds)) for name, made in models.items()]
    return rows + [_peer(net, budget) for net in ("maf", "nsf", "zuko_nsf")]


def _circle(budget: Budget) -> list[Row]:
    """Return the rows of the paper's example, a Gaussian on a circle."""
    circle = registered("circle")
    models = {
        "AF": (AMBIENT, budget.ambient),
        "FOM": (FOM(circle.decode, circle.encode, SPLINES), budget.density),
        "PIE": (PIE(1, chart=WIDE), budget.ambient),
        "PAE": (PAE(1, SPLINES), budget.sequential),
        "MFlow sequential": (MFlow(1, SHARP, SPLINES), budget.sequential),
        "MeFlow sequential": (MeFlow(1, SHARP, SPLINES), budget.sequential),
    }
    return [Row(name, *made, budget.seeds) for name, made in models.items()]


def _lhc(budget: Budget) -> list[Row]:
    """Return the rows of the paper's table on the LHC process, each without and with joint scores, and ALICES."""
    chart = AffineCouplings(width=128, sharpness=1.0)
    latent = AutoregressiveSplines(theta_sharpness=25.0, shuffle=False)
    names = cast(Any, named("lhc", **LHC_OPTIONS)).feature_names
    known = tuple(names.index(name) for name in LHC_COORDINATES)
    parts: dict[str, Any] = {"chart": chart, "latent": latent, "coordinates": known}
    models = {
        "AF": (AF(AutoregressiveSplines(width=96, theta_width=256)), budget.ambient),
        "PIE (original)": (PIE(14, conditional_chart=True, epsilon=0.1, **parts), budget.ambient),
        "PIE (unconditional manifold)": (PIE(14, epsilon=0.1, **parts), budget.ambient),
        "PAE": (PAE(14, latent, coordinates=known), budget.sequential),
        "MFlow": (MFlow(14, **parts), budget.sequential),
        "MeFlow": (MeFlow(14, **parts), budget.sequential),
    }
    plain = [Row(name, spec, _of_many(schedule), budget.seeds) for name, (spec, schedule) in models.items()]
    scored = [_scored(row) for row in plain]
    network = RatioNetwork(budget.passes(3 * budget.density_steps))
    return [*plain, *scored, Row("ALICES", network, [], budget.seeds), _peer("nsf", budget)]


def _peer(net: str, budget: Budget) -> Row:
    """Return the row of one of sbi's own networks."""
    return Row(f"sbi NLE, {net}", net, [], budget.seeds, cpu_seconds=budget.peer_seconds)


def _of_many(schedule: Schedule) -> Schedule:
    """Return the schedule for a million events with heavy tails.

    So many are hardly overfitted: a fifth of the weight decay is enough. Charts learn from distances instead of their
    squares, which the tails would govern.
    """
    return [
        phase._replace(
            decay=0.2 * phase.decay, loss=robust_reconstruction if phase.loss is reconstruction else phase.loss
        )
        for phase in schedule
    ]


def _scored(row: Row) -> Row:
    """Return the row trained with joint scores, by the paper's name."""
    name = f"{row.name[:-1]}, SCANDAL)" if row.name.endswith(")") else f"{row.name} (SCANDAL)"
    return replace(row, name=name, schedule=with_score(row.schedule), model=row.name)


def _law(name: str, factor: int) -> Table:
    """Return the table of a law, plain or lifted: specs with nothing set, with scores as well, and sbi's networks."""

    def rows(budget: Budget) -> list[Row]:
        specs: list[Spec] = [AF()]
        if factor > 1:
            specs.append(MFlow(cast(Any, named("law", name=name)).data_dim))
        ours = [Row(type(spec).__name__, spec, spec.schedule(None), budget.seeds) for spec in specs]
        return [*ours, _scored(ours[-1]), *(_peer(net, budget) for net in ("maf", "nsf"))]

    return Table("law", rows, judge_law, options={"name": name, "factor": factor}, presets=PANEL_PRESETS)


TABLES = {
    "polynomial": Table("polynomial", _polynomial, judge_posteriors),
    "circle": Table("circle", _circle, judge_circle, CIRCLE_THETA),
    "lhc": Table(
        "lhc", _lhc, judge_lhc, options=LHC_OPTIONS, presets=LHC_PRESETS, curve=("1e3", "1e4", "1e5", "paper")
    ),
    **{f"law-{name}": _law(name, 1) for name in PANEL},
    **{f"law-{name}-lifted": _law(name, LIFT) for name in PANEL},
}
"""By name; those of the panel are `law-NAME` and `law-NAME-lifted`."""
