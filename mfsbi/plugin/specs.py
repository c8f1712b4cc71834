r"""Named models: a spec chooses a chart, a latent density, and where the density is counted, before the data are known.

| spec     | chart                                                                  | density is counted    |
|----------|------------------------------------------------------------------------|-----------------------|
| `AF`     | identity: u is all of x                                                | in data space         |
| `FOM`    | two given functions                                                    | on the given manifold |
| `PIE`    | bijection f, x -> (u, v) with v ~ N(0, eps^2)                          | in data space         |
| `MFlow`  | bijection cut to n coordinates, decode = f . Pad, encode = Proj . f^-1 | on the manifold       |
| `MeFlow` | decode = f . Pad, encode = a network of its own                        | on the manifold       |
| `PAE`    | two networks                                                           | in coordinates alone  |

The charts of the last three learn by reconstruction, that of `PIE` by likelihood, and all latent densities by
likelihood. A spec is called with simulations, `spec(theta, x)`, and returns an estimator, which is what sbi asks of its
`density_estimator=` argument. It learns from them the dimensions, the means and spreads of all features, and where the
chart starts: the manifold coordinates begin as the first n principal axes of the standardised data, whatever the order
of the features, or as features that the user names, and training bends them (`mfsbi.charts.frames`). Where the
likelihood of the data likes linear functions of x better, and the manifold is a graph over them, `MFlow` and `MeFlow`
take these for coordinates in the end (`mfsbi.train.directions`).

Parts may be your own: `MFlow(2, chart=MyChart(), latent=MyFlow())`, see `mfsbi.charts.ChartConfig` and
`mfsbi.flows.FlowConfig`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mfsbi.charts import AbstractChart, Ambient, Autoencoder, ChartConfig, CutFlow, Prescribed, WithEncoder
from mfsbi.charts.frames import MANY, Frame, features_of, scales_of
from mfsbi.checks import require_tensor, warn
from mfsbi.flows import AffineCouplings, AutoregressiveMixtures, FlowConfig, SplineCouplings, Stacked
from mfsbi.models import AbstractModel, AmbientModel, Latent, LatentModel
from mfsbi.plugin.spec import ManifoldSpec, Shape, Spec
from mfsbi.train.schedules import ambient, density_only

__all__ = ["AF", "FOM", "PAE", "PIE", "MFlow", "MeFlow", "Spec"]

LATENT = Stacked((AutoregressiveMixtures(bends=0), AutoregressiveMixtures(start="linear")))
"""For densities of coordinates: one learns forms of any kind soonest, the other what is nearly linear and normal, and
held-out rows weigh them (`notebooks/measurements.md`)."""

SPLINES = SplineCouplings(layers=4, width=64, depth=3, bins=5, sharpness=5.0)
"""Where the density has to be a bijection. Few bins: what is learned should be no rougher than the data can tell."""


@dataclass(frozen=True)
class AF(Spec):
    """An ambient flow: an ordinary conditional flow in all of data space, the baseline without a manifold.

    Arguments:
        latent: the density p(x|theta)
    """

    latent: FlowConfig = LATENT

    schedule = staticmethod(ambient)

    def _chart(self) -> ChartConfig:
        return Ambient()

    def _dims(self, x: Tensor) -> int:
        return x.shape[1]

    def _fits(self, shape: Shape) -> bool:
        return shape.axes is None and shape.manifold_dim == shape.features


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
    latent: FlowConfig = LATENT

    schedule = staticmethod(density_only)
    as_it_comes = True

    def _chart(self) -> ChartConfig:
        return Prescribed(self.decode, self.encode)

    def _frame(self, x: Tensor) -> Frame:
        return Frame(torch.zeros_like(x[0]), torch.ones_like(x[0]))

    def _dims(self, x: Tensor) -> int:
        """Return the number of coordinates, or raise ValueError unless the functions fit x and each other."""
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
        return u.shape[1]


@dataclass(frozen=True)
class PIE(ManifoldSpec):
    """A pseudo-invertible encoder: a flow of data space, its first n coordinates the signal (arXiv:2003.13913 §2.2).

    Its density is that of data space, around a manifold of thickness epsilon; nothing asks the manifold to reconstruct.
    With more than 1,000 features its chart starts along these, since a bijection can leave none of their axes out.

    Arguments:
        manifold_dim, coordinates: as in `ManifoldSpec`
        conditional_chart: let the manifold depend on theta, as in the original proposal
        epsilon: standard deviation of the coordinates off the manifold, in standardised units
        chart: the bijection of data space
        latent: the density of the coordinates on the manifold
    """

    manifold_dim: int
    conditional_chart: bool = False
    epsilon: float = 0.01
    chart: FlowConfig = field(default=SplineCouplings())
    latent: FlowConfig = SPLINES
    coordinates: tuple[int, ...] = ()

    schedule = staticmethod(ambient)

    def _chart(self) -> ChartConfig:
        return CutFlow(self.chart, graph=False)

    def _frame(self, x: Tensor) -> Frame:
        if self._turns(x.shape[1]):
            return super()._frame(x)
        if self.coordinates:
            raise ValueError(
                f"`coordinates` of a `PIE` need all axes of x, which {x.shape[1]} features are too many for."
            )
        return scales_of(x)

    def _turns(self, features: int) -> bool:
        return features <= MANY

    def _model(self, chart: AbstractChart, latent: Latent) -> AmbientModel:
        return AmbientModel(chart, latent, self.epsilon)


@dataclass(frozen=True)
class PAE(ManifoldSpec):
    """A probabilistic autoencoder: two networks, and a density of u between them (Böhm & Seljak, arXiv:2006.05479).

    It has no density of x. Its posteriors take u for the data: right as far as u keeps all that x says of theta.

    Arguments:
        manifold_dim, coordinates: as in `ManifoldSpec`
        latent: the density of the coordinates
        width: units in each layer of both networks
        blocks: residual blocks of both networks, two layers each
    """

    manifold_dim: int
    latent: FlowConfig = LATENT
    width: int = 100
    blocks: int = 5
    coordinates: tuple[int, ...] = ()

    model = LatentModel

    def _chart(self) -> ChartConfig:
        return Autoencoder(self.width, self.blocks)


@dataclass(frozen=True)
class MFlow(ManifoldSpec):
    """An M-flow: a manifold and the density on it, the chart being one bijection (arXiv:2003.13913 §2.2).

    With as many manifold dimensions as features, or more, there is no manifold to learn: the model is then `AF`
    with this latent flow, and a warning says so.

    Arguments:
        manifold_dim, coordinates: as in `ManifoldSpec`
        chart: the bijection of data space, or any other kind of chart
        latent: the density on the manifold
    """

    manifold_dim: int
    chart: FlowConfig | ChartConfig = field(default=AffineCouplings())
    latent: FlowConfig = LATENT
    coordinates: tuple[int, ...] = ()

    def _chart(self) -> ChartConfig:
        return _cut(self.chart)

    def suited(self, data_dim: int) -> Spec:
        """Return this spec, or `AF` with the same latent flow where there is no manifold to learn."""
        return self if self.manifold_dim < data_dim else AF(self.latent)

    def build(self, theta: Tensor, x: Tensor) -> AbstractModel:
        """Return an untrained model for data like these: that of `AF`, with a warning, if there is no manifold."""
        features = features_of(x)
        if self.manifold_dim < features:
            return super().build(theta, x)
        warn(
            f"`manifold_dim` is {self.manifold_dim} and x has {features} features: there is no manifold to learn, "
            "so this is an ordinary conditional flow, the same as `AF`.",
        )
        return self.suited(features).build(theta, x)


@dataclass(frozen=True)
class MeFlow(ManifoldSpec):
    """An M_e-flow: an M-flow with a network of its own as encoder (arXiv:2003.13913 §2.2).

    Arguments:
        manifold_dim, coordinates: as in `ManifoldSpec`
        chart: the bijection that decodes, or any other kind of chart
        latent: the density on the manifold
        encoder_width: units in each layer of the encoder
        encoder_blocks: residual blocks of the encoder, two layers each
    """

    manifold_dim: int
    chart: FlowConfig | ChartConfig = field(default=AffineCouplings())
    latent: FlowConfig = LATENT
    encoder_width: int = 100
    encoder_blocks: int = 5
    coordinates: tuple[int, ...] = ()

    def _chart(self) -> ChartConfig:
        return WithEncoder(_cut(self.chart), self.encoder_width, self.encoder_blocks)


def _cut(chart: FlowConfig | ChartConfig) -> ChartConfig:
    """Return a kind of chart, or that of a bijection."""
    return chart if isinstance(chart, ChartConfig) else CutFlow(chart)
