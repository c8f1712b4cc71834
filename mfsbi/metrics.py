r"""Metrics: arrays in, numbers out. Definitions are fixed so that tables compare.

* `mmd2`: squared maximum mean discrepancy, the unbiased estimate (Gretton et al., JMLR 13 (2012) 723, eq. 3)

      MMD^2 = mean_{i != j} k(a_i, a_j) + mean_{i != j} k(b_i, b_j) - 2 mean_{i,j} k(a_i, b_j),

  Gaussian kernel k = exp(-|a - b|^2 / (2 h^2)), h the median distance within the first sample, which should be
  the truth. Near zero (and as often below it) when both come from one distribution.
* `mmd2_on_grid`: the same between two densities on one grid, without noise: sum_ij k_ij (p_i - q_i)(p_j - q_j).
* `auc`: the probability that an outlier scores above an inlier, ties counting half (area under the ROC curve).
* `total_variation`: TV(p, q) = 1/2 sum |p_i - q_i|, in [0, 1], of two probability vectors on one grid.
* `kl_divergence`: KL(p || q) = sum p_i log(p_i / q_i) in nats; infinite where q misses mass that p has.
"""

import torch
from torch import Tensor

__all__ = ["auc", "kl_divergence", "mmd2", "mmd2_on_grid", "total_variation"]


def mmd2(a: Tensor, b: Tensor) -> float:
    """Return the unbiased MMD^2 of two samples, bandwidth the median distance within `a`.

    Arguments:
        a: the reference sample, shape `(rows_a, features)`
        b: the other sample, shape `(rows_b, features)`

    Raises:
        ValueError: if a sample has fewer than two rows, features differ, or all rows of `a` are equal

    Example:
        >>> a, b = torch.randn(500, 2), torch.randn(500, 2)
        >>> abs(mmd2(a, b)) < 0.01 < mmd2(a, b + 1)
        True
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"`a` and `b` should have at least 2 rows and equal features; got {tuple(a.shape)}, {tuple(b.shape)}."
        )
    a, b = a.double(), b.double()
    within = torch.cdist(a, a)
    bandwidth = within[~torch.eye(len(a), dtype=torch.bool)].median()
    if bandwidth == 0:
        raise ValueError("`a` should vary; the median distance between its rows is 0.")

    def kernel(distances: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distances / bandwidth) ** 2)

    def mean_off_diagonal(matrix: Tensor) -> Tensor:
        return (matrix.sum() - matrix.diagonal().sum()) / (len(matrix) * (len(matrix) - 1))

    between = kernel(torch.cdist(a, b)).mean()
    return float(mean_off_diagonal(kernel(within)) + mean_off_diagonal(kernel(torch.cdist(b, b))) - 2 * between)


def mmd2_on_grid(theta: Tensor, p: Tensor, q: Tensor) -> float:
    """Return MMD^2 of two probability vectors on one grid, bandwidth the median distance within `p`.

    Arguments:
        theta: the points, shape `(cells, features)`
        p: the reference, shape `(cells,)`
        q: the other, shape `(cells,)`

    Raises:
        ValueError: if they are not probability vectors of one shape, or all of `p` is in one cell
    """
    _require_probabilities(p, q)
    distance = torch.cdist(theta.double(), theta.double())
    order = distance.flatten().argsort()
    weight = torch.outer(p, p).flatten()[order].cumsum(0)
    bandwidth = distance.flatten()[order][torch.searchsorted(weight, 0.5 * weight[-1]).clamp(max=len(order) - 1)]
    if bandwidth == 0:
        raise ValueError("`p` should vary; the median distance within it is 0.")
    difference = (p - q).double()
    return float(difference @ torch.exp(-0.5 * (distance / bandwidth) ** 2) @ difference)


def auc(inliers: Tensor, outliers: Tensor) -> float:
    """Return the probability that an outlier's score lies above an inlier's, ties counting half.

    Arguments:
        inliers: scores, shape `(rows,)`
        outliers: scores, shape `(other rows,)`

    Raises:
        ValueError: if a sample is empty, not a vector, or holds NaN

    Example:
        >>> auc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    for name, value in (("inliers", inliers), ("outliers", outliers)):
        if value.ndim != 1 or len(value) == 0 or torch.isnan(value).any():
            raise ValueError(f"`{name}` should be a vector of numbers; got shape {tuple(value.shape)} or NaN.")
    ordered = inliers.sort().values
    below = torch.searchsorted(ordered, outliers.contiguous())
    not_above = torch.searchsorted(ordered, outliers.contiguous(), right=True)
    return float((below + not_above).double().mean() / (2 * len(inliers)))


def total_variation(p: Tensor, q: Tensor) -> float:
    """Return TV(p, q) of two probability vectors, shape `(cells,)`.

    Raises:
        ValueError: if they are not probability vectors of one shape
    """
    _require_probabilities(p, q)
    return float(0.5 * (p - q).abs().sum())


def kl_divergence(log_p: Tensor, log_q: Tensor) -> float:
    """Return KL(p || q) in nats of two probability vectors, given their logarithms, shape `(cells,)`.

    Logarithms, since a probability below exp(-745) is zero as a number, though p may well have mass there.

    Raises:
        ValueError: if they are not probability vectors of one shape
    """
    _require_probabilities(log_p.exp(), log_q.exp())
    mass = log_p > -torch.inf
    return float((log_p[mass].exp() * (log_p[mass] - log_q[mass])).sum())


def _require_probabilities(p: Tensor, q: Tensor) -> None:
    if p.ndim != 1 or p.shape != q.shape:
        raise ValueError(f"`p` and `q` should be vectors on one grid; got {tuple(p.shape)} and {tuple(q.shape)}.")
    for name, value in (("p", p), ("q", q)):
        if (value < 0).any() or not torch.isclose(value.sum(), torch.ones((), dtype=value.dtype), atol=1e-5):
            raise ValueError(f"`{name}` should be non-negative and sum to 1; its sum is {float(value.sum()):g}.")
