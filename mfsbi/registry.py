"""Simulators by name: packages announce theirs by entry points, so that mfsbi need not import them."""

import importlib.metadata

from mfsbi.types import KnownTruth, Simulator

__all__ = ["GROUP", "named", "registered"]

GROUP = "mfsbi.simulators"


def named(name: str, /, **options: object) -> Simulator:
    """Return a new simulator of that name, made with the options that it takes.

    Raises:
        ValueError: if there is none, or it has no parameters to infer
    """
    known = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in known:
        raise ValueError(
            f"there is no simulator {name!r}; registered are {', '.join(sorted(known)) or 'none'}. "
            f"A package adds its own by an entry point in the group {GROUP!r}."
        )
    simulator = known[name].load()(**options)
    if isinstance(simulator, Simulator):
        return simulator
    raise ValueError(
        f"the simulator {name!r} has no parameters to infer: it lacks `prior`, `parameter_names` or `simulate`."
    )


def registered(name: str) -> KnownTruth:
    """Return a new simulator of that name whose truth is known.

    Raises:
        ValueError: if there is none, it has no parameters, or its likelihood or manifold is not known
    """
    simulator = named(name)
    if isinstance(simulator, KnownTruth):
        return simulator
    raise ValueError(f"what was learned is compared with the truth, and {name!r} lacks `log_prob` or a known manifold.")
