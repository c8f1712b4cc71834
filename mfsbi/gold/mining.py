r"""Gold from Pyro programs: the joint score and the joint log ratio of any program, without writing a density.

A program draws values z_1, z_2, ... at its sites, each from a known density given those before, and returns x = f(z).
Where f does not depend on theta, the run has a density at fixed values, the product over its sites, and

    t(x, z|theta) = d/dtheta sum_s log p(z_s | z_<s, theta),
    log r = sum_s [log p(z_s | z_<s, theta) - log p(z_s | z_<s, theta_ref)],

with **all values held fixed**. Values drawn as z = g(theta, noise) carry a derivative dz/dtheta of their own; it has no
place here, since t compares densities at one and the same point. That is what makes t average to the score,

    E[t | x, theta] = int t p(x, z|theta) dz / p(x|theta) = d/dtheta p(x|theta) / p(x|theta) = d/dtheta log p(x|theta),

where the derivative was taken out of the integral. So the gold is only worth something if

* x is fixed by the values. If x = theta + z, p(x|z, theta) is a delta function that theta moves: no joint score exists.
* the region integrated over, the support of each site, is the same at each theta: a moving edge adds a term of its own.
* no density jumps as theta moves, which adds one as well: a value compared with theta makes it jump, a kink is fine.
* the same sites are passed at theta and at theta_ref, so that both densities are about the same variables.
* randomness enters at sites alone, and autograd sees all the ways by which theta enters their densities.
* rows are independent, since the derivatives of all rows are taken at once.

None of this is taken on trust. The program is run again on the values of the first run: by halves of the rows, at other
theta (`runs`), and a small step and all the way there, where the log probability must have changed as its gradients
foretell (`slopes`). Where runs differ that should agree, an error names the site. Checks see best with many rows, theta
that differ from row to row, and float64; a fault of one row in a hundred may pass them.

The batch is a plate. A program is written for one run, its parameters being `theta[..., 0]`, `theta[..., 1]`, ..., and
`mine` runs it within `pyro.plate(..., rows, dim=-1)`: sites that do not mention theta are repeated for every row, the
program's own plates find their axes left of the rows, and the axes of events stay where Pyro has them, on the right.

References: Brehmer, Louppe, Pavez, Cranmer, arXiv:1805.12244, 1805.00020; Bingham et al., arXiv:1810.09538 (Pyro).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from mfsbi.checks import require_finite, require_kind, require_seed, require_tensor
from mfsbi.gold import runs, slopes
from mfsbi.gold.runs import Run, Site, edges_of, equal_edges
from mfsbi.seeds import derived, seeded, undisturbed
from mfsbi.simulations import Simulations
from mfsbi.types import ProgramError

with undisturbed():  # pyro switches torch's validation of distributions on
    import pyro
    from pyro.distributions import MaskedDistribution
    from pyro.poutine.messenger import Messenger
    from pyro.poutine.util import site_is_factor, site_is_subsample

__all__ = ["mine"]

ROWS = "rows of theta"  # the plate, as Pyro's own messages name it


def mine(
    model: Callable[[Tensor], Tensor], theta: Tensor, *, theta_ref: Tensor | None = None, seed: int = 0
) -> Simulations:
    """Simulate x ~ p(x|theta) by a Pyro program and return it with its joint score and joint log ratio.

    t(x, z|theta) = d/dtheta sum_s log p(z_s|z_<s, theta) at fixed values z of all sites, and log r is the same sum at
    theta less that at theta_ref.

    The program is written for one run: it reads its parameters as `theta[..., 0]`, draws at sites, `pyro.sample`, and
    returns x of shape `(*, data)`, or `(*,)` for a single feature. `mine` opens a plate over rows around it, at dim=-1.
    Two consequences: vectors are events (`.to_event(1)`), and values within a plate of the program have shape
    `(plate, rows)`, hence are returned as `values.T`. `pyro.param` and `pyro.deterministic` are welcome; a program
    that branches in Python on what it drew is mined row by row, `mine(model, theta[i : i + 1], seed=i)`.

    It is run four times, five with theta_ref, and some more on up to a thousand rows: to draw, and to make sure that
    what is drawn is gold, which is seen most sharply if theta is float64.

    Arguments:
        model: theta of shape `(rows, parameter)` -> x
        theta: shape `(rows, parameter)`; its type is that of all numbers
        theta_ref: the parameters of the ratio's denominator, broadcast against theta; without it there is no ratio
        seed: of the values

    Returns:
        theta, x, shape `(rows, data)`, the joint score, shape `(rows, parameter)`, and the joint log ratio, shape
        `(rows,)`, all of which trainers take as one; unpacked, x, joint score and joint log ratio

    Raises:
        ValueError: if a shape of theta is wrong, or a number that is given or drawn is not finite
        ProgramError: which is one, if a site is observed, masked, subsampled or lacks the axis of rows; if its support
            or its being passed depends on theta; if its density jumps in theta or has no finite gradient; if randomness
            or theta enters it by a way that autograd does not see, or x by one that is no site; if rows are not
            independent; or if theta enters nowhere. The message names the site.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> def scattering(theta):
        ...     true = pyro.sample("true", dist.Normal(theta[..., 0], 1.0))
        ...     hit = pyro.sample("hit", dist.Bernoulli(0.9))
        ...     return pyro.sample("measured", dist.Normal(true * hit, 0.5))
        >>> theta = torch.rand(1000, 1)
        >>> x, joint_score, joint_log_ratio = mine(scattering, theta, theta_ref=torch.zeros(1))
        >>> x.shape, joint_score.shape, joint_log_ratio.shape, bool(joint_score.mean().abs() < 0.1)
        (torch.Size([1000, 1]), torch.Size([1000, 1]), torch.Size([1000]), True)
    """
    require_kind("model", model, Callable, "a Pyro program, a function theta -> x")  # type: ignore[arg-type]
    require_seed(seed)
    theta, theta_ref = _checked(theta, theta_ref)
    with _lent(theta.dtype):
        run = _run(model, theta.clone().requires_grad_(), seed=seed)
        again = partial(_run, model, seed=derived(seed, 1))
        runs.require_fixed_x(run)
        _require_independent_rows(again, run)
        slopes.require_finite_slopes(run)
        elsewhere = runs.elsewhere(theta, theta_ref)
        runs.require_same_x(run, again(elsewhere, held=run, where="at another theta"))
        slopes.require_gradient(again, run, elsewhere)
        slopes.require_no_jump(again, run, elsewhere)
        joint_score = run.score()
        if len(theta) > 1 and not run.log_prob().requires_grad:  # one run may have turned where theta plays no part
            raise ProgramError(f"Theta should enter the density of a site; it enters none of {list(run.sites)}.")
        joint_log_ratio = None
        if theta_ref is not None:
            reference = again(theta_ref, held=run, where="at theta_ref")
            runs.require_same_x(run, reference)
            joint_log_ratio = run.log_ratio(reference).detach()
    return Simulations(theta, run.x.detach(), joint_score, joint_log_ratio)


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

    def _draw(self, name: str, fn: Any) -> Tensor:  # noqa: ANN401 - one of Pyro's distributions
        with torch.no_grad():  # a value is held fixed from the start
            value = fn().clone()  # a transform remembers where its last value came from, and theta moves that
        if not torch.isfinite(value).all():
            raise ValueError(f"Site {name!r} should draw finite values; it drew NaN or infinity from {fn}.")
        return value

    def _recall(self, name: str, fn: Any, edges: list[Tensor]) -> Tensor:  # noqa: ANN401
        assert self.held is not None
        if name not in self.held.sites:
            raise ProgramError(self._differs(name, f"is passed {self.where} and was not when it was drawn"))
        held = self.held.sites[name]
        if tuple(held.value.shape) != tuple(fn.shape()):
            raise ProgramError(
                self._differs(
                    name, f"has shape {tuple(fn.shape())} {self.where} but {tuple(held.value.shape)} as drawn"
                )
            )
        if held.edges is not None and not equal_edges(held.edges, edges):
            raise ProgramError(
                f"The support of site {name!r} should be the same at every theta; its edges are "
                f"{_shown(held.edges)} where it was drawn and {_shown(edges)} {self.where}. Where an edge moves, "
                "the joint score is not the score on average: draw from a density with fixed edges or none."
            )
        return held.value

    def _log_prob(self, name: str, fn: Any, value: Tensor) -> Tensor:  # noqa: ANN401
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

    def _differs(self, name: str, how: str) -> str:
        return (
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
                raise ProgramError(self._differs(name, f"is not passed {self.where}, or in another order"))


ADVICE = {
    f"Shape mismatch inside plate({ROWS!r})": "`model` runs once for all rows: theta has shape (rows, parameter), "
    "and a site one value for each row. Write `theta[..., 0]` for a parameter, and `.to_event(1)` for a vector.",
    "Boolean value of Tensor": "`model` runs once for all rows, which may not take different branches: write "
    "`torch.where` for `if`, or mine row by row.",
}
"""What to do about the errors of torch and Pyro that programs for one row at a time end in."""


def _run(
    model: Callable[[Tensor], Tensor],
    theta: Tensor,
    *,
    seed: int,
    where: str = "where it was drawn",
    held: Run | None = None,
) -> Run:
    """Run the program under a plate of rows, on values of its own or on those held."""
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


def _features(x: Any, theta: Tensor) -> Tensor:  # noqa: ANN401 - whatever the program returns
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


def _layers(fn: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield a distribution and those that it wraps."""
    while fn is not None:
        yield fn
        fn = getattr(fn, "base_dist", None)


