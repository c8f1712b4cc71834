"""Simulations as rows: what a simulator leaves behind, in memory."""

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Rows"]


class Rows(NamedTuple):
    """Simulations and their gold.

    Arguments:
        theta: shape `(rows, parameter)`
        x: shape `(rows, data)`
        joint_score: t(x, z|theta), shape `(rows, parameter)`; None without such gold
        joint_log_ratio: log r(x, z|theta, reference), shape `(rows,)`; None without such gold
        from_theta: 1 where x was drawn at theta, 0 where at the reference, shape `(rows,)`; None if all were at theta
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
            return f"{len(self.theta):,} simulations{with_gold}"
        elsewhere = int((self.from_theta == 0).sum())
        return f"{len(self.theta):,} simulations, {elsewhere:,} of them drawn at the reference{with_gold}"

    @property
    def fields(self) -> dict[str, Any]:
        """What is there, by the names that `append_simulations` has for it."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def at_theta(self) -> "Rows":
        """Return the rows drawn at theta, without labels."""
        if self.from_theta is None:
            return self
        kept = self.from_theta > 0
        return self._replace(**{name: value[kept.to(value.device)] for name, value in self.fields.items()})._replace(
            from_theta=None
        )

    def without_gold(self) -> "Rows":
        """Return the rows without what a simulator knows besides theta and x."""
        return self._replace(joint_score=None, joint_log_ratio=None)
