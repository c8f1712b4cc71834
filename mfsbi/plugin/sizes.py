"""How large an estimator is at least, by its spec: known before it is built, so that no file asks for too much."""

from typing import Any

from mfsbi.flows import AutoregressiveSplines, Couplings
from mfsbi.plugin.specs import FOM, PAE, MeFlow, Spec

__all__ = ["size_of_spec"]

SMALL = 2**25
"""Numbers in an example of data (`Spec.example`) that are never too many."""


def size_of_spec(spec: Spec, parameters: int, features: int) -> tuple[int, int]:
    """Return how many tensors and numbers an estimator has at least, from a spec and the dimensions."""
    settings: Any = spec.suited(features)
    n = getattr(settings, "manifold_dim", 1 if isinstance(settings, FOM) else features)
    sizes = [_size_of_flow(settings.latent, n, parameters)]
    if hasattr(settings, "chart"):
        sizes.append(_size_of_flow(settings.chart, features, 0))
    if isinstance(settings, PAE):
        sizes += [_size_of_residual(n + features, settings.width, settings.blocks)] * 2
    if isinstance(settings, MeFlow):
        sizes.append(_size_of_residual(n + features, settings.encoder_width, settings.encoder_blocks))
    tensors, numbers = (sum(part) for part in zip(*sizes, strict=True))
    example = 2 * max(parameters, features) ** 2
    return tensors, max(numbers, example if example > SMALL else 0)


def _size_of_flow(couplings: Couplings, features: int, parameters: int) -> tuple[int, int]:
    """Return how many tensors and numbers a flow has at least."""
    settings: Any = couplings
    layers, depth, bins = settings.layers, settings.depth, getattr(settings, "bins", 1)
    moved = layers // 2 * features + layers % 2  # of all layers: every second one moves what the one before keeps
    linear = layers * features**2 if settings.lu else 0
    if isinstance(settings, AutoregressiveSplines):
        last = settings.theta_width if parameters else settings.width
        inner = (layers - 1) * settings.width**2 + last**2
        outer = ((layers - 1) * settings.width + last) * features * (1 + bins) + last * parameters
        return layers * depth, linear + (depth - 1) * inner + outer
    if features == 1 and parameters == 0:  # no network: nothing comes in
        return layers, linear + layers * bins
    numbers = settings.width * (moved * (1 + bins) * (features > 1) + layers * (bins * (features == 1) + parameters))
    return layers * depth, linear + numbers + layers * (depth - 1) * settings.width**2


def _size_of_residual(ends: int, width: int, blocks: int) -> tuple[int, int]:
    """Return how many tensors and numbers a residual network has at least."""
    return 2 * blocks, width * ends + 2 * blocks * width**2
