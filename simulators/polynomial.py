r"""A two-dimensional surface in three dimensions, with a likelihood known in closed form.

Latent coordinates z in R^2 follow a mixture of two Gaussians, of which theta sets the width of the second,

    p(z|theta) = 0.6 N(z; (1, -1), 2^2 I) + 0.4 N(z; (-1, 1), s^2 I),    s = 0.6 + 0.4 theta,    theta ~ U(-1, 1),

and are lifted to the graph of a function that is a polynomial of degree five under a Gaussian envelope,

    f(z) = exp(-0.1 |z|^2) sum_i a_i m_i(z),    x = R (z_0, z_1, f(z)),

with the monomials m = 1, z_0, z_1, z_0^2, z_0 z_1, z_1^2, ... and a fixed rotation R.

A cell dz covers the area sqrt(1 + |grad f|^2) dz of the surface, so with respect to the surface measure

    p(x|theta) = p(z|theta) / sqrt(1 + |grad f(z)|^2)    on the surface, and zero off it.

The area does not depend on theta: the score d/dtheta log p(x|theta) is that of the mixture,

    score = w_2 0.4 (|z - (-1, 1)|^2 / s^3 - 2 / s),    w_2 the posterior weight of the second component.

A run knows its component k, so its joint score is the same without w_2 where k = 2, and zero where k = 1; averaged over
k given x that is the score.

The surface and its constants are those of J. Brehmer, K. Cranmer, arXiv:2003.13913, section 4.2. Quantities have no
units.
"""

import math

import torch
from torch import Generator, Tensor

from simulators.base import Gold, KnownManifold, generator_from, reference_for, require_last_axis

__all__ = ["PolynomialSurface"]

EXPONENTS = torch.tensor([(degree - j, j) for degree in range(6) for j in range(degree + 1)])
COEFFICIENTS = torch.tensor(
    [
        -1.21685866, 1.52221851, -1.21371848, 0.0565082878, -0.0238915801, -0.0466790086, -0.0556848662,
        -0.00767494636, -0.0571792899, -0.0516948423, 0.0137135698, 0.00019578321, -0.00708568474, -0.0066261159,
        0.00333050257, -0.00832319399, -0.0109518626, 0.00408106786, -0.00464777968, -0.0088060082, 0.0121157044,
    ],
    dtype=torch.float64,
)  # fmt: skip
ROTATION = torch.tensor(
    [
        [0.973887216, -0.226860567, -0.00883026976],
        [0.227031938, 0.973073894, 0.0397956792],
        [-0.000435565375, -0.0407612565, 0.99916882],
    ],
    dtype=torch.float64,
)
ENVELOPE = 0.1
MEANS = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.6, 0.4], dtype=torch.float64)


