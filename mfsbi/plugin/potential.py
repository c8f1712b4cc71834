"""Likelihoods and ratios times a prior, as the potentials that sbi's samplers ask for; -inf outside the prior."""

from abc import abstractmethod
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from mfsbi.blocks import rows_at_work
from mfsbi.flows.densities import Pairing
from mfsbi.inference.potential import EncodedLikelihood
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import BasePotential, LikelihoodBasedPotential, RatioBasedPotential
from mfsbi.plugin.parameter_prior import masked, parameter_prior
from mfsbi.ratio import RatioModel
from mfsbi.train.reach import Reach, warn_of_observations

__all__ = ["ManifoldPotential", "OwnPotential", "RatioPotential", "with_all_digits"]


def with_all_digits(x_o: object) -> Tensor:
    """Return observations, a tensor or what makes one, as rows with the type they came in; sbi makes them float32."""
    return torch.atleast_2d(torch.as_tensor(x_o))


class OwnPotential(BasePotential):
    """What potentials of a `ManifoldNLE` and of `ALICES` share.

    Observations keep the type in which they came, where sbi makes them float32, and a warning says if they are out of
    reach of the simulations.
    """

    evaluations = 0
    """The number of theta it was evaluated at."""

    keeps_digits = False
    """Whether the last observations count as the same in another type: sbi fits a density to their float32 version."""

    _given: Tensor | None = None

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:  # noqa: FBT001, FBT002 - sbi's signature
        """Set the observations.

        Arguments:
            x_o: shape `(observations, data)`, or for a likelihood `(sets, observations, data)`
            x_is_iid: all of them share one theta; otherwise each observation, or each set, has a theta of its own:
                so does `posterior.sample_batched((draws,), x)` read the first axis of x
        """
        super().set_x(x_o, x_is_iid)
        if self._given is not None and self._x_o is not None:  # it may have been moved since
            self._given = self._given.to(self._x_o.device)
        if x_o is not None and self._x_o is not None:
            rows, known = with_all_digits(x_o).to(self._x_o.device), self._given
            alike = known is not None and known.shape == rows.shape and (self.keeps_digits or known.dtype == rows.dtype)
            if known is None or not (alike and torch.equal(known.to(rows.dtype), rows)):
                self._given = rows
                self._warn_of(rows)
            self._x_o: Tensor | None = self._given
        self._place(self._x_o)

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:  # noqa: FBT001, FBT002 - sbi's signature
        """Return the log posterior up to a constant, shape `(rows,)`; -inf outside the support of the prior.

        Arguments:
            theta: shape `(rows, parameter)`
            track_gradients: keep the graph, for samplers that use gradients

        Raises:
            ValueError: if no observation is set, or their number differs from the rows of theta when not iid
        """
        self.evaluations += len(theta)
        with torch.set_grad_enabled(track_gradients):
            return self._log_posterior(theta)

    def of_sets(self, theta: Tensor, which: Tensor) -> Tensor:
        """Return the log posteriors of many theta for each of some data sets, shape `(some, k)`, without gradients.

        Arguments:
            theta: shape `(some, k, parameter)`
            which: row of the observations, or set of rows, that each of the first axis is for, shape `(some,)`
        """
        self.evaluations += theta.shape[:2].numel()
        shape = theta.shape

        def log_posterior(rows: Tensor) -> Tensor:
            return self._likelihood_of_sets(rows.view(shape), which).flatten() + self.prior.log_prob(rows)

        with torch.no_grad():
            return masked(self.prior, theta.flatten(0, 1), log_posterior).view(shape[:2])

    @abstractmethod
    def likelihood_of(self, x: Tensor) -> Pairing:
        """Return (theta, which) -> the log likelihood, or log ratio, of some sets, shape `(some, k)`, in float64.

        Arguments:
            x: shape `(sets, events, data)`; nothing is said of observations out of reach
        """

    @property
    @abstractmethod
    def _likelihood_of_sets(self) -> Pairing:
        """That of the observations that are set."""

    @abstractmethod
    def _log_posterior(self, theta: Tensor) -> Tensor:
        """Return the log posterior up to a constant, shape `(rows,)`."""

    @abstractmethod
    def _warn_of(self, x: Tensor) -> None:
        """Warn of observations out of reach of the simulations."""

    def _place(self, x: Tensor | None) -> None:
        """Compute once what depends on the observations alone."""


