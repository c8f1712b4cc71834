"""Shapes and roles: the vocabulary of every signature in mfsbi.

Tensors carry their last axis by name and any number of batch axes before it. The test suite executes these
annotations (jaxtyping with beartype); at run time they cost nothing.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Coordinates",
    "Data",
    "Directions",
    "HasGold",
    "HasLikelihood",
    "HasManifold",
    "HasQuickLikelihood",
    "KnownLikelihood",
    "KnownOfRuns",
    "KnownTruth",
    "LikelihoodOfEvents",
    "Parameters",
    "Prior",
    "ProgramError",
    "Scalars",
    "Simulator",
    "Tangents",
]


class ProgramError(ValueError):
    """A simulator is wrong whatever theta is: no failure of some of its rows, which others survive."""


Data = Float[Tensor, "*batch data"]
"""x: points of data space."""

Coordinates = Float[Tensor, "*batch manifold"]
"""u: coordinates on the manifold."""

Directions = Float[Tensor, "*batch manifold columns"]
"""Directions in the space of coordinates, as columns."""

Parameters = Float[Tensor, "*#batch parameter"]
"""theta: parameters of the simulator."""

Scalars = Float[Tensor, "*batch"]
"""One number for each row: a log density, a loss, a distance."""

Tangents = Float[Tensor, "*batch data columns"]
"""The Jacobian of a chart's `decode`, or that times some directions: its columns are tangent to the manifold."""


@runtime_checkable
class Prior(Protocol):
    """A distribution of theta, as torch.distributions has them."""

    def sample(self, sample_shape: tuple[int, ...] = ...) -> Tensor:
        """Draw theta, shape `(*sample_shape, parameter)`."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(theta), shape `(*)`."""


@runtime_checkable
class Simulator(Protocol):
    """A source of data: a prior over theta, and x drawn given theta."""

    @property
    def prior(self) -> Prior:
        """The distribution theta is drawn from."""

    @property
    def parameter_names(self) -> Sequence[str]:
        """A name for each parameter."""

    def simulate(self, theta: Tensor, *, seed: int | None = None) -> Tensor:
        """Draw one x for each row of theta, shape `(rows, data)`."""


@runtime_checkable
class KnownOfRuns(Protocol):
    """Simulations with what their simulator knows of each run."""

    x: Tensor
    joint_score: Tensor
    joint_log_ratio: Tensor


@runtime_checkable
class HasGold(Protocol):
    """A simulator that knows the density of its whole run, latents included (see `mfsbi.gold`)."""

    def simulate_with_gold(
        self, theta: Tensor, *, theta_ref: Tensor | None = None, seed: int | None = None
    ) -> KnownOfRuns:
        """Draw one x for each row of theta, with joint score and joint log ratio against theta_ref."""


@runtime_checkable
class HasLikelihood(Protocol):
    """A simulator whose exact likelihood is known: the judge of a learned one."""

    def log_prob(self, x: Tensor, theta: Tensor) -> Tensor:
        """Return log p(x|theta), shape `(*)`."""


@runtime_checkable
class LikelihoodOfEvents(Protocol):
    """The likelihood of given observations, ready for any theta."""

    def log_prob(self, theta: Tensor) -> Tensor:
        """Return log p(x_j|theta) of each observation, theta broadcast against them, shape `(*)`."""

    def log_likelihood(self, theta: Tensor) -> Tensor:
        """Return sum_j log p(x_j|theta) at each row of theta, shape `(rows,)`."""


@runtime_checkable
class HasQuickLikelihood(HasLikelihood, Protocol):
    """A simulator that can do once for all theta what its likelihood needs of x."""

    def likelihood(self, x: Tensor) -> LikelihoodOfEvents:
        """Return the likelihood of observations of shape `(*, data)`."""


@runtime_checkable
class HasManifold(Protocol):
    """A simulator whose manifold is known."""

    @property
    def manifold_dim(self) -> int:
        """n, the dimension of the manifold."""

    def decode(self, u: Tensor) -> Tensor:
        """Return the point of the manifold with coordinates u, shape `(*, data)`."""

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of the point that stands for x, shape `(*, manifold)`."""

    def vertical_distance(self, x: Tensor) -> Tensor:
        """Return the distance to the manifold that the published tables use, shape `(*)`."""

    def distance(self, x: Tensor) -> Tensor:
        """Return the Euclidean distance of x to the manifold, shape `(*)`."""

    def out_of_distribution(self, rows: int, *, seed: int | None = None, noise: float = ...) -> Tensor:
        """Draw points near but off the manifold, shape `(rows, data)`."""


@runtime_checkable
class KnownLikelihood(Simulator, HasLikelihood, Protocol):
    """A simulator with exact likelihood: its posteriors are known."""


@runtime_checkable
class KnownTruth(Simulator, HasLikelihood, HasManifold, Protocol):
    """A simulator with exact likelihood and known manifold: what a demo can be judged against."""
