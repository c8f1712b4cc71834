r"""Named models: a spec chooses a chart and a latent density before the data are known.

| spec     | chart                                                                  | density is counted    |
|----------|------------------------------------------------------------------------|-----------------------|
| `AF`     | identity: u is all of x                                                | in data space         |
| `FOM`    | two given functions                                                    | on the given manifold |
| `PIE`    | bijection f, x -> (u, v) with v ~ N(0, eps^2)                          | in data space         |
| `MFlow`  | bijection cut to n coordinates, decode = f . Pad, encode = Proj . f^-1 | on the manifold       |
| `MeFlow` | decode = f . Pad, encode = a network of its own                        | on the manifold       |
| `PAE`    | two networks                                                           | in coordinates alone  |

The charts of the last three learn by reconstruction, that of `PIE` by likelihood, and all latent densities by
likelihood. A spec is called with simulations, `spec(theta, x)`, and
returns an estimator, which is what sbi asks of its `density_estimator=` argument. It learns from them the
dimensions, the means and spreads of all features, and where the chart starts: the manifold coordinates begin as
the first n principal axes of the standardised data, whatever the order of the features, or as features that the user
names, and training bends them (`mfsbi.plugin.frames`).
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mfsbi.charts import (
    AbstractChart,
    AmbientChart,
    AutoencoderChart,
    EncoderChart,
    FlowChart,
    PrescribedChart,
    ResidualNetwork,
    Standardized,
    Warped,
)
from mfsbi.checks import require_kind, require_positive, require_positive_integer, require_tensor
from mfsbi.flows import AffineCouplings, Couplings, SplineCouplings
from mfsbi.models import AbstractModel, AmbientModel, Latent, LatentModel, ManifoldModel
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.frames import Frame, features_of, frame_of, require_coordinates, require_rows
from mfsbi.train.data import spreads
from mfsbi.train.schedules import Schedule, ambient, density_only, sequential
from mfsbi.warp import Warp

__all__ = ["AF", "FOM", "PAE", "PIE", "MFlow", "MeFlow", "Spec"]

LATENT = SplineCouplings(layers=4, width=64, depth=3, bins=5, sharpness=5.0)
"""For the density of the coordinates on a manifold. Few bins: simulations are few, and what is learned should be no
rougher than they can tell (see `mfsbi.train.optimizers`)."""


class Spec(ABC):
    """A model to be built once simulations have come: `spec(theta, x)` returns an estimator for sbi.

    Features of x that cover decades, hold rare huge values, or have an offset that costs digits are bent or shifted
    before they reach the chart (`mfsbi.warp`); which ones is measured.
    """

    warps: ClassVar[bool] = True
    """Whether x may be bent or shifted before it reaches the chart."""

    @abstractmethod
    def build(self, theta: Tensor, x: Tensor) -> AbstractModel:
        """Return an untrained model for data like these."""

    def schedule(self, epochs: int) -> Schedule:
        """Return how such a model is trained unless somebody says otherwise."""
        return sequential(epochs)

    def suited(self, data_dim: int) -> "Spec":  # noqa: ARG002 - most are what they are
        """Return the spec that this one amounts to for data with so many features."""
        return self

    def example(self, parameter_dim: int, data_dim: int) -> tuple[Tensor, Tensor]:
        """Return theta and x that a model of these dimensions can be built for, from torch's generator."""
        rows = 2 * max(parameter_dim, data_dim) + 2
        return torch.randn(rows, parameter_dim), torch.randn(rows, data_dim)

    def __call__(self, theta: Tensor, x: Tensor) -> ManifoldEstimator:
        """Return an untrained estimator of p(x|theta).

        Arguments:
            theta: shape `(rows, parameter)`
            x: shape `(rows, data)`

        Raises:
            ValueError: if rows do not match, are fewer than two, hold NaN or infinity, or a feature is constant
        """
        require_rows(theta, x)
        warp = Warp.of_data(x, theta.dtype)
        if not self.warps and warp.wide:
            raise ValueError(
                f"{type(self).__name__} calls functions of x with {theta.dtype}, in which features {warp.wide} of x "
                "lose digits. Subtract their offsets from x, here and in the functions."
            )
        if not self.warps or (warp.plain and x.dtype == theta.dtype):
            return ManifoldEstimator(self.build(theta, x).to(theta), spec=self)
        model = self.build(theta, warp(x))
        model.chart = Warped(model.chart, warp)
        return ManifoldEstimator(model.to(theta), spec=self)


