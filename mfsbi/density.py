r"""The volume factor of a manifold: what a density on coordinates becomes on the surface.

A chart g: R^n -> R^d, u -> x carries a small cell du to a parallelepiped of n-volume sqrt(det J^T J) du, with
the Jacobian J = dg/du of shape d x n. A density p(u) of the coordinates is therefore the density

    log p(x) = log p(u) - 1/2 log det J^T J,    x = g(u),

with respect to the surface measure (Brehmer & Cranmer, arXiv:2003.13913, eq. 5).

**Numerics.** The n columns of J are n directional derivatives of `decode`, all taken in one vectorised
forward-mode pass: cost n decodes, linear in the batch. J = Q R with orthonormal Q gives
1/2 log det J^T J = sum_k log|R_kk|, in float64 whatever the model's type. Unlike a Cholesky factor of J^T J this
does not square the condition number, so nothing needs a jitter; a chart that is singular at a point is an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mfsbi.types import Coordinates, Scalars, Tangents

__all__ = ["log_volume", "tangents"]


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


def log_volume(decode: Callable[[Tensor], Tensor], u: Coordinates) -> Scalars:
    """Return the log-volume 1/2 log det J^T J of a chart at u, shape `(*)`, in the type of u.

    Arguments:
        decode: the chart's map u -> x; must treat each row on its own
        u: coordinates, shape `(*, manifold)`

    Raises:
        ArithmeticError: if the chart is singular or not finite at a point; the message names the row

    Example:
        >>> polar = lambda u: u[..., :1] * torch.stack([u[..., 1].cos(), u[..., 1].sin()], -1)
        >>> round(log_volume(polar, torch.tensor([[2.0, 0.3]])).exp().item(), 5)  # r dr dphi
        2.0
    """
    jacobian = tangents(decode, u).double()
    diagonal = torch.linalg.qr(jacobian)[1].diagonal(dim1=-2, dim2=-1)
    volume = diagonal.abs().log().sum(-1)
    if not torch.isfinite(volume).all():
        row = tuple((~torch.isfinite(volume)).nonzero()[0].tolist())
        raise ArithmeticError(
            f"The chart has no volume at row {row}, u = {u[row].tolist()}: its tangents are not finite or not "
            "independent there. It is probably not trained; look at its reconstruction first."
        )
    return volume.to(u.dtype)
