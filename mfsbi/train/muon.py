r"""Muon: steps that move a weight matrix along all its directions alike.

The momentum M of a matrix's gradient, looked ahead as by Nesterov, is replaced by the nearest matrix with orthonormal
rows (or columns), U V^T for M = U S V^T, and the step is scaled to the root mean square of AdamW's,

    W <- (1 - eta lambda) W - 0.2 eta sqrt(max(rows, columns)) U V^T

(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al., arXiv:2502.16982). U V^T comes, nearly, from
five Newton-Schulz steps X <- a X + (b A + c A^2) X, A = X X^T, which bring all singular values between 0.7 and 1.2.

`torch.optim.Muon` takes these products in bfloat16, for accelerators. Processors without instructions for bfloat16
emulate it: four spline couplings of 64 units took 72 ms a step where their gradients took 17 ms. Float32, used here
with matrices of one shape multiplied at once, took a ninth of that, a sixth for a chart, a twelfth for wider networks.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["Muon"]

MOMENTUM = 0.95
SCALE = 0.2
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan et al.: the steepest at zero that still converge
STEPS = 5


class Muon(torch.optim.Optimizer):
    """Moves matrices by their orthogonalised momentum.

    Arguments:
        matrices: parameters of two dimensions
        lr: learning rate, on AdamW's scale
        weight_decay: decoupled
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401 - torch's signature
        """Move all matrices that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(tuple(matrix.shape), []).append(matrix)
            for shape, matrices in alike.items():
                steps = orthogonalized(torch.stack([self._momentum(matrix) for matrix in matrices]))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(steps), alpha=-SCALE * group["lr"] * max(shape) ** 0.5)
        return loss

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Update the momentum of a matrix and return it looked ahead."""
        state, gradient = self.state[matrix], cast(Tensor, matrix.grad)
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return torch.lerp(gradient, momentum, MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return nearly U V^T of each matrix U S V^T, shape `(*, rows, columns)`; zero for zero."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
