r"""Any prior as samplers want it: vectors of theta in one type, a density that is zero outside, a way to R^k.

Users bring torch's distributions with or without a batch or an event axis, of float32 or float64, lists of them,
frozen distributions of scipy, and objects of their own with `sample` and `log_prob` alone. A `ParameterPrior`
makes of each

* draws of shape `(*, parameter)` in torch's default type,
* log p(theta), shape `(*)`, which is -inf outside the support, whatever the distribution itself says there: torch's
  return a finite number or NaN where their checks are off, and raise where they are on,
* `unconstrained`, a bijection theta -> y with y in R^k, in which Markov chains walk with the density
  p(theta) |det dtheta/dy|.

**The bijection.** It is put together from what is known of the distribution, and found good only if 200 draws survive
the way there and back:

1. a transformed distribution is the image of its base, whose bijection is continued by the transforms: a log-uniform
   theta = exp(z) walks in the logit of z, a log-normal one in the standardised z;
2. a support with a bijection of torch's takes it: a logit between bounds, a logarithm above one bound, stick-breaking
   on a simplex, where k is one less than the parameters;
3. everything else, also where the first two fail, is standardised by median and quantiles of its draws, and steps out
   of the support are refused by the density alone.

**Gradients.** A density of numpy's or scipy's has none; it is differentiated by central differences, in float64, so
that samplers which follow gradients take such a prior as any other.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, MixtureSameFamily, TransformedDistribution, constraints
from torch.distributions.transforms import Transform

from mfsbi.free_coordinates import Unconstrained, way_to
from mfsbi.plugin.host import move_distribution_to_device, within_support
from mfsbi.seeds import seeded
from mfsbi.types import Prior

__all__ = ["ParameterPrior", "masked", "parameter_prior"]

DRAWS = 200
"""By which a bijection is judged."""

SIMPLEX = 1e-4
"""By how much a sum of float32 numbers on a simplex may differ from one."""

STEP = 1e-5
"""Of central differences, relative to theta or to one."""


Anything = TypeVar("Anything")


Frozen: TypeAlias = Any
"""A frozen distribution of scipy's."""


def parameter_prior(prior: object) -> "ParameterPrior":
    """Return a prior as a `ParameterPrior`, with a copy of its own where the prior can be copied.

    Arguments:
        prior: a distribution of torch, a list of such, a frozen distribution of scipy, or an object with
            `sample((rows,))` and `log_prob(theta)`

    Raises:
        TypeError: if it is none of these
        ValueError: if it has no axis for parameters, several of them, or its density does not fit its draws

    Example:
        >>> from torch.distributions import Exponential
        >>> prior = parameter_prior(Exponential(torch.ones(1)))
        >>> prior.log_prob(torch.tensor([[1.0], [-1.0]])).tolist()
        [-1.0, -inf]
    """
    if isinstance(prior, ParameterPrior):
        return prior
    with seeded(0):
        if isinstance(prior, Sequence) and not isinstance(prior, str):
            return ParameterPrior([part for each in prior for part in parameter_prior(each).parts])
        return ParameterPrior([_Part(prior)])


def masked(prior: "ParameterPrior", theta: Tensor, log_prob: Callable[[Tensor], Tensor]) -> Tensor:
    """Return log_prob(theta), shape `(rows,)`, and -inf outside the prior's support, where it is not asked.

    A function that is NaN or infinite outside leaves no trace in gradients either.
    """
    inside = prior.inside(theta)
    if inside.all():
        return log_prob(theta)
    return log_prob(torch.where(inside[:, None], theta, prior.somewhere.to(theta))).where(inside, -torch.inf)


class _Support(constraints.Constraint):
    """The support of a `ParameterPrior`, as torch has supports."""

    event_dim = 1

    def __init__(self, prior: "ParameterPrior") -> None:
        self.prior = prior

    def check(self, value: Tensor) -> Tensor:
        return self.prior.inside(value.reshape(-1, value.shape[-1])).view(value.shape[:-1])


