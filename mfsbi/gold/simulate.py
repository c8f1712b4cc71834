"""Simulations with whatever gold their simulator has."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Gold"]


class Gold(NamedTuple):
    """Simulations with what their simulator knows of them, as `append_simulations(theta, **gold._asdict())` takes them.

    Arguments:
        x: shape `(rows, data)`
        joint_score: t(x, z|theta), shape `(rows, parameter)`; None if it is not known
        joint_log_ratio: log r(x, z|theta, theta_ref), shape `(rows,)`; None if it is not known
    """

    x: Tensor
    joint_score: Tensor | None = None
    joint_log_ratio: Tensor | None = None
