r"""Conditional bijections: the moving parts of charts and latent densities.

A flow is a bijection ``y = f(x; theta)`` of R^d, composed of coupling layers. A coupling keeps one half of
the coordinates, feeds it (with ``theta``) to a small network and moves the other half, one coordinate at a
time, by a monotonic map whose parameters the network gives:

    y_a = x_a,    y_b = s(x_b; network(x_a, theta)),    log|det df/dx| = sum_b log s'(x_b).

The map ``s`` is a rational-quadratic spline with ``bins`` pieces on [-bound, bound] and the identity outside
(Durkan et al., arXiv:1906.04032), so a flow is defined, smooth enough and finite on all of R^d.

Every flow built here **starts as the identity**: the last layer of each network is zero. Charts depend on it.
A chart cuts the coordinates after the flow, so whatever stands between the layers decides which directions of
data space the manifold coordinates begin with; random permutations, as in the original code, draw that choice
by lot. Here layers come in pairs, a mask and its complement, which mixes coordinates and moves none.

This module is the only one that imports zuko (Rozet et al., https://zuko.readthedocs.io).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from mfsbi.checks import require_positive, require_positive_integer
from mfsbi.seeds import undisturbed
from mfsbi.types import Data, Parameters, Scalars

with undisturbed():
    import zuko

__all__ = ["Couplings", "Flow", "lu_layer", "spline_coupling"]


class Flow(nn.Module):
    """A conditional bijection y = f(x; theta) of R^d, the composition of zuko's lazy transforms.

    Arguments:
        transforms: the layers, first to act first
        features: d, the number of coordinates
        parameters: the number of parameters `theta` that condition it, 0 for none

    Example:
        >>> flow = Couplings(layers=2).build(features=3, parameters=1)
        >>> x, theta = torch.randn(5, 3), torch.zeros(5, 1)
        >>> y, log_det = flow.forward_and_log_det(x, theta)
        >>> bool(torch.allclose(flow.inverse(y, theta), x, atol=1e-5)), log_det.shape
        (True, torch.Size([5]))
    """

    def __init__(self, transforms: Sequence[nn.Module], features: int, parameters: int = 0) -> None:
        super().__init__()
        self.transform = zuko.lazy.LazyComposedTransform(*transforms)
        self.features = features
        self.parameter_dim = parameters

    def __repr__(self) -> str:
        weights = sum(p.numel() for p in self.parameters())
        layers = len(self.transform.transforms)
        return f"Flow(features={self.features}, theta={self.parameter_dim}, layers={layers}, weights={weights:,})"

    def forward(self, x: Data, theta: Parameters | None = None) -> Data:
        """Return y = f(x; theta), shape `(*, d)`."""
        return self.transform(theta)(x)

    def forward_and_log_det(self, x: Data, theta: Parameters | None = None) -> tuple[Data, Scalars]:
        """Return y = f(x; theta), shape `(*, d)`, and log|det df/dx|, shape `(*)`."""
        return self.transform(theta).call_and_ladj(x)

    def inverse(self, y: Data, theta: Parameters | None = None) -> Data:
        """Return x with f(x; theta) = y, shape `(*, d)`."""
        return self.transform(theta).inv(y)


@dataclass(frozen=True)
class Couplings:
    """A stack of spline couplings, to be built once the dimensions are known.

    Arguments:
        layers: number of couplings
        bins: pieces of each spline
        bound: half-width B of the interval [-B, B] the splines act on, in standardised units
        width: units in each hidden layer of the networks
        depth: hidden layers of the networks
        sharpness: factor on the first weights of each network; above 1 it finds features that are much narrower than
            a standard deviation sooner
        lu: put a learned linear layer (LU-decomposed) before each coupling; worth it when d is large

    Raises:
        ValueError: if a number is not positive
    """

    layers: int = 5
    bins: int = 10
    bound: float = 6.0
    width: int = 100
    depth: int = 2
    sharpness: float = 1.0
    lu: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "bins", "width", "depth"):
            require_positive_integer(f"Couplings.{name}", getattr(self, name))
        for name in ("bound", "sharpness"):
            require_positive(f"Couplings.{name}", getattr(self, name))

    def build(self, features: int, parameters: int = 0) -> Flow:
        """Return the identity flow of R^features, ready to be trained; its weights come from torch's generator."""
        transforms: list[nn.Module] = []
        for keep in _masks(features, self.layers):
            transforms += [lu_layer(features)] if self.lu else []
            transforms.append(spline_coupling(keep, parameters, self))
        return Flow(transforms, features, parameters)


def spline_coupling(keep: Tensor, parameters: int, settings: Couplings) -> nn.Module:
    """Return one spline coupling that keeps the coordinates where `keep` is true; it starts as the identity.

    With a single coordinate there is nothing to keep: the spline then depends on `theta` alone.
    """
    coupling = zuko.flows.coupling.GeneralCouplingTransform(
        len(keep),
        parameters,
        mask=keep,
        univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=settings.bound),
        shapes=[(settings.bins,), (settings.bins,), (settings.bins - 1,)],
        hidden_features=(settings.width,) * settings.depth,
        activation=nn.SiLU,
    )
    _start_as_identity(coupling, settings.sharpness)
    return coupling


def lu_layer(features: int) -> nn.Module:
    """Return the linear layer y = L U x, with L lower and U unit upper triangular; it starts as the identity."""
    return zuko.lazy.UnconditionalTransform(zuko.transforms.LULinearTransform, torch.eye(features))


def _masks(features: int, layers: int) -> list[Tensor]:
    """Return a mask of half the coordinates for each layer: a window moving along a random order, and its complement.

    The moving window gives every coordinate its turn on either side; masks drawn independently may repeat a split.
    """
    order, half = torch.randperm(features), features // 2
    masks = []
    for layer in range(layers):
        start = (layer // 2) * half
        window = torch.zeros(features, dtype=torch.bool)
        window[order[torch.arange(start, start + half) % features]] = True
        masks.append(~window if layer % 2 else window)
    return masks


def _start_as_identity(coupling: nn.Module, sharpness: float) -> None:
    """Let the network give zeros at the start: equal bins and unit slopes, which is the identity."""
    parameters = list(coupling.parameters())
    conditioned = hasattr(coupling, "hyper")
    with torch.no_grad():
        for weight in parameters[:2] if conditioned else []:  # weight and bias of the first layer
            weight.mul_(sharpness)
        for weight in parameters[-2:] if conditioned else parameters:  # and of the last
            weight.zero_()