class ParameterPrior(Distribution):
    """A distribution of theta; see above.

    Arguments:
        parts: independent distributions, in the order of the parameters
    """

    def __init__(self, parts: "Sequence[_Part]") -> None:
        if not parts:
            raise ValueError("`prior` should have a distribution for each parameter; the list is empty.")
        self.parts = list(parts)
        self.device = torch.device("cpu")
        super().__init__(event_shape=torch.Size([sum(part.size for part in parts)]), validate_args=False)
        self.somewhere = self.sample((1,))

    def __repr__(self) -> str:
        return ", ".join(repr(part.inner) for part in self.parts)

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is not zero."""
        return _Support(self)

    @property
    def mean(self) -> Tensor:
        """The mean of 1,000 draws, shape `(parameter,)`."""
        return self._draws().mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance of 1,000 draws, shape `(parameter,)`."""
        return self._draws().var(0)

    @property
    def discrete(self) -> bool:
        """Whether a parameter takes few values: of 1,000 draws a tenth differs, or half if all are whole numbers."""
        draws = self._draws().T
        shares = [len(column.unique()) / len(column) for column in draws]
        return any(each < (0.5 if (row == row.round()).all() else 0.1) for each, row in zip(shares, draws, strict=True))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw theta, shape `(*sample_shape, parameter)`, in torch's default type."""
        shape = torch.Size(sample_shape)
        draws = [part.sample(shape.numel()) for part in self.parts]
        return torch.cat(draws, dim=-1).view(*shape, -1).to(self.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(theta), shape `(*)`, -inf outside the support."""
        rows = value.reshape(-1, value.shape[-1])
        return masked(self, rows, self._log_prob).view(value.shape[:-1])

    def inside(self, theta: Tensor) -> Tensor:
        """Return which rows lie within the support, shape `(rows,)`."""
        return torch.stack([part.inside(rows) for part, rows in self._split(theta)]).all(0)

    def to(self, device: str | torch.device) -> "ParameterPrior":
        """Draw and evaluate there from now on, and return self.

        Raises:
            ValueError: if one of torch's distributions cannot be moved
        """
        for part in self.parts:
            part.move(device)
        self.device = torch.empty(0, device=device).device
        self.somewhere = self.somewhere.to(self.device)
        return self

    @property
    def unconstrained(self) -> Transform:
        """The bijection theta -> y, shapes `(*, parameter)` and `(*, k)`; its log-determinants are sums over rows."""
        with seeded(0):
            return Unconstrained([part.unconstrained() for part in self.parts], [part.size for part in self.parts])

    def _log_prob(self, theta: Tensor) -> Tensor:
        return torch.stack([part.log_prob(rows) for part, rows in self._split(theta)]).sum(0)

    def _split(self, theta: Tensor) -> "list[tuple[_Part, Tensor]]":
        return list(zip(self.parts, theta.split([part.size for part in self.parts], dim=-1), strict=True))

    def _draws(self) -> Tensor:
        with seeded(0):
            return self.sample((1000,))


class _Part:
    """One distribution of a `ParameterPrior`, of one or several parameters.

    Arguments:
        inner: with `sample` and `log_prob`, or scipy's `rvs` and `logpdf`
    """

    def __init__(self, inner: object) -> None:
        of_scipy = hasattr(inner, "rvs") and hasattr(inner, "logpdf")
        self.inner = _copied(cast(Prior, _Scipy(inner) if of_scipy else inner))
        if not isinstance(self.inner, Prior):
            raise TypeError(
                "`prior` should be a distribution with `sample` and `log_prob`, such as torch's; "
                f"got {' '.join(repr(inner).split())[:60]}, a {type(inner).__name__}."
            )
        for each in _family(self.inner):
            each._validate_args = False
        drawn = _call("sample", lambda: self.inner.sample(torch.Size([2])))
        self.of_numpy = not isinstance(drawn, Tensor)
        drawn = torch.as_tensor(drawn)
        if drawn.ndim != 2 or drawn.shape[1] == 0 or len(drawn) != 2:
            raise ValueError(
                "`prior` should draw rows of parameters: `prior.sample((2,))` should have shape (2, parameters); got "
                f"{tuple(drawn.shape)}. Give a distribution of one number a batch axis, as Uniform(torch.zeros(1), "
                "torch.ones(1)), and make one of several by torch's `Independent(..., 1)`, or pass a list."
            )
        self.kind, self.size = drawn, drawn.shape[1]
        given: Any = drawn.numpy() if self.of_numpy else drawn
        found = torch.as_tensor(_call("log_prob", lambda: self.inner.log_prob(given)))
        if found.shape not in ((2,), (2, 1)):
            raise ValueError(
                "`prior.log_prob` should return one number for each row of theta; for two rows it returned shape "
                f"{tuple(found.shape)}. Several distributions of one parameter become one by torch's "
                "`Independent(..., 1)`, or as a list."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Part":
        other = copy(self)
        other.inner = _copied(self.inner)
        return other

    def sample(self, rows: int) -> Tensor:
        """Draw theta, shape `(rows, size)`, in torch's default type."""
        drawn = torch.as_tensor(self.inner.sample(torch.Size([rows])))
        return drawn.detach().to(torch.get_default_dtype()).view(rows, self.size)

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return log p(theta), shape `(rows,)`, whatever the distribution says outside its support."""
        if self.of_numpy:
            return _with_differences(self.inner.log_prob, theta)
        return _log_prob(self.inner, theta.to(self.kind)).reshape(len(theta)).to(theta)

    def inside(self, theta: Tensor) -> Tensor:
        """Return which rows lie within the support and have a density, shape `(rows,)`."""
        with torch.no_grad():
            given = theta.detach().to(self.kind.device)
            if self.of_numpy:
                possible = torch.isfinite(self.log_prob(theta))
            elif _is_simplex(self.inner):
                possible = (given > 0).all(-1) & ((given.sum(-1) - 1).abs() < SIMPLEX)
            elif isinstance(self.inner, MixtureSameFamily):
                possible = _log_prob(self.inner, given.to(self.kind)) > -torch.inf
            else:
                possible = self._supported(given)
            possible = possible.reshape(len(theta))
            image = any(isinstance(each, TransformedDistribution) for each in _family(self.inner))
            if image and possible.any():  # the support of an image under a transform may be smaller than torch says
                rows = torch.where(possible[:, None], theta.detach(), theta.detach()[possible.to(theta.device)][:1])
                possible = possible & (self.log_prob(rows) > -torch.inf).to(possible.device)
            return possible.to(theta.device)

    def _supported(self, theta: Tensor) -> Tensor:
        """Return which rows the support holds, in their own type if the support can be asked so."""
        try:
            return within_support(self.inner, theta)
        except RuntimeError:  # a density asked for the lack of a support takes one type
            return within_support(self.inner, theta.to(self.kind))

    def move(self, device: str | torch.device) -> None:
        """Draw and evaluate on a device, if this is torch's; others stay on the processor.

        Raises:
            ValueError: if it cannot be moved
        """
        if self.of_numpy or self.kind.device == torch.empty(0, device=device).device:
            return
        try:
            self.inner = move_distribution_to_device(self.inner, device)
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ValueError(
                f"`prior` draws on {self.kind.device} and should on {device}, but sbi cannot move a "
                f"{type(self.inner).__name__}: {error} Pass one of torch's, or one that has a method `to`."
            ) from error
        self.kind = torch.as_tensor(self.inner.sample(torch.Size([2])))

    def unconstrained(self) -> Transform:
        """Return the bijection y -> theta."""
        draws = torch.as_tensor(self.inner.sample(torch.Size([DRAWS]))).detach().view(DRAWS, self.size)
        return way_to(self.inner, draws)


class _Scipy:
    """A frozen distribution of scipy with the names of torch's."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen = frozen

    def __repr__(self) -> str:
        name = getattr(getattr(self.frozen, "dist", self.frozen), "name", type(self.frozen).__name__)
        return f"scipy's {name}"

    def sample(self, shape: torch.Size) -> np.ndarray:
        """Draw rows from numpy's global generator."""
        return np.asarray(self.frozen.rvs(size=shape.numel()), dtype=np.float64).reshape(shape.numel(), -1)

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Return log p of each row."""
        rows = np.asarray(theta, dtype=np.float64)
        with np.errstate(all="ignore"):  # outside the support, where the density is zero
            return np.asarray(self.frozen.logpdf(rows if rows.shape[1] > 1 else rows[:, 0])).reshape(len(rows))

    @property
    def support(self) -> constraints.Constraint:
        """The interval that scipy says, of a distribution of one number."""
        low, high = (torch.tensor([float(end)]) for end in self.frozen.support())
        if torch.isinf(high):
            return constraints.real if torch.isinf(low) else constraints.greater_than(low)
        return constraints.less_than(high) if torch.isinf(low) else constraints.interval(low, high)


def _with_differences(log_prob: Callable[..., object], theta: Tensor) -> Tensor:
    """Return a density of numpy's at each row of theta, whose gradient is a central difference in float64.

    No difference is taken over the edge of the support.
    """
    rows = theta.detach().cpu().double().numpy()
    value = _density_of(log_prob, rows).to(theta)
    if not (theta.requires_grad and torch.is_grad_enabled()):
        return value
    slopes = []
    for i, steps in enumerate((STEP * np.maximum(1, np.abs(rows))).T):
        step = np.zeros_like(rows)
        step[:, i] = steps
        rise = _density_of(log_prob, rows + step) - _density_of(log_prob, rows - step)
        slopes.append(rise / torch.from_numpy(2 * steps))
    slope = torch.stack(slopes, dim=-1).nan_to_num(0.0, 0.0, 0.0).to(theta)
    return value + (slope * (theta - theta.detach())).sum(-1)  # nothing is added but the gradient


def _density_of(log_prob: Callable[..., object], rows: np.ndarray) -> Tensor:
    """Return log p of each row, shape `(rows,)`; NaN is -inf, as outside a support that nobody told."""
    with np.errstate(all="ignore"):
        value = torch.as_tensor(np.asarray(log_prob(rows), dtype=np.float64)).reshape(len(rows))
    return value.where(~value.isnan(), -torch.inf)


def _family(inner: object) -> list[Distribution]:
    """Return a distribution of torch's, and those within it, whose argument checks would raise outside a support."""
    if not isinstance(inner, Distribution):
        return []
    names = ("base_dist", "_component_distribution", "_mixture_distribution", "prior", "_prior")
    within = [getattr(inner, name) for name in names if name in vars(inner)]
    return [inner, *(each for part in [*within, *getattr(inner, "dists", [])] for each in _family(part))]


def _log_prob(inner: Prior, theta: Tensor) -> Tensor:
    """Return log p of each row; of a mixture without the components in whose support a row is not."""
    if not isinstance(inner, MixtureSameFamily):
        return inner.log_prob(theta)
    components = inner.component_distribution
    rows = theta.unsqueeze(-1 - len(inner.event_shape))
    within = cast(constraints.Constraint, components.support).check(rows)
    value = components.log_prob(rows).where(within, -torch.inf)
    return (value + inner.mixture_distribution.logits.log_softmax(-1)).logsumexp(-1)


def _is_simplex(inner: object) -> bool:
    with suppress(NotImplementedError):
        return getattr(inner, "support", None) is constraints.simplex
    return False


def _call(name: str, function: Callable[[], Anything]) -> Anything:
    """Return what a prior's method returns, or say which one failed."""
    try:
        return function()
    except Exception as error:
        raise ValueError(f"`prior.{name}` failed for two rows: {type(error).__name__}: {error}") from error


def _copied(inner: Anything) -> Anything:
    """Return a copy, or the same where it cannot be copied, as with tensors that carry a graph."""
    try:
        return deepcopy(inner)
    except (RuntimeError, TypeError):
        return inner
