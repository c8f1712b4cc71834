"""The paper's tables as lists of rows: what is built, how it is trained, and with how much (`mfsbi.bench.rows`)."""

from dataclasses import replace
from typing import Any, cast

from mfsbi.bench.judge import CIRCLE_THETA, judge_circle, judge_posteriors
from mfsbi.bench.judge_lhc import judge_lhc
from mfsbi.bench.rows import (
    Budget,
    RatioNetwork,
    Row,
    Table,
    alternating_steps,
    ambient_steps,
    density_steps,
    passes,
    sequential_steps,
    simultaneous_steps,
)
from mfsbi.flows import AffineCouplings, AutoregressiveSplines, SplineCouplings
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow
from mfsbi.registry import named, registered
from mfsbi.train.losses import reconstruction, robust_reconstruction
from mfsbi.train.schedules import Schedule, with_score

__all__ = ["LHC_PRESETS", "TABLES"]

LHC_PRESETS = {
    "smoke": Budget(2_000, 40, 10, 10, 2.0, 1, 1, sets=2),
    "quick": Budget(100_000, 600, 200, 100, 60.0, 1, 1, sets=3),
    "paper": Budget(1_000_000, 6_000, 8_000, 3_000, 600.0, 3, 3),
    "1e3": Budget(1_000, 1_500, 500, 300, 60.0, 1, 1),
    "1e4": Budget(10_000, 3_000, 2_000, 1_000, 200.0, 1, 1),
    "1e5": Budget(100_000, 6_000, 4_000, 2_000, 400.0, 1, 1),
}
"""Forty features cost more than three: a step of a density with scores takes a tenth of a second on one core.

The last three are for the figure of how much each number of simulations teaches, whose last points are `paper`.
"""

LHC_OPTIONS = {"parameters": 2}
LHC_COORDINATES = (
    *(f"{name}_{each}" for each in ("j1", "j2", "aa", "a1") for name in ("px", "py")),
    "m_aa",
    "e_j1",
    *(f"eta_{each}" for each in ("aa", "a1", "j1", "j2")),
)
"""What an event is known by: momenta and directions of the jets, the Higgs boson and a photon of it. The mass of the
photons is nearly constant, and told by nothing else to the 2 % that it varies; jets weigh little, so that their energy
is hardly needed. In this order each is simple given those before it: scores depend most on the jets' distance in eta,
together with all momenta. The latent density goes through them as they stand; of two random orders one left half as
much again of the scores' squares after 2,000 steps. Its theta_sharpness: KL 0.11 with 25, 0.13 with 10 (one seed)."""

SCHEMES = {"simultaneous": simultaneous_steps, "alternating": alternating_steps, "sequential": sequential_steps}


def _polynomial(budget: Budget) -> list[Row]:
    """Return the rows of the paper's table on the polynomial surface, FOM besides, and sbi's own networks."""
    surface = registered("polynomial")
    manifold_dim = surface.manifold_dim
    mflow, meflow = MFlow(manifold_dim), MeFlow(manifold_dim)
    prescribed = FOM(surface.decode, surface.encode)
    wide = SplineCouplings(layers=5, width=64, depth=3, sharpness=2.0)
    rows = [
        Row("AF", AF(SplineCouplings(layers=8, width=64, depth=3, sharpness=3.0)), ambient_steps(budget), 1),
        Row("FOM", prescribed, density_steps(budget), 1),
        Row("PIE (original)", PIE(manifold_dim, conditional_chart=True, chart=wide), ambient_steps(budget), 1),
        Row("PIE (unconditional manifold)", PIE(manifold_dim, chart=wide), ambient_steps(budget), 1),
        Row("PAE", PAE(manifold_dim), sequential_steps(budget), 1),
        *[
            Row(f"{name} {scheme}", spec, schedule(budget), 1)
            for name, spec in (("MFlow", mflow), ("MeFlow", meflow))
            for scheme, schedule in SCHEMES.items()
        ],
        *[Row(f"sbi NLE, {net}", net, [], 1, cpu_seconds=budget.peer_seconds) for net in ("maf", "nsf", "zuko_nsf")],
    ]
    return [replace(row, seeds=budget.many_seeds if row.name == "MFlow sequential" else budget.seeds) for row in rows]


