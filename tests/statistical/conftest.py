"""What several exams examine."""

import pytest
import torch

from mfsbi import ManifoldNLE, MFlow
from simulators.polynomial import PolynomialSurface


@pytest.fixture(scope="session")
def surface_trainer():
    """Return a trainer that has learned the polynomial surface as the demo does."""
    surface = PolynomialSurface()
    theta = torch.rand(100_000, 1, generator=torch.Generator().manual_seed(2)) * 2 - 1
    trainer = ManifoldNLE(surface.prior, MFlow(manifold_dim=2), seed=0, show_progress_bars=False)
    trainer.append_simulations(theta, surface.simulate(theta, seed=3))
    trainer.train()
    return trainer
