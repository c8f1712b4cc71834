r"""Coordinates that are linear functions of the data, in place of those that a chart has chosen.

Reconstruction fixes a manifold and not its coordinates: any smooth u will do, and a law that is simple in some of them
is curved in others. Which are simple the likelihood tells. Where the manifold is a graph over the span of n directions
C, a matrix of shape d x n,

    w = C^T y

are coordinates, too. They are known without the error of the chart, and depend on C alone, few numbers, which can be
learned as well as a linear model can (`mfsbi.train.directions`). The point with coordinates w is y = decode(u) with

    C^T decode(u) = w,    which Newton's method solves:    u <- u - t (C^T J)^-1 (C^T decode(u) - w),

from a linear regression of u on w, with the step t halved where it does not bring a point nearer. Tangents become
J (C^T J)^-1, and with them every volume.

A manifold that is a graph where the data are need not be one far beyond them, and there some w belong to no point. They
are those of rare draws of a density with wide tails. Such rows get the point that came nearest, with a warning if they
are many.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mfsbi.blocks import rows_at_work
from mfsbi.charts.abstract import AbstractChart
from mfsbi.checks import warn
from mfsbi.types import Coordinates, Data, Tangents

__all__ = ["LinearCoordinates"]

ROUNDS = 40
"""Of Newton's method, at most."""

NEAR = 10.0
"""Distance from w, in units of rounding, at which Newton's method ends."""

FAR, FEW = 1e-2, 1e-3
"""Distance from w at which a point has not been found, and the share of such rows that is not worth a warning."""


class LinearCoordinates(nn.Module):
    """The directions C and where Newton's method starts, or neither: then a chart keeps its own coordinates.

    Arguments:
        data_dim: d, of the data y that the chart has
        manifold_dim: n
    """

    directions: Tensor | None
    start: Tensor | None
    here: Tensor

    def __init__(self, data_dim: int, manifold_dim: int) -> None:
        super().__init__()
        self.sizes = {"directions": (data_dim, manifold_dim), "start": (manifold_dim + 1, manifold_dim)}
        for name in self.sizes:
            self.register_buffer(name, None)
        self.register_buffer("here", torch.empty(0), persistent=False)  # tells where, and in which type, to load

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return self.directions is not None

    def take(self, directions: Tensor, start: Tensor) -> None:
        """Use these coordinates from now on.

        Arguments:
            directions: C, shape `(data, manifold)`
            start: u is near (w, 1) @ start; shape `(manifold + 1, manifold)`
        """
        self.directions, self.start = directions, start

    def of(self, y: Data) -> Coordinates:
        """Return w = C^T y, shape `(*, manifold)`."""
        return y @ self._directions

    def within(self, chart: AbstractChart, w: Coordinates) -> Coordinates:
        """Return the chart's own u with C^T decode(u) = w, shape `(*, manifold)`; differentiable once.

        Where Newton's method finds none, it is the u whose C^T decode(u) came nearest to w. A warning says so if that
        is more than one row in a thousand.

        Arguments:
            chart: whose data are y
            w: shape `(*, manifold)`
        """
        rows = w.reshape(-1, w.shape[-1])
        with torch.no_grad():
            blocks = [self._solve(chart, block) for block in rows.split(rows_at_work(chart.data_dim, w.shape[-1]))]
        u, off = (torch.cat(each) for each in zip(*blocks, strict=True))
        lost = ~(off <= FAR * (1 + rows.norm(dim=-1)))
        if lost.sum() > FEW * len(rows):
            warn(
                f"{int(lost.sum())} of {len(rows)} rows have coordinates that belong to no point of the learned "
                "manifold, and get those of a point nearby: draws of x are misplaced there, and densities of x have "
                "the volume of another point, while posteriors, which do not depend on that, stay as they are. If you "
                "need these draws, train with `max_num_epochs`, which keeps the coordinates of the chart."
            )
        if torch.is_grad_enabled():  # a last step of Newton's method carries the gradient
            with torch.no_grad():
                unit = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
                slopes = torch.where(lost[:, None, None], unit, self.slopes(chart.tangents(u)))
            step = torch.linalg.solve_ex(slopes, (self.of(chart.decode(u)) - rows).unsqueeze(-1))[0].squeeze(-1)
            u = torch.where(lost.unsqueeze(-1), u, u - step)
        return u.view_as(w)

    def slopes(self, tangents: Tangents) -> Tensor:
        """Return dw/du = C^T J, shape `(*, manifold, manifold)`, from the tangents J of the chart."""
        return self._directions.T @ tangents

    def turned(self, tangents: Tangents) -> Tangents:
        """Return the tangents with respect to w, J (C^T J)^-1, from those of the chart."""
        return torch.linalg.solve_ex(self.slopes(tangents), tangents, left=False)[0]

    def _solve(self, chart: AbstractChart, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return u for rows of w and how far C^T decode(u) is from w, without gradients."""
        assert self.start is not None
        u = torch.cat([w, torch.ones_like(w[:, :1])], -1) @ self.start
        off = self.of(chart.decode(u)) - w
        share, near = torch.ones_like(w[:, :1]), NEAR * torch.finfo(w.dtype).eps * (1 + w.norm(dim=-1, keepdim=True))
        for _ in range(ROUNDS):
            step = torch.linalg.solve_ex(self.slopes(chart.tangents(u)), off.unsqueeze(-1))[0].squeeze(-1)
            tried = u - share * step
            left = self.of(chart.decode(tried)) - w
            nearer = left.norm(dim=-1, keepdim=True) < off.norm(dim=-1, keepdim=True)
            u, off = torch.where(nearer, tried, u), torch.where(nearer, left, off)
            share = torch.where(nearer, (2 * share).clamp(max=1.0), share / 2)
            if (off.norm(dim=-1, keepdim=True) <= near).all():
                break
        return u, off.norm(dim=-1)

    @property
    def _directions(self) -> Tensor:
        assert self.directions is not None
        return self.directions

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, _metadata: object, _strict: object, *told: list[str]
    ) -> None:
        """Take what there is: both tensors or, from a chart with coordinates of its own, neither."""
        _missing, _unexpected, errors = told
        found = {name: state_dict[prefix + name] for name in self.sizes if prefix + name in state_dict}
        if found and {name: tuple(value.shape) for name, value in found.items()} != self.sizes:
            shapes = {name: tuple(value.shape) for name, value in found.items()}
            errors.append(f"linear coordinates should have shapes {self.sizes}; got {shapes}.")
            return
        for name in self.sizes:
            value = found.get(name)
            setattr(self, name, None if value is None else value.detach().clone().to(self.here))
