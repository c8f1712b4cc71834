r"""Independent events of the hard process at any theta, one for each row, without weights.

**Coordinates.** A point of the unit cube in six dimensions is an event up to an azimuth and the decay: ln k of the
harder and the softer parton, delta_3 = eta3 - y and delta_4 = y - eta4, Dphi, and Y = ln(x1/x2)/2 within the
kinematic limit. Parton 3 is the softer one; half of the events are then turned by pi, which exchanges the beams,
(k3, eta3, k4, eta4, y, Dphi) -> (k4, -eta4, k3, -eta3, -y, Dphi), and leaves the matrix element as it is.

**One component.** For each of w, w|V_1|^2, w|V_2|^2 and w|V_3|^2, the cube is stretched by a separable grid (G. P.
Lepage, arXiv:2009.05112) and cut into 6^6 cells, each with a ceiling above nearly all weights in it. A cell is chosen
by its ceiling, a point in it at random, and kept with probability weight/ceiling. Where that ratio rho exceeds 1 the
point is kept floor(rho + random) times, each copy with its own azimuth, decay and response: every event has the right
distribution, and few share a configuration of partons.

**Any theta.** With Theta = (1, theta) and component integrals sigma_c, a component is chosen with probability a_c
proportional to |Theta_c| sqrt(sigma_c), an event of it is drawn, and kept with probability

    |sum_c Theta_c V_c|^2 / sum_c (Theta_c^2 |V_c|^2 / a_c)  <=  1    (Cauchy and Schwarz),

after which events follow w |Theta.V|^2.

Grids, ceilings and integrals are in `grids.npz`, made by `python -m simulators.lhc.grids`; they fit the constants of
the process or are refused.
"""

import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from simulators.lhc.amplitude import LEAST_K, MOST_K, HardProcess, Partons, amplitude_of, fractions
from simulators.lhc.detector import LARGEST_JET_ETA, LARGEST_PHOTON_ETA, LEAST_DISTANCE
from simulators.lhc.partons import flux

__all__ = [
    "AXES",
    "COMPONENTS",
    "CUTS",
    "GRIDS",
    "Evaluated",
    "Grids",
    "HardEvents",
    "component_weight",
    "draw",
    "evaluate",
    "fingerprint",
    "load_grids",
    "of_component",
    "stretched",
    "trials",
]

LARGEST_DELTA = LARGEST_JET_ETA + LARGEST_PHOTON_ETA
"""Largest distance in pseudorapidity of a parton from the Higgs boson, whose y lies between those of its photons."""

LARGEST_X = 1 - 1e-9
"""Momentum fractions beyond it have no partons."""

COMPONENTS, AXES, CUTS = 4, 6, 6
BATCH = 16_384
"""Points of the cube at a time."""

GRIDS = Path(__file__).with_name("grids.npz")


class HardEvents(NamedTuple):
    """Partons and the Higgs boson before decay and detector, and their vertices.

    Arguments:
        partons: (k, eta, phi) of partons 3 and 4, GeV and rad, shape `(rows, 2, 3)`; phi of parton 4 is 0
        rapidity: of the Higgs boson, shape `(rows,)`
        vertices: V, shape `(rows, 4, 2)`
    """

    partons: Tensor
    rapidity: Tensor
    vertices: Tensor

    def take(self, rows: Tensor) -> "HardEvents":
        """Return the events of these rows."""
        return HardEvents(self.partons[rows], self.rapidity[rows], self.vertices[rows])


class Grids(NamedTuple):
    """What the sampling of each component needs.

    Arguments:
        edges: of the stretched cells of each axis, shape `(components, 6, bins + 1)`
        ceilings: of the weights in each cell, shape `(components, 6^6)`
        integrals: sigma_c in units of N0, without the common azimuth, shape `(components,)`
        lottery: for each component, every cell as many times as its ceiling has units, shape `(tickets,)`
    """

    edges: Tensor
    ceilings: Tensor
    integrals: Tensor
    lottery: list[Tensor]

    @classmethod
    def of(cls, edges: Tensor, ceilings: Tensor, integrals: Tensor) -> "Grids":
        """Return grids with ceilings raised to multiples of a unit, an eighth of their mean."""
        unit = ceilings.mean(-1, keepdim=True) / 8
        tickets = (ceilings / unit).ceil()
        lottery = [torch.repeat_interleave(each.long()) for each in tickets]
        return cls(edges, tickets * unit, integrals, lottery)