class PolynomialSurface(KnownManifold):
    """The polynomial surface: one parameter, two latent dimensions, three data dimensions.

    Arguments:
        tolerance: how far (along the third rotated axis) a point may lie off the surface and still count as on
            it, in units of x. The default leaves room for x in float32.

    Example:
        >>> surface = PolynomialSurface()
        >>> theta = surface.prior.sample((4,))
        >>> x = surface.simulate(theta, seed=1)
        >>> x.shape, surface.log_prob(x, theta).shape, bool(surface.distance(x).max() < 1e-5)
        (torch.Size([4, 3]), torch.Size([4]), True)
    """

    data_dim = 3
    manifold_dim = 2
    parameter_dim = 1
    parameter_names = ("theta",)

    def __init__(self, tolerance: float = 1e-4) -> None:
        self.tolerance = tolerance

    def __repr__(self) -> str:
        return f"PolynomialSurface(tolerance={self.tolerance})"

    def simulate_with_gold(
        self, theta: Tensor, *, theta_ref: Tensor | None = None, seed: int | Generator | None = None
    ) -> Gold:
        """Draw the points of `simulate` with their joint score and joint log ratio.

        Arguments:
            theta: shape `(*, 1)`
            theta_ref: the other side of the ratio, broadcast to the shape of theta; 0 if not given
            seed: an integer or a generator for a repeatable draw; a random one if not given
        """
        require_last_axis("theta", theta, self.parameter_dim)
        z, component = _runs(theta, generator_from(seed))
        widths = _widths(theta)
        score = component[..., None] * _score_of_second(z, widths)
        of_reference = _log_components(z, _widths(reference_for(theta, theta_ref)))
        ratio = (_log_components(z, widths) - of_reference).gather(-1, component[..., None])[..., 0]
        return Gold(self.decode(z).to(theta.dtype), score.to(theta.dtype), ratio.to(theta.dtype))

    def decode(self, u: Tensor) -> Tensor:
        """Return the point x = R (u_0, u_1, f(u)) of the surface, shape `(*, 3)`."""
        require_last_axis("u", u, self.manifold_dim)
        z = u.double()
        return (torch.cat([z, _height(z)[..., None]], dim=-1) @ ROTATION.T).to(u.dtype)

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of the point above or below x, the first two entries of R^T x, shape `(*, 2)`."""
        return self._unrotate(x)[0].to(x.dtype)

    def score(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return d/dtheta log p(x|theta), shape `(*, 1)`, at the coordinates of x.

        Arguments:
            x: shape `(*, 3)`, taken to lie on the surface
            theta: shape `(*, 1)`, broadcast against x
        """
        z, _ = self._unrotate(x)
        require_last_axis("theta", theta, self.parameter_dim)
        widths = _widths(theta)
        weight = _log_components(z, widths).softmax(-1)[..., 1:]
        return (weight * _score_of_second(z, widths)).to(x.dtype)

    def vertical_distance(self, x: Tensor) -> Tensor:
        """Return |(R^T x)_3 - f|, the offset along the third rotated axis, shape `(*)`.

        This is what the paper's tables call the manifold distance; it is never below `distance`.
        """
        z, height = self._unrotate(x)
        return (height - _height(z)).abs().to(x.dtype)

    def distance(self, x: Tensor) -> Tensor:
        """Return the Euclidean distance of x to the surface, shape `(*)`.

        The nearest point has coordinates within the vertical distance of those of x. The best of a disc of
        candidates there starts a Gauss-Newton descent on |z - z_x|^2 + (f(z) - height)^2.
        """
        start, height = self._unrotate(x)
        reach = (height - _height(start)).abs()[..., None, None]
        candidates = start[..., None, :] + reach * _unit_disc()
        nearest = _squared_offset(candidates, start[..., None, :], height[..., None]).argmin(-1)
        z = candidates.gather(-2, nearest[..., None, None].expand(*nearest.shape, 1, 2)).squeeze(-2)
        for _ in range(60):
            z = _descend(z, start, height)
        return _squared_offset(z, start, height).sqrt().to(x.dtype)

    def _draw(self, theta: Tensor, generator: Generator) -> Tensor:
        return _runs(theta, generator)[0]

    def _is_on(self, x: Tensor) -> Tensor:
        z, height = self._unrotate(x)
        return (height - _height(z)).abs() <= self.tolerance

    def _log_density(self, x: Tensor, theta: Tensor) -> Tensor:
        z, _ = self._unrotate(x)
        return _log_components(z, _widths(theta)).logsumexp(-1) - 0.5 * torch.log1p(_slope(z).square().sum(-1))

    def _unrotate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the coordinates z, shape `(*, 2)`, and the height, shape `(*)`, of x in float64."""
        require_last_axis("x", x, self.data_dim)
        rotated = x.double() @ ROTATION
        return rotated[..., :2], rotated[..., 2]


def _runs(theta: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Return z, shape `(*, 2)`, and the component each was drawn from, 0 or 1, shape `(*)`."""
    widths = _widths(theta)
    second = torch.rand(theta.shape[:-1], generator=generator, dtype=torch.float64) >= WEIGHTS[0]
    noise = torch.randn(*theta.shape[:-1], 2, generator=generator, dtype=torch.float64)
    component = second.long()
    return MEANS[component] + widths.gather(-1, component[..., None]) * noise, component


