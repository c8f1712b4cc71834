"""What all specs do: from simulations, or from the shapes in a file, to a model; `mfsbi.plugin.specs` has the rows.

A model is assembled from three choices, a kind of chart, a latent flow, and where the density is counted, and from what
is measured on simulations: a frame of x (`mfsbi.charts.frames`) and the scale of theta. The shapes of its tensors
depend on few whole numbers, a `Shape`, so that a model for a file is assembled without any data.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from types import UnionType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mfsbi.charts import AbstractChart, ChartConfig, Standardized, Warped, charted
from mfsbi.charts.frames import Frame, features_of, frame_of, require_coordinates, scales_of
from mfsbi.checks import (
    require_finite,
    require_kind,
    require_matching_rows,
    require_positive,
    require_positive_integer,
    require_tensor,
)
from mfsbi.flows import FlowConfig, density_of
from mfsbi.models import AbstractModel, Latent, ManifoldModel
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.train.schedules import Schedule, sequential
from mfsbi.warp import Warp, scale_of

__all__ = ["ManifoldSpec", "Shape", "Spec"]


class Shape(NamedTuple):
    """What the shapes of a model's tensors depend on besides its spec.

    Arguments:
        parameters: p
        features: d
        manifold_dim: n
        axes: of the frame, d or fewer; None if it is along the features
        warped: whether features are bent or shifted before they reach the chart
    """

    parameters: int
    features: int
    manifold_dim: int
    axes: int | None
    warped: bool

    @property
    def inside(self) -> int:
        """The number of features that the chart in the frame has."""
        return self.features if self.axes is None else self.axes


class Spec(ABC):
    """A model to be built once simulations have come: `spec(theta, x)` returns an estimator for sbi.

    Features of x that cover decades, hold rare huge values, or have an offset that costs digits are bent or shifted
    before they reach the chart (`mfsbi.warp`); which ones is measured.
    """

    latent: FlowConfig
    model: ClassVar[type[AbstractModel]] = ManifoldModel
    """Where the density is counted."""
    as_it_comes: ClassVar[bool] = False
    """Whether x reaches the chart as it comes, neither bent nor shifted nor standardised."""
    conditional_chart = False
    """Whether the manifold depends on theta."""

    def __post_init__(self) -> None:
        for each in fields(self):  # type: ignore[arg-type]  # rows are dataclasses
            if each.type in CHECKS:
                CHECKS[each.type](self, each.name, getattr(self, each.name))

    @abstractmethod
    def _chart(self) -> ChartConfig:
        """Return the kind of chart."""

    @abstractmethod
    def _dims(self, x: Tensor) -> int:
        """Return n, the dimensions of the manifold, for data like these."""

    def _frame(self, x: Tensor) -> Frame:
        """Return the frame that the chart starts in."""
        return scales_of(x)

    def _model(self, chart: AbstractChart, latent: Latent) -> AbstractModel:
        """Return the model of a chart and a latent density."""
        return self.model(chart, latent)

    def _fits(self, shape: Shape) -> bool:
        """Return whether this spec builds models of a shape."""
        return shape.manifold_dim <= shape.inside <= shape.features

    def _assembled(self, shape: Shape, frame: Frame, warp: Warp, scale: tuple[Tensor, Tensor, Warp]) -> AbstractModel:
        """Return the model: chart x latent x where the density is counted, with weights from torch's generator.

        Arguments:
            shape: of the model; without `warped` the warp is left out
            frame: of the data after the warp
            warp: of the data
            scale: of theta
        """
        parameters = shape.parameters if self.conditional_chart else 0
        chart = charted(self._chart(), shape.inside, shape.manifold_dim, parameters)
        if not self.as_it_comes:
            chart = Standardized(chart, *frame)
        if shape.warped:
            chart = Warped(chart, warp)
        return self._model(chart, Latent(density_of(self.latent, shape.manifold_dim, shape.parameters), *scale))

    @staticmethod
    def schedule(epochs: int | None) -> Schedule:
        """Return the default schedule of training for a number of epochs."""
        return sequential(epochs)

    def suited(self, _data_dim: int) -> "Spec":
        """Return the spec that this one amounts to for data with so many features."""
        return self

    def build(self, theta: Tensor, x: Tensor) -> AbstractModel:
        """Return an untrained model for data like these, in the type of theta and where that is.

        Weights come from torch's generator. A parameter that never varies is left as it is.

        Arguments:
            theta: shape `(rows, parameter)`
            x: shape `(rows, data)`

        Raises:
            ValueError: if rows do not match, are fewer than two, hold NaN or infinity, or a feature is constant
        """
        require_rows(theta, x)
        warp = Warp.of_data(x, theta.dtype)
        if self.as_it_comes and warp.wide:
            raise ValueError(
                f"{type(self).__name__} calls functions of x with {theta.dtype}, in which features {warp.wide} of x "
                "lose digits. Subtract their offsets from x, here and in the functions."
            )
        warped = not (self.as_it_comes or (warp.plain and x.dtype == theta.dtype))
        y = warp(x) if warped else x
        n, frame = self._dims(y), self._frame(y)
        axes = None if frame.axes is None else frame.axes.shape[1]
        shape = Shape(theta.shape[1], x.shape[1], n, axes, warped)
        model = self._assembled(shape, frame, warp, scale_of(theta)).to(theta)
        with torch.no_grad():
            model.chart.measure(model.as_data(x))
        return model

    def outline(self, shape: Shape) -> AbstractModel:
        """Return a model of a shape that knows no data: means of zero, spreads of one.

        Raises:
            ValueError: if this spec builds no such models
        """
        if not self._fits(shape):
            raise ValueError(f"{self!r} builds no model of {shape}.")
        p, d, axes = shape.parameters, shape.features, shape.axes
        frame = Frame(torch.zeros(d), torch.ones(d), None if axes is None else torch.zeros(d, axes))
        return self._assembled(shape, frame, Warp(d), (torch.zeros(p), torch.ones(p), Warp(p)))

    def __call__(self, theta: Tensor, x: Tensor) -> ManifoldEstimator:
        """Return an untrained estimator of p(x|theta) for sbi, with the model of `build`; arguments and errors are its.

        Arguments:
            theta: shape `(rows, parameter)`
            x: shape `(rows, data)`
        """
        return ManifoldEstimator(self.build(theta, x), spec=self)


class ManifoldSpec(Spec):
    """What specs of a manifold in data space have in common: it has n dimensions and starts in a frame of the data.

    Arguments:
        manifold_dim: n, the dimension of the manifold; below d, the number of features
        coordinates: features that the others follow from, counted from 0; the chart starts from them, and from
            principal axes where they are fewer than n (see `mfsbi.charts.frames`)

    Raises:
        ValueError: if a number is not positive, or coordinates are more than n; on building, if n is not below d
    """

    manifold_dim: int
    coordinates: tuple[int, ...]

    def _dims(self, x: Tensor) -> int:
        if self.manifold_dim >= features_of(x):
            raise ValueError(
                f"`manifold_dim` should be below the number of features of x, {x.shape[1]}, for an encoder to have "
                f"anything to do; got {self.manifold_dim}. Use `AF` for a density in all of data space."
            )
        return self.manifold_dim

    def _fits(self, shape: Shape) -> bool:
        within = all(number < shape.features for number in self.coordinates)
        framed = (shape.axes is not None) == self._turns(shape.features)
        return self.manifold_dim == shape.manifold_dim < shape.features and within and framed and super()._fits(shape)

    def _turns(self, _features: int) -> bool:
        """Return whether the frame of data of so many features has axes of its own."""
        return True

    def _frame(self, x: Tensor) -> Frame:
        return frame_of(x, self.manifold_dim, self.coordinates)


def require_rows(theta: Tensor, x: Tensor) -> None:
    """Raise ValueError unless both arguments are finite rows, as many of one as of the other."""
    require_tensor("theta", theta)
    features_of(x)
    require_matching_rows("theta", theta, "x", x)
    if len(x) < 2:
        raise ValueError(f"A spec needs at least 2 rows of `x` to measure spreads; got {len(x)}.")
    for name, value in (("theta", theta), ("x", x)):
        require_finite(name, value, "Remove these rows before building.")


def _require_part(kind: type | UnionType, wanted: str) -> Callable[[Spec, str, object], None]:
    return lambda spec, name, value: require_kind(f"{type(spec).__name__}.{name}", value, kind, wanted)


CHECKS: dict[object, Callable[[Any, str, Any], None]] = {
    FlowConfig: _require_part(FlowConfig, "a flow (`FlowConfig`) such as SplineCouplings()"),
    FlowConfig | ChartConfig: _require_part(
        FlowConfig | ChartConfig, "a flow (`FlowConfig`) such as AffineCouplings(), or a chart (`ChartConfig`)"
    ),
    Callable[[Tensor], Tensor]: lambda _, name, value: require_kind(name, value, Callable, "a function of rows"),  # type: ignore[arg-type]
    int: lambda _, name, value: require_positive_integer(name, value),
    float: lambda _, name, value: require_positive(name, value),
    tuple[int, ...]: lambda spec, _, value: require_coordinates(value, spec.manifold_dim),
}
"""What a field of a spec has to be, by its type."""
