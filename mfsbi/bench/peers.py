"""The peers: the same flows built from zuko and nflows, which come with sbi, and densities the plain way."""

from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from mfsbi.charts import FlowChart
from mfsbi.flows import Flow, SplineCouplings
from mfsbi.models import DensityModel
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.seeds import undisturbed

with undisturbed():
    import nflows.transforms
    import zuko

__all__ = [
    "EveryRow",
    "call_zuko",
    "invert_zuko",
    "log_volume_by_jacfwd",
    "log_volume_by_layers",
    "nflows_flow",
    "zuko_flow",
]


def zuko_flow(features: int, settings: SplineCouplings) -> nn.Module:
    """Return the flow of `SplineCouplings.build` made of zuko's spline couplings; see `call_zuko`."""
    couplings = [
        zuko.flows.coupling.GeneralCouplingTransform(
            features,
            0,
            mask=mask,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=settings.bound),
            shapes=[(settings.bins,), (settings.bins,), (settings.bins - 1,)],
            hidden_features=(settings.width,) * settings.depth,
            activation=nn.SiLU,
        )
        for mask in _masks(features, settings.layers)
    ]
    return zuko.lazy.LazyComposedTransform(*couplings)


def call_zuko(flow: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return y and log det of a flow of zuko's."""
    return cast(tuple[Tensor, Tensor], flow().call_and_ladj(x))


def invert_zuko(flow: nn.Module, y: Tensor) -> Tensor:
    """Return x of a flow of zuko's."""
    return cast(Tensor, flow().inv(y))


def nflows_flow(features: int, settings: SplineCouplings) -> nn.Module:
    """Return the flow of `SplineCouplings.build` made of nflows' spline couplings; calling it gives y and log det."""
    couplings = [
        nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask=(~mask).int(),
            transform_net_create_fn=lambda inputs, outputs: _Network(inputs, outputs, settings),
            num_bins=settings.bins,
            tails="linear",
            tail_bound=settings.bound,
        )
        for mask in _masks(features, settings.layers)
    ]
    return nflows.transforms.CompositeTransform(couplings)


def log_volume_by_jacfwd(chart: FlowChart, u: Tensor) -> Tensor:
    """Return 1/2 log det J^T J with J by `vmap(jacfwd)` of decode, one row at a time in one batch.

    Arguments:
        chart: whose decode is differentiated
        u: coordinates, shape `(rows, manifold)`
    """
    jacobian = torch.func.vmap(torch.func.jacfwd(chart.decode))(u).double()
    return 0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian)[1]


def log_volume_by_layers(chart: FlowChart, u: Tensor) -> Tensor:
    """Return 1/2 log det J^T J the reference's way: each layer's Jacobian by one reverse pass per number it puts out.

    A layer puts out rows x d numbers, and each pass goes through all rows: time and memory are quadratic in the rows.
    """
    rows, data_dim = len(u), chart.data_dim
    x = nn.functional.pad(u, (0, data_dim - chart.manifold_dim))
    total = torch.eye(data_dim, chart.manifold_dim).expand(rows, -1, -1)
    own = torch.arange(rows)
    for layer in reversed(list(cast(Flow, chart.flow).layers)):
        single = Flow([layer], data_dim)  # type: ignore[list-item]  # layers are modules
        jacobian = torch.autograd.functional.jacobian(single.inverse, x)[own, :, own]
        x, total = single.inverse(x).detach(), jacobian @ total
    return 0.5 * torch.linalg.slogdet(total.double().mT @ total.double())[1]


class _Network(nn.Sequential):
    """nflows' idea of a conditioner: a network that is also handed a context."""

    hidden_features = 1  # nflows divides what the network says by the root of it

    def __init__(self, inputs: int, outputs: int, settings: SplineCouplings) -> None:
        sizes = [inputs, *[settings.width] * settings.depth]
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
        super().__init__(*hidden, nn.Linear(sizes[-1], outputs))

    def forward(self, x: Tensor, _context: None = None) -> Tensor:
        return super().forward(x)


def _masks(features: int, layers: int) -> list[Tensor]:
    """Return the coordinates each coupling keeps: one half, then the other."""
    half = torch.arange(features) < features // 2
    return [half if layer % 2 else ~half for layer in range(layers)]


class EveryRow(ManifoldEstimator):
    """The estimator without its eye for repeated observations: what sbi's potential costs with any other."""

    def log_prob(self, input: Tensor, condition: Tensor, **_: object) -> Tensor:  # noqa: A002 - sbi's
        """Return log p(x|theta) of every row, shape `(sample, batch)`."""
        shape = torch.broadcast_shapes(input.shape[:-1], condition.shape[:-1])
        return cast(DensityModel, self.model).log_prob(input.expand(*shape, -1), condition.expand(*shape, -1))
