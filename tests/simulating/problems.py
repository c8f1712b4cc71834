"""Simulators that do as they are told."""

import torch
from torch.distributions import Independent, Uniform


class Noisy:
    """Two parameters, three features, noise from the seed alone."""

    parameter_names = ("a", "b")

    def __init__(self, scale=1.0):
        self.scale = scale
        self.prior = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)

    def simulate(self, theta, *, seed=None):
        noise = torch.randn(len(theta), 3, generator=torch.Generator().manual_seed(seed))
        return theta[:, :1] + self.scale * noise


class Forgetful(Noisy):
    """Noise from torch's global generator, whatever the seed."""

    def simulate(self, theta, *, seed=None):
        return theta[:, :1] + torch.randn(len(theta), 3)


class Fragile(Noisy):
    """Fails where the first parameter is above 1 - share; gives NaN where the second is."""

    def __init__(self, share=0.03):
        super().__init__()
        self.share = share

    def simulate(self, theta, *, seed=None):
        if (theta[:, 0] > 1 - self.share).any():
            raise ArithmeticError("no solution")
        x = super().simulate(theta, seed=seed)
        return x.where(theta[:, 1:] < 1 - self.share, torch.nan)


def contents(path):
    """Return the bytes of every file of a store."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
