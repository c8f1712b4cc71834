import warnings

import pytest
import torch

from mfsbi import dimension_scan
from mfsbi.dimension import DimensionScan
from simulators.lorenz import Lorenz
from simulators.sphere import Circle
from tests.problems import surface_data


@pytest.mark.parametrize("n", [1, 2, 3])
def test_flat_data_have_their_rank(n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3000, n, generator=generator) @ torch.randn(n, 4, generator=generator)
    scan = dimension_scan(x + 0.01 * torch.randn(3000, 4, generator=generator), steps=20)
    assert scan.suggested == n
    assert scan.dims == tuple(range(1, n + 1))
    assert f"suggested n = {n}" in str(scan)


def test_data_without_a_manifold_have_none_and_a_warning():
    with pytest.warns(UserWarning, match="No number of dimensions reconstructs the data"):
        scan = dimension_scan(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), steps=20)
    assert scan.suggested is None


def test_one_seed_gives_one_scan_whatever_the_type():
    x = surface_data(1000)[2]
    assert dimension_scan(x, [2], steps=20, tolerance=1) == dimension_scan(x.double(), [2], steps=20, tolerance=1)


FEW = torch.full((1000,), 1e-8).index_fill(0, torch.arange(5), 1.0)
"""Squared distances that sit in five rows of a thousand."""


@pytest.mark.parametrize(
    ("squared", "doubt"),
    [
        ({1: FEW, 2: torch.full((1000,), 1e-8)}, "closed or branched"),
        ({1: FEW, 2: torch.full((1000,), 1e-4)}, ""),  # not much better
        ({1: torch.full((1000,), 1e-4), 2: torch.full((1000,), 1e-8)}, ""),  # everywhere the same
        ({1: FEW, 3: torch.full((1000,), 1e-8)}, ""),  # nothing known of the next
        ({1: FEW}, ""),
    ],
)
def test_a_gap_is_told_from_noise(squared, doubt):
    scan = DimensionScan.of(squared, spread=1.0)
    assert scan.suggested == 1
    assert doubt in scan.doubt
    assert bool(scan.doubt) == bool(doubt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("x", "n"),
    [
        (lambda: surface_data(50_000)[2], 2),
        (lambda: Lorenz(trajectories=5000, end=54).simulate(torch.zeros(50_000, 0), seed=0), 2),
        (lambda: Circle(5).simulate(torch.tensor([[0.0, -1.0]]).expand(50_000, 2), seed=0), 1),
    ],
    ids=["polynomial surface", "Lorenz", "circle in five dimensions"],
)
def test_known_dimensions_are_found(x, n):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the topology of the circle
        scan = dimension_scan(x(), steps=1500)
    assert scan.suggested == n, str(scan)
