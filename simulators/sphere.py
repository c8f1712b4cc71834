r"""A Gaussian on the n-sphere, in R^(n+1) or tilted into more dimensions, with a normalised density.

Spherical angles phi in R^n are independent and normal, and are put on the sphere by

    y_1 = cos phi_1,   y_2 = sin phi_1 cos phi_2,   ...,   y_{n+1} = sin phi_1 ... sin phi_n,    x = Q y,

with a fixed d x (n + 1) matrix Q of orthonormal columns, the identity for d = n + 1. Two parameters in (-1, 1) set the
common width and the mean of the last angle, the azimuth; all other means are pi/2:

    phi_i ~ N(mu_i, s^2),    s = (0.25 + 0.15 theta_0) pi,    mu_n = (1 + 0.5 theta_1) pi.

At theta = (0, -1) that is the Gaussian of the paper, mean pi/2 and width pi/4 for all angles (J. Brehmer, K. Cranmer,
arXiv:2003.13913, section 4.1).

**Density.** Angles are not unique: phi_i + 2 pi is the same point, and so is -phi_i for a polar angle (i < n) if what
follows goes to its antipode, phi_j -> pi - phi_j for the polar angles among it and phi_n -> phi_n + pi. A cell dphi
covers the n-volume prod_i |sin phi_i|^(n - i) dphi, hence

    p(x|theta) = sum over all phi of x:  prod_i N(phi_i; mu_i, s^2) / |sin phi_i|^(n - i)

with respect to the surface measure; a sum over windings up to three turns is exact in float64. For n > 1 it diverges at
the poles. No single chart covers a sphere: angles leave out a half-circle, which has no probability of its own.

Quantities have no units.
"""

import math
from itertools import product

import torch
from torch import Generator, Tensor

from simulators.base import KnownManifold, require_last_axis

__all__ = ["Circle", "Sphere"]

TURNS = 2 * math.pi * torch.arange(-3, 4, dtype=torch.float64)
TILT_SEED = 3


