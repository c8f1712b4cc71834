r"""H -> gamma gamma, isotropic in the rest frame of the Higgs boson, and what the detector sees of it.

The transverse momentum of the Higgs boson balances that of the partons. A photon with direction n in its rest frame has

    p = mH/2 { n + [p_H.n/(E_H + mH) + 1] p_H/mH },

the other one p_H - p. GeV and rad.
"""

import math

import torch
from torch import Generator, Tensor

from simulators.lhc.amplitude import HIGGS_MASS
from simulators.lhc.detector import measure, wrapped
from simulators.lhc.hard_process import HardEvents

__all__ = ["decay", "observe"]


def observe(events: HardEvents, generator: Generator) -> Tensor:
    """Return the chart of what the detector sees of each event, selected or not, shape `(rows, 14)`.

    Arguments:
        events: of the hard process
        generator: of azimuth, decay and response
    """
    partons = events.partons.clone()
    azimuth = 2 * math.pi * torch.rand(len(partons), 1, generator=generator, dtype=torch.float64) - math.pi
    partons[..., 2] = wrapped(partons[..., 2] + azimuth)
    return measure(decay(partons, events.rapidity, generator), partons, generator)


def decay(partons: Tensor, rapidity: Tensor, generator: Generator) -> Tensor:
    """Return (pT, eta, phi) of two photons, shape `(rows, 2, 3)`.

    Arguments:
        partons: (k, eta, phi) of those the Higgs boson recoils against, shape `(rows, 2, 3)`
        rapidity: of the Higgs boson, shape `(rows,)`
        generator: of the direction
    """
    k, _, phi = partons.unbind(-1)
    px, py = -(k * phi.cos()).sum(-1), -(k * phi.sin()).sum(-1)
    transverse_mass = (HIGGS_MASS**2 + px.square() + py.square()).sqrt()
    higgs = torch.stack([px, py, transverse_mass * rapidity.sinh()], dim=-1)
    energy = (transverse_mass * rapidity.cosh())[:, None]

    cos, turn = torch.rand(2, len(k), generator=generator, dtype=torch.float64) * 2 - 1
    sin = (1 - cos.square()).sqrt()
    direction = torch.stack([sin * (math.pi * turn).cos(), sin * (math.pi * turn).sin(), cos], dim=-1)
    along = (higgs * direction).sum(-1, keepdim=True)
    first = 0.5 * HIGGS_MASS * direction + 0.5 * (along / (energy + HIGGS_MASS) + 1) * higgs
    momenta = torch.stack([first, higgs - first], dim=1)
    pt = torch.hypot(momenta[..., 0], momenta[..., 1])
    return torch.stack([pt, (momenta[..., 2] / pt).asinh(), torch.atan2(momenta[..., 1], momenta[..., 0])], dim=-1)
