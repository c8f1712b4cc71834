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
from functools import cached_property

import torch
from torch import Tensor

from mfsbi.blocks import rows_at_work
from mfsbi.checks import require_features
from mfsbi.flows.densities import EveryPair, Pairing
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
        factor = model.latent.theta_mean.new_zeros(len(rows))
        with torch.no_grad():
            if not isinstance(model, DensityModel):
                points = model.encode(rows)
            elif model.chart.conditional:
                points = rows
            else:
                parts = [model.place(chunk) for chunk in rows.split(rows_at_work(rows.shape[-1]))]
                points, factor = (torch.cat(part) for part in zip(*parts, strict=True))
        self.points = points.view(*x.shape[:-1], -1)
        self._model, self._constant = model, factor.view(len(x), -1).sum(-1)

    def iid(self, theta: Tensor) -> Tensor:
        """Return sum_j log p(x_j|theta) for each row of theta, shape `(rows,)`.

        All observations share one theta, also those of several sets.
        """
        first, events = theta.new_zeros(1, dtype=torch.long), self.points.shape[:-1].numel()
        sums = self._sums(self._all, events, theta[None], first)[0] + self._constant.sum()
        return sums.to(self.points)

    def rowwise(self, theta: Tensor) -> Tensor:
        """Return log p(x_i|theta_i), shape `(rows,)`: one theta for each row of x.

        Where x came in sets, it is the sum over a set, which shares one theta.

        Arguments:
            theta: shape `(observations, parameter)`, or `(sets, parameter)`
        """
        return self.of_sets(theta[:, None], torch.arange(len(theta), device=theta.device))[:, 0].to(self.points)

    def of_sets(self, theta: Tensor, which: Tensor) -> Tensor:
        """Return log p(x_a|theta_ak) of many theta for each of some sets, or rows of x, `(some, k)`, in float64.

        Arguments:
            theta: shape `(some, k, parameter)`
            which: number of the set that each of the first axis is of, shape `(some,)`
        """
        events = self.points.shape[1] if self.points.ndim == 3 else 1
        return self._sums(self._each, events, theta, which) + self._constant[which, None]

    @cached_property
    def _all(self) -> Pairing:
        """That of all observations as one set."""
        return self._pairing(self.points.flatten(0, -2)[None])

    @cached_property
    def _each(self) -> Pairing:
        """That of each set, or each row."""
        return self._pairing(self.points if self.points.ndim == 3 else self.points[:, None])

    def _pairing(self, points: Tensor) -> Pairing:
        """Return theta -> log p of the points, but for the constants."""
        if isinstance(self._model, DensityModel) and self._model.chart.conditional:
            return EveryPair(self._model.log_prob, points)
        with torch.no_grad():
            return self._model.latent.pairing(points)

    def _sums(self, log_prob: Pairing, events: int, theta: Tensor, which: Tensor) -> Tensor:
        """Return sum_j log p(x_aj|theta_ak) of so many events but for constants, `(some, k)`, some pairs at a time."""
        theta, pairs = theta.to(self.points), max(1, rows_at_work(self.points.shape[-1]) // events)
        blocks = zip(*(part.split(max(1, pairs // max(1, theta.shape[1]))) for part in (theta, which)), strict=True)
        return torch.cat(
            [
                torch.cat([log_prob(some, of).double().sum(-1) for some in rows.split(pairs, 1)], 1)
                for rows, of in blocks
            ]
        )


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