class Sphere(KnownManifold):
    """A Gaussian on the n-sphere: two parameters, n latent dimensions, d data dimensions.

    Arguments:
        manifold_dim: n, at least 1
        data_dim: d, at least n + 1; n + 1 if not given
        tolerance: how far a point may lie off the sphere and still count as on it. The default leaves room for x in
            float32.

    Raises:
        ValueError: if the dimensions do not fit

    Example:
        >>> sphere = Sphere(2)
        >>> theta = sphere.prior.sample((4,))
        >>> x = sphere.simulate(theta, seed=1)
        >>> x.shape, sphere.log_prob(x, theta).shape, bool((x.norm(dim=-1) - 1).abs().max() < 1e-6)
        (torch.Size([4, 3]), torch.Size([4]), True)
    """

    parameter_dim = 2
    parameter_names = ("width", "azimuth")

    def __init__(self, manifold_dim: int = 2, data_dim: int | None = None, tolerance: float = 1e-4) -> None:
        self.manifold_dim = manifold_dim
        self.data_dim = manifold_dim + 1 if data_dim is None else data_dim
        self.tolerance = tolerance
        if not 1 <= manifold_dim < self.data_dim:
            raise ValueError(
                f"`manifold_dim` should be at least 1 and below `data_dim`; got {manifold_dim} and {self.data_dim}."
            )
        self._tilt = torch.eye(self.data_dim, dtype=torch.float64)
        if self.data_dim > manifold_dim + 1:
            generator = Generator().manual_seed(TILT_SEED)
            draw = torch.randn(self._tilt.shape, generator=generator, dtype=torch.float64)
            self._tilt = torch.linalg.qr(draw)[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(manifold_dim={self.manifold_dim}, data_dim={self.data_dim})"

    def decode(self, u: Tensor) -> Tensor:
        """Return the point of the sphere with angles u, shape `(*, d)`."""
        require_last_axis("u", u, self.manifold_dim)
        sines = torch.cumprod(u.double().sin(), -1)
        before = torch.cat([torch.ones_like(sines[..., :1]), sines[..., :-1]], -1)
        y = torch.cat([before * u.double().cos(), sines[..., -1:]], -1)
        return (y @ self._tilt[:, : self.manifold_dim + 1].T).to(u.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Return the angles of x, shape `(*, n)`: polar ones in [0, pi], the azimuth in [0, 2 pi)."""
        y, _ = self._untilt(x)
        rest = y.square().flip(-1).cumsum(-1).flip(-1).sqrt()  # |(y_i, ..., y_{n+1})|
        polar = torch.atan2(rest[..., 1:-1], y[..., :-2])
        azimuth = torch.atan2(y[..., -1:], y[..., -2:-1]) % (2 * math.pi)
        return torch.cat([polar, azimuth], -1).to(x.dtype)

    def score(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return d/dtheta log p(x|theta), shape `(*, 2)`, at the angles of x.

        Arguments:
            x: shape `(*, d)`, taken to lie on the sphere
            theta: shape `(*, 2)`, broadcast against x
        """
        with torch.enable_grad():
            shape = torch.broadcast_shapes(x.shape[:-1], theta.shape[:-1])
            at = theta.detach().double().expand(*shape, 2).clone().requires_grad_()
            total = self._log_density(x.detach(), at).sum()
            return torch.autograd.grad(total, at)[0].to(x.dtype)

    def distance(self, x: Tensor) -> Tensor:
        """Return the Euclidean distance of x to the sphere, shape `(*)`."""
        y, off = self._untilt(x)
        return torch.hypot(y.norm(dim=-1) - 1, off.norm(dim=-1)).to(x.dtype)

    def vertical_distance(self, x: Tensor) -> Tensor:
        """Return the distance to the sphere, shape `(*)`; the paper's tables use the Euclidean one here."""
        return self.distance(x)

    def _draw(self, theta: Tensor, generator: Generator) -> Tensor:
        mean, width = self._moments(theta)
        return mean + width * torch.randn(mean.shape, generator=generator, dtype=torch.float64)

    def _is_on(self, x: Tensor) -> Tensor:
        return self.distance(x) <= self.tolerance

    def _log_density(self, x: Tensor, theta: Tensor) -> Tensor:
        angles, (mean, width) = self.encode(x.double()), self._moments(theta)
        terms = [_log_wrapped(each, mean, width) for each in _preimages(angles)]
        powers = torch.arange(self.manifold_dim - 1, -1, -1, dtype=torch.float64)
        volume = (powers * angles.sin().abs().clamp(min=1e-300).log()).sum(-1)
        return torch.stack(torch.broadcast_tensors(*terms)).logsumexp(0) - volume

    def _moments(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means of the angles, shape `(*, n)`, and their width, shape `(*, 1)`."""
        require_last_axis("theta", theta, self.parameter_dim)
        width, azimuth = theta.double().split(1, dim=-1)
        width = (0.25 + 0.15 * width) * math.pi
        if (width <= 0).any():
            raise ValueError(
                f"`theta` should keep the width 0.25 + 0.15 theta_0 positive; got {theta[..., 0].min():g}."
            )
        polar = torch.full((*theta.shape[:-1], self.manifold_dim - 1), math.pi / 2, dtype=torch.float64)
        return torch.cat([polar, (1 + 0.5 * azimuth) * math.pi], -1), width

    def _untilt(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, shape `(*, n + 1)`, and what stands upright on its space, in float64."""
        require_last_axis("x", x, self.data_dim)
        turned = x.double() @ self._tilt
        return turned[..., : self.manifold_dim + 1], turned[..., self.manifold_dim + 1 :]


class Circle(Sphere):
    """A Gaussian on the unit circle, d = 2 or tilted into more dimensions.

    Arguments:
        data_dim: d, at least 2
    """

    def __init__(self, data_dim: int = 2) -> None:
        super().__init__(1, data_dim)


def _log_wrapped(angles: Tensor, mean: Tensor, width: Tensor) -> Tensor:
    """Return the log density of normal angles summed over turns, shape `(*)`."""
    nearest = (angles - mean + math.pi) % (2 * math.pi) - math.pi
    z = (nearest[..., None] + TURNS) / width[..., None]
    return ((-0.5 * z.square()).logsumexp(-1) - width.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def _preimages(angles: Tensor) -> list[Tensor]:
    """Return all angles of one point, up to whole turns: each polar angle as it is or reflected, the rest following."""
    found = []
    polar = angles.shape[-1] - 1
    for signs in product((False, True), repeat=polar):
        reflected = angles
        for i, reflect in enumerate(signs):
            if reflect:
                head, own, tail, last = reflected.split([i, 1, polar - i - 1, 1], dim=-1)
                reflected = torch.cat([head, -own, math.pi - tail, last + math.pi], -1)
        found.append(reflected)
    return found
