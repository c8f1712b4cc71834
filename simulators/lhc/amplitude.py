r"""Weak-boson fusion into a Higgs boson, at tree level, with three operators of dimension six.

**Process.** q(p1) q'(p2) -> q(p3) q'(p4) H through W+ W-, massless left-handed quarks: parton 3 is what the parton of
the first beam (along +z) becomes, parton 4 that of the second. With q1, q2 the momenta of the W bosons into the vertex
and G0 = 165.2 TeV^-2, the vertex between conserved currents, relative to the Standard Model's g^{mu nu}, is

    V^{mu nu} = g^{mu nu} + G0 [ theta_1/2 (2 q2^mu q1^nu - mH^2 g^{mu nu})
                                 + 2 theta_2 eps^{mu nu alpha beta} q1_alpha q2_beta
                                 + 2 theta_3 (q1.q2 g^{mu nu} - q2^mu q1^nu) ],

for the operators (D Phi)^dag W (D Phi), (D Phi)^dag W~ (D Phi) and Phi^dag W W Phi (C. Degrande et al.,
arXiv:1205.4231; K. Hagiwara et al., Phys. Rev. D 48 (1993) 2182). All coefficients are real, as the Lagrangian is
Hermitian.

**Closed form.** The amplitude of the Standard Model factors out, M = A0 (1 + G0 sum_i theta_i v_i). With transverse
momenta k3, k4, r = exp(eta4 - eta3), Dphi = phi3 - phi4, g = r + 1/r - 2 cos Dphi and the virtualities s13 = -q1^2,
s24 = -q2^2,

    a = r - cos Dphi,  b = sin Dphi,  alpha = k3 k4 / 2,  beta = s12 / (2 g),
    S = a (alpha + beta) + i b (alpha - beta),    P = -b (alpha + beta) + i a (alpha - beta),

    v_1 = (s13 + s24)/2 - S,    v_2 = 2 P,    v_3 = 2 S.

S and P are the sum, and i times the difference, of the amplitudes of self-dual and anti-self-dual W pairs. Hence |M|^2
is exactly quadratic in theta: with Theta = (1, theta) and V = (1, G0 v),

    |M/A0|^2 = |Theta . V|^2 = sum_pq Theta_p Theta_q Re(conj(V_p) V_q).

**Event weight.** With x1, x2 the momentum fractions and L the parton luminosity,

    d sigma = N0 w |M/A0|^2 k3 k4 dk3 dk4 deta3 deta4 dphi3 dphi4 dy dOmega*/(4 pi),
    w = L(x1, x2)/(x1 x2)^2  s12 s34 / [(s13 + mW^2)^2 (s24 + mW^2)^2],    s34 = k3 k4 g,

where y is the rapidity of the Higgs boson and Omega* the direction of its decay in its rest frame.

GeV throughout, angles in radians.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "G0",
    "HIGGS_MASS",
    "LEAST_K",
    "MOST_K",
    "N0",
    "OPERATORS",
    "ROOT_S",
    "W_MASS",
    "HardProcess",
    "Partons",
    "amplitude_of",
    "fractions",
]

ROOT_S = 13_000.0
"""Energy of the collision, GeV."""

HIGGS_MASS, W_MASS = 125.0, 80.4
"""GeV."""

LEAST_K, MOST_K = 4.0, 6500.0
"""Limits of the transverse momenta of partons 3 and 4, GeV; the lower one is far below what the selection accepts."""

FERMI = 1.16637e-5
"""Fermi's constant, GeV^-2."""

G0 = 165.2e-6
"""Wilson coefficient over scale squared of each operator for theta = 1, GeV^-2; 165.2 TeV^-2 is 10/v^2."""

OPERATORS = ("C_W", "C_Wtilde", "C_WW")
"""The coefficients theta, in units of 165.2 TeV^-2; the second violates CP."""

PICOBARN = 0.3893793721e9
"""pb GeV^2."""

