r"""A network for the log ratio log r(x|theta) = log p(x|theta) - log p(x|reference), and its score.

The reference is a point or a distribution of theta that does not depend on theta; the network need not know it. As a
function of theta, log r differs from log p(x|theta) by a constant, so that posteriors need nothing else, and its
gradient by theta is the score d/dtheta log p(x|theta). Both are smooth: activations are tanh, as in the reference
setting of ALICES (Stoye, Brehmer, Louppe, Pavez, Cranmer, arXiv:1808.00973), since its loss differentiates the network
twice.
"""

import torch
from torch import Tensor, nn

from mfsbi.networks import perceptron
from mfsbi.types import Data, Parameters, Scalars
from mfsbi.warp import ThetaScale, Warp, as_data

__all__ = ["RatioModel"]


class RatioModel(ThetaScale):
    """A multilayer perceptron for log r(x|theta) on standardised x and theta.

    Arguments:
        x_mean: shape `(data,)`
        x_std: shape `(data,)`, positive
        theta_mean: shape `(parameter,)`
        theta_std: shape `(parameter,)`, positive
        width: units in each hidden layer
        depth: hidden layers
        warps: of x and of theta, where what is standardised is not they themselves (`mfsbi.warp`)

    Example:
        >>> zeros, ones = torch.zeros(3), torch.ones(3)
        >>> RatioModel(zeros, ones, zeros[:2], ones[:2]).log_ratio(torch.randn(5, 3), torch.zeros(5, 2)).shape
        torch.Size([5])
    """

    def __init__(
        self,
        x_mean: Tensor,
        x_std: Tensor,
        theta_mean: Tensor,
        theta_std: Tensor,
        width: int = 100,
        depth: int = 3,
        warps: tuple[Warp, Warp] | None = None,
    ) -> None:
        x_warp, theta_warp = warps or (Warp(len(x_mean), x_mean), None)
        super().__init__(theta_mean, theta_std, theta_warp)
        self.x_warp = x_warp
        self.x_mean, self.x_std = nn.Buffer(x_mean), nn.Buffer(x_std)
        self.width, self.depth = width, depth
        self.network = perceptron([len(x_mean) + len(theta_mean), *[width] * depth, 1], nn.Tanh)

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.parameters())
        return f"RatioModel(data={len(self.x_mean)}, theta={len(self.theta_mean)}, weights={weights:,})"

    def log_ratio(self, x: Data, theta: Parameters) -> Scalars:
        """Return log r(x|theta), shape `(*)`, in nats.

        Arguments:
            x: in its own units and as `as_data` returns it, shape `(*, data)`
            theta: in its own units, shape `(*, parameter)` or `(parameter,)` for all rows

        Raises:
            ValueError: if theta has another number of parameters
        """
        theta = self.standardize(theta).expand(*x.shape[:-1], -1)
        return self.network(torch.cat([(self.x_warp(x) - self.x_mean) / self.x_std, theta], dim=-1)).squeeze(-1)

    def as_data(self, x: Tensor) -> Tensor:
        """Return x in the type of the weights and where they are; with all its digits where an offset needs them.

        Raises:
            ValueError: if it needs them and x does not have them
        """
        return as_data(x, self.theta_mean, self.x_warp)
