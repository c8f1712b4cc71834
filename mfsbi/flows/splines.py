r"""Monotonic rational-quadratic splines, arranged for the processor.

A spline maps [-B, B] to itself through K bins with knots (x_k, y_k) and knot slopes d_k > 0, d_0 = d_K = 1; outside it
is the identity. With w, h the width and height of the bin x falls in, s = h/w and xi = (x - x_k)/w
(Durkan et al., arXiv:1906.04032, eqs. 4-6),

    y = y_k + h (s xi^2 + d_k xi (1 - xi)) / D,      D = s + (d_k + d_{k+1} - 2 s) xi (1 - xi),
    dy/dx = s^2 (d_{k+1} xi^2 + 2 s xi (1 - xi) + d_k (1 - xi)^2) / D^2.

A network gives 3 K - 1 numbers for each coordinate: K widths and K heights before their softmax, and the K - 1 inner
slopes before their softplus. All zeros make the identity.

**What it costs.** Of those numbers the formulas need six, those of one bin. So a spline is two steps: `_Bin` looks the
six up, in few passes over the large array, and plain formulas on arrays K times smaller do the rest. Rows lie
along the last, contiguous axis and bins along the first, so that each pass runs at the speed of memory; a softmax over
a short last axis takes ten times as long. With p the softmax and c = 1 - K m what the least size m leaves free,

    left = k m + c sum_{j<k} p_j,   size = m + c p_k,

and a loss with gradients a, b with respect to these two has, again in few passes,

    dL/draw_j = c p_j (a [j < k] + b [j = k] - a sum_{i<k} p_i - b p_k).

Derivatives of that are autograd's.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["spline", "spline_inverse"]

LEAST_SIZE = 1e-3  # of a bin, as a part of the axis; Durkan et al., §3
LEAST_SLOPE = 1e-3  # at a knot; ibid.
UNIT_SLOPE = math.log(math.expm1(1 - LEAST_SLOPE))  # so that zeros make slopes of one


def spline(x: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return y and log dy/dx, each of shape `(coordinates, rows)`.

    Arguments:
        x: shape `(coordinates, rows)`
        raw: what a network says, shape `(3 bins - 1, coordinates, rows)`
        bound: half-width B of the interval
    """
    inside = x.clamp(-bound, bound)
    t = inside / (2 * bound) + 0.5
    left, width, bottom, height, slope, next_slope = _bin(t, raw, 0)
    xi, steepness = (t - left) / width, height / width
    mixed = xi * (1 - xi)
    scale = steepness + (slope + next_slope - 2 * steepness) * mixed
    y = bottom + height * (steepness * xi * xi + slope * mixed) / scale
    return (2 * y - 1) * bound + (x - inside), _log_slope(xi, mixed, steepness, slope, next_slope, scale)


