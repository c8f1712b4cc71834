r"""Likelihoods of many groups, each with a theta of its own: what a hierarchical model needs of us.

Groups g have parameters theta_g, drawn from a distribution with hyperparameters phi, and events x_gj drawn at them:

    p(phi, theta|x)  ∝  p(phi) prod_g [ p(theta_g|phi) prod_j p(x_gj|theta_g) ].

Everything but the last factor is a few known densities, which a probabilistic program says best. The last factor is
the simulator's, and the same for all groups: one p(x|theta), learned once, serves any number of groups and events, and
any distribution above them, without another simulation. As it is a likelihood that is learned, and not a posterior,
the prior that the simulations were drawn from need not be divided out: it says where the likelihood is known, and
nothing else. All events are placed on the manifold once, so that a step of a sampler evaluates the small latent density
at (theta_g, u_gj), forwards and back. Hierarchies of simulators, and what taking account of them gains, are the subject
of Heinrich, Mishra-Sharma, Pollard & Windischhofer, arXiv:2306.12584.

**Where it ends.** A hyperprior has no bounds, or others than the simulations had. Beyond these a network extrapolates,
often upwards, and a chain that strays there stays. So outside the range that theta had in the simulations, the box from
`low` to `high`, the likelihood of a group keeps the value of the nearest point b of the box but for a steep fall,

    sum_j log p(x_j|b) - sum_i |theta_i - b_i| / (0.01 (high_i - low_i)),    b = clamp(theta, low, high),

which leads samplers back that start outside, as those of Pyro and PyMC do, or step there while they adapt. What is
sampled is in effect the hierarchy restricted to the box. If the exact posterior hardly reaches its walls, nothing has
changed. Otherwise it is cut off, and a warning says so if theta keeps lying outside: simulate from a prior that covers
what the hyperprior reaches once it has seen the data.

**Few events, or a small spread of groups.** Where the events of a group say less about theta_g than its distribution
does, samplers do better in z_g ~ N(0, 1) with theta_g = mu + tau z_g (Betancourt & Girolami, arXiv:1312.0906); the
likelihood is the same.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from mfsbi.checks import require_features, require_finite, require_kind, require_tensor, warn
from mfsbi.inference.potential import EncodedLikelihood
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.train.reach import Reach, warn_of_observations

__all__ = ["GroupLikelihood"]

CALLS, MANY = 1000, 0.02
"""Calls in a row, and the share of them with a theta outside from which the walls are told of. The first are not
counted, in which steps find their size; after them, with walls far away, the share was 0.001 at most."""

FALL = 0.01
"""Of the range of theta, over which the likelihood falls by one nat outside."""


class GroupLikelihood:
    """theta -> sum_j log p(x_gj|theta_g) of each group g, differentiable, for probabilistic programs.

    It owns a frozen copy of the estimator. In Pyro `pyro.factor("events", likelihood(theta).sum())` adds it to a model,
    in PyMC `pm.Potential("events", likelihood.in_pytensor(theta).sum())`.

    Arguments:
        estimator: the trained estimator of a `ManifoldNLE`
        x: events, shape `(groups, events, data)`; or a matrix for each group, shape `(events, data)`, if their numbers
            differ. A group without an event has the likelihood one

    Raises:
        TypeError: if the estimator is not one of a `ManifoldNLE`, or x holds what is no tensor
        ValueError: if there is no event, one holds NaN or infinity, or has another number of features than the data
            that were learned

    Example:
        >>> from mfsbi import AF
        >>> theta = torch.randn(100, 1)
        >>> estimator = AF()(theta, theta + torch.randn(100, 2))
        >>> likelihood = GroupLikelihood(estimator, [torch.zeros(3, 2), torch.ones(5, 2)])
        >>> likelihood
        GroupLikelihood(2 groups, 8 events, 1 parameter)
        >>> likelihood(torch.zeros(2, 1)).shape
        torch.Size([2])
    """

    shape: tuple[int, int]
    """Of theta: groups and parameters."""

    def __init__(self, estimator: ManifoldEstimator, x: Tensor | Sequence[Tensor]) -> None:
        require_kind("estimator", estimator, ManifoldEstimator, "an estimator, as `ManifoldNLE.train()` returns it")
        model = deepcopy(estimator).requires_grad_(requires_grad=False).eval().model
        groups = _matrices(x, model.chart.data_dim)
        reach = Reach.of_record(estimator.training_record)
        rows = torch.cat(groups).to(model.latent.theta_mean.device)
        require_finite("x", rows, "Remove such events; rows are counted over all groups.")
        warn_of_observations(rows, reach, model.chart.straightened)
        self._likelihood = EncodedLikelihood(model, rows)
        sizes = torch.tensor([len(each) for each in groups])
        self._group = torch.arange(len(groups)).repeat_interleave(sizes).to(rows.device)
        self.shape = len(groups), model.latent.flow.parameter_dim
        self._box = None if reach is None else _box(reach)
        self._calls, self._told = 0, False
        self._outside = torch.zeros(self.shape[1])

    def __repr__(self) -> str:
        groups, parameters = self.shape
        return (
            f"{type(self).__name__}({_counted(groups, 'group')}, {_counted(len(self._group), 'event')}, "
            f"{_counted(parameters, 'parameter')})"
        )

    def __call__(self, theta: Tensor) -> Tensor:
        """Return log p(x_g|theta_g) of all events of each group, shape `(groups,)`, in the type of theta.

        Where theta lies outside the range that it had in the simulations the likelihood falls steeply; see above.

        Arguments:
            theta: shape `(groups, parameter)`

        Raises:
            TypeError: if theta is no tensor
            ValueError: if it has another shape
        """
        require_tensor("theta", theta)
        if theta.shape != self.shape:
            raise ValueError(
                f"`theta` should have shape {self.shape}, a row of parameters for each group; got {tuple(theta.shape)}."
            )
        if self._box is None:
            return self._log_prob(theta)
        low, high = self._box.to(theta)
        inside = theta.clamp(low, high)
        self._count(theta != inside)
        return self._log_prob(inside) - ((theta - inside).abs() / (FALL * (high - low))).sum(-1)

    def in_pytensor(self, theta: Any) -> Any:  # noqa: ANN401 - PyTensor is an extra
        """Return the same in PyMC's language: a variable of PyTensor of shape `(groups,)`, with its gradient.

        It is computed by torch, so PyMC's own NUTS samples it and those in JAX cannot. Around it there is little worth
        compiling: `pm.sample(compile_kwargs={"mode": "FAST_COMPILE"})` compiles nothing.

        Arguments:
            theta: a variable of PyTensor, shape `(groups, parameter)`

        Raises:
            ImportError: without PyTensor, which comes with the extra `pymc`
            ValueError: if theta is no matrix; the shape of its values is checked when they come
        """
        from mfsbi.inference.to_pytensor import to_pytensor  # noqa: PLC0415 - an extra

        return to_pytensor(self, theta)

    def _log_prob(self, theta: Tensor) -> Tensor:
        """Return the sums over the events of each group."""
        rows = theta.to(self._likelihood.points)[self._group]
        values = self._likelihood.rowwise(rows).to(theta.dtype)
        return values.new_zeros(len(theta)).index_add(0, self._group, values).to(theta.device)

    def _count(self, outside: Tensor) -> None:
        """Warn, once, if theta keeps lying outside the box."""
        self._calls += 1
        self._outside += outside.any(0).to(self._outside)
        if self._calls % CALLS:
            return
        share, parameter = (self._outside / CALLS).max(0)
        self._outside.zero_()
        if share > MANY and self._calls > CALLS and not self._told and self._box is not None:
            self._told = True
            low, high = self._box[:, int(parameter)].tolist()
            warn(
                f"Parameter {int(parameter)} of a group lay outside {low:.4g} to {high:.4g}, where theta of the "
                f"simulations was, in {100 * float(share):.0f} % of the last {CALLS} calls. The likelihood is not "
                "known there and taken as nearly zero, so that the posterior is cut off: simulate from a wider "
                "prior, or narrow the distribution of the groups."
            )


def _box(reach: Reach) -> Tensor:
    """Return the ends of the range of theta, shape `(2, parameter)`; none for parameters that never varied."""
    box = torch.tensor(reach.theta, dtype=torch.float64)
    return torch.where(box[0] < box[1], box, torch.tensor([[-torch.inf], [torch.inf]], dtype=torch.float64))


def _matrices(x: Tensor | Sequence[Tensor], features: int) -> list[Tensor]:
    """Return the events of each group, shape `(events, features)`."""
    if isinstance(x, Tensor) and x.ndim != 3:
        raise ValueError(
            f"`x` should have shape (groups, events, {features}), or be a list with a matrix for each group; "
            f"got shape {tuple(x.shape)}."
        )
    groups = list(x)
    for number, each in enumerate(groups):
        require_tensor(f"x[{number}]", each)
        require_features(f"x[{number}]", each, features, "the data the model was trained on")
    if not any(map(len, groups)):
        raise ValueError(f"`x` should have an event; got {_counted(len(groups), 'group')} without any.")
    return groups


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
