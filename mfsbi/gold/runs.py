r"""The record of a program's run, and comparisons of two runs that show whether its joint score is valid.

Two runs on the same values are compared: they must agree in x and, at the same theta, in the log probability of every
site. How log probabilities change with theta is for `slopes`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.constraints import Constraint

from mfsbi.types import ProgramError

__all__ = [
    "Run",
    "Site",
    "Tolerance",
    "edges_of",
    "elsewhere",
    "equal_edges",
    "gradient",
    "require_fixed_x",
    "require_independent_rows",
    "require_same_x",
]

SAME = 1e-5  # relative; sums taken in another order differ by 1e-6 in float32, mistakes by far more


class Tolerance(NamedTuple):
    """What rounding may do to numbers of a type.

    Arguments:
        density: relative difference of log probabilities; densities may be narrow, and differ by more than their values
        jump: of a log probability
        faults: share of rows whose log probability changes otherwise than its gradient says, kinks included
    """

    density: float
    jump: float
    faults: float

    @classmethod
    def of(cls, dtype: torch.dtype) -> "Tolerance":
        """Return that of a type of tensors."""
        return cls(1e-5, 1e-3, 0.01) if dtype == torch.float64 else cls(1e-2, 0.1, 0.1)


class Site(NamedTuple):
    """A site's value, its axis of rows, its log probability, shape `(rows,)`, and the edges of its support if known."""

    value: Tensor
    row_axis: int
    log_prob: Tensor
    edges: list[Tensor] | None

    def size(self) -> Tensor:
        """Return the sum of the absolute values in each row, shape `(rows,)`."""
        sizes = self.value.abs().movedim(self.row_axis, -1)
        return sizes.reshape(-1, sizes.shape[-1]).sum(0).to(self.log_prob.dtype)


class Run(NamedTuple):
    """A run of a program at theta: x of shape `(rows, data)`, and its sites by name and in order."""

    theta: Tensor
    x: Tensor
    sites: dict[str, Site]

    def score(self) -> Tensor:
        """Return d/dtheta log p(x, z|theta), shape `(rows, parameter)`."""
        return gradient(self.log_prob(), self.theta)

    def log_prob(self) -> Tensor:
        """Return log p(x, z|theta), shape `(rows,)`."""
        return torch.stack([site.log_prob for site in self.sites.values()]).sum(0)

    def log_ratio(self, other: "Run") -> Tensor:
        """Return the log probability less that of another run on the same values, shape `(rows,)`, summed by sites."""
        return torch.stack([site.log_prob - other.sites[name].log_prob for name, site in self.sites.items()]).sum(0)

    def of_rows(self, rows: Tensor) -> "Run":
        """Return the same run as if only the given rows had been asked for."""
        sites = {
            name: Site(site.value.index_select(site.row_axis, rows), site.row_axis, site.log_prob[rows], None)
            for name, site in self.sites.items()
        }
        return Run(self.theta[rows], self.x[rows], sites)


def gradient(value: Tensor, theta: Tensor) -> Tensor:
    """Return the gradient of the sum of `value`, zero where theta has no part in it; the graph is kept."""
    if not value.requires_grad:
        return torch.zeros_like(theta)
    (slope,) = torch.autograd.grad(value.sum(), theta, retain_graph=True, allow_unused=True, materialize_grads=True)
    return slope.detach()


def elsewhere(theta: Tensor, theta_ref: Tensor | None = None) -> Tensor:
    """Return other parameters: those of the row before; the reference's, or nearer to zero by a hundredth, if the same.

    Parameters of another row are ones that the program is meant to be run at, which a step of any size might not be.
    """
    other = theta.roll(1, 0)
    if theta_ref is not None:
        other = torch.where((other == theta).all(1, keepdim=True), theta_ref, other)
    same = (other == theta).all(1, keepdim=True) | (other == theta).all(0)
    return torch.where(same, torch.where(theta == 0, 0.01, 0.99 * theta), other)


