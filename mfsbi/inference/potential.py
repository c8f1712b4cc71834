r"""The likelihood of given observations as a function of theta alone.

Sampling a posterior evaluates sum_j log p(x_j|theta) for fixed x_j and very many theta. With

    log p(x|theta) = log p(u|theta) - 1/2 log det J(u)^T J(u),    u = encode(x),

and a chart that does not depend on theta, everything but the first term is a constant: the observations are placed
once, and only the small latent flow is evaluated from then on. The constant is added all the same, so that likelihoods
of different models can be compared. The same holds for the other models of `mfsbi.models`; one without a density of x
is taken at its p(u|theta), as if u were what was observed.

Where the chart depends on theta nothing is constant, and every call evaluates log p(x|theta) in full.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mfsbi.blocks import rows_at_work
from mfsbi.checks import require_features
from mfsbi.models import AbstractModel, DensityModel
from mfsbi.types import HasQuickLikelihood, KnownLikelihood

__all__ = ["EncodedLikelihood", "exact_potential"]

MAX_ROWS = 2**15
"""Rows (theta times observations) that a simulator is given at a time: bounds the memory of a call with many theta."""


class EncodedLikelihood:
    """theta -> log p(x_1, ..., x_m|theta), for observations placed on the manifold once.

    Arguments:
        model: the trained model
        x: observations, shape `(observations, data)`; or many sets of them, shape `(sets, observations, data)`

    Raises:
        ValueError: if x has another number of features than the model, or no observation
    """

    points: Tensor
    """What stands for the observations: u, or x where the chart depends on theta."""

    def __init__(self, model: AbstractModel, x: Tensor) -> None:
        if x.numel() == 0:
            raise ValueError(f"`x` should have shape (observations, data), with an observation; got {tuple(x.shape)}.")
        rows = x.flatten(0, 1) if x.ndim == 3 else x
        require_features("x", rows, model.chart.data_dim, "the data the model was trained on")
        rows = model.as_data(rows)
        self._log_prob: Callable[[Tensor, Tensor], Tensor] = model.latent.log_prob
        factor = model.latent.theta_mean.new_zeros(len(rows))
        with torch.no_grad():
            if not isinstance(model, DensityModel):
                points = model.encode(rows)
            elif model.chart.conditional:
                points, self._log_prob = rows, model.log_prob
            else:
                parts = [model.place(chunk) for chunk in rows.split(rows_at_work(rows.shape[-1]))]
                points, factor = (torch.cat(part) for part in zip(*parts, strict=True))
        self.points = points.view(*x.shape[:-1], -1)
        self._constant = factor.view(len(x), -1).sum(-1)

    def iid(self, theta: Tensor) -> Tensor:
        """Return sum_j log p(x_j|theta) for each row of theta, shape `(rows,)`.

        All observations share one theta, also those of several sets.
        """
        points = self.points.flatten(0, -2)
        per_chunk = max(1, rows_at_work(points.shape[-1]) // len(points))
        sums = torch.cat([self._sums(points.expand(len(rows), -1, -1), rows) for rows in theta.split(per_chunk)])
        return sums + self._constant.sum()

    def rowwise(self, theta: Tensor) -> Tensor:
        """Return log p(x_i|theta_i), shape `(rows,)`: one theta for each row of x.

        Where x came in sets, it is the sum over a set, which shares one theta.

        Arguments:
            theta: shape `(observations, parameter)`, or `(sets, parameter)`
        """
        points = self.points if self.points.ndim == 3 else self.points[:, None]
        per_chunk = max(1, rows_at_work(points.shape[-1]) // points.shape[1])
        chunks = zip(points.split(per_chunk), theta.split(per_chunk), strict=True)
        return torch.cat([self._sums(part, rows) for part, rows in chunks]) + self._constant

    def of_sets(self, theta: Tensor, sets: Tensor) -> Tensor:
        """Return sum_j log p(x_ij|theta_r) for each row r of theta and a set i of its own, shape `(rows,)`, in float64.

        Arguments:
            theta: shape `(rows, parameter)`
            sets: number of the set of each row, shape `(rows,)`
        """
        per_chunk = max(1, rows_at_work(self.points.shape[-1]) // self.points.shape[-2])
        chunks = zip(theta.split(per_chunk), sets.split(per_chunk), strict=True)
        sums = torch.cat([self._terms(self.points[chosen], rows).double().sum(-1) for rows, chosen in chunks])
        return sums + self._constant[sets]

    def _sums(self, points: Tensor, theta: Tensor) -> Tensor:
        """Return sum_j log p(x_ij|theta_i) of points of shape `(rows, events, features)`, shape `(rows,)`."""
        return self._terms(points, theta).sum(-1)

    def _terms(self, points: Tensor, theta: Tensor) -> Tensor:
        """Return log p(x_ij|theta_i) of points of shape `(rows, events, features)`, shape `(rows, events)`."""
        rows, events, _ = points.shape
        values = self._log_prob(points.reshape(rows * events, -1), theta.repeat_interleave(events, dim=0))
        return values.view(rows, events)


def exact_potential(simulator: KnownLikelihood, x: Tensor) -> Callable[[Tensor], Tensor]:
    """Return theta -> log p(x_1, ..., x_m|theta) + log p(theta) by the simulator itself: the truth to compare with.

    `grid_posterior`, `run_emcee` and, where the simulator can be differentiated, `run_pyro` sample it.

    Arguments:
        simulator: with a prior and `log_prob(x, theta)`; one with `likelihood(x)` does once what does not need theta
        x: observations that share one theta, shape `(observations, data)`

    Raises:
        ValueError: if x is not a matrix or empty; the potential raises it if theta does not have the simulator's shape
    """
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"`x` should have shape (observations, data), with an observation; got {tuple(x.shape)}.")
    parameters = len(simulator.parameter_names)
    ready = simulator.likelihood(x) if isinstance(simulator, HasQuickLikelihood) else None

    def potential(theta: Tensor) -> Tensor:
        """Return the log posterior up to a constant, shape `(rows,)`."""
        require_features("theta", theta, parameters, "the simulator")
        if ready is not None:
            log_likelihood = ready.log_likelihood(theta)
        else:
            chunks = theta.split(max(1, MAX_ROWS // len(x)))
            log_likelihood = torch.cat([simulator.log_prob(x, rows[:, None]).double().sum(-1) for rows in chunks])
        return log_likelihood + simulator.prior.log_prob(theta)

    return potential