class Evaluated(NamedTuple):
    """Points of the cube as events.

    Arguments:
        kinematics: k3, eta3, Dphi, k4, eta4 and y, shape `(6, rows)`
        vertices: V, shape `(4, 2, rows)`
        weight: w times the Jacobian of the cube, in units of N0; 0 where no event can be accepted
    """

    kinematics: Tensor
    vertices: Tensor
    weight: Tensor

    def take(self, rows: Tensor) -> HardEvents:
        """Return the events of these rows."""
        k_3, eta_3, turn, k_4, eta_4, y = self.kinematics[:, rows]
        partons = torch.stack([k_3, eta_3, turn, k_4, eta_4, torch.zeros_like(turn)], dim=-1).unflatten(-1, (2, 3))
        return HardEvents(partons, y, self.vertices[..., rows].permute(2, 0, 1))


def evaluate(cube: Tensor) -> Evaluated:
    """Return the events at points of the unit cube, shape `(6, rows)`, float64."""
    log_range = math.log(MOST_K / LEAST_K)
    hard = LEAST_K * (log_range * cube[0]).exp()
    soft = LEAST_K * (log_range * cube[0] * cube[1]).exp()
    delta_3, delta_4 = LARGEST_DELTA * (2 * cube[2:4] - 1)
    turn = math.pi * (2 * cube[4] - 1)
    plus, minus = fractions(Partons(soft, delta_3, hard, -delta_4, turn), torch.zeros_like(turn))
    log_limit = -0.5 * (plus * minus).log()
    y = (2 * cube[5] - 1) * log_limit - 0.5 * (plus / minus).log()
    eta_3, eta_4 = y + delta_3, y - delta_4
    inside = (log_limit > 0) & (y.abs() < LARGEST_PHOTON_ETA)  # y lies between the photons
    inside &= (eta_3.abs() < LARGEST_JET_ETA) & (eta_4.abs() < LARGEST_JET_ETA)
    inside &= (eta_3 - eta_4).square() + turn.square() > LEAST_DISTANCE**2

    boost = y.exp()
    x1, x2 = (plus * boost).clamp(max=LARGEST_X), (minus / boost).clamp(max=LARGEST_X)
    process = HardProcess.at(Partons(soft, eta_3, hard, eta_4, turn), x1, x2)
    constant = 32 * math.pi * (log_range * LARGEST_DELTA) ** 2
    jacobian = constant * (soft * hard).square() * cube[0] * log_limit
    weight = torch.where(inside, flux(x1, x2) * process.standard_model * jacobian, 0)
    return Evaluated(torch.stack([soft, eta_3, turn, hard, eta_4, y]), process.vertices, weight)


def trials(grids: Grids, component: int, count: int, generator: Generator) -> tuple[Evaluated, Tensor]:
    """Return events at random points, chosen by the ceilings of a component, and rho = weight/ceiling of them."""
    lottery, ceilings = grids.lottery[component], grids.ceilings[component]
    chosen = lottery[torch.randint(len(lottery), (count,), generator=generator)]
    flat = (corners(chosen) + torch.rand(AXES, count, generator=generator, dtype=torch.float64)) / CUTS
    cube, stretch = stretched(grids.edges[component], flat)
    points = evaluate(cube)
    return points, component_weight(points, component) * stretch / ceilings[chosen]


def corners(cells: Tensor) -> Tensor:
    """Return the lower corners of cells in units of a cell, shape `(6, rows)`: their digits in base 6."""
    digits, rest = [], cells.double()
    for _ in range(AXES):
        above = (rest / CUTS).floor()
        digits.append(rest - CUTS * above)
        rest = above
    return torch.stack(digits)