def _circle(budget: Budget) -> list[Row]:
    """Return the rows of the paper's example, a Gaussian on a circle."""
    circle = registered("circle")
    rows = [
        Row("AF", AF(SplineCouplings(layers=8, width=64, depth=3, sharpness=3.0)), ambient_steps(budget), 1),
        Row("FOM", FOM(circle.decode, circle.encode), density_steps(budget), 1),
        Row("PIE", PIE(1, chart=SplineCouplings(layers=5, width=64, depth=3, sharpness=2.0)), ambient_steps(budget), 1),
        Row("PAE", PAE(1), sequential_steps(budget), 1),
        Row("MFlow sequential", MFlow(1), sequential_steps(budget), 1),
        Row("MeFlow sequential", MeFlow(1), sequential_steps(budget), 1),
    ]
    return [replace(row, seeds=budget.seeds) for row in rows]


def _lhc(budget: Budget) -> list[Row]:
    """Return the rows of the paper's table on the LHC process, each without and with joint scores, and ALICES."""
    chart = AffineCouplings(width=128, sharpness=1.0)
    latent = AutoregressiveSplines(theta_sharpness=25.0, shuffle=False)
    names = cast(Any, named("lhc", **LHC_OPTIONS)).feature_names
    known = tuple(names.index(name) for name in LHC_COORDINATES)
    models = {
        "AF": (AF(AutoregressiveSplines(width=96, theta_width=256)), ambient_steps(budget)),
        "PIE (original)": (
            PIE(14, conditional_chart=True, epsilon=0.1, chart=chart, latent=latent, coordinates=known),
            ambient_steps(budget),
        ),
        "PIE (unconditional manifold)": (
            PIE(14, epsilon=0.1, chart=chart, latent=latent, coordinates=known),
            ambient_steps(budget),
        ),
        "PAE": (PAE(14, latent, coordinates=known), sequential_steps(budget)),
        "MFlow": (MFlow(14, chart, latent, coordinates=known), sequential_steps(budget)),
        "MeFlow": (MeFlow(14, chart, latent, coordinates=known), sequential_steps(budget)),
    }
    plain = [Row(name, spec, _of_many(schedule), budget.seeds) for name, (spec, schedule) in models.items()]
    scored = [replace(row, name=_with_scandal(row.name), schedule=with_score(row.schedule)) for row in plain]
    network = RatioNetwork(passes(3 * budget.density_steps, budget))
    peer = Row("sbi NLE, nsf", "nsf", [], budget.seeds, cpu_seconds=budget.peer_seconds)
    return [*plain, *scored, Row("ALICES", network, [], budget.seeds), peer]


def _of_many(schedule: Schedule) -> Schedule:
    """Return the schedule for a million events with heavy tails.

    They are not learned by heart, so that a fifth of the weight decay is enough, and charts learn from distances, not
    from their squares.
    """
    return [
        phase._replace(
            decay=0.2 * phase.decay, loss=robust_reconstruction if phase.loss is reconstruction else phase.loss
        )
        for phase in schedule
    ]


def _with_scandal(name: str) -> str:
    """Return the paper's name of the row trained with joint scores."""
    return f"{name[:-1]}, SCANDAL)" if name.endswith(")") else f"{name} (SCANDAL)"


TABLES = {
    "polynomial": Table("polynomial", _polynomial, judge_posteriors),
    "circle": Table("circle", _circle, judge_circle, CIRCLE_THETA),
    "lhc": Table("lhc", _lhc, judge_lhc, options=LHC_OPTIONS, presets=LHC_PRESETS),
}
