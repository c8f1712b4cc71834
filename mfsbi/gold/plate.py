r"""Running a Pyro program once for all rows of theta, on values that it draws or on those of another run.

The batch is a plate. A program is written for one run, its parameters being `theta[..., 0]`, `theta[..., 1]`, ..., and
it runs within `pyro.plate(..., rows, dim=-1)`: sites that do not mention theta are repeated for every row, the
program's own plates find their axes left of the rows, and the axes of events stay where Pyro has them, on the right.

A messenger of Pyro's books what happens at each site (`Run`), and refuses sites whose density is not that of a draw.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from mfsbi.checks import require_finite
from mfsbi.gold.runs import Run, Site, edges_of, equal_edges
from mfsbi.seeds import seeded, undisturbed
from mfsbi.types import ProgramError

with undisturbed():  # pyro switches torch's validation of distributions on
    import pyro
    from pyro.distributions import MaskedDistribution
    from pyro.distributions.torch_distribution import TorchDistributionMixin
    from pyro.poutine.messenger import Messenger
    from pyro.poutine.util import site_is_factor, site_is_subsample

__all__ = ["lent", "run_program"]

ROWS = "rows of theta"  # the plate, as Pyro's own messages name it

ADVICE = {
    f"Shape mismatch inside plate({ROWS!r})": "`model` runs once for all rows: theta has shape (rows, parameter), "
    "and a site one value for each row. Write `theta[..., 0]` for a parameter, and `.to_event(1)` for a vector.",
    "Boolean value of Tensor": "`model` runs once for all rows, which may not take different branches: write "
    "`torch.where` for `if`, or mine row by row.",
}
"""What to do about the errors of torch and Pyro that programs for one row at a time end in."""


def run_program(
    model: Callable[[Tensor], Tensor],
    theta: Tensor,
    *,
    seed: int,
    where: str = "where it was drawn",
    held: Run | None = None,
) -> Run:
    """Run a program under a plate of rows, on values of its own or on those held.

    Arguments:
        model: theta of shape `(rows, parameter)` -> x
        theta: shape `(rows, parameter)`
        seed: of the values, and of whatever else the program draws
        where: how messages name this run
        held: a run whose values are taken

    Raises:
        ProgramError: if a site is not a draw, or another site is passed than in the run that is held
        ValueError: if what is drawn, a log probability or x is not finite
    """
    ledger = _Ledger(len(theta), where, held)
    try:
        with seeded(seed), ledger, pyro.plate(ROWS, len(theta), dim=-1):
            x = model(theta.clone())
        ledger.close()
    except Exception as error:
        if advice := next((advice for words, advice in ADVICE.items() if words in str(error)), None):
            raise ProgramError(f"{advice} The program stopped with: {error}") from error
        last = next(reversed(ledger.sites), None)
        error.add_note(
            f"`mine` was running the program {where}, {len(theta)} rows at once under a plate at dim=-1; "
            + ("it had passed no site." if last is None else f"the last site passed was {last!r}.")
        )
        raise
    return Run(theta, _features(x, theta), ledger.sites)


@contextmanager
def lent(dtype: torch.dtype) -> Iterator[None]:
    """Let the program work in `dtype` and initialise parameters, and undo what it does to everybody else."""
    store, default = pyro.get_param_store(), torch.get_default_dtype()
    with undisturbed(), store.scope(store.get_state()), torch.enable_grad():
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


class _Ledger(Messenger):
    """Pyro's messenger that draws values, or holds those of another run, and books each site's log probability."""

    def __init__(self, rows: int, where: str, held: Run | None) -> None:
        super().__init__()
        self.rows = rows
        self.where = where
        self.held = held
        self.sites: dict[str, Site] = {}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        msg["stop"] = True  # handlers around the call of `mine` have no part in it
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        name, fn = msg["name"], msg["fn"]
        _require_draw(msg)
        if name in self.sites:
            raise ProgramError(f"Sites should have a name each; {name!r} is drawn twice.")
        edges = edges_of(fn)
        value = self._draw(name, fn) if self.held is None else self._recall(name, fn, edges)
        log_prob = self._log_prob(name, fn, value)
        self.sites[name] = Site(value, value.ndim - fn.event_dim - 1, log_prob, edges)
        msg["value"] = value.clone()  # what the program does to it in place is not done to ours
        msg["done"] = True

    def _draw(self, name: str, fn: TorchDistributionMixin) -> Tensor:
        with torch.no_grad():  # a value is held fixed from the start
            value = fn().clone()  # a transform remembers where its last value came from, and theta moves that
        if not torch.isfinite(value).all():
            raise ValueError(f"Site {name!r} should draw finite values; it drew NaN or infinity from {fn}.")
        return value

    def _recall(self, name: str, fn: TorchDistributionMixin, edges: list[Tensor]) -> Tensor:
        assert self.held is not None
        if name not in self.held.sites:
            raise self._differs(name, f"is passed {self.where} and was not when it was drawn")
        held = self.held.sites[name]
        ours, theirs = tuple(fn.shape()), tuple(held.value.shape)
        if ours != theirs:
            raise self._differs(name, f"has shape {ours} {self.where} but {theirs} as drawn")
        if held.edges is not None and not equal_edges(held.edges, edges):
            raise ProgramError(
                f"The support of site {name!r} should be the same at every theta; its edges are "
                f"{_shown(held.edges)} where it was drawn and {_shown(edges)} {self.where}. Where an edge moves, "
                "the joint score is not the score on average: draw from a density with fixed edges or none."
            )
        return held.value

    def _log_prob(self, name: str, fn: TorchDistributionMixin, value: Tensor) -> Tensor:
        try:
            log_prob = fn.log_prob(value)
        except ValueError as error:  # by torch's validation, which does not know the site
            raise ValueError(f"Site {name!r} has no log probability {self.where}: {error}") from error
        if log_prob.shape[-1:] != (self.rows,):
            raise ProgramError(
                f"Site {name!r} should have log probabilities with the {self.rows} rows of theta as last axis; "
                f"got shape {tuple(log_prob.shape)}. Declare the axes right of it as events, `.to_event(1)`."
            )
        bad = ~torch.isfinite(log_prob)
        if bad.any():
            raise ProgramError(
                f"Site {name!r} should have a finite log probability at every theta; {self.where} it is "
                f"{float(log_prob[bad][0])} for {int(bad.sum())} of {bad.numel()} values. If it is -inf away from "
                "where the values were drawn, its support depends on theta and no joint score is valid."
            )
        return log_prob.reshape(-1, self.rows).sum(0)

    def _differs(self, name: str, how: str) -> ProgramError:
        return ProgramError(
            f"The program should pass the same sites at every theta and for any number of rows, with the same shapes; "
            f"site {name!r} {how}. Write it for a single run, and let values, not theta, decide what is drawn."
        )

    def close(self) -> None:
        """Refuse a run that left out held sites, or passed them in another order."""
        if self.held is None and not self.sites:
            raise ProgramError("`model` should draw at sites, `pyro.sample`; it has none.")
        if self.held is None or list(self.sites) == list(self.held.sites):
            return
        for name, passed in zip_longest(self.held.sites, self.sites):
            if name != passed:
                raise self._differs(name, f"is not passed {self.where}, or in another order")


def _features(x: object, theta: Tensor) -> Tensor:
    """Return what a program returns as `(rows, data)` in theta's type."""
    if not isinstance(x, Tensor):
        raise ProgramError(f"`model` should return x, a tensor of shape ({len(theta)}, data); got {type(x).__name__}.")
    if x.ndim not in {1, 2} or len(x) != len(theta):
        raise ProgramError(
            f"`model` should return x of shape ({len(theta)}, data), one row for each of theta; got shape "
            f"{tuple(x.shape)}. Values within a plate of the program have the rows last: return `values.T`. "
            "Flatten images."
        )
    x = x.reshape(len(theta), -1).to(theta.dtype)
    require_finite("x", x.detach(), "Let the program return finite numbers.")
    return x