def stretched(edges: Tensor, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Return points of the cube at places of the flat one, shape `(6, rows)`, and the Jacobian, shape `(rows,)`."""
    bins = edges.shape[1] - 1
    place = flat * bins
    at = place.long().clamp(max=bins - 1)
    low, high = edges.gather(1, at), edges.gather(1, at + 1)
    return low + (place - at) * (high - low), (bins * (high - low)).prod(0)


def component_weight(points: Evaluated, component: int) -> Tensor:
    """Return w |V_c|^2 times the Jacobian of the cube, shape `(rows,)`."""
    return points.weight * points.vertices[component].square().sum(0)


def draw(theta: Tensor, grids: Grids, generator: Generator) -> tuple[Tensor, HardEvents]:
    """Try one event for each row of theta, and return the rows that got one with their events.

    Which rows do depends on chance and theta alone: those without start again here.

    Arguments:
        theta: shape `(rows, 3)`, float64
        grids: as `load_grids` returns them
        generator: of everything random
    """
    extended = torch.cat([torch.ones_like(theta[:, :1]), theta], dim=-1)
    chance = extended.abs() * grids.integrals.sqrt()
    chance = chance / chance.sum(-1, keepdim=True)
    pick = torch.rand(len(theta), 1, generator=generator, dtype=torch.float64)
    component = (chance.cumsum(-1) < pick).sum(-1).clamp(max=COMPONENTS - 1)
    rows, parts = [], []
    for which in range(COMPONENTS):
        mine = (component == which).nonzero()[:, 0]
        if len(mine) > 0:
            rows.append(mine)
            parts.append(of_component(which, len(mine), grids, generator))
    order = torch.cat(rows)
    events = HardEvents(*(torch.cat(column) for column in zip(*parts, strict=True)))
    extended, chance = extended[order], chance[order]
    squares = events.vertices.square().sum(-1)
    bound = torch.where(chance > 0, extended.square() * squares / chance, 0).sum(-1)
    keep = amplitude_of(events.vertices, theta[order]).square().sum(-1) > bound * torch.rand(
        len(order), generator=generator, dtype=torch.float64
    )
    return order[keep], events.take(keep)


def of_component(component: int, count: int, grids: Grids, generator: Generator) -> HardEvents:
    """Return so many events that follow w |V_c|^2, half of them turned.

    Arguments:
        component: c
        count: how many
        grids: as `load_grids` returns them
        generator: of everything random
    """
    parts: list[HardEvents] = []
    found, efficiency = 0, float(grids.integrals[component] / grids.ceilings[component].mean())
    while found < count:
        batch = min(BATCH, math.ceil(((count - found) + 2 * math.sqrt(count - found)) / efficiency))
        points, rho = trials(grids, component, batch, generator)
        copies = (rho + torch.rand(len(rho), generator=generator, dtype=torch.float64)).long()
        kept = torch.repeat_interleave(copies)
        parts.append(points.take(kept))
        found += len(kept)
    order = torch.randperm(found, generator=generator)[:count]  # copies of one point need not stay together
    partons, rapidity, vertices = (torch.cat(column)[order] for column in zip(*parts, strict=True))
    turned = torch.rand(count, generator=generator, dtype=torch.float64) < 0.5
    other = partons.flip(1) * torch.tensor([1.0, -1.0, 1.0], dtype=torch.float64)
    # phi_3 - phi_4 stays as it is: only the entry of parton 3 is not zero
    other[..., 2] = partons[..., 2]
    partons = torch.where(turned[:, None, None], other, partons)
    return HardEvents(partons, torch.where(turned, -rapidity, rapidity), vertices)


@cache
def load_grids() -> Grids:
    """Return the grids that ship with the process.

    Raises:
        RuntimeError: if they were made for other constants
    """
    with np.load(GRIDS) as stored:
        edges, log_ceilings, integrals = (
            torch.from_numpy(stored[name].astype(np.float64)) for name in ("edges", "log_ceilings", "integrals")
        )
        if not np.allclose(fingerprint(), stored["fingerprint"], rtol=1e-9, atol=0):
            raise RuntimeError(
                f"{GRIDS.name} was made for other constants of the process: run `python -m simulators.lhc.grids`."
            )
    return Grids.of(edges, log_ceilings.exp(), integrals)


def fingerprint() -> np.ndarray:
    """Return weights at fixed points: they change with any constant that the grids depend on."""
    points = torch.rand(AXES, 512, generator=Generator().manual_seed(0), dtype=torch.float64)
    evaluated = evaluate(0.25 + 0.5 * points)
    columns = [component_weight(evaluated, which).sum() for which in range(COMPONENTS)]
    return torch.stack(columns).numpy()
