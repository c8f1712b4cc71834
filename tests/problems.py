"""Tiny problems whose answers are known."""

import numpy as np
import torch
from torch import nn

from mfsbi import AF, FOM, PAE, PIE, MeFlow, MFlow
from mfsbi.flows import SplineCouplings
from mfsbi.gold import simulate
from simulators.polynomial import PolynomialSurface

TILT = torch.tensor([[1.0, 0.3], [0.2, 1.0], [0.5, -0.7]])
SMALL = SplineCouplings(layers=2, width=16)


def on_plane(u):
    """Return the points of `plane` with these coordinates."""
    return u @ TILT.T.to(u)


def off_plane(x):
    """Return the coordinates of the nearest points of `plane`."""
    return x @ torch.linalg.pinv(TILT).T.to(x)


SPECS = {
    "AF": AF(SMALL),
    "FOM": FOM(on_plane, off_plane, SMALL),
    "PIE": PIE(2, epsilon=0.1, chart=SMALL, latent=SMALL),
    "PIE, conditional": PIE(2, conditional_chart=True, epsilon=0.1, chart=SMALL, latent=SMALL),
    "MFlow": MFlow(2, SMALL, SMALL),
    "MeFlow": MeFlow(2, SMALL, SMALL, 16, 2),
    "PAE": PAE(2, SMALL, 16, 2),
}
"""Every spec, small, for data like those of `plane`."""

DENSITIES = [name for name in SPECS if name != "PAE"]


def plane(rows=400, seed=0, theta_dim=1):
    """Return theta and x of a tilted plane in three dimensions: u ~ N(theta, 1)^2, x linear in u."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, theta_dim, generator=generator) * 2 - 1
    u = theta.mean(-1, keepdim=True) + torch.randn(rows, 2, generator=generator)
    return theta, on_plane(u)


def surface_data(rows=400, seed=0):
    """Return the polynomial surface with theta and x."""
    surface = PolynomialSurface()
    theta = torch.rand(rows, 1, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return surface, theta, surface.simulate(theta, seed=seed)


def mined_surface(rows=400):
    """Return the polynomial surface's theta, whether x is drawn there or else at 0, and x with its gold."""
    surface, theta, _ = surface_data(rows)
    at_theta = torch.arange(rows) % 2 == 0
    return theta, at_theta, simulate(surface, theta, theta_ref=torch.zeros(1), from_theta=at_theta, seed=0)


def write_madminer(folder, name="train", **arrays):
    """Write arrays under the names that MadMiner gives a sample."""
    for word, array in arrays.items():
        np.save(folder / f"{word}_{name}.npy", array, allow_pickle=True)


def write_mined_surface(folder):
    """Write `mined_surface` as a sample for ratios: y is 1 at the denominator, r no log, both with an axis of one."""
    theta, at_theta, gold = mined_surface()
    write_madminer(
        folder,
        x=gold.x.numpy(),
        theta0=theta.numpy(),
        theta1=np.zeros_like(theta),
        y=1.0 - at_theta.numpy()[:, None],
        r_xz=gold.joint_log_ratio.exp().numpy()[:, None],
        t_xz=gold.joint_score.numpy(),
    )


class Permutation(nn.Module):
    """The layer y_i = x_order[i] for a `Flow`; mfsbi's own flows have none."""

    def __init__(self, order):
        super().__init__()
        self.order, self.back = order, order.argsort()

    def forward(self, x, theta):
        return x[self.order], x.new_zeros(())

    def inverse(self, y, theta):
        return y[self.back]

    def inverse_with_tangents(self, y, tangents, theta):
        return y[self.back], tangents[..., self.back]


NOISE = 1.0
"""Of `scattered` x about their z, in units of the spread of z."""


def bent(theta):
    """Return the mean of z in `scattered`."""
    return torch.stack([1.5 * theta[..., 0], 1.5 * theta[..., 1] + 0.8 * theta[..., 0] ** 2], dim=-1)


def scattered(rows=400, seed=0, share=0.5):
    """Return theta and gold: z ~ N(bent(theta), 1)^2, x = z + noise, a share of rows drawn at theta, others at zero."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(rows, 2, generator=generator) * 2 - 1
    at_theta = torch.rand(rows, generator=generator) < share
    z = bent(theta * at_theta[:, None]) + torch.randn(rows, 2, generator=generator)
    x = z + NOISE * torch.randn(rows, 2, generator=generator)
    pull = z - bent(theta)
    score = torch.stack([1.5 * pull[:, 0] + 1.6 * theta[:, 0] * pull[:, 1], 1.5 * pull[:, 1]], dim=-1)
    ratio = scattered_log_ratio(z, theta, noise=0.0)
    return theta, {"x": x, "joint_score": score, "joint_log_ratio": ratio, "from_theta": at_theta}


def scattered_log_ratio(x, theta, noise=NOISE):
    """Return the exact log p(x|theta) - log p(x|0), shape `(*)`."""
    zero = bent(torch.zeros_like(theta))
    return ((x - zero).square() - (x - bent(theta)).square()).sum(-1) / (2 * (1 + noise**2))
