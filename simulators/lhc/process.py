r"""Weak-boson fusion p p -> j j H, H -> gamma gamma at 13 TeV: forty observables on a manifold of fourteen dimensions.

The hard process of J. Brehmer and K. Cranmer (arXiv:2003.13913) at tree level, with a detector that
measures directions exactly and smears energies, so that the likelihood of an observation is known
(`simulators.lhc.likelihood`). theta are Wilson coefficients of dimension-six operators in units of 165.2 TeV^-2, with a
standard normal prior: (C_W, C_Wtilde, C_WW), or the first two.

**Gold.** For latents z (the partons) with vertices V = (1, G0 v), M/A0 = Theta.V, Theta = (1, theta),

    joint score       t_i(x, z|theta) = 2 Re[conj(M/A0) V_i] / |M/A0|^2 - 2 (Sigma Theta)_i / sigma(theta),
    joint log ratio   ln r(x, z|theta_0, theta_1) = ln |M/A0|^2(theta_0) - ln sigma(theta_0) - (the same at theta_1).

Parton densities, detector and selection cancel. E[t|x, theta] is the score of x.

Features are in GeV and rad, all numbers in float64.
"""

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Normal

from simulators.base import Gold, generator_from, reference_for, require_last_axis
from simulators.lhc.amplitude import OPERATORS, amplitude_of
from simulators.lhc.decay import observe
from simulators.lhc.detector import CHART, FEATURES, accepted, closure, decode, encode
from simulators.lhc.hard_process import draw, load_grids
from simulators.lhc.likelihood import QuadraticForm, cross_section, log_gradient, quadratic_form

__all__ = ["WBFHiggs"]

ROWS = 65_536
"""Events drawn at a time."""

VOLUMES = 4096
"""Jacobians at a time."""

FARTHEST = 10.0
"""Largest |theta|: ten standard deviations of the prior."""


