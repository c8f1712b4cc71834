r"""Where the data lie: the frame in which a chart starts.

A chart of n coordinates starts as the projection on the first n axes of an orthonormal frame A of the standardised data

    y = A^T (x - mean) / std,

and training bends it. Which axes come first decides how much there is to bend. By default they are the principal axes,
which suits a surface that is nearly flat. With strong constraints it does not: in LHC events the momenta of photons
and jets nearly balance, so that what is left of their sum has a small variance and comes far back among the axes, and
yet nothing else tells it. Where a user knows features from which all others follow, these are better coordinates:
A begins with an orthonormal basis of what they span, that is of S S^T e_i, e_i the unit vectors of these features and
S a basis of the subspace that the data fill. The projection on S keeps features that are sums of others apart:
directions in which the data do not extend come last, and a linear constraint needs no training at all. The rest are
the principal axes of what is left.

Within their span the basis stays as the features are: what follows from few of them is easier to learn than from sums
of all (`notebooks/measurements.md` has both in numbers). What densities do about strongly correlated coordinates is
their own matter (`mfsbi.models.Latent`).

**Many features.** An eigendecomposition costs d^3 and its axes d^2 numbers, so above `MANY` features only the leading
`KEPT` axes are found (or twice as many as the chart has coordinates, and always fewer than rows). With Z the
standardised rows they are Z^T w / |Z^T w| for the leading eigenvectors w of Z Z^T where rows are few; otherwise they
come from a randomised singular value decomposition (Halko, Martinsson & Tropp, arXiv:0909.4061) of a fixed seed. What
data have beside these axes is dropped: no point of the manifold has it, and `squared_distance` counts it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mfsbi.checks import require_tensor

__all__ = ["KEPT", "MANY", "Frame", "features_of", "frame_of", "principal_axes", "require_coordinates", "scales_of"]

MANY, KEPT = 1000, 256
"""Features up to which all axes are found, and how many are found beyond."""

NOTHING = 1e-10
"""Share of the largest variance below which the data do not extend along an axis; rounding of float32 leaves 1e-14."""


class Frame(NamedTuple):
    """Where data lie.

    Arguments:
        mean: of each feature, shape `(data,)`
        std: of each feature, shape `(data,)`
        axes: orthonormal columns of the standardised data, shape `(data, data)` or, truncated, `(data, r)`; None for
            the axes of the features
    """

    mean: Tensor
    std: Tensor
    axes: Tensor | None = None


def scales_of(x: Tensor) -> Frame:
    """Return the frame of x along its own features, measured in float64.

    Arguments:
        x: shape `(rows, data)`

    Raises:
        ValueError: if a feature is constant
    """
    mean, std = x.double().mean(0), x.double().std(0)
    constant = (std <= 1e-12 * mean.abs().clamp(min=1e-300)).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"`x` should vary in every feature; features {constant} are constant. Drop them.")
    return Frame(mean.to(x.dtype), std.to(x.dtype))


def frame_of(x: Tensor, manifold_dim: int, coordinates: Sequence[int] = ()) -> Frame:
    """Return the frame of x, measured in float64.

    Arguments:
        x: shape `(rows, data)`
        manifold_dim: n, coordinates that a chart will have
        coordinates: the features that span the first axes; all are principal axes if there are none

    Raises:
        ValueError: if a feature is constant; if there is no such feature among x as one of the coordinates, or they
            depend linearly on each other; if there are more than 1,000 features and no more rows than coordinates
    """
    scales, (rows, features) = scales_of(x), x.shape
    standardised = (x.double() - x.double().mean(0)) / x.double().std(0)
    keep = features if features <= MANY else min(max(KEPT, 2 * manifold_dim), rows - 1)
    if features > MANY and keep <= manifold_dim:
        raise ValueError(f"{rows} rows of `x` should be more than `manifold_dim` + 1, {manifold_dim + 1}.")
    if not coordinates:
        axes = principal_axes(standardised, keep)[1]
    elif features <= MANY:
        axes = _all(standardised.T @ standardised, coordinates)
    else:
        axes = _leading(standardised, keep, coordinates)
    axes = axes.contiguous()  # as in a file
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return scales._replace(axes=(axes * largest.sign()).to(x.dtype))


def principal_axes(standardised: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the leading squared singular values of rows of mean zero, the largest first, and their axes.

    Arguments:
        standardised: Z, shape `(rows, data)`
        keep: how many; there are no more than rows or features

    Returns:
        the squared singular values, shape `(keep,)`, and orthonormal columns, shape `(data, keep)`
    """
    rows, features = standardised.shape
    if features <= MANY:
        squares, axes = torch.linalg.eigh(standardised.T @ standardised)
        return squares.flip(0)[:keep], axes.flip(1)[:, :keep]
    if rows <= 2 * MANY:
        squares, weights = torch.linalg.eigh(standardised @ standardised.T)
        axes = torch.linalg.qr(standardised.T @ weights.flip(1)[:, :keep])[0]
        return squares.flip(0)[:keep], axes
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, values, axes = torch.svd_lowrank(standardised.cpu(), min(keep + 10, features), niter=4)
    return values[:keep].square().to(standardised), axes[:, :keep].to(standardised)


