r"""The likelihood of given observations as a function of theta alone.

Sampling a posterior evaluates sum_j log p(x_j|theta) for fixed x_j and very many theta. With

    log p(x|theta) = log p(u|theta) - 1/2 log det J(u)^T J(u),    u = encode(x),

and a chart that does not depend on theta, everything but the first term is a constant: the observations are encoded
once, the volume term is dropped, and only the small latent flow is evaluated from then on. The same holds for the other
models of `mfsbi.models`; one without a density of x is taken at its p(u|theta), as if u were what was observed.

Where the chart depends on theta nothing is constant, and every call evaluates log p(x|theta) in full.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mfsbi.checks import require_features
from mfsbi.models import AbstractModel, DensityModel

__all__ = ["EncodedLikelihood"]

MAX_ROWS = 2**15
"""Rows (theta times observations) at work at a time: bounds the memory of a call with many theta."""


class EncodedLikelihood:
    """theta -> log p(x_1, ..., x_m|theta) up to a constant, for observations encoded once.

    Arguments:
        model: the trained model
        x: observations, shape `(observations, data)`

    Raises:
        ValueError: if x has another number of features than the model
    """

    points: Tensor
    """What stands for the observations: u, or x where the chart depends on theta."""

    def __init__(self, model: AbstractModel, x: Tensor) -> None:
        require_features("x", x, model.chart.data_dim, "the data the model was trained on")
        x = x.to(model.latent.theta_mean)
        self._log_prob: Callable[[Tensor, Tensor], Tensor] = model.latent.log_prob
        if model.chart.conditional and isinstance(model, DensityModel):
            self.points, self._log_prob = x, model.log_prob
        else:
            with torch.no_grad():
                self.points = model.encode(x)

    def iid(self, theta: Tensor) -> Tensor:
        """Return sum_j log p(x_j|theta), up to a constant, for each row of theta, shape `(rows,)`."""
        events = len(self.points)
        per_chunk = max(1, MAX_ROWS // events)
        return torch.cat(
            [
                self._log_prob(self.points.repeat(len(rows), 1), rows.repeat_interleave(events, dim=0))
                .view(len(rows), events)
                .sum(-1)
                for rows in theta.split(per_chunk)
            ]
        )

    def rowwise(self, theta: Tensor) -> Tensor:
        """Return log p(x_i|theta_i), up to a constant of x_i, shape `(rows,)`: one theta for each observation."""
        return torch.cat(
            [
                self._log_prob(points, rows)
                for points, rows in zip(self.points.split(MAX_ROWS), theta.split(MAX_ROWS), strict=True)
            ]
        )