@dataclass(frozen=True)
class AF(Spec):
    """An ambient flow: an ordinary conditional flow in all of data space, the baseline without a manifold.

    Arguments:
        latent: the flow p(x|theta)
    """

    latent: Couplings = field(default=SplineCouplings(layers=10))

    def __post_init__(self) -> None:
        _require_couplings(self)

    def schedule(self, epochs: int) -> Schedule:
        """Return all epochs for the likelihood in data space."""
        return ambient(epochs)

    def build(self, theta: Tensor, x: Tensor) -> ManifoldModel:
        """Return an untrained model for data like these."""
        frame = frame_of(theta, x)
        return ManifoldModel(AmbientChart(frame.mean, frame.std), _latent(self.latent, x.shape[1], theta))


@dataclass(frozen=True)
class FOM(Spec):
    """A flow on a manifold that is given, not learned (Gemici et al., arXiv:1611.02304).

    Arguments:
        decode: u -> x, differentiable by torch; must treat each row on its own
        encode: x -> u, its inverse on the manifold
        latent: the density of u, which is standardised

    Raises:
        ValueError: on building, if the functions do not fit the data or each other
    """

    decode: Callable[[Tensor], Tensor]
    encode: Callable[[Tensor], Tensor]
    latent: Couplings = LATENT

    warps = False

    def __post_init__(self) -> None:
        _require_couplings(self)
        for name in ("decode", "encode"):
            require_kind(name, getattr(self, name), Callable, "a function of rows")  # type: ignore[arg-type]

    def schedule(self, epochs: int) -> Schedule:
        """Return all epochs for the density."""
        return density_only(epochs)

    def example(self, parameter_dim: int, data_dim: int) -> tuple[Tensor, Tensor]:
        """Return theta and x that a model of these dimensions can be built for, from torch's generator."""
        theta, x = super().example(parameter_dim, data_dim)
        return theta, self.decode(self.encode(x))

    def build(self, theta: Tensor, x: Tensor) -> ManifoldModel:
        """Return an untrained model for data like these."""
        require_rows(theta, x)
        u = self.encode(x)
        require_tensor("encode(x)", u)
        if u.ndim != 2 or len(u) != len(x) or not torch.isfinite(u).all():
            raise ValueError(
                f"`encode` should give finite u of shape ({len(x)}, manifold); got shape {tuple(u.shape)}."
            )
        back = self.decode(u)
        require_tensor("decode(u)", back)
        if back.shape != x.shape or not torch.isfinite(back).all():
            raise ValueError(f"`decode` should give finite x of shape {tuple(x.shape)}; got shape {tuple(back.shape)}.")
        if not torch.allclose(self.decode(self.encode(back)), back, rtol=1e-3, atol=1e-3):
            raise ValueError(
                "`encode` should undo `decode`: going to the manifold twice moves points by more than 1e-3."
            )
        if not (u.std(0) > 0).all():
            raise ValueError("`encode` should give coordinates that vary; leave out those that are constant.")
        chart = PrescribedChart((self.decode, self.encode), x.shape[1], u.mean(0), u.std(0))
        return ManifoldModel(chart, _latent(self.latent, u.shape[1], theta))


