"""Make `grids.npz`: `python -m simulators.lhc.grids`, minutes on one core; needed after a constant has changed.

Grids are adapted by the squared weights of events that pass detector and selection; ceilings are 1.5 times the largest
weight among the trial points of a cell, and at least a tenth of the mean of all cells.
"""

import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from simulators.lhc.decay import observe
from simulators.lhc.detector import accepted
from simulators.lhc.hard_process import (
    AXES,
    COMPONENTS,
    CUTS,
    GRIDS,
    Grids,
    component_weight,
    evaluate,
    fingerprint,
    stretched,
    trials,
)

BINS, ITERATIONS, ADAPTING = 100, 12, 200_000
CEILING_POINTS, INTEGRAL_POINTS, BATCH = 40_000_000, 100_000_000, 16_384
SEED = 20_033_913


class Made(NamedTuple):
    """What is stored: edges, ceilings as they were found, integrals and their relative errors, by component."""

    edges: Tensor
    ceilings: Tensor
    integrals: Tensor
    errors: Tensor


def make(
    adapting: int = ADAPTING, ceiling_points: int = CEILING_POINTS, integral_points: int = INTEGRAL_POINTS
) -> Made:
    """Return grids for every component.

    Arguments:
        adapting: points of each iteration that adapts the grids
        ceiling_points: points that look for the largest weights
        integral_points: points of each integral
    """
    generator = Generator().manual_seed(SEED)
    edges = torch.stack([_adapted(component, adapting, generator) for component in range(COMPONENTS)])
    ceilings = torch.stack([_ceilings(edges[c], c, ceiling_points, generator) for c in range(COMPONENTS)])
    grids = Grids.of(edges, ceilings, torch.ones(COMPONENTS, dtype=torch.float64))
    integrals, errors = zip(*(integral(grids, c, integral_points, generator) for c in range(COMPONENTS)), strict=True)
    return Made(edges, ceilings, torch.stack(integrals), torch.stack(errors))


def _adapted(component: int, points: int, generator: Generator) -> Tensor:
    """Return the edges of the stretched cells, shape `(6, bins + 1)`."""
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64).repeat(AXES, 1)
    for _ in range(ITERATIONS):
        importance = torch.zeros(AXES, BINS, dtype=torch.float64)
        for _ in range(-(-points // BATCH)):
            flat = torch.rand(AXES, BATCH, generator=generator, dtype=torch.float64)
            cube, stretch = stretched(edges, flat)
            found = evaluate(cube)
            seen = accepted(observe(found.take(found.weight > 0), generator))
            weight = component_weight(found, component) * stretch
            weight[weight > 0] *= seen
            at = (flat * BINS).long().clamp(max=BINS - 1)
            importance.scatter_add_(1, at, weight.square().expand(AXES, -1))
        edges = torch.stack([_refined(*axis) for axis in zip(edges, importance, strict=True)])
    return edges


def _refined(edges: Tensor, importance: Tensor) -> Tensor:
    """Return edges between which the smoothed and damped importance is equal (Lepage, section II)."""
    padded = torch.cat([importance[:1], importance, importance[-1:]])
    smooth = (padded[:-2] + 6 * padded[1:-1] + padded[2:]) / 8
    smooth = (smooth / smooth.sum()).clamp(min=1e-12)
    damped = ((1 - smooth) / -smooth.log()).pow(0.75)
    level = torch.cat([torch.zeros(1, dtype=torch.float64), (damped / damped.sum()).cumsum(0)])
    new = np.interp(np.linspace(0, 1, len(edges)), level.numpy() / float(level[-1]), edges.numpy())
    return torch.from_numpy(new)


def _ceilings(edges: Tensor, component: int, points: int, generator: Generator) -> Tensor:
    """Return a ceiling for each cell, shape `(6^6,)`."""
    largest = torch.zeros(CUTS**AXES, dtype=torch.float64)
    strides = torch.tensor([CUTS**axis for axis in range(AXES)])
    total = torch.zeros((), dtype=torch.float64)
    for _ in range(-(-points // BATCH)):
        flat = torch.rand(AXES, BATCH, generator=generator, dtype=torch.float64)
        cube, stretch = stretched(edges, flat)
        found = evaluate(cube)
        weight = component_weight(found, component) * stretch
        cell = (strides[:, None] * (flat * CUTS).long().clamp(max=CUTS - 1)).sum(0)
        largest.scatter_reduce_(0, cell, weight, "amax")
        total += weight.sum()
    return torch.maximum(1.5 * largest, 0.1 * total / (-(-points // BATCH) * BATCH))


def integral(grids: Grids, component: int, points: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return sigma_c in units of N0, without the common azimuth, and its relative error.

    Arguments:
        grids: whose cells are drawn from
        component: c
        points: about how many; whole batches are drawn
        generator: of everything random
    """
    mean, square = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    batches = -(-points // BATCH)
    for _ in range(batches):
        _, rho = trials(grids, component, BATCH, generator)
        mean += rho.mean() / batches
        square += rho.square().mean() / batches
    error = ((square - mean.square()) / (batches * BATCH)).sqrt() / mean
    return grids.ceilings[component].mean() * mean, error


if __name__ == "__main__":
    made = make()
    np.savez_compressed(
        GRIDS,
        edges=made.edges.numpy(),
        log_ceilings=made.ceilings.log().numpy().astype(np.float16),
        integrals=made.integrals.numpy(),
        errors=made.errors.numpy(),
        fingerprint=fingerprint(),
    )
    sys.stdout.write(f"integrals {made.integrals.tolist()}, relative errors {made.errors.tolist()}\n")
