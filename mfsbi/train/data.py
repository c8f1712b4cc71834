"""Simulations as rows: theta, x and what belongs to them, split and shuffled together."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Generator, Tensor

__all__ = ["Batch", "in_chunks", "minibatches", "split"]


class Batch(NamedTuple):
    """Rows of simulations.

    Arguments:
        theta: shape `(rows, parameter)`
        x: shape `(rows, data)`
        u: coordinates of x on a chart that stands still, shape `(rows, manifold)`; None while the chart moves
    """

    theta: Tensor
    x: Tensor
    u: Tensor | None = None

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.theta)

    def rows(self, index: Tensor | slice) -> "Batch":
        """Return the chosen rows of every field."""
        return Batch(self.theta[index], self.x[index], None if self.u is None else self.u[index])

    def to(self, device: str | torch.device) -> "Batch":
        """Return the same rows on another device."""
        return Batch(self.theta.to(device), self.x.to(device), None if self.u is None else self.u.to(device))


def split(data: Batch, fraction: float, generator: Generator) -> tuple[Batch, Batch]:
    """Return (training, validation), the latter a random `fraction` of the rows and at least one of them.

    Raises:
        ValueError: if fraction is not between 0 and 1, or fewer than two rows came
    """
    if not 0 < fraction < 1:
        raise ValueError(f"`validation_fraction` should be between 0 and 1; got {fraction}.")
    if data.size < 2:
        raise ValueError(f"Training needs at least 2 rows, one of them for validation; got {data.size}.")
    held_out = min(max(1, round(fraction * data.size)), data.size - 1)
    order = torch.randperm(data.size, generator=generator)
    return data.rows(order[held_out:]), data.rows(order[:held_out])


def minibatches(data: Batch, size: int, generator: Generator) -> Iterator[Batch]:
    """Yield the rows in random order, `size` at a time; a smaller last batch is left for another epoch's order."""
    order = torch.randperm(data.size, generator=generator).to(data.theta.device)
    for start in range(0, steps_per_epoch(data, size) * size, size):
        yield data.rows(order[start : start + size])


def steps_per_epoch(data: Batch, size: int) -> int:
    """Return how many batches `minibatches` yields."""
    return max(1, data.size // size)


def in_chunks(function: Callable[[Batch], Tensor], data: Batch, size: int = 10_000) -> Tensor:
    """Return function(data) row by row, with at most `size` rows at work at a time and without gradients."""
    with torch.no_grad():
        return torch.cat([function(data.rows(slice(i, i + size))) for i in range(0, data.size, size)])
