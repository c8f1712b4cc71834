"""Chains: what a sampler returns, whichever it was."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mfsbi.checks import require_tensor

__all__ = ["Chains"]


@dataclass(frozen=True)
class Chains:
    """Draws of theta from several Markov chains after their warm-up.

    Arguments:
        draws: shape `(chain, draw, parameter)`
        log_prob: log posterior of each draw up to a constant, shape `(chain, draw)`
        info: how they were made: sampler, warm-up steps, seed, seconds

    Raises:
        ValueError: if the shapes do not fit each other
    """

    draws: Tensor
    log_prob: Tensor
    info: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_tensor("draws", self.draws)
        require_tensor("log_prob", self.log_prob)
        if self.draws.ndim != 3 or self.log_prob.shape != self.draws.shape[:2]:
            raise ValueError(
                "`draws` should have shape (chain, draw, parameter) and `log_prob` (chain, draw); "
                f"got {tuple(self.draws.shape)} and {tuple(self.log_prob.shape)}."
            )

    def __repr__(self) -> str:
        chains, draws, parameters = self.draws.shape
        return f"Chains(chains={chains}, draws={draws}, parameters={parameters}, {self.info})"

    @property
    def pooled(self) -> Tensor:
        """All draws, shape `(chain * draw, parameter)`."""
        return self.draws.flatten(0, 1)

    @property
    def mean(self) -> Tensor:
        """Posterior mean, shape `(parameter,)`."""
        return self.pooled.mean(0)

    @property
    def std(self) -> Tensor:
        """Posterior standard deviation, shape `(parameter,)`."""
        return torch.std(self.pooled, dim=0)