@dataclass(frozen=True)
class PIE(Spec):
    """A pseudo-invertible encoder: a flow of data space, its first n coordinates the signal (arXiv:2003.13913 §2.2).

    Its density is that of data space, around a manifold of thickness epsilon; nothing asks the manifold to reconstruct.

    Arguments:
        manifold_dim: n, the dimension of the manifold; below d, the number of features
        conditional_chart: let the manifold depend on theta, as in the original proposal
        epsilon: standard deviation of the coordinates off the manifold, in standardised units
        chart: the bijection of data space
        latent: the density of the coordinates on the manifold
        coordinates: features that the others follow from, counted from 0; the chart starts from them, and from
            principal axes where they are fewer than n (see `mfsbi.plugin.frames`)

    Raises:
        ValueError: if a number is not positive, or coordinates are more than n; on building, if n is not below d
    """

    manifold_dim: int
    conditional_chart: bool = False
    epsilon: float = 0.01
    chart: Couplings = field(default=SplineCouplings())
    latent: Couplings = LATENT
    coordinates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_couplings(self)
        require_positive_integer("manifold_dim", self.manifold_dim)
        require_coordinates(self.coordinates, self.manifold_dim)
        require_positive("epsilon", self.epsilon)

    def schedule(self, epochs: int) -> Schedule:
        """Return all epochs for chart and density by the likelihood in data space."""
        return ambient(epochs)

    def build(self, theta: Tensor, x: Tensor) -> AmbientModel:
        """Return an untrained model for data like these."""
        _require_codimension(self.manifold_dim, x)
        frame = frame_of(theta, x, self.coordinates)
        parameters = theta.shape[1] if self.conditional_chart else 0
        chart = FlowChart(self.chart.build(x.shape[1], parameters), self.manifold_dim)
        return AmbientModel(_framed(chart, frame), _latent(self.latent, self.manifold_dim, theta), self.epsilon)


@dataclass(frozen=True)
class PAE(Spec):
    """A probabilistic autoencoder: two networks, and a density of u between them (Böhm & Seljak, arXiv:2006.05479).

    It has no density of x. Its posteriors take u for the data: right as far as u keeps all that x says of theta.

    Arguments:
        manifold_dim: n, the dimension of the manifold; below d, the number of features
        latent: the density of the coordinates
        width: units in each layer of both networks
        blocks: residual blocks of both networks, two layers each
        coordinates: features that the others follow from, counted from 0; the chart starts from them, and from
            principal axes where they are fewer than n (see `mfsbi.plugin.frames`)

    Raises:
        ValueError: if a number is below 1, or coordinates are more than n; on building, if n is not below d
    """

    manifold_dim: int
    latent: Couplings = LATENT
    width: int = 100
    blocks: int = 5
    coordinates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_couplings(self)
        for name in ("manifold_dim", "width", "blocks"):
            require_positive_integer(name, getattr(self, name))
        require_coordinates(self.coordinates, self.manifold_dim)

    def build(self, theta: Tensor, x: Tensor) -> LatentModel:
        """Return an untrained model for data like these."""
        _require_codimension(self.manifold_dim, x)
        frame, n, d = frame_of(theta, x, self.coordinates), self.manifold_dim, x.shape[1]
        decoder, encoder = (ResidualNetwork(*sizes, self.width, self.blocks) for sizes in ((n, d), (d, n)))
        return LatentModel(_framed(AutoencoderChart(decoder, encoder, d, n), frame), _latent(self.latent, n, theta))


