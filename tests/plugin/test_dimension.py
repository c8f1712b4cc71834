import warnings

import pytest
import torch

from mfsbi import dimension_scan
from mfsbi.plugin import dimension
from simulators.lorenz import Lorenz
from simulators.sphere import Circle
from tests.problems import surface_data


@pytest.mark.parametrize("n", [1, 2, 3])
def test_flat_data_have_their_rank(n):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(3000, n, generator=generator) @ torch.randn(n, 4, generator=generator)
    scan = dimension_scan(x + 0.01 * torch.randn(3000, 4, generator=generator), steps=60)
    assert scan.suggested == n
    assert scan.dims == (1, 2, 3)
    assert f"suggested n = {n}" in str(scan)


def test_data_without_a_manifold_have_none_and_a_warning():
    with pytest.warns(UserWarning, match="No number of dimensions reconstructs the data"):
        scan = dimension_scan(torch.randn(2000, 3, generator=torch.Generator().manual_seed(0)), steps=60)
    assert scan.suggested is None


def test_one_seed_gives_one_scan_whatever_the_type():
    x = surface_data(1000)[2]
    assert dimension_scan(x, [2], steps=20, tolerance=1) == dimension_scan(x.double(), [2], steps=20, tolerance=1)


def test_a_gap_is_told_from_noise():
    spread = torch.full((1000,), 1e-4)
    gap = spread.clone()
    gap[:5] = 1.0
    errors = [float(gap.mean().sqrt()), 1e-3]
    assert "closed or branched" in dimension._doubt(0, [gap, spread], errors, (1, 2))
    assert dimension._doubt(0, [spread, spread], [1e-2, 1e-4], (1, 2)) == ""
    assert dimension._doubt(0, [gap, spread], [1e-2, 5e-3], (1, 2)) == ""


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
