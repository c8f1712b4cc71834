"""What is simulated, and whether a store was made by the same simulations."""

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mfsbi.checks import require_kind, require_positive_integer, require_seed, warn
from mfsbi.priors import record_of
from mfsbi.seeds import alone, seeded
from mfsbi.simulating.fingerprint import comparable, fingerprint
from mfsbi.types import HasGold, Prior, Simulator

__all__ = ["Plan", "require_same"]


@dataclass(frozen=True)
class Plan:
    """Simulations to be made.

    Arguments:
        simulator: called with `theta` of shape `(rows, parameter)` in float32 and a whole number `seed` below 2^63
            (`numpy.random.seed` takes fewer, `numpy.random.default_rng` any). An attribute `version` is noted
        rows: how many
        prior: of theta; the simulator's own if None
        seed: of everything
        shard_rows: rows simulated by one call and written together; if None, so many that a shard takes 16 MB or that
            there are 64 shards, whichever is fewer
        gold: whether to keep the joint score and the joint log ratio, against its own reference, of a simulator that
            knows them
        name: of the simulator, for people; its class if empty

    Raises:
        ValueError: if a number is out of range
    """

    simulator: Simulator
    rows: int
    prior: Prior | None = None
    seed: int = 0
    shard_rows: int | None = None
    gold: bool = True
    name: str = ""

    def __post_init__(self) -> None:
        require_kind("simulator", self.simulator, Simulator, "one with `prior`, `parameter_names` and `simulate`")
        if self.prior is not None:
            require_kind("prior", self.prior, Prior, "a distribution with `sample` and `log_prob`, such as torch's")
        require_positive_integer("rows", self.rows)
        if self.shard_rows is not None:
            require_positive_integer("shard_rows", self.shard_rows)
        require_seed(self.seed)
        for name in ("rows", "seed", "shard_rows"):  # of numpy, say, which JSON has no place for
            number = getattr(self, name)
            object.__setattr__(self, name, None if number is None else int(number))

    @property
    def prior_of_theta(self) -> Prior:
        """The prior theta is drawn from."""
        return self.simulator.prior if self.prior is None else self.prior

    @property
    def has_gold(self) -> bool:
        """Whether gold comes along."""
        return self.gold and isinstance(self.simulator, HasGold)

    def attributes(self) -> dict[str, Any]:
        """Return where the simulations come from, for JSON."""
        versions = {"mfsbi": version("mfsbi"), "torch": torch.__version__, "numpy": np.__version__}
        package = sys.modules.get(type(self.simulator).__module__.partition(".")[0])
        with alone(), seeded(0):
            return {
                "simulator": self.name or type(self.simulator).__qualname__,
                "simulator_version": str(getattr(self.simulator, "version", getattr(package, "__version__", ""))),
                "simulator_hash": fingerprint(self.simulator),
                **record_of(self.prior_of_theta),
                "parameter_names": list(self.simulator.parameter_names),
                "seed": self.seed,
                "gold": self.has_gold,
                "versions": {**versions, "python": platform.python_version()},
            }


MEANT = {
    "rows": "a store does not grow; make a larger one, or another one with another seed, to learn from both in memory",
    "shard_rows": "shards keep their size",
    "seed": "its shards would come from two seeds",
    "gold": "its shards would differ in their arrays",
    "parameter_names": "theta would mean two things",
    "prior_draws": "theta would come from two priors",
    "prior_log_probs": "theta would come from two priors",
    "simulator_version": "x would come from two simulators",
    "simulator_hash": "x would come from two simulators; its code or its attributes are not what they were",
}
"""What has to agree between a store and whoever goes on with it, and why."""


def require_same(path: Path, stored: dict[str, Any], plan: Plan, ours: dict[str, Any]) -> None:
    """Raise ValueError, naming the first difference, unless a store was made by a plan with these attributes.

    A store of another version of mfsbi may hold a hash of the simulator by other rules. Whether its code is the same
    cannot be told then, which is a warning.
    """
    shard_rows = stored["shard_rows"] if plan.shard_rows is None else min(plan.shard_rows, plan.rows)
    here = {**ours, "rows": plan.rows, "shard_rows": shard_rows}
    if not comparable(stored["simulator_hash"], here["simulator_hash"]):
        here["simulator_hash"] = stored["simulator_hash"]
        warn(
            f"The store {path} notes the code of {stored['simulator']} as another version of mfsbi does. Whether the "
            "simulator is still the one that made it cannot be told from that: make sure that it is."
        )
    for name, why in MEANT.items():
        if not _agree(stored[name], here[name]):
            raise ValueError(
                f"`{name}` of the store {path} is {_short(stored[name])}; here it is {_short(here[name])}, and {why}. "
                "Run what made the store, or choose another place."
            )


def _agree(one: object, other: object) -> bool:
    """Whether two values of JSON are the same, up to rounding by different processors in lists of numbers."""
    if one == other or not (isinstance(one, list) and isinstance(other, list)):
        return bool(one == other)
    try:
        return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-4, atol=1e-6)
    except (ValueError, TypeError):  # words
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."