@dataclass(frozen=True)
class MFlow(Spec):
    """An M-flow: a manifold and the density on it, the chart being one bijection (arXiv:2003.13913 §2.2).

    With as many manifold dimensions as features, or more, there is no manifold to learn: the model is then `AF`
    with this latent flow, and a warning says so.

    Arguments:
        manifold_dim: n, the dimension of the manifold
        chart: the bijection of data space
        latent: the density on the manifold
        coordinates: features that the others follow from, counted from 0; the chart starts from them, and from
            principal axes where they are fewer than n (see `mfsbi.plugin.frames`)

    Raises:
        ValueError: if manifold_dim is below 1, or coordinates are more than n
    """

    manifold_dim: int
    chart: Couplings = field(default=AffineCouplings())
    latent: Couplings = LATENT
    coordinates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_couplings(self)
        require_positive_integer("manifold_dim", self.manifold_dim)
        require_coordinates(self.coordinates, self.manifold_dim)

    def suited(self, data_dim: int) -> Spec:
        """Return this spec, or `AF` with the same latent flow where there is no manifold to learn."""
        return self if self.manifold_dim < data_dim else AF(self.latent)

    def build(self, theta: Tensor, x: Tensor) -> ManifoldModel:
        """Return an untrained model for data like these."""
        features = features_of(x)
        if self.manifold_dim >= features:
            warnings.warn(
                f"`manifold_dim` is {self.manifold_dim} and x has {features} features: there is no manifold to learn, "
                "so this is an ordinary conditional flow, the same as `AF`.",
                stacklevel=2,
            )
            return AF(self.latent).build(theta, x)
        frame = frame_of(theta, x, self.coordinates)
        chart = FlowChart(self.chart.build(features, cut=self.manifold_dim), self.manifold_dim)
        return ManifoldModel(_framed(chart, frame), _latent(self.latent, self.manifold_dim, theta))


@dataclass(frozen=True)
class MeFlow(Spec):
    """An M_e-flow: an M-flow with a network of its own as encoder (arXiv:2003.13913 §2.2).

    Arguments:
        manifold_dim: n, the dimension of the manifold; below d, the number of features
        chart: the bijection that decodes
        latent: the density on the manifold
        encoder_width: units in each layer of the encoder
        encoder_blocks: residual blocks of the encoder, two layers each
        coordinates: features that the others follow from, counted from 0; the chart starts from them, and from
            principal axes where they are fewer than n (see `mfsbi.plugin.frames`)

    Raises:
        ValueError: if a number is below 1, or coordinates are more than n; on building, if n is not below d
    """

    manifold_dim: int
    chart: Couplings = field(default=AffineCouplings())
    latent: Couplings = LATENT
    encoder_width: int = 100
    encoder_blocks: int = 5
    coordinates: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _require_couplings(self)
        for name in ("manifold_dim", "encoder_width", "encoder_blocks"):
            require_positive_integer(name, getattr(self, name))
        require_coordinates(self.coordinates, self.manifold_dim)

    def build(self, theta: Tensor, x: Tensor) -> ManifoldModel:
        """Return an untrained model for data like these."""
        _require_codimension(self.manifold_dim, x)
        frame, features = frame_of(theta, x, self.coordinates), x.shape[1]
        encoder = ResidualNetwork(features, self.manifold_dim, self.encoder_width, self.encoder_blocks)
        chart = EncoderChart(FlowChart(self.chart.build(features, cut=self.manifold_dim), self.manifold_dim), encoder)
        return ManifoldModel(_framed(chart, frame), _latent(self.latent, self.manifold_dim, theta))


def _require_couplings(spec: Spec) -> None:
    """Raise TypeError unless what a spec builds flows with are couplings."""
    for name in ("chart", "latent"):
        couplings = getattr(spec, name, None)
        if name == "latent" or couplings is not None:
            require_kind(f"{type(spec).__name__}.{name}", couplings, Couplings, "couplings such as SplineCouplings()")


def _require_codimension(manifold_dim: int, x: Tensor) -> None:
    """Raise ValueError unless the manifold has fewer dimensions than x."""
    features = features_of(x)
    if manifold_dim >= features:
        raise ValueError(
            f"`manifold_dim` should be below the number of features of x, {features}, for an encoder to have "
            f"anything to do; got {manifold_dim}. Use `AF` for a density in all of data space."
        )


def _framed(chart: AbstractChart, frame: Frame) -> Standardized:
    return Standardized(chart, frame.mean, frame.std, frame.axes)


def _latent(couplings: Couplings, dims: int, theta: Tensor) -> Latent:
    """Return a latent density of u in R^dims; a parameter that never varies is left as it is."""
    warp = Warp.of(theta)
    straight = warp(theta)
    return Latent(couplings.build(dims, theta.shape[1]), straight.mean(0), spreads(straight), warp)
