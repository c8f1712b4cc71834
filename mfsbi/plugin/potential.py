"""Likelihoods and ratios times a prior, as the potentials that sbi's samplers ask for; -inf outside the prior."""

from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from mfsbi.inference.potential import EncodedLikelihood
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import LikelihoodBasedPotential, RatioBasedPotential
from mfsbi.plugin.parameter_prior import masked, parameter_prior
from mfsbi.plugin.reach import Reach, warn_of_observations
from mfsbi.ratio import RatioModel

__all__ = ["ManifoldPotential", "RatioPotential", "with_all_digits"]


def with_all_digits(x_o: Any) -> Tensor:  # noqa: ANN401 - a tensor, or what makes one
    """Return observations as rows, in the type in which they came; sbi makes them float32."""
    return torch.atleast_2d(torch.as_tensor(x_o))


class _Digits:
    """The observations of a potential in the type in which they came, which sbi, everywhere, makes float32."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.new = self.held = False

    def of(self, x_o: Tensor | None, as_float32: Tensor | None) -> Tensor | None:
        """Return observations with the digits they came with; while they are `held`, with those that they had before.

        Arguments:
            x_o: as they come now
            as_float32: what sbi made of them
        """
        if x_o is None or as_float32 is None:
            return as_float32
        rows = with_all_digits(x_o).to(as_float32.device)
        known = self.given
        comparable = known is not None and known.shape == rows.shape and (self.held or known.dtype == rows.dtype)
        self.new = not (comparable and torch.equal(cast(Tensor, known).to(rows.dtype), rows))
        if self.new:
            self.given = rows
        return self.given


class ManifoldPotential(LikelihoodBasedPotential):
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
        self._digits = _Digits()
        # sbi's class sets `likelihood_estimator` too, but only after it has called `set_x`
        self.likelihood_estimator = deepcopy(estimator).requires_grad_(requires_grad=False).eval().to(device)
        super().__init__(self.likelihood_estimator, parameter_prior(prior), x_o, device)

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:  # noqa: FBT001, FBT002 - sbi's signature
        """Set the observations and encode them.

        Arguments:
            x_o: shape `(observations, data)`, or `(sets, observations, data)`
            x_is_iid: all of them share one theta; otherwise each observation, or each set, has a theta of its own:
                so does `posterior.sample_batched((draws,), x)` read the first axis of x
        """
        super().set_x(x_o, x_is_iid)
        self._x_o: Tensor | None = self._digits.of(x_o, self._x_o)
        if self._x_o is not None and self._digits.new:
            estimator = self.likelihood_estimator
            reach = Reach.of_record(estimator.training_record)
            warn_of_observations(self._x_o, reach, estimator.model.chart.straightened)
        self._likelihood = None if self._x_o is None else EncodedLikelihood(self.likelihood_estimator.model, self._x_o)

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:  # noqa: FBT001, FBT002 - sbi's signature
        """Return log p(x_o|theta) + log p(theta), shape `(rows,)`; -inf outside the support of the prior.

        Arguments:
            theta: shape `(rows, parameter)`
            track_gradients: keep the graph, for samplers that use gradients

        Raises:
            ValueError: if no observation is set, or their number differs from the rows of theta when not iid
        """
        likelihood = self._likelihood
        if likelihood is None:
            raise ValueError("No observations are set: call `set_x(x_o)`, or pass `x` when sampling.")
        theta = theta.to(likelihood.points)
        if not self.x_is_iid and len(likelihood.points) != len(theta):
            raise ValueError(
                f"`theta` should have one row for each of the {len(likelihood.points)} observations or sets, which "
                f"do not share one; got {len(theta)} rows."
            )
        with torch.set_grad_enabled(track_gradients):
            log_likelihood = likelihood.iid if self.x_is_iid else likelihood.rowwise
            return masked(self.prior, theta, lambda rows: log_likelihood(rows) + self.prior.log_prob(rows))

    def to(self, device: str | torch.device) -> "ManifoldPotential":
        """Move the estimator, the prior and the encoded observations."""
        super().to(device)
        self.set_x(self._x_o, self._x_is_iid)
        return self


class RatioPotential(RatioBasedPotential):
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
        network = getattr(estimator, "net", None)
        self._warp = network.x_warp if isinstance(network, RatioModel) else None
        self._digits = _Digits()
        super().__init__(estimator, parameter_prior(prior), x_o, device)

    def set_x(self, x_o: Tensor | None, x_is_iid: bool | None = True) -> None:  # noqa: FBT001, FBT002 - sbi's signature
        """Set the observations, shape `(observations, data)`, as sbi's potential does, with all digits they need."""
        super().set_x(x_o, x_is_iid)
        self._x_o: Tensor | None = self._digits.of(x_o, self._x_o)
        if self._x_o is not None and self._digits.new and self._warp is not None:
            reach = Reach.of_record(cast(Any, self.ratio_estimator).training_record)
            warn_of_observations(self._x_o, reach, self._warp)

    def __call__(self, theta: Tensor, track_gradients: bool = True) -> Tensor:  # noqa: FBT001, FBT002 - sbi's signature
        """Return log r(x_o|theta) + log p(theta), shape `(rows,)`; -inf outside the support of the prior."""
        with torch.set_grad_enabled(track_gradients):
            return masked(self.prior, theta, lambda rows: RatioBasedPotential.__call__(self, rows, track_gradients))
