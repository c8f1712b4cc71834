"""Laws by other means: brute force that shares no code with what it judges."""

import numpy as np
import torch
from scipy import stats


def jacobian_by_differences(function, point, step=1e-6):
    """Return d function / d point of one row by central differences, shape (outputs, inputs)."""
    columns = []
    for axis in range(len(point)):
        shift = torch.zeros_like(point)
        shift[axis] = step
        columns.append((function(point + shift) - function(point - shift)) / (2 * step))
    return torch.stack(columns, dim=-1)


def jacobian_by_backward_passes(function, point):
    """Return d function / d point of one row, one reverse pass per output, shape (outputs, inputs)."""
    return torch.autograd.functional.jacobian(function, point)


def gram_log_volume(jacobian):
    """Return 1/2 log det J^T J from the singular values of J."""
    return torch.linalg.svdvals(jacobian.double()).log().sum()


def perturbed(module, scale=0.1, seed=0):
    """Return the module with all weights moved at random: an identity start would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return module


def exam_p_value(levels):
    """Return the p-value of the hypothesis that these posterior levels are uniform: the calibration exam."""
    return stats.kstest(np.asarray(levels), "uniform").pvalue


def levels_of_truth(theta, grid, log_posterior):
    """Return the posterior mass below the true theta for each data set.

    Arguments: true theta `(sets,)`, regular grid `(points,)`, log posterior up to a constant `(sets, points)`.
    """
    probability = log_posterior.double().softmax(-1)
    below = (probability * (grid < theta[:, None])).sum(-1)
    cell = (probability * ((grid - theta[:, None]).abs() <= (grid[1] - grid[0]) / 2)).sum(-1)
    return (below - 0.5 * cell).clamp(0, 1)
