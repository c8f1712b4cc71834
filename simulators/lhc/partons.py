r"""Parton densities of the proton: GRV94 LO in closed form, at one factorisation scale of 250 GeV.

With s = ln[ln(mu^2/L^2) / ln(0.23 GeV^2/L^2)] and L = 0.2322 GeV, all densities are functions of the momentum fraction
x alone (M. Glueck, E. Reya, A. Vogt, Z. Phys. C 67 (1995) 433). Valence quarks and the difference dbar - ubar have the
form

    x f(x) = N x^a [1 + A x^b + x (B + C sqrt x)] (1 - x)^D,

and the sea is their sum. The process needs u and d quarks only, one from each proton, in either order:

    L(x1, x2) = x1 u(x1) x2 d(x2) + x1 d(x1) x2 u(x2).
"""

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["MU", "PartonDensities", "flux", "parton_densities"]

MU = 250.0
"""Factorisation scale, GeV: twice the mass of the Higgs boson."""

S = math.log(math.log(MU**2 / 0.2322**2) / math.log(0.23 / 0.2322**2))


class Valence(NamedTuple):
    """The constants of the valence form."""

    norm: float
    a: float
    b: float
    A: float
    B: float
    C: float
    D: float


UP = Valence(
    norm=2.284 + 0.802 * S + 0.055 * S**2,
    a=0.590 - 0.024 * S,
    b=0.131 + 0.063 * S,
    A=-0.449 - 0.138 * S - 0.076 * S**2,
    B=0.213 + 2.669 * S - 0.728 * S**2,
    C=8.854 - 9.135 * S + 1.979 * S**2,
    D=2.997 + 0.753 * S - 0.076 * S**2,
)
DOWN = Valence(
    norm=0.371 + 0.083 * S + 0.039 * S**2,
    a=0.376,
    b=0.486 + 0.062 * S,
    A=-0.509 + 3.310 * S - 1.248 * S**2,
    B=12.41 - 10.52 * S + 2.267 * S**2,
    C=6.373 - 6.208 * S + 1.418 * S**2,
    D=3.691 + 0.799 * S - 0.071 * S**2,
)
ASYMMETRY = Valence(
    norm=0.082 + 0.014 * S + 0.008 * S**2,
    a=0.409 - 0.005 * S,
    b=0.799 + 0.071 * S,
    A=-38.07 + 36.13 * S - 0.656 * S**2,
    B=90.31 - 74.15 * S + 7.645 * S**2,
    C=0.0,
    D=7.486 + 1.217 * S - 0.159 * S**2,
)


class PartonDensities(NamedTuple):
    """x times the densities of u, d, ubar and dbar."""

    u: Tensor
    d: Tensor
    ubar: Tensor
    dbar: Tensor


def parton_densities(x: Tensor) -> PartonDensities:
    """Return x f(x) of each flavour, shape `(*)`.

    Arguments:
        x: momentum fraction in (0, 1), shape `(*)`
    """
    log_x, log_rest = x.log(), (-x).log1p()
    up, down, asymmetry = (_valence(form, x, log_x, log_rest) for form in (UP, DOWN, ASYMMETRY))
    sea = _sea(x, log_x, log_rest)
    ubar, dbar = 0.5 * (sea - asymmetry), 0.5 * (sea + asymmetry)
    return PartonDensities(up + ubar, down + dbar, ubar, dbar)


def flux(x1: Tensor, x2: Tensor) -> Tensor:
    """Return L(x1, x2) / (x1 x2)^2, what densities and flux contribute to the weight of an event, shape `(*)`.

    Arguments:
        x1: momentum fraction of the parton of the first beam, in (0, 1), shape `(*)`
        x2: of the second
    """
    one, two = parton_densities(x1), parton_densities(x2)
    return (one.u * two.d + one.d * two.u) / (x1 * x2).square()


def _valence(form: Valence, x: Tensor, log_x: Tensor, log_rest: Tensor) -> Tensor:
    shape = 1 + form.A * (form.b * log_x).exp() + x * (form.B + form.C * x.sqrt())
    return form.norm * (form.a * log_x + form.D * log_rest).exp() * shape


def _sea(x: Tensor, log_x: Tensor, log_rest: Tensor) -> Tensor:
    """Return x (ubar + dbar)."""
    log_inverse = -log_x
    hard = ((0.410 - 0.232 * S) * log_x + (0.534 - 0.457 * S) * log_inverse.log()).exp()
    hard = hard * (0.890 - 0.140 * S + x * (-0.981 + x * (0.320 + 0.683 * S)))
    soft = S**1.451 * (-(4.119 + 1.713 * S) + ((0.682 + 2.978 * S) * S**0.271 * log_inverse).sqrt()).exp()
    return (hard + soft) * ((4.752 + 1.164 * S + 0.286 * S**2) * log_rest).exp()
