r"""The exact likelihood of an event of forty observables, as a quadratic form in theta.

**Derivation.** Given x, all directions are known, and transverse momenta are known up to the response. Of the four true
transverse momenta two are fixed by momentum balance and one by the mass of the Higgs boson; what remains is an integral
over the energy split t = ln(k_a/k_b)/2 of the photons. With

    C = cosh(eta_a - eta_b) - cos(phi_a - phi_b),  K = mH / sqrt(2 C),  k_a = K e^t,  k_b = K e^-t,
    D = sin(phi_2 - phi_1),  k_1 = -K (e^t sin(phi_2 - phi_a) + e^-t sin(phi_2 - phi_b)) / D,
                             k_2 = -K (e^t sin(phi_a - phi_1) + e^-t sin(phi_b - phi_1)) / D,

for the jets 1, 2, and Theta = (1, theta), the density in the chart xi of `simulators.lhc.detector` is

    p(xi|theta) = e^{c(x)} sum_pq Theta_p Theta_q I_pq(x) / sigma(theta),
    sigma(theta) = sum_pq Theta_p Theta_q Sigma_pq,

    I_pq = int dt  k_1 k_2/(s_1 s_2)  exp{-(t - t0)^2/s_g^2 - sum_j [ln(pT'_j/(R k_j))]^2/(2 s_j^2)}
           sum over both assignments of jets to partons 3 and 4 of  w Re(conj(V_p) V_q),

    c = ln[2 N0 mH^2/(4 pi C^2 |D|)] - (l_a + l_b)^2/(4 s_g^2) - ln(2 pi s_g^2 pT'_a pT'_b) - ln(2 pi pT'_1 pT'_2)
        + sum_j ln LN(m_j|0.12 pT'_j, 0.40),

with l = ln(pT'/K), t0 = (l_a - l_b)/2, resolutions s, and LN the log-normal density. The measure is that of the chart:
prod dpT' deta dphi dm'. The score is 2 (I Theta)_i / (Theta I Theta) - 2 (Sigma Theta)_i / sigma.

I is computed once per event; any theta is algebra from then on.

**Quadrature.** Gauss-Legendre with 48 nodes, on the one interval of t in which no response is off by more than seven
standard deviations. Its ends are roots of quadratic equations in e^t.

**Normalisation.** Sigma is the accepted cross-section; its CP-odd entries vanish by symmetry.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from simulators.lhc.amplitude import HIGGS_MASS, LEAST_K, MOST_K, N0, ROOT_S, HardProcess, Partons
from simulators.lhc.detector import (
    ETA,
    JET_MASS,
    JET_MASS_SPREAD,
    JET_MASSES,
    PHI,
    PHOTON_SPREAD,
    PT,
    RESPONSE,
    accepted,
    jet_spread,
)
from simulators.lhc.partons import flux

__all__ = ["SIGMA", "QuadraticForm", "cross_section", "log_gradient", "quadratic_form"]

SIGMA = 2.66809e10 * torch.tensor(
    [
        [1.0000, 1.9592, 0.0, 0.7158],
        [1.9592, 17.1424, 0.0, -5.3323],
        [0.0, 0.0, 21.2958, 0.0],
        [0.7158, -5.3323, 0.0, 25.9428],
    ],
    dtype=torch.float64,
)
"""Accepted cross-section in units of N0: Sigma_pq of 1 and the three operators, to 2e-4 (3e8 weighted events)."""

WIDTHS = 7.0
"""Standard deviations of the response that the quadrature covers on each side."""

ROWS, EVENTS = 4096, 512
"""Thetas, and events, at work at a time."""


class QuadraticForm(NamedTuple):
    """The likelihood of events as a function of theta: p = exp(log_factor) Theta.matrix.Theta / sigma(theta).

    Arguments:
        matrix: I / I_00, shape `(*, 4, 4)`
        log_factor: ln of the rest, I_00 included; -inf where p is zero whatever theta, shape `(*)`
    """

    matrix: Tensor
    log_factor: Tensor

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return ln p at theta of shape `(*, 3)` or `(*, 2)`, which broadcasts against the events, shape `(*)`."""
        form, sigma = (_form(matrix, theta).log() for matrix in (self.matrix, SIGMA))
        return self.log_factor + form - sigma

    def score(self, theta: Tensor) -> Tensor:
        """Return d ln p / d theta at such theta, shape `(*, parameter)`; NaN where p is zero."""
        score = _log_gradient(self.matrix, theta) - _log_gradient(SIGMA, theta)
        return torch.where(self.log_factor[..., None] > -torch.inf, score, torch.nan)

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Return sum_j ln p(x_j|theta) of all events at each theta, shape `(rows,)`.

        Arguments:
            theta: shape `(rows, 3)` or `(rows, 2)`, shared by all events
        """
        size = 1 + theta.shape[-1]
        matrix = self.matrix.reshape(-1, 4, 4)[:, :size, :size].flatten(1)
        sigma = SIGMA[:size, :size].flatten()
        sums = []
        for extended in _extended(theta.double()).split(ROWS):
            pairs = (extended[:, :, None] * extended[:, None, :]).flatten(1)
            sums.append((pairs @ matrix.T).log().sum(-1) - len(matrix) * (pairs @ sigma).log())
        return torch.cat(sums) + self.log_factor.sum()


def cross_section(theta: Tensor) -> Tensor:
    """Return the accepted cross-section in pb at theta of shape `(*, 3)` or `(*, 2)`, shape `(*)`."""
    return N0 * _form(SIGMA, theta)


def log_gradient(theta: Tensor) -> Tensor:
    """Return d ln sigma / d theta of the accepted cross-section at such theta, shape `(*, parameter)`."""
    return _log_gradient(SIGMA, theta)


def quadratic_form(chart: Tensor, nodes: int = 48) -> QuadraticForm:
    """Return the likelihood of events as a quadratic form in theta.

    Arguments:
        chart: shape `(*, 14)`, float64
        nodes: of the quadrature
    """
    rows = chart.reshape(-1, 14)
    parts = [_quadratic_form(part, nodes) for part in rows.split(EVENTS)]
    matrix, log_factor = (torch.cat(column) for column in zip(*parts, strict=True))
    return QuadraticForm(matrix.view(*chart.shape[:-1], 4, 4), log_factor.view(chart.shape[:-1]))


def _quadratic_form(chart: Tensor, nodes: int) -> QuadraticForm:
    inside = accepted(chart)
    (pt_a, pt_b, pt_1, pt_2), (eta_a, eta_b, eta_1, eta_2), (phi_a, phi_b, phi_1, phi_2) = (
        chart[:, columns].unbind(-1) for columns in (PT, ETA, PHI)
    )
    opening = (eta_a - eta_b).cosh() - (phi_a - phi_b).cos()
    across = (phi_2 - phi_1).sin()
    scale = HIGGS_MASS / (2 * opening).sqrt()
    log_a, log_b = (pt_a / scale).log(), (pt_b / scale).log()
    t0 = 0.5 * (log_a - log_b)
    # k_j(t) = rising_j e^t + falling_j e^-t
    rising = -scale / across * (phi_2 - phi_a).sin(), -scale / across * (phi_a - phi_1).sin()
    falling = -scale / across * (phi_2 - phi_b).sin(), -scale / across * (phi_b - phi_1).sin()

    half = WIDTHS * PHOTON_SPREAD / math.sqrt(2)
    low, high = t0 - half, t0 + half
    for up, down, pt in zip(rising, falling, (pt_1, pt_2), strict=True):
        low, high = _within(low, high, up, down, pt / RESPONSE)
    inside = inside & (low < high)
    low, high = torch.where(inside, low, t0), torch.where(inside, high, t0)

    places, weights = _legendre(nodes)
    t = low[:, None] + (high - low)[:, None] * places
    grow, shrink = t.exp(), (-t).exp()
    k_1, k_2 = (
        (up[:, None] * grow + down[:, None] * shrink).clamp(LEAST_K, MOST_K)
        for up, down in zip(rising, falling, strict=True)
    )
    k_a, k_b = scale[:, None] * grow, scale[:, None] * shrink
    columns = [value[:, None] for value in (eta_1, eta_2, eta_a, eta_b)]
    momenta, etas = torch.stack([k_1, k_2, k_a, k_b]), torch.stack(columns)
    x1, x2 = (momenta * etas.exp()).sum(0) / ROOT_S, (momenta * (-etas).exp()).sum(0) / ROOT_S
    possible = (x1 < 1) & (x2 < 1)
    x1, x2 = (torch.where(possible, x, 0.5) for x in (x1, x2))

    log_weight = -((t - t0[:, None]) / PHOTON_SPREAD).square()
    for k, pt in ((k_1, pt_1), (k_2, pt_2)):
        spread = jet_spread(k)
        log_weight = log_weight - 0.5 * (((pt[:, None] / RESPONSE / k).log()) / spread).square() + (k / spread).log()
    weight = torch.where(possible, log_weight.exp() * flux(x1, x2), 0) * weights * (high - low)[:, None]

    turn = (phi_1 - phi_2)[:, None]
    first = HardProcess.at(Partons(k_1, columns[0], k_2, columns[1], turn), x1, x2)
    second = HardProcess.at(Partons(k_2, columns[1], k_1, columns[0], -turn), x1, x2)
    matrix = _gram(weight * first.standard_model, first.vertices)
    matrix = matrix + _gram(weight * second.standard_model, second.vertices)
    norm = matrix[:, 0, 0]
    inside = inside & (norm > 0)
    mass = torch.stack([chart[:, at] / pt for at, pt in zip(JET_MASSES, (pt_1, pt_2), strict=True)])
    log_factor = (
        (HIGGS_MASS**2 / (2 * math.pi) / opening.square() / across.abs()).log()
        - ((log_a + log_b) / (2 * PHOTON_SPREAD)).square()
        - (2 * math.pi * PHOTON_SPREAD**2 * pt_a * pt_b).log()
        - (2 * math.pi * pt_1 * pt_2).log()
        - 0.5 * ((mass / JET_MASS).log() / JET_MASS_SPREAD).square().sum(0)
        - (chart[:, JET_MASSES] * JET_MASS_SPREAD * math.sqrt(2 * math.pi)).log().sum(-1)
    )
    empty = torch.eye(4, dtype=chart.dtype)
    return QuadraticForm(
        torch.where(inside[:, None, None], matrix / norm[:, None, None], empty),
        torch.where(inside, log_factor + norm.log(), -torch.inf),
    )


def _gram(weight: Tensor, vertices: Tensor) -> Tensor:
    """Return sum_n w_n Re(conj(V_pn) V_qn) of vertices of shape `(4, 2, rows, nodes)`, shape `(rows, 4, 4)`."""
    real = (weight.sqrt() * vertices).permute(2, 0, 1, 3).flatten(2)
    return real @ real.mT


def _within(low: Tensor, high: Tensor, rising: Tensor, falling: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Return the part of (low, high) in which k_j(t) = rising e^t + falling e^-t is near k, which may be empty.

    Near is `WIDTHS` standard deviations of the response; the ends are roots of rising u^2 - k u + falling = 0, u = e^t.
    """
    least = (k * math.exp(-WIDTHS * float(jet_spread(torch.zeros(()))))).clamp(min=LEAST_K)
    most = (k * (WIDTHS * jet_spread(k)).exp()).clamp(max=MOST_K)
    grows, falls = rising > 0, falling > 0
    product = 4 * rising * falling

    def root(k: Tensor) -> tuple[Tensor, Tensor]:
        """Return ln of both roots, the smaller one where falling > 0, the larger one where rising > 0."""
        q = 0.5 * (k + (k.square() - product).clamp(min=0).sqrt())
        return torch.where(falls, falling / q, 1).log(), torch.where(grows, q / rising, 1).log()

    left, right = root(most)
    low = torch.where(falls, torch.maximum(low, left), low)
    high = torch.where(grows, torch.minimum(high, right), high)
    left, right = root(least)
    hole = grows & falls & (least.square() > product)
    inside_low, inside_high = hole & (low > left) & (low < right), hole & (high > left) & (high < right)
    low = torch.where(inside_low | (grows & ~falls), torch.maximum(low, right), low)
    high = torch.where(inside_high | (falls & ~grows), torch.minimum(high, left), high)
    never = (~grows & ~falls) | (grows & falls & (most.square() < product))
    return low, torch.where(never, low, high)


@cache
def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Return places and weights on (0, 1)."""
    places, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(0.5 * (places + 1)), torch.from_numpy(0.5 * weights)


def _extended(theta: Tensor) -> Tensor:
    """Return Theta = (1, theta), shape `(*, 1 + parameter)`."""
    return torch.cat([torch.ones_like(theta[..., :1]), theta], dim=-1)


def _form(matrix: Tensor, theta: Tensor) -> Tensor:
    """Return Theta.matrix.Theta with the block of the matrix that belongs to these parameters, shape `(*)`."""
    size, extended = 1 + theta.shape[-1], _extended(theta.double())
    return torch.einsum("...p,...pq,...q->...", extended, matrix[..., :size, :size], extended)


def _log_gradient(matrix: Tensor, theta: Tensor) -> Tensor:
    """Return d ln(Theta.matrix.Theta) / d theta, shape `(*, parameter)`."""
    size, extended = 1 + theta.shape[-1], _extended(theta.double())
    half = torch.einsum("...pq,...q->...p", matrix[..., :size, :size], extended)
    return 2 * half[..., 1:] / (extended * half).sum(-1, keepdim=True)