def _require_independent_rows(again: Callable[..., Run], run: Run) -> None:
    """Raise ProgramError if a row changes when others are left out, or from run to run.

    The halves below and above the median are run, so that a condition on all rows has a chance to be met in one only.
    """
    theta = run.theta.detach()
    for rows in theta[:, 0].argsort().chunk(2):
        half = run.of_rows(rows)
        changed = runs.change(half, again(theta[rows], held=half, where="on half of the rows"))
        if changed is None:
            continue
        restless = runs.change(run, again(theta, held=run, where="once more"))
        if restless is not None:
            raise ProgramError(
                f"Randomness should enter at sites alone; {restless} changes from run to run although the values of "
                "all sites are held fixed. Replace what is drawn elsewhere (`rsample`, `torch.randn`) by `pyro.sample`."
            )
        raise ProgramError(
            f"Rows should be independent; {changed} changes in a row when others are left out. Write the program for a "
            "single run, without sums or means over the rows."
        )


def _checked(theta: Tensor, theta_ref: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return theta and theta_ref as `(rows, parameter)`, without graphs."""
    require_tensor("theta", theta)
    if theta.ndim != 2 or 0 in theta.shape or not theta.is_floating_point():
        raise ValueError(
            f"`theta` should be floating numbers of shape (rows, parameter), a row for each run; got shape "
            f"{tuple(theta.shape)} of {theta.dtype}."
        )
    require_finite("theta", theta.detach(), "Leave these rows out.")
    if theta_ref is None:
        return theta.detach(), None
    require_tensor("theta_ref", theta_ref)
    try:
        theta_ref = theta_ref.detach().to(theta).expand(theta.shape)
    except RuntimeError as error:
        raise ValueError(
            f"`theta_ref` should broadcast against theta, of shape {tuple(theta.shape)}; "
            f"got shape {tuple(theta_ref.shape)}."
        ) from error
    require_finite("theta_ref", theta_ref, "Choose a reference that the program can be run at.")
    return theta.detach(), theta_ref


@contextmanager
def _lent(dtype: torch.dtype) -> Iterator[None]:
    """Let the program work in `dtype` and initialise parameters, and undo what it does to everybody else."""
    store, default = pyro.get_param_store(), torch.get_default_dtype()
    with undisturbed(), store.scope(store.get_state()), torch.enable_grad():
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(default)
