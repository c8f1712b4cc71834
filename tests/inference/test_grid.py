import math

import pytest
import torch

from mfsbi.inference.grid import grid_posterior


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_gaussian_has_its_moments(dims):
    mean, std = torch.linspace(-0.5, 0.5, dims), torch.linspace(0.5, 1.0, dims)

    def potential(theta):
        return -0.5 * ((theta - mean) / std).square().sum(-1) + 1000

    grid = grid_posterior(potential, [-6] * dims, [6] * dims, points=101)
    torch.testing.assert_close(grid.mean, mean.double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(grid.std, std.double(), rtol=1e-3, atol=0)
    assert float(grid.probability.sum()) == pytest.approx(1)
    peak = 1 / math.prod((2 * math.pi) ** 0.5 * s for s in std.tolist())
    assert float(grid.density.max()) == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("ends", [([], []), ([0.0] * 4, [1.0] * 4), ([0.0], [1.0, 2.0])])
def test_too_many_parameters_are_refused(ends):
    with pytest.raises(ValueError, match="same 1 to 3 entries"):
        grid_posterior(lambda theta: theta.sum(-1), *ends)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_potential_without_numbers_is_refused(value):
    with pytest.raises(ValueError, match="`potential` should be a number"):
        grid_posterior(lambda theta: theta[:, 0] * 0 + value, [0.0], [1.0])
