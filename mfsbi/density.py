r"""The volume factor of a manifold: what a density on coordinates becomes on the surface.

A chart g: R^n -> R^d, u -> x carries a small cell du to a parallelepiped of n-volume sqrt(det J^T J) du, with
the Jacobian J = dg/du of shape d x n. A density p(u) of the coordinates is therefore the density

    log p(x) = log p(u) - 1/2 log det J^T J,    x = g(u),

with respect to the surface measure (Brehmer & Cranmer, arXiv:2003.13913, eq. 5).

**Tangents.** The n columns of J are n directional derivatives of `decode`. A chart made of known layers carries them
along in closed form (`mfsbi.flows`); for any other, `tangents` takes them in one vectorised forward-mode pass. Both are
linear in the rows and in n.

**Determinant.** In float64 whatever the model's type: the Cholesky factor L of J^T J gives sum_k log L_kk. It squares
the condition number of J, so where a factor fails or is ill-conditioned J = Q R takes its place, sum_k log|R_kk|.
Nothing is added to the diagonal; a chart that is singular at a point is an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mfsbi.types import Coordinates, Scalars, Tangents

__all__ = ["log_volume", "tangents"]

ILL_CONDITIONED = 1e-5
"""Least ratio of diagonal entries of the Cholesky factor: below, rounding costs more than the sixth digit."""


def tangents(decode: Callable[[Tensor], Tensor], u: Coordinates) -> Tangents:
    """Return J = d decode / d u, shape `(*, data, manifold)`.

    Arguments:
        decode: the chart's map u -> x; must treat each row on its own
        u: coordinates, shape `(*, manifold)`
    """

    def along(direction: Tensor) -> Tensor:
        return torch.func.jvp(decode, (u,), (direction.expand_as(u),))[1]

    axes = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    return torch.func.vmap(along, out_dims=-1)(axes)


def log_volume(jacobian: Tangents) -> Scalars:
    """Return the log-volume 1/2 log det J^T J, shape `(*)`, in the type of J.

    Arguments:
        jacobian: tangents of a chart, shape `(*, data, manifold)`

    Raises:
        ArithmeticError: if the tangents are dependent or not finite at a point; the message names the row

    Example:
        >>> polar = lambda u: u[..., :1] * torch.stack([u[..., 1].cos(), u[..., 1].sin()], -1)
        >>> round(log_volume(tangents(polar, torch.tensor([[2.0, 0.3]]))).exp().item(), 5)  # r dr dphi
        2.0
    """
    columns = jacobian.double()
    factor, failed = torch.linalg.cholesky_ex(columns.mT @ columns)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    if failed.any() or (diagonal.amin(-1) < ILL_CONDITIONED * diagonal.amax(-1)).any():
        diagonal = torch.linalg.qr(columns)[1].diagonal(dim1=-2, dim2=-1).abs()
    volume = diagonal.log().sum(-1)
    if not torch.isfinite(volume).all():
        row = tuple((~torch.isfinite(volume)).nonzero()[0].tolist())
        raise ArithmeticError(
            f"The chart has no volume at row {row}: its tangents are not finite or not independent there. "
            "It is probably not trained; look at its reconstruction first."
        )
    return volume.to(jacobian.dtype)