def spline_inverse(y: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return x with spline(x) = y, and log dy/dx there, each of shape `(coordinates, rows)`.

    The quadratic for xi is solved in the form that does not cancel (ibid., eq. 8).

    Arguments:
        y: shape `(coordinates, rows)`
        raw: what a network says, shape `(3 bins - 1, coordinates, rows)`
        bound: half-width B of the interval
    """
    inside = y.clamp(-bound, bound)
    t = inside / (2 * bound) + 0.5
    left, width, bottom, height, slope, next_slope = _bin(t, raw, 1)
    steepness, rise = height / width, t - bottom
    bend = (slope + next_slope - 2 * steepness) * rise
    a, b, c = height * (steepness - slope) + bend, height * slope - bend, steepness * rise
    xi = 2 * c / (b + (b * b + 4 * a * c).sqrt())
    mixed = xi * (1 - xi)
    scale = steepness + (slope + next_slope - 2 * steepness) * mixed
    x = (2 * (left + width * xi) - 1) * bound + (y - inside)
    return x, _log_slope(xi, mixed, steepness, slope, next_slope, scale)


def _log_slope(xi: Tensor, mixed: Tensor, s: Tensor, slope: Tensor, next_slope: Tensor, scale: Tensor) -> Tensor:
    rest = 1 - xi
    return (s * s * (next_slope * xi * xi + 2 * s * mixed + slope * rest * rest) / (scale * scale)).log()


def _bin(t: Tensor, raw: Tensor, axis: int) -> tuple[Tensor, ...]:
    """Return left, width, bottom, height and both slopes of the bin that t in [0, 1] falls in along an axis, 0 or 1."""
    entries, _ = _Bin.apply(t.detach(), raw, axis)
    left, width, bottom, height, first, second = entries.unbind()
    return left, width, bottom, height, _slope(first), _slope(second)


def _slope(raw: Tensor) -> Tensor:
    return LEAST_SLOPE + functional.softplus(raw + UNIT_SLOPE)


class _Bin(torch.autograd.Function):
    """The entries of one bin out of all: (left, width, bottom, height, raw slope, next raw slope), shape `(6, ...)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(t: Tensor, raw: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        sizes, slopes = _parts(raw)
        bins = sizes.shape[1]
        sizes = sizes.mul_(1 - bins * LEAST_SIZE).add_(LEAST_SIZE)
        lower = torch.ones(bins, bins, device=raw.device, dtype=raw.dtype).tril()
        ends = torch.matmul(lower, sizes.flatten(2)).view(sizes.shape)
        k = (t >= ends[axis, :-1]).sum(0)
        index = k.expand(2, 1, *k.shape)
        size = sizes.gather(1, index)[:, 0]
        left = ends.gather(1, index)[:, 0] - size
        knots = _with_ends(slopes).gather(0, torch.stack([k, k + 1]))
        return torch.stack([left[0], size[0], left[1], size[1], knots[0], knots[1]]), k

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:  # noqa: ANN401
        _, raw, _ = inputs
        entries, k = output
        ctx.mark_non_differentiable(k)
        ctx.save_for_backward(raw, entries, k)
        ctx.save_for_forward(raw, k)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[None, Tensor, None]:  # noqa: ANN401
        raw, entries, k = ctx.saved_tensors
        p, _ = _parts(raw)
        bins, index = p.shape[1], k.expand(2, 1, *k.shape)
        free = 1 - bins * LEAST_SIZE
        left, size, by_left, by_size = entries[0:4:2], entries[1:4:2], gradient[0:4:2], gradient[1:4:2]
        mean = ((left - LEAST_SIZE * k) * by_left + (size - LEAST_SIZE) * by_size).unsqueeze(1)
        weight, chosen = _below(k, bins, raw) * (free * by_left).unsqueeze(1), (free * by_size).unsqueeze(1)
        slopes = raw.new_zeros(bins + 1, *k.shape).scatter(0, torch.stack([k, k + 1]), gradient[4:])[1:-1]
        if torch.is_grad_enabled():  # second derivatives, and vmap, need every intermediate kept
            by_sizes = p * (weight.scatter(1, index, chosen) - mean)
            return None, torch.cat([by_sizes.flatten(0, 1), slopes]), None
        by_raw = torch.empty_like(raw)
        torch.mul(weight.scatter_(1, index, chosen).sub_(mean), p, out=by_raw[: 2 * bins].unflatten(0, (2, bins)))
        by_raw[2 * bins :] = slopes
        return None, by_raw, None

    @staticmethod
    def jvp(ctx: Any, _: Any, tangent: Tensor, __: None) -> tuple[Tensor, None]:  # noqa: ANN401
        raw, k = ctx.saved_tensors
        p, _ = _parts(raw)
        bins = p.shape[1]
        change = tangent[: 2 * bins].unflatten(0, (2, bins)) * p
        change = (change - p * change.sum(1, keepdim=True)) * (1 - bins * LEAST_SIZE)
        left = (change * _below(k, bins, raw)).sum(1)
        size = change.gather(1, k.expand(2, 1, *k.shape))[:, 0]
        slopes = _with_ends(tangent[2 * bins :]).gather(0, torch.stack([k, k + 1]))
        return torch.stack([left[0], size[0], left[1], size[1], slopes[0], slopes[1]]), None


def _parts(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Return the relative sizes of all bins, shape `(2, bins, ...)`, and the raw inner slopes, `(bins - 1, ...)`."""
    bins = (len(raw) + 1) // 3
    return raw[: 2 * bins].unflatten(0, (2, bins)).softmax(1), raw[2 * bins :]


def _with_ends(slopes: Tensor) -> Tensor:
    """Return raw slopes with the zeros of the outer knots, shape `(bins + 1, ...)`."""
    return functional.pad(slopes, (0, 0) * (slopes.ndim - 1) + (1, 1))


def _below(k: Tensor, bins: int, like: Tensor) -> Tensor:
    """Return [j < k] as numbers, j along a new first axis; a clamp is faster than a comparison."""
    numbers = torch.arange(bins, device=like.device, dtype=like.dtype).view(-1, *[1] * k.ndim)
    return (k.to(like.dtype) - numbers).clamp(0, 1)
