"""How weights are moved: matrices by Muon, vectors by AdamW, gradients kept from spiking, one learning rate for all.

**Muon** moves a matrix along all its directions alike. The momentum M of its gradient, looked ahead as by Nesterov, is
replaced by the nearest matrix with orthonormal rows (or columns), U V^T for M = U S V^T, and the step is scaled to the
root mean square of AdamW's,

    W <- (1 - eta lambda) W - 0.2 eta sqrt(max(rows, columns)) U V^T

(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al., arXiv:2502.16982), so that both share one
learning rate. U V^T comes, nearly, from five Newton-Schulz steps X <- a X + (b A + c A^2) X, A = X X^T, which bring all
singular values between 0.7 and 1.2. `torch.optim.Muon` takes these products in bfloat16, which processors without such
instructions emulate slowly; here they are taken in the type of the weights, of all matrices of one shape at once.
A step has a bounded size whatever the gradient's, and charts and densities learn in fewer of them than by AdamW alone.

**Weight decay.** With few simulations likelihoods overfit, in theta above all; decay helps against it. Charts learn
without noise, and decay harms them: phases that move them have none.

**Spikes.** A row far out in the tail that a chart has not met yet can have ten thousand times the usual squared error.
Its gradient, divided by Adam's memory of much smaller ones, throws the weights, and may fold the chart for good. A
gradient is therefore shortened to three times what has been usual, and not only to `clip_max_norm`.

All of this is measured in `notebooks/measurements.md`.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

__all__ = ["Muon", "PartsOptimizer", "orthogonalized"]

SPIKE = 3.0  # times the usual norm of a gradient, beyond which it is shortened
MEMORY = 0.02  # of the usual norm: the last fifty steps
RISE = 50  # steps over which the learning rate rises if their number is not known
NEVER = math.inf, 1
WARM_UP = 0.05  # of the steps; without it a first large step can throw the chart off the data

MOMENTUM = 0.95
SCALE = 0.2
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # Jordan et al.: the steepest at zero that still converge
NEWTON_SCHULZ_STEPS = 5


class PartsOptimizer:
    """Moves the weights of some parts of a model.

    The learning rate rises to its peak over the first twentieth of the steps and falls to zero along a cosine. If
    nobody knows how many steps are to come, it rises over fifty and stays, until `fall` is called.

    Arguments:
        parts: whose weights; those that require a gradient
        learning_rate: peak
        weight_decay: decoupled
        steps: how many are to come, or None

    Attributes:
        weights: what it moves, and what else the parts have
        taken: the steps taken
        falls: after how many of them the learning rate begins to fall, and over how many, once that is known
    """

    def __init__(self, parts: nn.Module, learning_rate: float, weight_decay: float, steps: int | None) -> None:
        self.parts, self.weights = parts, list(parts.parameters())
        self.usual_norm: Tensor | None = None
        weights = [weight for weight in self.weights if weight.requires_grad]
        matrices = [weight for weight in weights if _is_matrix(weight)]
        vectors = [weight for weight in weights if not _is_matrix(weight)]
        self.optimizers: list[torch.optim.Optimizer] = []
        if vectors:
            self.optimizers.append(torch.optim.AdamW(vectors, learning_rate, weight_decay=weight_decay, fused=True))
        if matrices:
            self.optimizers.append(Muon(matrices, learning_rate, weight_decay))
        self.peak, self.steps, self.taken, self.falls = learning_rate, steps, 0, NEVER
        self.set_learning_rate()

    @property
    def learning_rate(self) -> float:
        """The present one."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def step(self, max_norm: float | None) -> None:
        """Move the weights by their gradients, and the learning rate along its curve.

        Arguments:
            max_norm: largest norm of the gradient of all parts together, see `clip`; None for no such limit
        """
        self.clip(max_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.taken += 1
        self.set_learning_rate()

    def clip(self, max_norm: float | None) -> None:
        """Shorten a gradient that is longer than `max_norm`, or than three times what has been usual."""
        gradients = [weight.grad for weight in self.weights if weight.grad is not None]
        if not gradients:
            return
        norm = nn.utils.get_total_norm(gradients)
        usual = norm if self.usual_norm is None else torch.where(self.usual_norm > 0, self.usual_norm, norm)
        limit = SPIKE * usual if max_norm is None else (SPIKE * usual).clamp(max=max_norm)
        torch._foreach_mul_(gradients, (limit / (norm + 1e-12)).clamp(max=1))
        self.usual_norm = torch.lerp(usual, torch.minimum(norm, limit), MEMORY)

    def halt(self) -> None:
        """Lose the momentum, but not the memory of how large gradients are, without which first steps are too long."""
        for optimizer in self.optimizers:
            for state in optimizer.state.values():
                for name in {"exp_avg", "momentum"} & set(state):
                    state[name].zero_()

    def set_learning_rate(self) -> None:
        """Set the learning rate to that of the steps taken."""
        if self.steps is None:
            began, over = self.falls
            share = min((self.taken + 1) / RISE, 1 - max(0.0, self.taken - began) / over)
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.taken / self.steps)))
            share = min((self.taken + 1) / max(1, int(WARM_UP * self.steps)), cosine)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.peak * max(0.0, share)

    def fall(self, steps: int) -> None:
        """Let the learning rate fall to zero over so many steps from now on, without the momentum of those before."""
        self.falls = self.taken, steps
        self.halt()
        self.set_learning_rate()


def _is_matrix(weight: Tensor) -> bool:
    """Return whether a weight mixes features; a row or a column does not."""
    return weight.ndim == 2 and min(weight.shape) > 1


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
    def step(self) -> None:  # type: ignore[override]  # torch's takes a function of the loss, too
        """Move all matrices that have a gradient."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    alike.setdefault(tuple(matrix.shape), []).append(matrix)
            for shape, matrices in alike.items():
                steps = orthogonalized(torch.stack([self._momentum(matrix) for matrix in matrices]))
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(matrices, list(steps), alpha=-SCALE * group["lr"] * max(shape) ** 0.5)

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Update the momentum of a matrix and return it looked ahead."""
        assert matrix.grad is not None
        state, gradient = self.state[matrix], matrix.grad
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        momentum: Tensor = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return torch.lerp(gradient, momentum, MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return nearly U V^T of each matrix U S V^T, shape `(*, rows, columns)`; zero for zero.

    Singular values become 0.7 to 1.2 instead of one, which serves a step as well.

    Arguments:
        matrices: shape `(*, rows, columns)`, of any size: they are brought to norm one first
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
