"""A model in the shapes sbi speaks.

sbi's estimators take `input` (x) with a sample axis, a batch axis or both, and `condition` (theta) likewise; models
take rows. All juggling between the two happens here, shapes are checked before anything is broadcast, and long
inputs pass through in chunks. x and theta are converted to the type of the weights.
"""

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Size, Tensor

from mfsbi.blocks import rows_at_work
from mfsbi.checks import require_tensor
from mfsbi.models import AbstractModel, DensityModel
from mfsbi.plugin.host import ConditionalDensityEstimator
from mfsbi.train.data import Batch
from mfsbi.train.losses import joint

__all__ = ["ManifoldEstimator"]


class ManifoldEstimator(ConditionalDensityEstimator):
    """A model as a conditional density estimator p(x|theta) for sbi.

    Arguments:
        model: the model; also at `estimator.model`
        spec: what built it, where a spec did; kept for `save`
    """

    training_record: dict[str, Any]
    """What its `ManifoldNLE` did: losses of each epoch, collapsed starts, how many simulations and their hash."""

    def __init__(self, model: AbstractModel, spec: object = None) -> None:
        super().__init__(
            net=model, input_shape=Size([model.chart.data_dim]), condition_shape=Size([model.latent.flow.parameter_dim])
        )
        self.spec = spec
        self.training_record = {}

    def __repr__(self) -> str:
        return f"ManifoldEstimator({self.model!r})"

    @property
    def model(self) -> AbstractModel:
        """The chart and the latent density behind this estimator."""
        return self.net

    def log_prob(self, input: Tensor, condition: Tensor, **_: object) -> Tensor:  # noqa: A002 - sbi's
        """Return log p(x|theta) with respect to the measure of the model's space, shape `(sample, batch)`.

        Arguments:
            input: x, shape `(sample, batch, data)` or `(batch, data)`
            condition: theta, shape `(batch, parameter)` or `(sample, batch, parameter)`

        Raises:
            TypeError: if the model has no density of x, as `PAE`
            ValueError: if a feature axis has the wrong size, or the leading axes neither match nor are 1
        """
        model = self.model
        if not isinstance(model, DensityModel):
            raise TypeError(
                "`PAE` has no density of x, only one of its coordinates, `model.latent.log_prob(u, theta)`. "
                "Use `MFlow` for a density on the manifold; `ManifoldNLE.build_posterior()` takes u for the data."
            )
        x, theta, shape = self._with_sample_axes(input, condition)
        every_theta = self._blocks(theta.expand(*shape, -1))
        if model.chart.conditional:
            every_x = self._blocks(x.expand(*shape, -1))
            return torch.cat([model.log_prob(*rows) for rows in zip(every_x, every_theta, strict=True)]).view(shape)
        x = _without_repeats(x)
        parts = [model.place(rows) for rows in self._blocks(x)]
        u, factor = (torch.cat(part) for part in zip(*parts, strict=True))
        every_u = self._blocks(u.view(*x.shape[:2], u.shape[-1]).expand(*shape, -1))
        density = torch.cat([model.latent.log_prob(*rows) for rows in zip(every_u, every_theta, strict=True)])
        return density.view(shape) + factor.view(x.shape[:2])

    def loss(self, input: Tensor, condition: Tensor, **_: object) -> Tensor:  # noqa: A002 - sbi's
        """Return the joint loss of chart and density, shape `(batch,)`, for sbi's own trainers.

        Arguments:
            input: x, shape `(batch, data)`
            condition: theta, shape `(batch, parameter)`

        Raises:
            ValueError: if a feature axis has the wrong size, or the batches neither match nor are 1
        """
        x, theta, shape = self._with_sample_axes(input, condition)
        return joint(self.model, Batch(theta.expand(*shape, -1).flatten(0, 1), x.expand(*shape, -1).flatten(0, 1)))

    def sample(self, sample_shape: Size | tuple[int, ...], condition: Tensor, **_: object) -> Tensor:
        """Draw x, shape `(*sample_shape, batch, data)`.

        Arguments:
            sample_shape: draws for each theta; may be `()`
            condition: theta, shape `(batch, parameter)`

        Raises:
            ValueError: if condition has another shape
        """
        require_tensor("condition", condition)
        if condition.ndim != 2 or condition.shape[-1] != self.condition_shape[0]:
            raise ValueError(
                f"`condition` should have shape (batch, {self.condition_shape[0]}); got {tuple(condition.shape)}."
            )
        whole = isinstance(sample_shape, Sequence) and all(isinstance(n, Integral) and n >= 0 for n in sample_shape)
        if not whole:
            raise ValueError(f"`sample_shape` should be a tuple of whole numbers, none negative; got {sample_shape!r}.")
        theta = condition.to(self.model.latent.theta_mean)
        with torch.no_grad():
            blocks = self._blocks(theta.expand(*sample_shape, *theta.shape))
            x = torch.cat([self.model.sample(rows) for rows in blocks])
        return x.view(*sample_shape, len(theta), x.shape[-1])

    def sample_and_log_prob(
        self, sample_shape: Size | tuple[int, ...], condition: Tensor, **_: object
    ) -> tuple[Tensor, Tensor]:
        """Draw x, shape `(*sample_shape, batch, data)`, and return log p(x|theta), shape `(*sample_shape, batch)`.

        Arguments:
            sample_shape: draws for each theta; may be `()`
            condition: theta, shape `(batch, parameter)`

        Raises:
            TypeError: if the model has no density of x, as `PAE`
            ValueError: if condition has another shape
        """
        x = self.sample(sample_shape, condition)
        rows = x.reshape(math.prod(sample_shape), *x.shape[-2:])
        return x, self.log_prob(rows, condition).view(x.shape[:-1])

    def _blocks(self, values: Tensor) -> tuple[Tensor, ...]:
        """Return rows, as many at a time as are worked on."""
        return values.flatten(0, -2).split(rows_at_work(self.input_shape[0]))

    def _with_sample_axes(self, x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor, Size]:
        """Return both with axes (sample, batch, features), as the model takes them, and (sample, batch) of both."""
        x = _with_sample_axis("input", x, self.input_shape[0])
        x = self.model.as_data(_without_repeats(x)).expand_as(x)
        theta = _with_sample_axis("condition", theta, self.condition_shape[0]).to(self.model.latent.theta_mean)
        try:
            return x, theta, torch.broadcast_shapes(x.shape[:2], theta.shape[:2])
        except RuntimeError as error:
            raise ValueError(
                "`input` and `condition` should have equal sample and batch sizes, or 1; "
                f"got {tuple(x.shape[:2])} and {tuple(theta.shape[:2])}."
            ) from error


def _with_sample_axis(name: str, value: Tensor, features: int) -> Tensor:
    """Return `value` with axes (sample, batch, features)."""
    require_tensor(name, value)
    if value.ndim not in (2, 3) or value.shape[-1] != features:
        raise ValueError(
            f"`{name}` should have shape (batch, {features}) or (sample, batch, {features}); got {tuple(value.shape)}."
        )
    return value if value.ndim == 3 else value[None]


def _without_repeats(x: Tensor) -> Tensor:
    """Return x with size 1 along axes it was expanded along: sbi repeats each observation for every theta.

    Where a gradient by x is asked for, each repetition has its own.
    """
    for axis in () if x.requires_grad else (0, 1):
        if x.stride(axis) == 0 and x.shape[axis] > 0:
            x = x.narrow(axis, 0, 1)
    return x
