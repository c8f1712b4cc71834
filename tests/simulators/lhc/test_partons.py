import math

import pytest
import torch
from scipy.integrate import quad

from simulators.lhc.partons import S, flux, parton_densities

X = [0.001, 0.01, 0.1, 0.3, 0.6]
TABLE = {
    "u": [1.9501196, 0.7856849, 0.56207166, 0.32914075, 0.046942994],
    "d": [1.9273981, 0.69428856, 0.33673799, 0.11252364, 0.0078851434],
    "ubar": [1.8607474, 0.53746157, 0.087098482, 0.0069511494, 0.00011728975],
    "dbar": [1.8707211, 0.5623067, 0.12357417, 0.014247398, 0.00017760055],
}


@pytest.mark.parametrize("flavour", TABLE)
def test_tabulated_values(flavour):
    found = getattr(parton_densities(torch.tensor(X, dtype=torch.float64)), flavour)
    torch.testing.assert_close(found, torch.tensor(TABLE[flavour], dtype=torch.float64), rtol=3e-8, atol=0)


@pytest.mark.parametrize(("quark", "antiquark", "count"), [("u", "ubar", 2.0036), ("d", "dbar", 0.9946)])
def test_valence_quarks_are_counted(quark, antiquark, count):
    """Above x = 1e-7; the sum rules, which are 2 and 1, hold to 0.3 % when all x count."""

    def valence(log_x):
        found = parton_densities(torch.tensor(log_x, dtype=torch.float64).exp())
        return float(getattr(found, quark) - getattr(found, antiquark))

    assert quad(valence, math.log(1e-7), -1e-12, limit=200)[0] == pytest.approx(count, abs=1e-4)


def test_the_scale_is_twice_the_higgs_mass():
    assert pytest.approx(2.264425359933691, rel=1e-14) == S


def test_beams_are_alike():
    x1, x2 = torch.linspace(0.01, 0.8, 40, dtype=torch.float64).view(2, 20)
    torch.testing.assert_close(flux(x1, x2), flux(x2, x1))
