r"""Models: a chart, a latent density, and the space in which the density is counted.

Every model has two parts. The chart says where the manifold lies, x = decode(u); the latent density says how
probability lies on it, p(u|theta), a small conditional flow with the coordinates ũ of its base

    ũ = h^-1(u; theta),    log p(u|theta) = log N(ũ; 0, I) + log|det dũ/du|.

`ManifoldModel` counts density on the manifold, with respect to the surface measure:

    log p(x|theta) = log p(u|theta) - 1/2 log det J(u)^T J(u),    u = encode(x),    J = d decode / d u,

the density **at the projection** of x (Brehmer & Cranmer, arXiv:2003.13913, eq. 5). How far x lies from there is
`distance`; the two are never mixed, since a point off the manifold has no density on it. With the chart
`AmbientChart` the same formula is the density of an ordinary flow in all of data space.

theta enters the latent density alone. The chart and its volume are the same for all theta: a posterior needs only
p(u|theta), at coordinates that are computed once.
"""

import math

import torch
from torch import Generator, Tensor, nn

from mfsbi.charts import AbstractChart
from mfsbi.flows import Flow
from mfsbi.types import Coordinates, Data, Parameters, Scalars

__all__ = ["Latent", "ManifoldModel"]


class Latent(nn.Module):
    """A conditional density p(u|theta) of the coordinates on the manifold.

    Arguments:
        flow: the bijection u -> ũ given theta, to the standard normal
        theta_mean: shape `(parameter,)`; theta is standardised before it reaches the flow
        theta_std: shape `(parameter,)`, positive
    """

    theta_mean: Tensor
    theta_std: Tensor

    def __init__(self, flow: Flow, theta_mean: Tensor, theta_std: Tensor) -> None:
        super().__init__()
        self.flow = flow
        self.register_buffer("theta_mean", theta_mean)
        self.register_buffer("theta_std", theta_std)

    def __repr__(self) -> str:
        return f"Latent({self.flow!r})"

    def log_prob(self, u: Coordinates, theta: Parameters) -> Scalars:
        """Return log p(u|theta), shape `(*)`."""
        base, log_det = self.flow.forward_and_log_det(u, self._standardize(theta))
        return log_det - 0.5 * base.square().sum(-1) - 0.5 * base.shape[-1] * math.log(2 * math.pi)

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one u for each row of theta, shape `(*, manifold)`."""
        shape = (*theta.shape[:-1], self.flow.features)
        base = torch.randn(shape, generator=generator, dtype=theta.dtype, device=theta.device)
        return self.flow.inverse(base, self._standardize(theta))

    def _standardize(self, theta: Tensor) -> Tensor:
        return (theta - self.theta_mean) / self.theta_std


class ManifoldModel(nn.Module):
    """A density on a learned manifold: M-flow, M_e-flow, and with `AmbientChart` an ordinary flow.

    Arguments:
        chart: where the manifold lies
        latent: how probability lies on it
    """

    def __init__(self, chart: AbstractChart, latent: Latent) -> None:
        super().__init__()
        self.chart = chart
        self.latent = latent

    def __repr__(self) -> str:
        return f"ManifoldModel(chart={self.chart!r}, latent={self.latent!r})"

    def log_prob(self, x: Data, theta: Parameters) -> Scalars:
        """Return log p(x|theta) at the projection of x, w.r.t. the surface measure, shape `(*)`.

        Raises:
            ArithmeticError: if the chart is singular at a point
        """
        u = self.chart.encode(x)
        return self.latent.log_prob(u, theta) - self.chart.log_volume(u)

    def sample(self, theta: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw one x for each row of theta, shape `(*, data)`."""
        return self.chart.decode(self.latent.sample(theta, generator))

    def project(self, x: Data) -> Data:
        """Return the point of the manifold that stands for x, shape `(*, data)`."""
        return self.chart.project(x)

    def distance(self, x: Data) -> Scalars:
        """Return |x - project(x)|, the reconstruction distance, in the units of x, shape `(*)`."""
        return (x - self.project(x)).norm(dim=-1)