def _widths(theta: Tensor) -> Tensor:
    """Return the standard deviations of both components, shape `(*, 2)`."""
    width = 0.6 + 0.4 * theta.double()
    if (width <= 0).any():
        raise ValueError(f"`theta` should be above -1.5, where the width 0.6 + 0.4 theta is 0; got {theta.min():g}.")
    return torch.cat([torch.full_like(width, 2.0), width], dim=-1)


def _log_components(z: Tensor, widths: Tensor) -> Tensor:
    """Return log(weight_k N(z; mean_k, width_k^2 I)) of both components, shape `(*, 2)`."""
    squared = (z[..., None, :] - MEANS).square().sum(-1)
    return WEIGHTS.log() - squared / (2 * widths**2) - 2 * widths.log() - math.log(2 * math.pi)


def _score_of_second(z: Tensor, widths: Tensor) -> Tensor:
    """Return d/dtheta log N(z; mean_2, s^2 I), shape `(*, 1)`."""
    width = widths[..., 1:]
    squared = (z - MEANS[1]).square().sum(-1, keepdim=True)
    return 0.4 * (squared / width**3 - 2 / width)


def _monomials(z: Tensor, derivative: Tensor) -> Tensor:
    """Return the partial derivatives, of the given orders (0 or 1) in z_0 and z_1, of all monomials."""
    powers = (EXPONENTS - derivative).clamp(min=0)
    factors = torch.where(derivative > 0, EXPONENTS, torch.ones_like(EXPONENTS))
    return (factors * z[..., None, :] ** powers).prod(-1)


def _height(z: Tensor) -> Tensor:
    """Return f(z), shape `(*)`."""
    envelope = torch.exp(-ENVELOPE * z.square().sum(-1))
    return envelope * (_monomials(z, torch.tensor([0, 0])) @ COEFFICIENTS)


def _slope(z: Tensor) -> Tensor:
    """Return grad f(z), shape `(*, 2)`."""
    envelope = torch.exp(-ENVELOPE * z.square().sum(-1, keepdim=True))
    partials = [_monomials(z, torch.tensor(order)) @ COEFFICIENTS for order in ([1, 0], [0, 1])]
    return envelope * torch.stack(partials, dim=-1) - 2 * ENVELOPE * z * _height(z)[..., None]


def _squared_offset(z: Tensor, foot: Tensor, height: Tensor) -> Tensor:
    """Return the squared distance of (z, f(z)) to (foot, height), shape `(*)`."""
    return (z - foot).square().sum(-1) + (_height(z) - height).square()


def _unit_disc(rings: int = 8, spokes: int = 12) -> Tensor:
    """Return points spread over the unit disc, its centre first, shape `(1 + rings * spokes, 2)`."""
    radius = torch.linspace(0, 1, rings + 1, dtype=torch.float64)[1:, None]
    angle = torch.arange(spokes, dtype=torch.float64) * (2 * math.pi / spokes)
    ring = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).reshape(-1, 2)
    return torch.cat([torch.zeros(1, 2, dtype=torch.float64), ring])


def _descend(z: Tensor, foot: Tensor, height: Tensor) -> Tensor:
    """Return the best of the full, half, ... Gauss-Newton step and no step at all.

    The Hessian I + grad f grad f^T is inverted in closed form (Sherman-Morrison).
    """
    slope = _slope(z)
    gradient = (z - foot) + (_height(z) - height)[..., None] * slope
    along = (slope * gradient).sum(-1, keepdim=True) / (1 + slope.square().sum(-1, keepdim=True))
    step = gradient - slope * along
    lengths = torch.tensor([0.0, 1.0, 0.5, 0.25, 0.125, 0.01], dtype=torch.float64)[:, None]
    trials = z[..., None, :] - lengths * step[..., None, :]
    best = _squared_offset(trials, foot[..., None, :], height[..., None]).argmin(-1)
    return trials.gather(-2, best[..., None, None].expand(*best.shape, 1, 2)).squeeze(-2)
