r"""The Lorenz attractor: points of a strange attractor that is nearly a surface, with no parameters to infer.

    dx/dt = 10 (y - x),    dy/dt = x (28 - z) - y,    dz/dt = x y - 8/3 z.

Trajectories start at (1, 1, 1) + 0.1 N(0, I) and are followed by the classical Runge-Kutta scheme of fourth order with
steps of 0.01; what they pass at random times after t = 50, when they have come to the attractor, are the data,
standardised by the mean and spread of the attractor (J. Brehmer, K. Cranmer, arXiv:2003.13913, section 4.3).

The attractor's fractal dimension is 2.06: it is a stack of sheets so close that a surface is what data can show. Its
density is known by its samples alone. Times are in the units of the equations, coordinates in spreads of the attractor.
"""

import torch
from torch import Generator, Tensor

from simulators.base import generator_from, require_last_axis

__all__ = ["Lorenz"]

SIGMA, RHO, BETA = 10.0, 28.0, 8 / 3
STEP = 0.01
MEAN = torch.tensor([0.0, 0.0, 23.547], dtype=torch.float64)  # of 5 million points; the first two vanish by symmetry
STD = torch.tensor([7.924, 9.012, 8.623], dtype=torch.float64)  # of the same points


class Lorenz:
    """The Lorenz attractor: no parameters, two manifold dimensions, three data dimensions.

    Arguments:
        trajectories: how many are followed
        burn_in: time before the first point
        end: time of the last one

    Raises:
        ValueError: if the times are not 0 <= burn_in < end, or trajectories is below 1

    Example:
        >>> x = Lorenz(trajectories=200, end=60).simulate(torch.zeros(1000, 0), seed=1)
        >>> x.shape, bool(x.std(0).sub(1).abs().max() < 0.1)
        (torch.Size([1000, 3]), True)
    """

    data_dim = 3
    manifold_dim = 2
    parameter_dim = 0
    parameter_names = ()

    def __init__(self, trajectories: int = 100, burn_in: float = 50.0, end: float = 1000.0) -> None:
        if trajectories < 1 or not 0 <= burn_in < end:
            raise ValueError(
                f"`trajectories` should be at least 1 and 0 <= `burn_in` < `end`; got {trajectories}, {burn_in}, {end}."
            )
        self.trajectories = trajectories
        self.burn_in = burn_in
        self.end = end

    def __repr__(self) -> str:
        return f"Lorenz(trajectories={self.trajectories}, burn_in={self.burn_in}, end={self.end})"

    def simulate(self, theta: Tensor, *, seed: int | Generator | None = None) -> Tensor:
        """Draw one point of the attractor for each row of theta, which has no columns.

        Arguments:
            theta: shape `(rows, 0)`
            seed: an integer or a generator for a repeatable draw; a random one if not given

        Returns:
            x, shape `(rows, 3)`, standardised, in the type of theta

        Raises:
            ValueError: if theta has columns
        """
        require_last_axis("theta", theta, 0)
        generator, rows = generator_from(seed), len(theta)
        state = 1 + 0.1 * torch.randn(self.trajectories, 3, generator=generator, dtype=torch.float64)
        first, last = round(self.burn_in / STEP), round(self.end / STEP)
        steps = torch.randint(first + 1, last + 1, (rows,), generator=generator)
        lines = torch.randint(self.trajectories, (rows,), generator=generator)
        order = steps.argsort()
        counts = torch.bincount(steps, minlength=last + 1).cumsum(0).tolist()
        x = torch.empty(rows, 3, dtype=torch.float64)
        for step in range(1, last + 1):
            state = _advance(state)
            due = order[counts[step - 1] : counts[step]]
            if len(due):
                x[due] = state[lines[due]]
        return ((x - MEAN) / STD).to(theta.dtype)


def _advance(state: Tensor) -> Tensor:
    """Return the states one step later."""
    one = _velocity(state)
    two = _velocity(torch.add(state, one, alpha=STEP / 2))
    three = _velocity(torch.add(state, two, alpha=STEP / 2))
    four = _velocity(torch.add(state, three, alpha=STEP))
    return torch.add(state, one + 2 * (two + three) + four, alpha=STEP / 6)


def _velocity(state: Tensor) -> Tensor:
    x, y, z = state.unbind(-1)
    return torch.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - BETA * z], dim=-1)