def _require_draw(msg: dict[str, Any]) -> None:
    """Refuse a site whose density is not that of a draw."""
    fn, plates = msg["fn"], [frame.name for frame in msg["cond_indep_stack"]]
    masked = msg["mask"] is not None or any(isinstance(layer, MaskedDistribution) for layer in _layers(fn))
    faults = {
        "is a factor, which is no density of a draw": site_is_factor(msg),
        "is observed, while a simulator draws: run it without data": msg["is_observed"],
        "is given its value by a handler and can not be held fixed": msg["done"] or msg["value"] is not None,
        "has no log probability: draw from one of pyro.distributions": not hasattr(fn, "to_event"),
        "takes arguments, which `mine` does not pass on": bool(msg["args"] or msg["kwargs"]),
        "is masked: draw it in every run and ignore the value where it is not needed": masked,
        "is subsampled or scaled: let plates hold all of their members": bool(torch.as_tensor(msg["scale"] != 1).any()),
        "lacks the axis of rows: draw it within the plate that `mine` opens": ROWS not in plates,
    }
    for fault, present in faults.items():
        if present:
            raise ProgramError(f"Site {msg['name']!r} {fault}.")


def _shown(edges: list[Tensor]) -> list[float]:
    """Return each edge in the first row, for a message."""
    return [round(float(edge.flatten()[0]), 4) for edge in edges]


def _layers(fn: object) -> Iterator[object]:
    """Yield a distribution and those that it wraps."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)
