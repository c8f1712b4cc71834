r"""From partons to forty observables: response, selection, and the manifold they lie on.

**Response.** Directions are measured exactly; transverse momenta and jet masses are smeared, with independent standard
normal xi,

    photon     pT' = k exp(0.03 xi),
    jet        pT' = 0.93 k exp(sigma_j(k) xi),    sigma_j(k)^2 = 0.05^2 + 1 GeV/(k + 20 GeV),
    jet mass   m' = 0.12 pT' exp(0.40 xi).

**Chart.** What is then known of an event are 14 numbers, xi = (pT, eta, phi) of both photons and (pT, eta, phi, m) of
both jets, each pair ordered by pT.

**Selection.** pT > 20 GeV and |eta| < 5 for jets, pT > 10 GeV and |eta| < 2.5 for photons, and
Delta R^2 = (Delta eta)^2 + (Delta phi)^2 > 0.25 for all six pairs. Events that fail do not exist.

**Features.** Forty functions of the chart: {E, px, py, pz, pT, eta} of each object and {E, px, py, pz, pT, m, eta,
Delta eta} of the di-photon and di-jet systems. They obey 26 constraints; theta does not move the manifold. GeV and rad.
"""

from itertools import combinations

import torch
from torch import Generator, Tensor

__all__ = [
    "CHART",
    "ETA",
    "FEATURES",
    "JET_MASS",
    "JET_MASSES",
    "JET_MASS_SPREAD",
    "LARGEST_JET_ETA",
    "LARGEST_PHOTON_ETA",
    "LEAST_DISTANCE",
    "PHI",
    "PHOTON_SPREAD",
    "PT",
    "RESPONSE",
    "accepted",
    "closure",
    "decode",
    "encode",
    "jet_spread",
    "measure",
    "wrapped",
]

PHOTON_SPREAD, RESPONSE = 0.03, 0.93
"""Spread of ln pT' of a photon, and median of pT'/k of a jet."""

JET_MASS, JET_MASS_SPREAD = 0.12, 0.40
"""Median of m'/pT' of a jet, and the spread of its logarithm."""

LEAST_JET_PT, LEAST_PHOTON_PT = 20.0, 10.0
"""GeV."""

LARGEST_JET_ETA, LARGEST_PHOTON_ETA, LEAST_DISTANCE = 5.0, 2.5, 0.5
"""Pseudorapidities, and Delta R of every pair."""

OBJECTS = ("a1", "a2", "j1", "j2")
CHART = tuple(
    f"{what}_{which}" for which in OBJECTS for what in ("pt", "eta", "phi", "m") if what != "m" or which in ("j1", "j2")
)
"""Names of the 14 coordinates."""

FEATURES = (
    *(f"{what}_{which}" for which in OBJECTS for what in ("e", "px", "py", "pz", "pt", "eta")),
    *(f"{what}_{pair}" for pair in ("aa", "jj") for what in ("e", "px", "py", "pz", "pt", "m", "eta", "deltaeta")),
)
"""Names of the 40 observables."""

# columns of the chart
PT, ETA, PHI = [0, 3, 6, 10], [1, 4, 7, 11], [2, 5, 8, 12]
JET_MASSES = [9, 13]


def jet_spread(k: Tensor) -> Tensor:
    """Return sigma_j, the spread of ln pT' of a jet, shape `(*)`.

    Arguments:
        k: transverse momentum of its parton, GeV, shape `(*)`
    """
    return (0.05**2 + 1 / (k + 20)).sqrt()


def measure(photons: Tensor, partons: Tensor, generator: Generator) -> Tensor:
    """Return the chart of what the detector makes of photons and partons, shape `(rows, 14)`; selected or not.

    Arguments:
        photons: (pT, eta, phi) of two, GeV and rad, shape `(rows, 2, 3)`
        partons: of two, shape `(rows, 2, 3)`
        generator: of the response
    """
    noise = torch.randn(6, len(photons), generator=generator, dtype=photons.dtype)
    photon_pt = photons[..., 0] * (PHOTON_SPREAD * noise[:2].T).exp()
    k = partons[..., 0]
    jet_pt = RESPONSE * k * (jet_spread(k) * noise[2:4].T).exp()
    mass = JET_MASS * jet_pt * (JET_MASS_SPREAD * noise[4:].T).exp()
    first_photon = torch.cat([photon_pt[..., None], photons[..., 1:]], dim=-1)
    jets = torch.cat([jet_pt[..., None], partons[..., 1:], mass[..., None]], dim=-1)
    return torch.cat([_ordered(first_photon).flatten(1), _ordered(jets).flatten(1)], dim=-1)


def accepted(chart: Tensor) -> Tensor:
    """Return whether events are ordered and pass the selection, shape `(*)`.

    Arguments:
        chart: shape `(*, 14)`
    """
    pt, eta, phi = chart[..., PT], chart[..., ETA], chart[..., PHI]
    good = (pt[..., 1] > LEAST_PHOTON_PT) & (pt[..., 3] > LEAST_JET_PT)
    good = good & (pt[..., 0] >= pt[..., 1]) & (pt[..., 2] >= pt[..., 3])
    good = good & (eta[..., :2].abs().amax(-1) < LARGEST_PHOTON_ETA) & (eta[..., 2:].abs().amax(-1) < LARGEST_JET_ETA)
    for one, two in combinations(range(4), 2):
        turn = wrapped(phi[..., one] - phi[..., two])
        good = good & ((eta[..., one] - eta[..., two]).square() + turn.square() > LEAST_DISTANCE**2)
    return good & (chart[..., JET_MASSES].amin(-1) > 0)


