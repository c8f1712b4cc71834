r"""The volume factor of a manifold: what a density on coordinates becomes on the surface.

A chart g: R^n -> R^d, u -> x carries a small cell du to a parallelepiped of n-volume sqrt(det J^T J) du, with
the Jacobian J = dg/du of shape d x n. A density p(u) of the coordinates is therefore the density

    log p(x) = log p(u) - 1/2 log det J^T J,    x = g(u),

with respect to the surface measure (Brehmer & Cranmer, arXiv:2003.13913, eq. 5).

**Tangents.** The n columns of J are n directional derivatives of `decode`. A chart made of known layers carries them
along in closed form (`mfsbi.flows`); for any other, `tangents` takes them by n passes in forward mode. Both are linear
in the rows and in n.

**Complement.** Where g is half of a bijection f^-1: x -> (u, v) the d - n normals V = dv/dx say as much as the n
tangents. With A = d(u, v)/dx the tangents are the first n columns of A^-1, and by Jacobi's complementary minors

    1/2 log det J^T J = 1/2 log det V V^T - log|det A|:

d - n reverse passes, and a determinant that f knows. A chart takes them when they cost less than its tangents.

**Noisy gradients.** Training through the volume needs its gradient, d(1/2 log det J^T J) = tr(J^+ dJ) with the
pseudo-inverse J^+ = (J^T J)^-1 J^T. For independent random signs e in {-1, 1}^n

    E[w^T dJ e] = tr(J^+ dJ),    w = J (J^T J)^-1 e,    Var = 2 (|S|^2 - sum_i S_ii^2),    S = (J^+ dJ + (J^+ dJ)^T) / 2

(Hutchinson; for charts Caterini et al., arXiv:2106.01413): the value is exact, from tangents that need no graph, and
one tangent J e carries the gradient instead of n. The variance is twice what stands off the diagonal of S, squared:
nothing for n = 1, and averaged away by the rows of a batch as every other noise of training is.

**Determinant.** In float64 whatever the model's type: the Cholesky factor L of J^T J gives sum_k log L_kk. It squares
the condition number of J, so where a factor fails or is ill-conditioned J = Q R takes its place, sum_k log|R_kk|.
Nothing is added to the diagonal; a chart that is singular at a point is an error.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mfsbi.types import Coordinates, Data, Directions, Scalars, Tangents

__all__ = ["log_volume", "noisy_log_volume", "require_volume", "tangents", "unchecked_log_volume"]

ILL_CONDITIONED = 1e-5
"""Least ratio of diagonal entries of the Cholesky factor: below, rounding costs more than the sixth digit."""


def tangents(decode: Callable[[Tensor], Tensor], u: Coordinates, directions: Directions | None = None) -> Tangents:
    """Return J = d decode / d u, shape `(*, data, manifold)`, or J times some directions, shape `(*, data, k)`.

    Arguments:
        decode: the chart's map u -> x; must treat each row on its own
        u: coordinates, shape `(*, manifold)`
        directions: k of them for each row, shape `(*, manifold, k)`; the coordinate axes if not given
    """
    if directions is None:
        directions = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device).expand(*u.shape, -1)
    if torch.is_inference_mode_enabled():  # where torch 2.11 takes the tangents of some functions for zero
        with torch.inference_mode(mode=False), torch.no_grad():
            return tangents(decode, u.clone(), directions.clone())
    return torch.stack([torch.func.jvp(decode, (u,), (column,))[1] for column in directions.unbind(-1)], dim=-1)


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
    return require_volume(unchecked_log_volume(jacobian))


def unchecked_log_volume(jacobian: Tangents) -> Scalars:
    """Return the log-volume of `log_volume`, not finite where there is none."""
    columns = jacobian.double()
    factor, failed = torch.linalg.cholesky_ex(columns.mT @ columns)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    if failed.any() or (diagonal.amin(-1) < ILL_CONDITIONED * diagonal.amax(-1)).any():
        diagonal = torch.linalg.qr(columns)[1].diagonal(dim1=-2, dim2=-1).abs()
    return diagonal.log().sum(-1).to(jacobian.dtype)


def require_volume(volume: Scalars) -> Scalars:
    """Return the log-volumes if all are finite.

    Raises:
        ArithmeticError: if one is not; the message names the row
    """
    if not torch.isfinite(volume).all():
        row = tuple((~torch.isfinite(volume)).nonzero()[0].tolist())
        raise ArithmeticError(
            f"The chart has no volume at row {row}: its tangents are not finite or not independent there. "
            "It is probably not trained; look at its reconstruction first."
        )
    return volume


def noisy_log_volume(jacobian: Tangents, tangent: Data, signs: Coordinates) -> Scalars:
    """Return 1/2 log det J^T J, shape `(*)`: its value exact, its gradient an unbiased estimate by one tangent.

    Arguments:
        jacobian: J, shape `(*, data, manifold)`, taken as a number
        tangent: J e, shape `(*, data)`, whose graph carries the gradient
        signs: e, independent and random in {-1, 1}, shape `(*, manifold)`

    Raises:
        ArithmeticError: if the tangents are dependent or not finite at a point; the message names the row
    """
    columns = jacobian.detach().double()
    value = log_volume(jacobian.detach())
    weights = columns @ torch.linalg.solve(columns.mT @ columns, signs.double().unsqueeze(-1))
    carrier = (weights.squeeze(-1).to(tangent.dtype) * tangent).sum(-1)
    return value + carrier - carrier.detach()