def _all(covariance: Tensor, coordinates: Sequence[int]) -> Tensor:
    """Return what the features span within the data, then the principal axes of what is left."""
    variances, principal = torch.linalg.eigh(covariance)
    first = _span(variances, principal, coordinates)
    rest = torch.linalg.qr(first, mode="complete")[0][:, first.shape[1] :]
    return torch.cat([first, rest @ torch.linalg.eigh(rest.T @ covariance @ rest)[1].flip(1)], dim=1)


def _leading(standardised: Tensor, keep: int, coordinates: Sequence[int]) -> Tensor:
    """Return what the features span within the leading principal axes, then the principal axes of what is left."""
    squares, axes = principal_axes(standardised, keep)
    first = _span(squares, axes, coordinates)
    rest = principal_axes(standardised - standardised @ first @ first.T, keep - first.shape[1])[1]
    return torch.linalg.qr(torch.cat([first, rest], dim=1))[0]


def _span(variances: Tensor, axes: Tensor, coordinates: Sequence[int]) -> Tensor:
    """Return an orthonormal basis of what the features span within the data, shape `(data, coordinates)`."""
    if not max(coordinates) < len(axes):
        raise ValueError(f"`coordinates` should be among the {len(axes)} features of x; got {coordinates}.")
    filled = axes[:, variances > NOTHING * variances.max()]
    basis, triangle = torch.linalg.qr(filled @ filled.T[:, list(coordinates)])
    if (triangle.diagonal().abs() < NOTHING**0.5).any():
        raise ValueError(
            f"`coordinates` should not depend linearly on each other; features {list(coordinates)} of x do. Leave out "
            "those that are sums of others."
        )
    return basis


def require_coordinates(coordinates: Sequence[int], manifold_dim: int) -> None:
    """Raise ValueError unless coordinates are distinct numbers of features, not more than the manifold's dimensions."""
    numbers = isinstance(coordinates, tuple) and all(type(number) is int and number >= 0 for number in coordinates)
    if not numbers or len(set(coordinates)) < len(coordinates):
        raise ValueError(
            f"`coordinates` should be a tuple of different features, counted from 0, such as (0, 2); got {coordinates}."
        )
    if len(coordinates) > manifold_dim:
        raise ValueError(
            f"`coordinates` should be at most as many as the manifold has dimensions, {manifold_dim}; got "
            f"{len(coordinates)}: {coordinates}."
        )


def features_of(x: Tensor) -> int:
    """Return the number of features of x; raise ValueError unless it has shape `(rows, data)` and is floating point."""
    require_tensor("x", x)
    if x.ndim != 2 or x.shape[1] == 0 or not x.is_floating_point():
        raise ValueError(
            f"`x` should be of floating point and shape (rows, features); got {x.dtype} and {tuple(x.shape)}."
        )
    return x.shape[1]