def wrapped(angle: Tensor) -> Tensor:
    """Return the same angle in [-pi, pi), rad, shape `(*)`."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def decode(chart: Tensor) -> Tensor:
    """Return the features of a chart, shape `(*, 40)`.

    Arguments:
        chart: shape `(*, 14)`
    """
    pt, eta, phi = chart[..., PT], chart[..., ETA], chart[..., PHI]
    px, py, pz = pt * phi.cos(), pt * phi.sin(), pt * eta.sinh()
    mass = torch.cat([torch.zeros_like(pt[..., :2]), chart[..., JET_MASSES]], dim=-1)
    energy = ((pt * eta.cosh()).square() + mass.square()).sqrt()
    objects = torch.stack([energy, px, py, pz, pt, eta], dim=-1)
    momenta = objects[..., :4]
    pairs = [_system(momenta[..., at, :] + momenta[..., at + 1, :], eta[..., at] - eta[..., at + 1]) for at in (0, 2)]
    return torch.cat([objects.flatten(-2), *pairs], dim=-1)


def encode(x: Tensor) -> Tensor:
    """Return the chart of features, shape `(*, 14)`; of features off the manifold that of their objects' momenta.

    The jet masses are the root of E^2 - |p|^2, which takes float64: float32 loses all its digits for forward jets.

    Arguments:
        x: shape `(*, 40)`
    """
    objects = x[..., :24].unflatten(-1, (4, 6))
    energy, px, py, pz, pt, eta = objects.unbind(-1)
    momentum = (px.square() + py.square() + pz.square()).sqrt()
    mass = ((energy - momentum) * (energy + momentum)).clamp(min=0).sqrt()
    columns = []
    for which in range(4):
        columns += [pt[..., which], eta[..., which], torch.atan2(py[..., which], px[..., which])]
        columns += [mass[..., which]] if which >= 2 else []
    return torch.stack(columns, dim=-1)


def closure(x: Tensor) -> Tensor:
    """Return the 26 residuals that vanish on the manifold, GeV and rad, shape `(*, 26)`.

    pT - |(px, py)| and eta - artanh(pz/|p|) of the four objects and the two systems; E - sqrt(p^2 + m^2) of photons and
    systems; four-momenta of the systems minus the sums of their parts, E of both, then px, py, pz;
    ||Delta eta| - |eta_1 - eta_2||. That is the order of the published weights (arXiv:2003.13913, §4.3).

    Arguments:
        x: shape `(*, 40)`
    """
    objects, systems = x[..., :24].unflatten(-1, (4, 6)), x[..., 24:].unflatten(-1, (2, 8))
    px, py, pz = (torch.cat([objects[..., at], systems[..., at]], dim=-1) for at in (1, 2, 3))
    pt, eta = (torch.cat([objects[..., at], systems[..., other]], dim=-1) for at, other in ((4, 4), (5, 6)))
    energy = torch.cat([objects[..., :2, 0], systems[..., 0]], dim=-1)
    mass = torch.cat([torch.zeros_like(objects[..., :2, 0]), systems[..., 5]], dim=-1)
    transverse = torch.hypot(px, py)
    momentum = torch.hypot(transverse, pz)[..., [0, 1, 4, 5]]
    sums = systems[..., :4] - torch.stack([objects[..., :2, :4].sum(-2), objects[..., 2:, :4].sum(-2)], dim=-2)
    gaps = torch.stack([objects[..., at, 5] - objects[..., at + 1, 5] for at in (0, 2)], dim=-1)
    return torch.cat(
        [
            pt - transverse,
            eta - torch.asinh(pz / transverse),
            energy - torch.hypot(momentum, mass),
            sums.mT.flatten(-2),
            systems[..., 7].abs() - gaps.abs(),
        ],
        dim=-1,
    )


def _ordered(objects: Tensor) -> Tensor:
    """Return pairs of objects of shape `(rows, 2, numbers)`, the one with the larger pT first."""
    swap = objects[:, 1, 0] > objects[:, 0, 0]
    return torch.where(swap[:, None, None], objects.flip(1), objects)


def _system(momentum: Tensor, delta_eta: Tensor) -> Tensor:
    """Return {E, px, py, pz, pT, m, eta, Delta eta} of a system with this four-momentum, shape `(*, 8)`."""
    energy, px, py, pz = momentum.unbind(-1)
    pt = torch.hypot(px, py)
    momentum_size = torch.hypot(pt, pz)
    mass = ((energy - momentum_size) * (energy + momentum_size)).sqrt()
    return torch.stack([energy, px, py, pz, pt, mass, torch.asinh(pz / pt), delta_eta], dim=-1)
