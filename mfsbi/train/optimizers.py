"""How weights are moved: matrices by Muon, vectors by AdamW, gradients kept from spiking, one learning rate for all.

**Optimisers.** Weight matrices are moved by Muon (`mfsbi.train.muon`, whose scale lets it share AdamW's learning
rate), vectors by AdamW. A step of Muon has a bounded size whatever the gradient's, and charts and densities learn in
fewer of them than by AdamW alone.

**Weight decay.** With few simulations likelihoods overfit, in theta above all; decay helps against it. Charts learn
without noise, and decay harms them: phases that move them have none.

**Spikes.** A row far out in the tail that a chart has not met yet can have ten thousand times the usual squared error.
Its gradient, divided by Adam's memory of much smaller ones, throws the weights, and may fold the chart for good. A
gradient is therefore shortened to three times what has been usual, and not only to `clip_max_norm`.

All of this is measured in `notebooks/measurements.md`.
"""

import math

import torch
from torch import Tensor, nn

from mfsbi.train.muon import Muon

__all__ = ["PartsOptimizer"]

SPIKE = 3.0  # times the usual norm of a gradient, beyond which it is shortened
MEMORY = 0.02  # of the usual norm: the last fifty steps
WARM_UP = 0.05  # of the steps; without it a first large step can throw the chart off the data


class PartsOptimizer:
    """Moves the weights of some parts of a model.

    The learning rate rises to its peak over the first twentieth of the steps and falls to zero along a cosine.

    Arguments:
        parts: whose weights; those that require a gradient
        learning_rate: peak
        weight_decay: decoupled
        steps: how many are to come
    """

    def __init__(self, parts: nn.Module, learning_rate: float, weight_decay: float, steps: int) -> None:
        self.parts = parts
        self.usual_norm: Tensor | None = None
        weights = [weight for weight in parts.parameters() if weight.requires_grad]
        matrices = [weight for weight in weights if _is_matrix(weight)]
        vectors = [weight for weight in weights if not _is_matrix(weight)]
        self.optimizers: list[torch.optim.Optimizer] = []
        if vectors:
            self.optimizers.append(torch.optim.AdamW(vectors, learning_rate, weight_decay=weight_decay, fused=True))
        if matrices:
            self.optimizers.append(Muon(matrices, learning_rate, weight_decay))
        self.peak, self.steps, self.taken = learning_rate, steps, 0
        self._set_learning_rate()

    @property
    def learning_rate(self) -> float:
        """The present one."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def step(self, max_norm: float | None) -> None:
        """Move the weights by their gradients, and the learning rate along its curve."""
        self.clip(max_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.taken += 1
        self._set_learning_rate()

    def clip(self, max_norm: float | None) -> None:
        """Shorten a gradient that is longer than `max_norm`, or than three times what has been usual."""
        gradients = [weight.grad for weight in self.parts.parameters() if weight.grad is not None]
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

    def state(self) -> dict[str, Tensor]:
        """Return all that it remembers, by name."""
        tensors = {"taken": torch.tensor(self.taken)}
        if self.usual_norm is not None:
            tensors["usual_norm"] = self.usual_norm
        for number, optimizer in enumerate(self.optimizers):
            for index, values in optimizer.state_dict()["state"].items():
                tensors |= {f"{number}.{index}.{name}": value for name, value in values.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Remember what `state` of another, for the same weights, returned."""
        self.taken, self.usual_norm = int(tensors["taken"]), None
        if "usual_norm" in tensors:
            self.usual_norm = tensors["usual_norm"].to(next(self.parts.parameters()).device)
        states: list[dict[int, dict[str, Tensor]]] = [{} for _ in self.optimizers]
        for name, value in tensors.items():
            if name.count(".") == 2:
                number, index, key = name.split(".")
                states[int(number)].setdefault(int(index), {})[key] = value
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
        self._set_learning_rate()

    def _set_learning_rate(self) -> None:
        warm_up = max(1, int(WARM_UP * self.steps))
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, self.taken / self.steps)))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.peak * min((self.taken + 1) / warm_up, cosine)


def _is_matrix(weight: Tensor) -> bool:
    """Return whether a weight mixes features; a row or a column does not."""
    return weight.ndim == 2 and min(weight.shape) > 1