_COUPLING = 4 * math.sqrt(2) * FERMI * W_MASS**2
N0 = _COUPLING**3 * W_MASS**2 / 4 / ROOT_S**4 / (2 * math.pi) ** 5 / 8 * PICOBARN
"""Of the event weight: couplings, flux, phase space and averages over spins and colours; pb and GeV."""


class Partons(NamedTuple):
    """Partons 3 and 4, all of shape `(*)`.

    Arguments:
        k3: transverse momentum of parton 3, GeV
        eta3: its pseudorapidity
        k4: transverse momentum of parton 4, GeV
        eta4: its pseudorapidity
        turn: azimuth of parton 3 minus that of parton 4, rad
    """

    k3: Tensor
    eta3: Tensor
    k4: Tensor
    eta4: Tensor
    turn: Tensor


class HardProcess(NamedTuple):
    """The matrix element of events.

    Arguments:
        standard_model: |A0|^2 / 4 = s12 s34 / [(s13 + mW^2)^2 (s24 + mW^2)^2], GeV^-4, shape `(*)`
        vertices: V = (1, G0 v_1, G0 v_2, G0 v_3), complex numbers as pairs, shape `(4, 2, *)`
    """

    standard_model: Tensor
    vertices: Tensor

    @classmethod
    def at(cls, partons: Partons, x1: Tensor, x2: Tensor) -> "HardProcess":
        """Return the matrix element of partons.

        Arguments:
            partons: 3 and 4, of shape `(*)`
            x1: momentum fraction of the first beam's parton, in (0, 1), shape `(*)`
            x2: of the second
        """
        k3, eta3, k4, eta4, turn = partons
        r, cos, sin = (eta4 - eta3).exp(), turn.cos(), turn.sin()
        g = r + 1 / r - 2 * cos
        s12 = ROOT_S**2 * x1 * x2
        s13 = ROOT_S * x1 * k3 * (-eta3).exp()
        s24 = ROOT_S * x2 * k4 * eta4.exp()
        alpha, beta = 0.5 * k3 * k4, 0.5 * s12 / g
        propagators = (s13 + W_MASS**2) * (s24 + W_MASS**2)
        standard_model = 2 * alpha * g * s12 / propagators.square()

        a, total, difference = r - cos, alpha + beta, alpha - beta
        sum_re, sum_im = G0 * a * total, G0 * sin * difference
        vertices = [
            *(torch.ones_like(total), torch.zeros_like(total)),
            *(0.5 * G0 * (s13 + s24) - sum_re, -sum_im),
            *(-2 * G0 * sin * total, 2 * G0 * a * difference),
            *(2 * sum_re, 2 * sum_im),
        ]
        return cls(standard_model, torch.stack(vertices).unflatten(0, (4, 2)))


def fractions(partons: Partons, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the momentum fractions x1, x2 of the partons that make these and a Higgs boson, all of shape `(*)`.

    x1 sqrt(s) = k3 exp(eta3) + k4 exp(eta4) + mT exp(y) and its mirror, with mT^2 = mH^2 + |k3 + k4|^2.

    Arguments:
        partons: 3 and 4
        y: rapidity of the Higgs boson
    """
    k3, eta3, k4, eta4, turn = partons
    transverse_mass = (HIGGS_MASS**2 + k3.square() + k4.square() + 2 * k3 * k4 * turn.cos()).sqrt()
    plus = k3 * eta3.exp() + k4 * eta4.exp() + transverse_mass * y.exp()
    minus = k3 * (-eta3).exp() + k4 * (-eta4).exp() + transverse_mass * (-y).exp()
    return plus / ROOT_S, minus / ROOT_S


def amplitude_of(vertices: Tensor, theta: Tensor) -> Tensor:
    """Return M/A0 = 1 + G0 theta.v, a complex number as a pair, shape `(*, 2)`.

    Arguments:
        vertices: V, shape `(*, 4, 2)`
        theta: shape `(*, 3)`, or `(*, 2)` without the third operator
    """
    return vertices[..., 0, :] + (theta[..., None] * vertices[..., 1 : 1 + theta.shape[-1], :]).sum(-2)
