r"""Monotonic rational-quadratic splines, arranged for the processor.

A spline maps [-B, B] to itself through K bins with knots (x_k, y_k) and knot slopes d_k > 0, d_0 = d_K = 1; outside it
is the identity. With w, h the width and height of the bin x falls in, s = h/w and xi = (x - x_k)/w
(Durkan et al., arXiv:1906.04032, eqs. 4-6),

    y = y_k + h (s xi^2 + d_k xi (1 - xi)) / D,      D = s + (d_k + d_{k+1} - 2 s) xi (1 - xi),
    dy/dx = s^2 (d_{k+1} xi^2 + 2 s xi (1 - xi) + d_k (1 - xi)^2) / D^2.

A network gives 3 K - 1 numbers for each coordinate: K widths and K heights before their softmax, and the K - 1 inner
slopes before their softplus. All zeros make the identity.

**What it costs.** Of those numbers the formulas need six, those of one bin. So a spline is two steps: `_bin` looks the
six up, in few passes over the large array, and plain formulas on arrays K times smaller do the rest. Rows lie
along the last, contiguous axis and bins along the first, so that each pass runs at the speed of memory; a softmax over
a short last axis takes ten times as long. All quadratics are in Bernstein form, that is nested interpolations: with
l_0 = (1 - xi) d_k + xi s and l_1 = (1 - xi) s + xi d_{k+1}

    y = y_k + h xi l_0 / D,    dy/dx = (s / D)^2 M,    M = (1 - xi) l_0 + xi l_1.

**Gradients** are written out, which halves the cost of a training step of small batches: with a, b the gradients by the
place and the size of the bin, p the softmax and c = 1 - K m what the least size m leaves free,

    left = k m + c sum_{j<k} p_j,   size = m + c p_k,
    dL/draw_j = p_j (c a [j < k] + c b [j = k] - mean),   mean = c (a sum_{j<k} p_j + b p_k).

The inverse has those of the spline by the implicit function theorem, dx = (dy - G draw) / s'(x). Where derivatives are
themselves differentiated, or taken forwards, autograd goes through the formulas instead.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["spline", "spline_inverse", "spline_inverse_with_gradient"]

LEAST_SIZE = 1e-3  # of a bin, as a part of the axis; Durkan et al., §3
LEAST_SLOPE = 1e-3  # at a knot; ibid.
UNIT_SLOPE = math.log(math.expm1(1 - LEAST_SLOPE))  # so that zeros make slopes of one

X, Y = 0, 1
"""Axes of a spline: what comes in is along one of them, so that X means the spline and Y its inverse."""

Context: TypeAlias = Any
"""What torch hands from one step of a function to the next: whatever was put on it."""


def spline(x: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return y and log dy/dx, each of shape `(coordinates, rows)`.

    Arguments:
        x: shape `(coordinates, rows)`
        raw: what a network says, shape `(3 bins - 1, coordinates, rows)`
        bound: half-width B of the interval
    """
    y, log_slope, *_ = _function()(x, raw, bound, X)
    return y, log_slope


