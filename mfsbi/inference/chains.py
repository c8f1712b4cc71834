"""Chains: what a sampler returns, whichever it was."""

from collections.abc import KeysView
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mfsbi.checks import require_kind, require_tensor

__all__ = ["Chains", "Info"]


class Info(NamedTuple):
    """How chains were made; what does not apply to a sampler is None.

    It can also be read like a dictionary of what applies: `info["seconds"]`, `info.get("acceptance", 1.0)`,
    `"divergences" in info` and `dict(info)`.

    Arguments:
        sampler: the name of the sampler
        markov: whether each draw depends on the one before; otherwise independent draws were split into chains
        warmup_steps: steps of each chain before its draws
        thin: steps for each draw
        seed: of everything random
        seconds: how long it took, warm-up included
        acceptance: the mean share of proposals that were accepted; the effective share of candidates where these were
            resampled by their weights
        divergences: the number of trajectories that diverged
        evaluations: how many theta the potential was evaluated at
        log_evidence: log p(x), or of a ratio the log of its mean over the prior
        log_evidence_error: its standard error
    """

    sampler: str = ""
    markov: bool = True
    warmup_steps: int | None = None
    thin: int | None = None
    seed: int | None = None
    seconds: float = 0.0
    acceptance: float | None = None
    divergences: int | None = None
    evaluations: int | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None

    @property
    def told(self) -> dict[str, object]:
        """What applies to the sampler, by name."""
        return {name: value for name, value in self._asdict().items() if value is not None}

    def __getitem__(self, key: object) -> object:  # type: ignore[override]
        return self.told[key] if isinstance(key, str) else tuple(self)[key]  # type: ignore[call-overload]

    def __contains__(self, key: object) -> bool:
        return key in self.told

    def get(self, key: str, default: object = None) -> object:
        """Return the value of that name, or the default if it does not apply."""
        return self.told.get(key, default)

    def keys(self) -> KeysView[str]:
        """Return the names of what applies."""
        return self.told.keys()


@dataclass(frozen=True)
class Chains:
    """Draws of theta from several chains after their warm-up.

    Arguments:
        draws: shape `(chain, draw, parameter)`
        log_prob: log posterior of each draw up to a constant, shape `(chain, draw)`
        info: how they were made

    Raises:
        ValueError: if the shapes do not fit each other
        TypeError: if draws or log_prob is not a tensor, or info is not an `Info`
    """

    draws: Tensor
    log_prob: Tensor
    info: Info = field(default_factory=Info)

    def __post_init__(self) -> None:
        require_tensor("draws", self.draws)
        require_tensor("log_prob", self.log_prob)
        require_kind("info", self.info, Info, "of `mfsbi.inference.chains.Info`, such as Info(**info)")
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