class WBFHiggs:
    """Higgs production by weak-boson fusion: 2 or 3 parameters, 14 latent dimensions, 40 data dimensions.

    Arguments:
        parameters: 3 for (C_W, C_Wtilde, C_WW), 2 for the first two
        tolerance: how far x may lie off the manifold and still count as on it, in units of its largest feature

    Features x have shape `(*, 40)` and are float64, in GeV and rad; coordinates u, shape `(*, 14)`, are (pT, eta, phi)
    of two photons and (pT, eta, phi, m) of two jets. theta has shape `(*, parameter)`.

    Raises:
        ValueError: if parameters is neither 2 nor 3, or the tolerance is not positive; and by every method, if a shape
            is wrong, a value is not finite, x is not float64, or a theta that is simulated lies beyond (-10, 10)

    Example:
        >>> process = WBFHiggs()
        >>> theta = process.prior.sample((4,))
        >>> x = process.simulate(theta, seed=1)
        >>> x.shape, process.log_prob(x, theta).shape, bool((process.distance(x) < 1e-6).all())
        (torch.Size([4, 40]), torch.Size([4]), True)
    """

    data_dim = len(FEATURES)
    manifold_dim = len(CHART)
    feature_names = FEATURES
    chart_names = CHART

    def __init__(self, parameters: int = 3, tolerance: float = 1e-9) -> None:
        if parameters not in (2, 3):
            raise ValueError(f"`parameters` should be 2 or 3; got {parameters!r}.")
        if not tolerance > 0:
            raise ValueError(f"`tolerance` should be positive; got {tolerance!r}.")
        self.parameter_dim = parameters
        self.parameter_names = OPERATORS[:parameters]
        self.tolerance = tolerance

    def __repr__(self) -> str:
        return f"WBFHiggs(parameters={self.parameter_dim}, tolerance={self.tolerance})"

    @property
    def prior(self) -> Distribution:
        """The standard normal prior of theta, event shape `(parameter,)`."""
        return Independent(Normal(torch.zeros(self.parameter_dim), torch.ones(self.parameter_dim)), 1)

    def simulate(self, theta: Tensor, *, seed: int | Generator | None = None) -> Tensor:
        """Draw one accepted event x for each row of theta, independent of all others.

        Arguments:
            theta: entries within (-10, 10)
            seed: an integer or a generator for a repeatable draw; a random one if not given
        """
        return decode(self._events(theta, seed)[0]).view(*theta.shape[:-1], self.data_dim)

    def simulate_with_gold(
        self, theta: Tensor, *, theta_ref: Tensor | None = None, seed: int | Generator | None = None
    ) -> Gold:
        """Draw the events of `simulate` with their joint score and joint log ratio.

        Arguments:
            theta: entries within (-10, 10)
            theta_ref: the other side of the ratio, broadcast to the shape of theta; the Standard Model, 0, if not given
            seed: an integer or a generator for a repeatable draw; a random one if not given
        """
        self._require_theta("theta", theta)
        reference = reference_for(theta, theta_ref)
        self._require_theta("theta_ref", reference)
        chart, vertices = self._events(theta, seed)
        at, other = (each.reshape(-1, self.parameter_dim).double() for each in (theta, reference))
        shape = theta.shape[:-1]
        return Gold(
            decode(chart).view(*shape, self.data_dim),
            self._joint_score(vertices, at).view(*shape, self.parameter_dim),
            (_log_rate(vertices, at) - _log_rate(vertices, other)).view(shape),
        )

    def decode(self, u: Tensor) -> Tensor:
        """Return the features x of a point of the manifold."""
        require_last_axis("u", u, self.manifold_dim)
        return decode(u.double())

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates u of x; off the manifold, the momenta of its objects count."""
        return encode(self._require_x(x))

    def distance(self, x: Tensor) -> Tensor:
        """Return |x - decode(encode(x))|, the distance to the point of the manifold that stands for x, shape `(*)`."""
        x = self._require_x(x)
        return (x - decode(encode(x))).norm(dim=-1)

    def closure(self, x: Tensor) -> Tensor:
        """Return the 26 residuals that vanish on the manifold (`simulators.lhc.detector.closure`), shape `(*, 26)`."""
        return closure(self._require_x(x))

    def likelihood(self, x: Tensor) -> QuadraticForm:
        """Return the exact likelihood of each x as a quadratic form in theta, from which any theta is algebra.

        It is zero off the manifold and outside the selection.
        """
        x = self._require_x(x)
        form = quadratic_form(encode(x))
        near = self.distance(x) <= self.tolerance * x.abs().amax(-1)
        return form._replace(log_factor=torch.where(near, form.log_factor, -torch.inf))

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return ln p(x|theta) in the measure of the chart, prod dpT deta dphi dm in GeV and rad, shape `(*)`.

        It is -inf off the manifold and outside the selection. Subtract `log_volume(x)` for the density with respect to
        the surface measure of the features. theta is broadcast against x.
        """
        require_last_axis("theta", theta, self.parameter_dim)
        return self.likelihood(x).log_prob(theta)

    def score(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return d ln p(x|theta) / d theta, shape `(*, parameter)`; NaN where p(x|theta) is zero."""
        require_last_axis("theta", theta, self.parameter_dim)
        return self.likelihood(x).score(theta)

    def log_volume(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return ln of the surface of features per volume of the chart, 1/2 ln det J^T J, shape `(*)`.

        Arguments:
            x: features
            scale: units of the features, shape `(40,)`; 1 GeV and 1 rad if not given
        """
        if scale is not None:
            require_last_axis("scale", scale, self.data_dim)
        chart = self.encode(x).reshape(-1, self.manifold_dim)
        parts = [_log_volume(part, scale) for part in chart.split(VOLUMES)] if len(chart) > 0 else [chart[:, 0]]
        return torch.cat(parts).view(x.shape[:-1])

    def cross_section(self, theta: Tensor) -> Tensor:
        """Return the accepted cross-section in pb, without the branching ratio to photons, shape `(*)`."""
        require_last_axis("theta", theta, self.parameter_dim)
        return cross_section(theta)

    def _events(self, theta: Tensor, seed: int | Generator | None) -> tuple[Tensor, Tensor]:
        """Return charts, shape `(rows, 14)`, and vertices, shape `(rows, 4, 2)`, of accepted events."""
        self._require_theta("theta", theta)
        generator, grids = generator_from(seed), load_grids()
        rows = theta.reshape(-1, self.parameter_dim).double()
        full = torch.nn.functional.pad(rows, (0, 3 - self.parameter_dim))
        chart = full.new_zeros(len(full), self.manifold_dim)
        vertices = full.new_zeros(len(full), 4, 2)
        for part in torch.arange(len(full)).split(ROWS):
            waiting = part
            while len(waiting) > 0:
                kept, events = draw(full[waiting], grids, generator)
                seen = observe(events, generator)
                good = accepted(seen)
                done = waiting[kept[good]]
                chart[done], vertices[done] = seen[good], events.vertices[good]
                left = torch.ones(len(waiting), dtype=torch.bool)
                left[kept[good]] = False
                waiting = waiting[left]
        return chart, vertices

    def _joint_score(self, vertices: Tensor, theta: Tensor) -> Tensor:
        amplitude = amplitude_of(vertices, theta)
        along = (vertices[:, 1 : 1 + self.parameter_dim] * amplitude[:, None]).sum(-1)
        return 2 * along / amplitude.square().sum(-1, keepdim=True) - log_gradient(theta)

    def _require_theta(self, name: str, theta: Tensor) -> None:
        require_last_axis(name, theta, self.parameter_dim)
        if (theta.abs() >= FARTHEST).any():
            raise ValueError(
                f"`{name}` should lie within ({-FARTHEST:g}, {FARTHEST:g}), ten standard deviations of the prior; got "
                f"{theta.abs().max():g}."
            )

    def _require_x(self, x: Tensor) -> Tensor:
        require_last_axis("x", x, self.data_dim)
        if x.dtype != torch.float64:
            raise ValueError(
                f"`x` should be float64, as `simulate` returns it; got {x.dtype}, which has lost the jet masses."
            )
        return x


def _log_rate(vertices: Tensor, theta: Tensor) -> Tensor:
    """Return ln(|M/A0|^2 / sigma), the part of the density of x and z that depends on theta."""
    return (amplitude_of(vertices, theta).square().sum(-1) / cross_section(theta)).log()


def _log_volume(chart: Tensor, scale: Tensor | None) -> Tensor:
    """Return 1/2 ln det J^T J of each row, with features in units of `scale`."""
    jacobian = torch.func.vmap(torch.func.jacfwd(decode))(chart)
    if scale is not None:
        jacobian = jacobian / scale[:, None]
    norms = jacobian.norm(dim=1, keepdim=True)  # columns differ by orders of magnitude
    upper = torch.linalg.qr(jacobian / norms).R.diagonal(dim1=-2, dim2=-1)
    return (upper.abs().log() + norms[:, 0].log()).sum(-1)
