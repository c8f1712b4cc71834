r"""What a learned manifold is good for besides densities.

* Denoising: `model.project(x)` is x without what stands off the manifold.
* Generation: `model.sample(theta)`.
* Interpolation: straight lines of coordinates are curves on the manifold, `interpolate`.
* Outliers: `model.distance(x)` is small on the manifold and large off it. How large is too large is told by points
  known to be ordinary. With m of them held out of training and a new point x,

      p(x) = (1 + number of held-out distances >= distance(x)) / (1 + m)

  is uniform (never below uniform, with ties) if x is ordinary too, whatever the model (Vovk et al., Algorithmic
  Learning in a Random World, §2.2): `outlier_p_value`.
"""

import torch
from torch import Tensor

from mfsbi.checks import (
    require_features,
    require_finite,
    require_kind,
    require_last_axis,
    require_positive_integer,
    require_tensor,
)
from mfsbi.models import AbstractModel

__all__ = ["interpolate", "outlier_p_value"]


def outlier_p_value(model: AbstractModel, x: Tensor, ordinary: Tensor) -> Tensor:
    """Return for each row of x how probable a reconstruction distance as large is among ordinary points.

    Arguments:
        model: a trained model whose chart does not depend on theta
        x: points in question, shape `(rows, data)`
        ordinary: points drawn like the training data but not among them, shape `(other rows, data)`

    Returns:
        p-values, shape `(rows,)`, not below 1 / (1 + ordinary rows)

    Raises:
        ValueError: if a shape is wrong, a value is not finite, or there are no ordinary points
    """
    require_kind("model", model, AbstractModel, "a model, such as `estimator.model`")
    for name, value in (("x", x), ("ordinary", ordinary)):
        require_tensor(name, value)
        require_features(name, value, model.chart.data_dim, "the data the model was trained on")
        require_finite(name, value, "A point without numbers has no distance: take it out.")
    if len(ordinary) == 0:
        raise ValueError("`ordinary` should have at least one row; a few hundred make a fine scale.")
    with torch.no_grad():
        scale, distance = (model.distance(model.as_data(rows)) for rows in (ordinary, x))
        below = torch.searchsorted(scale.sort().values, distance)
    return (1 + len(scale) - below) / (1 + len(scale))


def interpolate(model: AbstractModel, start: Tensor, end: Tensor, steps: int = 10) -> Tensor:
    """Return points on the manifold from the projection of `start` to that of `end`, shape `(*, steps, data)`.

    Arguments:
        model: a trained model whose chart does not depend on theta
        start: shape `(*, data)`
        end: shape `(*, data)`
        steps: points of each curve, both ends included

    Raises:
        ValueError: if steps is below 2, the shapes differ or do not fit the model, or a value is not finite
    """
    require_kind("model", model, AbstractModel, "a model, such as `estimator.model`")
    require_positive_integer("steps", steps)
    for name, value in (("start", start), ("end", end)):
        require_tensor(name, value)
        require_last_axis(name, value, model.chart.data_dim, "the data the model was trained on")
        require_finite(name, value.reshape(-1, value.shape[-1]), "A point without numbers has no projection.")
    if steps < 2 or start.shape != end.shape:
        raise ValueError(
            f"`steps` should be at least 2, and `start` and `end` of one shape; got {steps}, {tuple(start.shape)} and "
            f"{tuple(end.shape)}."
        )
    start, end, kind = model.as_data(start), model.as_data(end), model.latent.theta_mean
    with torch.no_grad():
        weight = torch.linspace(0, 1, steps, dtype=kind.dtype, device=kind.device)[:, None]
        one, two = (model.encode(model.project(x)).unsqueeze(-2) for x in (start, end))
        return model.chart.decode(one + weight * (two - one))
