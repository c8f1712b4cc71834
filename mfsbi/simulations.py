"""The carrier: simulations, as a simulator, a file or a store leaves them and as trainers take them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Simulated", "Simulations"]

SimulationsT = TypeVar("SimulationsT", bound="Simulations")


@dataclass(frozen=True, eq=False)
class Simulations:
    """Parameters, data, and what the simulator knows of each run besides (`mfsbi.gold`).

    Trainers take them whole, `trainer.append_simulations(simulations)`.

    Arguments:
        theta: shape `(rows, parameter)`
        x: shape `(rows, data)`
        joint_score: t(x, z|theta), shape `(rows, parameter)`; None if it is not known
        joint_log_ratio: log r(x, z|theta, reference), shape `(rows,)`; None if it is not known
        from_theta: true where x was drawn at theta, false where at the reference, shape `(rows,)`; None if all were
            drawn at theta
    """

    theta: Tensor
    x: Tensor
    joint_score: Tensor | None = None
    joint_log_ratio: Tensor | None = None
    from_theta: Tensor | None = None

    def __str__(self) -> str:
        gold = [name.replace("_", " ") for name in ("joint_score", "joint_log_ratio") if name in self.fields]
        with_gold = f", with {' and '.join(gold)}" if gold else ""
        if self.from_theta is None:
            return f"{self.rows:,} simulations{with_gold}"
        elsewhere = int((self.from_theta == 0).sum())
        return f"{self.rows:,} simulations, {elsewhere:,} of them drawn at the reference{with_gold}"

    @property
    def rows(self) -> int:
        """The number of simulations."""
        return len(self.theta)

    @property
    def fields(self) -> dict[str, Tensor]:
        """What is known, by name."""
        every = ((each.name, getattr(self, each.name)) for each in fields(self))
        return {name: value for name, value in every if value is not None}

    def map(self: SimulationsT, function: Callable[[Tensor], Tensor]) -> SimulationsT:
        """Return the simulations with a function applied to every field."""
        return replace(self, **{name: function(value) for name, value in self.fields.items()})

    def select(self: SimulationsT, index: Tensor | slice) -> SimulationsT:
        """Return the chosen simulations, by their numbers, a mask or a slice."""
        return self.map(lambda value: value[index])

    def to(self: SimulationsT, device: str | torch.device) -> SimulationsT:
        """Return the same simulations on another device."""
        return self.map(lambda value: value.to(device))

    def at_theta(self: SimulationsT) -> SimulationsT:
        """Return those drawn at theta, without labels."""
        if self.from_theta is None:
            return self
        kept = self.from_theta > 0
        return replace(self.map(lambda value: value[kept.to(value.device)]), from_theta=None)

    def without_gold(self: SimulationsT) -> SimulationsT:
        """Return theta, x and labels alone."""
        return replace(self, joint_score=None, joint_log_ratio=None)


@dataclass(frozen=True, eq=False)
class Simulated(Simulations):
    """Simulations of theta that were given, `x, joint_score, joint_log_ratio = simulate(simulator, theta)`.

    Unpacking gives what the simulator adds to theta. The arguments are those of `Simulations`.
    """

    def __iter__(self) -> Iterator[Tensor | None]:
        yield from (self.x, self.joint_score, self.joint_log_ratio)

    def _asdict(self) -> dict[str, Tensor | None]:
        """Return what unpacking gives by name, for `append_simulations(theta, **simulated._asdict())`."""
        return dict(zip(("x", "joint_score", "joint_log_ratio"), self, strict=True))
