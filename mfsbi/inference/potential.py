r"""The likelihood of given observations as a function of theta alone.

Sampling a posterior evaluates sum_j log p(x_j|theta) for fixed x_j and very many theta. With

    log p(x|theta) = log p(u|theta) - 1/2 log det J(u)^T J(u),    u = encode(x),

and a chart that does not depend on theta, everything but the first term is a constant: the observations are encoded
once, the volume term is dropped, and only the small latent flow is evaluated from then on.
"""

import torch
from torch import Tensor

from mfsbi.checks import require_features
from mfsbi.models import ManifoldModel

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

    def __init__(self, model: ManifoldModel, x: Tensor) -> None:
        require_features("x", x, model.chart.data_dim, "the data the model was trained on")
        self.latent = model.latent
        with torch.no_grad():
            self.u = model.chart.encode(x.to(model.latent.theta_mean))

    def iid(self, theta: Tensor) -> Tensor:
        """Return sum_j log p(u_j|theta) for each row of theta, shape `(rows,)`: all x from the same theta."""
        events = len(self.u)
        per_chunk = max(1, MAX_ROWS // events)
        return torch.cat(
            [
                self.latent.log_prob(self.u.repeat(len(rows), 1), rows.repeat_interleave(events, dim=0))
                .view(len(rows), events)
                .sum(-1)
                for rows in theta.split(per_chunk)
            ]
        )

    def rowwise(self, theta: Tensor) -> Tensor:
        """Return log p(u_i|theta_i), shape `(rows,)`: one theta for each observation."""
        return torch.cat(
            [
                self.latent.log_prob(u, rows)
                for u, rows in zip(self.u.split(MAX_ROWS), theta.split(MAX_ROWS), strict=True)
            ]
        )
