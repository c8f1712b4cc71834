r"""Conditional bijections: the moving parts of charts and latent densities.

A flow is a bijection ``y = f(x; theta)`` of R^d: any module with the methods of `Bijection`. Which one is said by a
`FlowConfig`, a frozen dataclass of settings whose `build` makes it once the dimensions are known; a flow of your own is
a subclass of it.

The flows here are composed of layers. A coupling keeps one half of the coordinates,
feeds it (with ``theta``) to a small network and moves the other half, one coordinate at a time, by a monotonic map
whose parameters the network gives:

    y_a = x_a,    y_b = s(x_b; network(x_a, theta)),    log|det df/dx| = sum_b log s'(x_b).

Two maps ``s`` are here, both defined and finite on all of R^d.

* `AffineCoupling`: s(x) = exp(a) x + b, |a| < 2 (Dinh et al., arXiv:1605.08803). Cheap, and as smooth as its network.
  It bends space but cannot split a density in two: the map for charts.
* `SplineCoupling`: a rational-quadratic spline with ``bins`` pieces on [-bound, bound] and the identity outside
  (Durkan et al., arXiv:1906.04032). It makes several modes out of one: the map for densities.

A layer may also move every coordinate, given all those before it in an order (`AutoregressiveSpline`; Papamakarios et
al., arXiv:1705.07057; Durkan et al.),

    y_i = s(x_i; network(x_1, ..., x_{i-1}, theta)),    log|det df/dx| = sum_i log s'(x_i):

one pass of a masked network for the density, d of them for the inverse. It learns densities of many dimensions faster.

A latent density need not be a bijection: any module with `log_prob` and `sample` is a `Density`.
`AutoregressiveMixture` is one that is smooth to all orders (`mfsbi.flows.mixtures`), `StackedDensity` a mixture of
several that held-out rows weigh (`mfsbi.flows.stacking`).

Every flow built here **starts as the identity**: the last layer of each network is zero. Charts depend on it.
A chart cuts the coordinates after the flow, so whatever stands between the layers decides which directions of
data space the manifold coordinates begin with. Permutations between layers would leave that choice to chance; instead
layers come in pairs, a mask and its complement, which mix coordinates without permuting them. A chart's masks
are the cut itself, u kept and v moved, then v kept and u moved: its first layer alone makes any graph v = g(u).

**Layout.** Inside these flows, rows are columns: arrays have shape `(coordinates, rows)`. Choosing coordinates copies
contiguous memory then, and the networks write the splines' parameters in the order `mfsbi.flows.splines` wants them.

**Tangents.** A layer carries n tangents along with the point in closed form. For the inverse of a coupling, with G the
derivative of s by what the network says (one backward pass through the spline alone, whatever n),

    dx_a = dy_a,    dx_b = (dy_b - G . dnetwork/dx_a . dx_a) / s'(x_b).

For an affine map that is dx_b = exp(-a) (dy_b - db) - x_b da. For a spline G meets the network's last weights before it
meets the tangents: that layer is the largest, and n tangents do not go through it.
"""

from mfsbi.flows.autoregressive import AutoregressiveSpline, AutoregressiveSplines
from mfsbi.flows.couplings import AffineCoupling, AffineCouplings, SplineCoupling, SplineCouplings
from mfsbi.flows.flow import Bijection, Density, Flow, FlowConfig, Layer, LayerStack, Linear, built, density_of
from mfsbi.flows.mixtures import AutoregressiveMixture, AutoregressiveMixtures
from mfsbi.flows.stacking import Stacked, StackedDensity

__all__ = [
    "AffineCoupling",
    "AffineCouplings",
    "AutoregressiveMixture",
    "AutoregressiveMixtures",
    "AutoregressiveSpline",
    "AutoregressiveSplines",
    "Bijection",
    "Density",
    "Flow",
    "FlowConfig",
    "Layer",
    "LayerStack",
    "Linear",
    "SplineCoupling",
    "SplineCouplings",
    "Stacked",
    "StackedDensity",
    "built",
    "density_of",
]
