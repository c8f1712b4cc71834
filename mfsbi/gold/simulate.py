"""Simulations with whatever gold their simulator has."""

import torch
from torch import Tensor

from mfsbi.checks import require_kind, require_matching_rows, require_tensor
from mfsbi.simulations import Simulated
from mfsbi.types import HasGold, Simulator

__all__ = ["simulate"]


def simulate(
    simulator: Simulator,
    theta: Tensor,
    *,
    theta_ref: Tensor | None = None,
    from_theta: Tensor | None = None,
    seed: int | None = None,
) -> Simulated:
    """Draw one x for each row of theta, with the joint score and the joint log ratio if the simulator knows them.

    Arguments:
        simulator: any; one with `simulate_with_gold` brings gold
        theta: shape `(rows, parameter)`
        theta_ref: the reference of the log ratio, shape `(parameter,)` or that of theta; the simulator's own if None
        from_theta: whether to draw x at theta, or else at theta_ref, shape `(rows,)`; everything at theta if None.
            Where x is drawn at theta_ref the joint score is zero and not used
        seed: for a repeatable draw

    Raises:
        ValueError: if shapes do not fit, or rows at a reference are asked for and none is given

    Example:
        >>> from simulators.polynomial import PolynomialSurface
        >>> simulations = simulate(PolynomialSurface(), torch.zeros(5, 1), seed=0)
        >>> simulations.x.shape, simulations.joint_score.shape
        (torch.Size([5, 3]), torch.Size([5, 1]))
    """
    require_kind("simulator", simulator, Simulator, "a simulator, with `prior`, `parameter_names` and `simulate`")
    require_tensor("theta", theta)
    if from_theta is None:
        if not isinstance(simulator, HasGold):
            return Simulated(theta, simulator.simulate(theta, seed=seed))
        found = simulator.simulate_with_gold(theta, theta_ref=theta_ref, seed=seed)
        return Simulated(theta, found.x, found.joint_score, found.joint_log_ratio)
    if theta_ref is None:
        raise ValueError("Rows drawn at the reference need one: pass `theta_ref`.")
    require_tensor("theta_ref", theta_ref)
    require_tensor("from_theta", from_theta)
    require_matching_rows("theta", theta, "from_theta", from_theta)
    if from_theta.ndim != 1:
        raise ValueError(f"`from_theta` should have shape (rows,), a label for each; got {tuple(from_theta.shape)}.")
    if theta_ref.shape not in (theta.shape, theta.shape[-1:]):
        raise ValueError(
            f"`theta_ref` should have shape {tuple(theta.shape[-1:])} or that of theta, {tuple(theta.shape)}; "
            f"got {tuple(theta_ref.shape)}."
        )
    at_theta, reference = from_theta.bool(), theta_ref.expand_as(theta)
    drawn_at = torch.where(at_theta[:, None], theta, reference)
    if not isinstance(simulator, HasGold):
        return Simulated(theta, simulator.simulate(drawn_at, seed=seed), from_theta=from_theta)
    other = torch.where(at_theta[:, None], reference, theta)
    found = simulator.simulate_with_gold(drawn_at, theta_ref=other, seed=seed)
    ratio = torch.where(at_theta, found.joint_log_ratio, -found.joint_log_ratio)
    return Simulated(theta, found.x, found.joint_score.where(at_theta[:, None], 0.0), ratio, from_theta)
