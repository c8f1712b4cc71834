"""What a sampler is given and what it returns: all you need to know to write your own.

    class FromPrior:
        def draw(self, problem, draws, seed):
            with seeded(seed):
                theta = problem.prior.sample((4 * draws,)).view(4, draws, -1)
            return problem.chains(theta, Info("from the prior", markov=False))

    sample_chains(posterior, x, FromPrior())

Markov chains take `problem.starts` for where they begin, and walk in the coordinates of `problem.transform`.
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor
from torch.distributions import Distribution, Transform

from mfsbi.inference.chains import Chains, Info
from mfsbi.seeds import seeded

__all__ = ["FEW_VALUES", "Problem", "Sampler", "bars_shown", "leave_out"]

FEW_VALUES = (
    "the prior has parameters that take few values, such as whole numbers: its draws would not be those of the "
    'posterior. Use `sample_with="rejection"`, or `sample_chains(..., sampler="importance")`.'
)
"""Why samplers that move continuously are refused, and which to use."""


@runtime_checkable
class Sampler(Protocol):
    """A way to draw from a posterior."""

    def draw(self, problem: "Problem", draws: int, seed: int) -> Chains:
        """Return chains of so many draws each, which depend on the problem and the seed alone.

        Arguments:
            problem: the posterior to draw from
            draws: of each chain, after its warm-up
            seed: of everything random, see `mfsbi.seeds.seeded`; the global generators stay as they are
        """


def leave_out(settings: Iterable[str], reason: str) -> None:
    """Raise TypeError if there are settings that something else decides already.

    Arguments:
        settings: their names
        reason: what decides them, for the message
    """
    names = ", ".join(f"`{name}`" for name in sorted(settings))
    if names:
        raise TypeError(f"{reason}: leave out {names}.")


def bars_shown(*, wanted: bool | None) -> bool:
    """Return whether to show progress bars: as it was wanted, or for None only where they go to a terminal.

    Arguments:
        wanted: True, False, or None for "only on a terminal", where tqdm and the libraries write: the standard error
    """
    return sys.stderr.isatty() if wanted is None else wanted


class Problem(NamedTuple):
    """A posterior to draw from; a copy of the caller's, so that a sampler may do with it what it likes.

    Arguments:
        potential: theta of shape `(rows, parameter)` -> log posterior up to a constant, shape `(rows,)`, -inf outside
            the prior; called with `track_gradients=False` it keeps no graph. For several data sets, see `sets`, it
            has `of_sets(theta, which)`
        prior: the prior of theta
        transform: theta -> unconstrained coordinates
        x: the observations, shape `(observations, data)`, which the potential has already
        posterior: sbi's posterior
        show_progress_bars: whether to show a progress bar
        sets: how many data sets there are, each with a theta of its own; 0 where all of x shares one
        first: the number of the first of them, for messages
    """

    potential: Callable[..., Tensor]
    prior: Distribution
    transform: Transform
    x: Tensor
    posterior: object
    show_progress_bars: bool
    sets: int = 0
    first: int = 0

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return self.prior.event_shape[0]

    @property
    def device(self) -> str | torch.device:
        """Where the potential is evaluated."""
        return getattr(self.potential, "device", "cpu")

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return the log posterior up to a constant without gradients, shape `(rows,)`.

        Arguments:
            theta: shape `(rows, parameter)`, on any device; -inf outside the prior
        """
        return self.potential(theta.to(self.device), track_gradients=False)

    def log_prob_of_sets(self, theta: Tensor, which: Tensor) -> Tensor:
        """Return the log posteriors of some data sets without gradients, shape `(some, rows)`.

        Arguments:
            theta: shape `(some, rows, parameter)`, on any device
            which: data set of each of the first axis, shape `(some,)`
        """
        if not self.sets:
            return self.log_prob(theta.flatten(0, 1)).view(theta.shape[:2])
        of_sets: Callable[[Tensor, Tensor], Tensor] = cast(Any, self.potential).of_sets
        with torch.no_grad():
            return of_sets(theta.to(self.device), which.to(self.device))

    def starts(self, count: int, seed: int) -> Tensor:
        """Return draws of the prior at which the posterior is not zero, shape `(count, parameter)`.

        Arguments:
            count: how many are wanted
            seed: of the draws

        Raises:
            ValueError: if a hundred times as many draws of the prior hold too few
        """
        with seeded(seed), torch.no_grad():
            theta = self.prior.sample(torch.Size([100 * count]))
            possible = theta[torch.isfinite(self.log_prob(theta))]
        if len(possible) < count:
            raise ValueError(
                f"The posterior is zero at all but {len(possible)} of {len(theta)} draws of the prior; {count} starts "
                "are needed. Is x within reach of the prior?"
            )
        return possible[:count]

    def chains(self, theta: Tensor, info: Info) -> Chains:
        """Return draws of shape `(chain, draw, parameter)` with their log posterior.

        Arguments:
            theta: the draws; chains may be independent draws split into some
            info: how they were made; `sample_chains` adds seed, seconds and evaluations
        """
        with torch.no_grad():
            log_prob = self.log_prob(theta.flatten(0, 1)).view(theta.shape[:2])
        return Chains(theta, log_prob, info)

    def require_continuous(self, sampler: str) -> None:
        """Raise ValueError if parameters take few values, for samplers that move through theta continuously.

        Arguments:
            sampler: its name, for the message
        """
        if getattr(self.prior, "discrete", False):
            raise ValueError(f"Sampler {sampler!r} moves through theta continuously, and {FEW_VALUES}")
