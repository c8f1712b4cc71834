"""How fast the LHC process makes events and evaluates its exact likelihood, on one core."""

from typing import Any

import torch

from mfsbi.bench.duel import timed
from mfsbi.registry import named
from mfsbi.seeds import seeded

__all__ = ["event_rates"]


def event_rates(rows: int = 50_000, points: int = 100_000) -> dict[str, float]:
    """Return events per second, features included, microseconds per likelihood and seconds per grid of theta.

    Arguments:
        rows: events that are made
        points: thetas at which 20 events are evaluated
    """
    process: Any = named("lhc")  # beyond a `Simulator` it knows its likelihood as a quadratic form
    with seeded(0):
        theta, grid = process.prior.sample((rows,)), process.prior.sample((points,))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        process.simulate(theta[:100], seed=0)
        x, of_prior = timed(lambda: process.simulate(theta, seed=1))
        _, of_standard_model = timed(lambda: process.simulate(torch.zeros_like(theta), seed=2))
        some = x[: max(1, rows // 10)]
        _, of_form = timed(lambda: process.likelihood(some))
        form = process.likelihood(x[:20])
        _, of_grid = timed(lambda: form.log_likelihood(grid))
    finally:
        torch.set_num_threads(before)
    return {
        "LHC events per second, one core, theta from the prior (aim 20,000)": round(rows / of_prior),
        "the same at theta = 0 (aim 50,000)": round(rows / of_standard_model),
        "microseconds per event for its exact likelihood as a quadratic form (aim 50)": round(
            1e6 * of_form / len(some), 1
        ),
        f"seconds for 20 events at {points:,} theta after that (aim 0.1)": round(of_grid, 4),
    }
