"""Trainings that die, and what they learn from."""

from contextlib import contextmanager

import pytest
import torch
from torch import Generator

from mfsbi.flows import SplineCouplings
from mfsbi.train.checkpoint import Checkpoints
from mfsbi.train.data import Batch, split
from simulators.polynomial import PolynomialSurface

SMALL = SplineCouplings(layers=2, width=8, depth=1)
ALWAYS = 1e-9


class Killed(BaseException):
    """What ends a process from outside."""


@contextmanager
def killed_after(checkpoints, monkeypatch):
    """Let a training inside die once it has written so many."""
    write, calls = Checkpoints.write, []

    def killing(self, snapshot):
        write(self, snapshot)
        calls.append(1)
        if len(calls) == checkpoints:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", killing)
        with pytest.raises(Killed):
            yield


def surface_rows():
    """Return rows of the polynomial surface with joint scores, to learn from and held out."""
    surface = PolynomialSurface()
    torch.manual_seed(0)
    theta = surface.prior.sample((500,))
    x, score, _ = surface.simulate_with_gold(theta, seed=0)
    return split([Batch(theta, x, joint_score=score)], 0.2, Generator().manual_seed(0))


def weights(module):
    return torch.cat([value.flatten().double() for value in module.state_dict().values()])