class ManifoldPotential(OwnPotential, LikelihoodBasedPotential):
    """theta -> log p(x_o|theta) + log p(theta); the observations are placed on the manifold when they are set.

    The potential owns a frozen copy of the estimator: training on does not change a posterior already built.

    Arguments:
        estimator: the trained estimator
        prior: the prior of theta, any that `parameter_prior` takes
        x_o: observations, as `set_x` takes them; they can also be set later
        device: where to evaluate
    """

    def __init__(
        self, estimator: ManifoldEstimator, prior: Distribution, x_o: Tensor | None = None, device: str = "cpu"
    ) -> None:
        # sbi's class sets `likelihood_estimator` too, but only after it has called `set_x`
        self.likelihood_estimator = deepcopy(estimator).requires_grad_(requires_grad=False).eval().to(device)
        super().__init__(self.likelihood_estimator, parameter_prior(prior), x_o, device)

    def to(self, device: str | torch.device) -> "ManifoldPotential":
        """Move the estimator, the prior and the encoded observations."""
        super().to(device)
        self.set_x(self._x_o, self._x_is_iid)
        return self

    def _warn_of(self, x: Tensor) -> None:
        estimator = self.likelihood_estimator
        warn_of_observations(x, Reach.of_record(estimator.training_record), estimator.model.chart.straightened)

    def _place(self, x: Tensor | None) -> None:
        self._likelihood = None if x is None else EncodedLikelihood(self.likelihood_estimator.model, x)

    def _log_posterior(self, theta: Tensor) -> Tensor:
        likelihood = self._likelihood
        if likelihood is None:
            raise ValueError("No observations are set: call `set_x(x_o)`, or pass `x` when sampling.")
        theta = theta.to(likelihood.points)
        if not self.x_is_iid and len(likelihood.points) != len(theta):
            raise ValueError(
                f"`theta` should have one row for each of the {len(likelihood.points)} observations or sets, which "
                f"do not share one; got {len(theta)} rows."
            )
        log_likelihood = likelihood.iid if self.x_is_iid else likelihood.rowwise
        return masked(self.prior, theta, lambda rows: log_likelihood(rows) + self.prior.log_prob(rows))

    def likelihood_of(self, x: Tensor) -> Pairing:
        """Return that of a frozen model; the observations are placed on the manifold once."""
        return EncodedLikelihood(self.likelihood_estimator.model, x).of_sets

    @property
    def _likelihood_of_sets(self) -> Pairing:
        return cast(EncodedLikelihood, self._likelihood).of_sets


class RatioPotential(OwnPotential, RatioBasedPotential):
    """theta -> log r(x_o|theta) + log p(theta), sbi's potential of a ratio, but -inf outside the support of the prior.

    Arguments:
        estimator: the trained ratio, frozen
        prior: the prior of theta, any that `parameter_prior` takes
        x_o: observations, as `set_x` takes them; they can also be set later
        device: where to evaluate
    """

    def __init__(
        self, estimator: torch.nn.Module, prior: Distribution, x_o: Tensor | None = None, device: str = "cpu"
    ) -> None:
        self.ratio_estimator = estimator  # which sbi's class sets only after it has called `set_x`
        super().__init__(estimator, parameter_prior(prior), x_o, device)

    def _warn_of(self, x: Tensor) -> None:
        network = getattr(self.ratio_estimator, "net", None)
        if isinstance(network, RatioModel):
            record = getattr(self.ratio_estimator, "training_record", {})
            warn_of_observations(x, Reach.of_record(record), network.x_warp)

    def _log_posterior(self, theta: Tensor) -> Tensor:
        potential = super(OwnPotential, self).__call__
        return masked(self.prior, theta, lambda rows: potential(rows, torch.is_grad_enabled()))

    def likelihood_of(self, x: Tensor) -> Pairing:
        """Return that of the ratio, which evaluates every pair."""
        per_chunk = max(1, rows_at_work(x.shape[-1]) // x.shape[1])

        def log_ratios(theta: Tensor, which: Tensor) -> Tensor:
            rows, of = theta.flatten(0, 1), which.repeat_interleave(theta.shape[1])
            chunks = zip(of.split(per_chunk), rows.split(per_chunk), strict=True)
            each = [
                self.ratio_estimator(some.repeat_interleave(x.shape[1], 0), x[numbers].flatten(0, 1))
                for numbers, some in chunks
            ]
            return torch.cat(each).double().view(-1, x.shape[1]).sum(-1).view(theta.shape[:2])

        return log_ratios

    @property
    def _likelihood_of_sets(self) -> Pairing:
        observed = cast(Tensor, self._x_o)
        return self.likelihood_of(observed if observed.ndim == 3 else observed[:, None])