def spline_inverse(y: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Return x with spline(x) = y, and log dy/dx there, each of shape `(coordinates, rows)`.

    The quadratic for xi is solved in the form that does not cancel (ibid., eq. 8).

    Arguments:
        y: shape `(coordinates, rows)`
        raw: what a network says, shape `(3 bins - 1, coordinates, rows)`
        bound: half-width B of the interval
    """
    x, log_slope, *_ = _function()(y, raw, bound, Y)
    return x, log_slope


def spline_inverse_with_gradient(y: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return x, log dy/dx there, and G = dy/draw at that x, shape `(3 bins - 1, coordinates, rows)`."""
    if torch.is_grad_enabled():
        x, log_slope = spline_inverse(y, raw, bound)
        pull = torch.func.vjp(lambda numbers: spline(x, numbers, bound)[0], raw)[1]
        return x, log_slope, pull(torch.ones_like(x))[0]
    x, log_slope, xi, *found = _evaluate(y, raw, bound, Y)
    by_y = torch.full_like(x, 2 * bound)
    return x, log_slope, _gradients(_Bin(*found), xi, log_slope.exp(), by_y, None, X)[1]


def _function() -> Callable[..., tuple[Tensor, ...]]:
    """Return the spline with its written-out derivatives, or without them where no gradient is taken."""
    return _Spline.apply if torch.is_grad_enabled() else _evaluate


class _Bin(NamedTuple):
    """The bin a point falls in: pairs are (of x, of y), or (left knot, right knot) for slopes.

    Arguments:
        k: number of the bin, shape `(...)`
        parts: softmax of all widths and heights, shape `(2, bins, ...)`
        left: where the bin begins on both axes, in [0, 1], shape `(2, ...)`
        size: width and height, shape `(2, ...)`
        slopes: at both knots, shape `(2, ...)`
    """

    k: Tensor
    parts: Tensor
    left: Tensor
    size: Tensor
    slopes: Tensor


def _bin(t: Tensor, raw: Tensor, axis: int) -> _Bin:
    """Return the bin that t in [0, 1] falls in along an axis, 0 or 1."""
    bins = (len(raw) + 1) // 3
    free = 1 - bins * LEAST_SIZE
    parts = raw[: 2 * bins].unflatten(0, (2, bins)).softmax(1)
    lower = torch.ones(bins, bins, device=raw.device, dtype=raw.dtype).tril().expand(2, -1, -1)
    steps = torch.arange(1, bins + 1, device=raw.device, dtype=raw.dtype).view(1, -1, 1) * LEAST_SIZE
    ends = torch.baddbmm(steps, lower, parts.flatten(2), alpha=free).view(parts.shape)
    k = (t.detach() >= ends[axis, :-1].detach()).sum(0)
    index = k.expand(2, 1, *k.shape)
    size = parts.gather(1, index)[:, 0] * free + LEAST_SIZE
    left = ends.gather(1, index)[:, 0] - size
    inner = functional.pad(raw[2 * bins :], (0, 0) * (raw.ndim - 1) + (1, 1))  # zeros for the slopes of one at the ends
    slopes = functional.softplus(inner.gather(0, torch.stack([k, k + 1])) + UNIT_SLOPE) + LEAST_SLOPE
    return _Bin(k, parts, left, size, slopes)


def _evaluate(value: Tensor, raw: Tensor, bound: float, axis: int) -> tuple[Tensor, ...]:
    """Return the result, log dy/dx, xi, and the bin of the spline or of its inverse."""
    inside = value.clamp(-bound, bound)
    t = inside / (2 * bound) + 0.5
    found = _bin(t, raw, axis)
    (left, bottom), (width, height), (first, second) = found.left, found.size, found.slopes
    steepness = height / width
    if axis == Y:
        rise = t - bottom
        bend = (first + second - 2 * steepness) * rise
        a, b, c = height * (steepness - first) + bend, height * first - bend, steepness * rise
        xi = 2 * c / (b + (b * b + 4 * a * c).sqrt())
    else:
        xi = (t - left) / width
    lower, upper, scale, _ = _quadratics(xi, steepness, first, second)
    result = left + width * xi if axis == Y else bottom + height * (xi * lower / scale)
    log_slope = ((steepness / scale).square() * torch.lerp(lower, upper, xi)).log()
    return (2 * result - 1) * bound + (value - inside), log_slope, xi, *found


def _quadratics(xi: Tensor, steepness: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, ...]:
    """Return l_0, l_1, D and d_k + d_{k+1} - 2 s."""
    curve = torch.sub(first + second, steepness, alpha=2)
    scale = torch.addcmul(steepness, curve, torch.addcmul(xi, xi, xi, value=-1))
    return torch.lerp(first, steepness, xi), torch.lerp(steepness, second, xi), scale, curve


def _formulas(bound: float, axis: int) -> Callable[[Tensor, Tensor], tuple[Tensor, ...]]:
    """Return (value, raw) -> (result, log dy/dx) for autograd to go through."""
    return lambda value, raw: _evaluate(value, raw, bound, axis)[:2]


class _Spline(torch.autograd.Function):
    """The spline or its inverse, with first derivatives written out and the others left to autograd."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, raw: Tensor, bound: float, axis: int) -> tuple[Tensor, ...]:
        return _evaluate(value, raw, bound, axis)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        value, raw, *ctx.settings = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        ctx.save_for_backward(value, raw, *output[1:])
        ctx.save_for_forward(value, raw)

    @staticmethod
    def backward(ctx: Context, by_result: Tensor | None, by_log_slope: Tensor | None, *_: None) -> tuple[Any, ...]:
        value, raw, log_slope, xi, *found = ctx.saved_tensors
        bound, axis = ctx.settings
        by_result = torch.zeros_like(value) if by_result is None else by_result
        if torch.is_grad_enabled():  # these derivatives will be differentiated again
            pull = torch.func.vjp(_formulas(bound, axis), value, raw)[1]
            return *pull((by_result, torch.zeros_like(value) if by_log_slope is None else by_log_slope)), None, None
        by_value, by_raw = _gradients(_Bin(*found), xi, log_slope.exp(), by_result * (2 * bound), by_log_slope, axis)
        return torch.where(value.abs() <= bound, by_value / (2 * bound), by_result), by_raw, None, None

    @staticmethod
    def jvp(ctx: Context, value_tangent: Tensor | None, raw_tangent: Tensor | None, *_: None) -> tuple[Any, ...]:
        value, raw = ctx.saved_tensors
        bound, axis = ctx.settings
        pairs = (value, value_tangent), (raw, raw_tangent)
        tangents = tuple(torch.zeros_like(of) if tangent is None else tangent for of, tangent in pairs)
        along = torch.func.jvp(_formulas(bound, axis), (value, raw), tangents)[1]
        return *along, *[None] * 6


def _gradients(
    found: _Bin, xi: Tensor, slope: Tensor, by_result: Tensor, by_log_slope: Tensor | None, axis: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients by t and by what the network said.

    Arguments:
        found: the bin
        xi: the place in it
        slope: dy/dx
        by_result: the gradient by y in [0, 1], or by x for the inverse
        by_log_slope: that by log dy/dx, if any was asked for
        axis: X if y was found from x, Y if x from y
    """
    (width, height), (first, second) = found.size, found.slopes
    steepness = height / width
    lower, upper, scale, curve = _quadratics(xi, steepness, first, second)
    by_y = by_result
    if by_log_slope is not None:
        double, by_cubic = 2 * by_log_slope, by_log_slope / torch.lerp(lower, upper, xi)
        by_xi = 2 * by_cubic * (upper - lower) - double * curve * (1 - 2 * xi) / scale
        bend = by_xi / width
    if axis == Y:
        by_t = (by_result if by_log_slope is None else by_result + bend) / slope
        by_y, by_place = -by_t, by_result
    else:
        by_t = by_y * slope if by_log_slope is None else torch.addcmul(bend, by_y, slope)
        by_place = -by_t
    square = xi * xi
    mixed, part = xi - square, xi * lower / scale
    by_top = by_y * height / scale
    by_scale = -by_top * part
    if by_log_slope is not None:
        by_scale = by_scale - double / scale
    by_steepness = by_top * square + by_scale * (1 - 2 * mixed)
    by_first, by_second = (by_top + by_scale) * mixed, by_scale * mixed
    if by_log_slope is not None:
        by_steepness = by_steepness + double / steepness + 2 * by_cubic * mixed
        by_first = torch.addcmul(by_first, by_cubic, 1 - xi - mixed)
        by_second = torch.addcmul(by_second, by_cubic, square)
    by_ratio = by_steepness / width
    by_size = torch.stack([xi * by_place - by_ratio * steepness, by_y * part + by_ratio])
    by_slopes = torch.stack([by_first, by_second]) * (1 - (LEAST_SLOPE - found.slopes).exp())
    return by_t, _by_raw(found, torch.stack([by_place, by_y]), by_size, by_slopes)


def _by_raw(found: _Bin, by_left: Tensor, by_size: Tensor, by_slopes: Tensor) -> Tensor:
    """Return the gradient by what the network said, given those by the entries of one bin."""
    k, parts, left, size, _ = found
    bins = parts.shape[1]
    free = 1 - bins * LEAST_SIZE
    mean = (left - LEAST_SIZE * k) * by_left + (size - LEAST_SIZE) * by_size
    numbers = torch.arange(bins, device=k.device, dtype=size.dtype).view(-1, *[1] * k.ndim)
    below = (k.to(size.dtype) - numbers).clamp_(0, 1)  # [j < k]; faster than a comparison
    weight = torch.addcmul(-mean.unsqueeze(1), below, (free * by_left).unsqueeze(1))
    weight.scatter_(1, k.expand(2, 1, *k.shape), torch.sub(free * by_size, mean).unsqueeze(1))
    by_raw = size.new_empty(3 * bins, *k.shape)  # the slopes at both ends have a row too many, cut or overwritten
    by_raw[2 * bins - 1 :].zero_().scatter_(0, torch.stack([k, k + 1]), by_slopes)
    torch.mul(weight, parts, out=by_raw[: 2 * bins].unflatten(0, (2, bins)))
    return by_raw[:-1]
