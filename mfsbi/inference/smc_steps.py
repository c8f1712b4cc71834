"""Proposals of SMC: where particles might go, all at once and for several data sets at once.

Tensors have the data sets along their first axis and the particles along the second; `mfsbi.inference.run_smc` says
which steps these are.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Normal", "about_mean", "along_differences"]

JUMPS = 0.2
"""Share of steps along differences that go all the way."""

FREEDOM = 5.0
"""Degrees of freedom of the law that steps about the mean leave as it is."""


@dataclass
class Normal:
    """Normal laws, one for each data set.

    Arguments:
        mean: shape `(sets, d)`
        root: Cholesky factors of the covariances, shape `(sets, d, d)`
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, y: Tensor) -> "Normal":
        """Return those with the moments of rows, `(sets, rows, d)`, a little wider in directions these do not fill."""
        mean = y.mean(1)
        left = y - mean[:, None]
        covariance = left.mT @ left / (y.shape[1] - 1)
        variance = covariance.diagonal(dim1=-2, dim2=-1)
        floor = 1e-9 * torch.maximum(variance, variance.amax(-1, keepdim=True) * 1e-12 + 1e-300)
        return cls(mean, torch.linalg.cholesky(covariance + floor.diag_embed()))

    def __getitem__(self, which: Tensor) -> "Normal":
        return Normal(self.mean[which], self.root[which])

    def __setitem__(self, which: Tensor, laws: "Normal") -> None:
        self.mean[which], self.root[which] = laws.mean, laws.root

    def drawn(self, rows: int) -> Tensor:
        """Return rows with the covariances and mean zero, shape `(sets, rows, d)`."""
        sets, dims = self.mean.shape
        return torch.randn(sets, rows, dims, dtype=self.mean.dtype) @ self.root.mT

    def whitened(self, difference: Tensor) -> Tensor:
        """Return differences of y, `(sets, rows, d)`, in coordinates in which the laws are standard."""
        return torch.linalg.solve_triangular(self.root, difference.mT, upper=False).mT


def along_differences(y: Tensor, size: Tensor, start: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
    """Return proposals, shape `(sets, particles, d)`, and log q(y|new) / q(new|y), which is zero.

    Arguments:
        y: where particles are, shape `(sets, particles, d)`
        size: of the steps, in units of the best one for normal laws, shape `(sets,)`
        start: particles whose differences are taken, as y
        normal: laws with the moments of those
    """
    sets, rows, dims = y.shape
    first = torch.randint(rows, (sets, rows))
    second = (first + torch.randint(1, rows, (sets, rows))) % rows
    one, other = (start.gather(1, index[..., None].expand(-1, -1, dims)) for index in (first, second))
    factor = (size * 2.38 / math.sqrt(2 * dims))[:, None, None].repeat(1, rows, 1)
    factor[torch.rand(sets, rows) < JUMPS] = 1.0
    step = (1 + 0.1 * torch.randn_like(factor)) * (one - other)
    return y + factor * (step + 1e-3 * normal.drawn(rows)), torch.zeros(sets, rows, dtype=y.dtype)


def about_mean(y: Tensor, size: Tensor, _start: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
    """Return proposals, shape `(sets, particles, d)`, and log q(y|new) / q(new|y).

    Arguments:
        y: where particles are, shape `(sets, particles, d)`
        size: from 0, which leaves particles where they are, to 1, which makes them forget it, shape `(sets,)`
        _start: not needed
        normal: laws whose Student's t with the same mean and scale the steps leave as it is
    """
    rows, dims = y.shape[1:]
    mean, size = normal.mean[:, None], size[:, None, None]
    before = normal.whitened(y - mean).square().sum(-1)
    scale = ((FREEDOM + before) / 2 / torch._standard_gamma(torch.full_like(before, (FREEDOM + dims) / 2))).sqrt()
    new = mean + (1 - size.square()).sqrt() * (y - mean) + size * scale[..., None] * normal.drawn(rows)
    after = normal.whitened(new - mean).square().sum(-1)
    return new, (FREEDOM + dims) / 2 * torch.log((FREEDOM + after) / (FREEDOM + before))