def require_fixed_x(run: Run) -> None:
    """Raise ProgramError if x still depends on theta when all values are held."""
    moving = [j for j in range(run.x.shape[1]) if run.x.requires_grad and gradient(run.x[:, j], run.theta).any()]
    _refuse_moving(moving, run)


def require_same_x(run: Run, other: Run) -> None:
    """Raise ProgramError if x is another at other theta, although all values are held."""
    _refuse_moving(_changed_features(run.x, other.x), run)


def require_independent_rows(again: Callable[..., Run], run: Run) -> None:
    """Raise ProgramError if a row changes when others are left out, or from run to run.

    The halves below and above the median are run, so that a condition on all rows has a chance to be met in one only.
    """
    theta = run.theta.detach()
    for rows in theta[:, 0].argsort().chunk(2):
        half = run.of_rows(rows)
        changed = _change(half, again(theta[rows], held=half, where="on half of the rows"))
        if changed is None:
            continue
        restless = _change(run, again(theta, held=run, where="once more"))
        if restless is not None:
            raise ProgramError(
                f"Randomness should enter at sites alone; {restless} changes from run to run although the values of "
                "all sites are held fixed. Replace what is drawn elsewhere (`rsample`, `torch.randn`) by `pyro.sample`."
            )
        raise ProgramError(
            f"Rows should be independent; {changed} changes in a row when others are left out. Write the program for a "
            "single run, without sums or means over the rows."
        )


def _change(run: Run, again: Run) -> str | None:
    """Return what differs between two runs at the same theta on the same values: the first such site, or feature."""
    for name, site in run.sites.items():
        tolerance = Tolerance.of(site.log_prob.dtype).density * (1 + site.log_prob.abs())
        if ((again.sites[name].log_prob - site.log_prob).abs() > tolerance).any():
            return f"the log probability of site {name!r}"
    features = _changed_features(run.x, again.x)
    return f"feature {features[0]} of x, at none of the sites {list(run.sites)}," if features else None


def edges_of(fn: Distribution) -> list[Tensor]:
    """Return the numbers that bound the support of a distribution, such as those of Uniform.

    What a transformed distribution gives as its support is that of its last transform, the real line for
    theta * Uniform(0, 1). Hence the edges of what is transformed are followed through the transforms.
    """
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    if isinstance(fn, TransformedDistribution) and type(fn).support is TransformedDistribution.support:
        edges = edges_of(fn.base_dist)
        for transform in fn.transforms:
            if transform.domain.event_dim or transform.codomain.event_dim:
                return []
            edges = [transform(edge).detach() for edge in edges]
        return edges
    try:
        return list(_numbers(fn.support))
    except NotImplementedError:
        return []


def equal_edges(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Return whether two supports have the same edges."""
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _changed_features(x: Tensor, other: Tensor) -> list[int]:
    """Return the features in which two x differ by more than rounding."""
    if x.shape != other.shape:
        return list(range(min(x.shape[1], other.shape[1]), max(x.shape[1], other.shape[1]) + 1))
    changed = ((x - other).abs() > SAME * x.abs().amax(0)).any(0)
    return [int(j) for j in changed.nonzero()]


def _refuse_moving(features: list[int], run: Run) -> None:
    """Raise ProgramError if there are features that move with theta while all values are held."""
    if features:
        raise ProgramError(
            f"`model` should let theta reach x through its sites alone; feature {features[0]} of x depends on theta "
            f"although the values of the sites {list(run.sites)} are held fixed, so that no joint score exists. Add a "
            'site of noise: return `pyro.sample("x", dist.Normal(feature, noise))` in its place.'
        )


def _numbers(part: object) -> Iterator[Tensor]:
    """Yield the numbers in a constraint and in the constraints it is made of."""
    if isinstance(part, Constraint):
        part = list(vars(part).values())
    if isinstance(part, list):
        for item in part:
            yield from _numbers(item)
    elif isinstance(part, Tensor | int | float):
        yield torch.as_tensor(part).detach()
