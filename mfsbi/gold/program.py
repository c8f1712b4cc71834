"""A Pyro program with a prior as a simulator: for `simulate`, stores and the command line, gold included."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from mfsbi.checks import require_finite, require_kind, require_last_axis
from mfsbi.gold.mining import mine
from mfsbi.simulations import Simulated
from mfsbi.types import Prior

__all__ = ["PyroSimulator"]


class PyroSimulator:
    """A Pyro program as a simulator with gold, which is mined (see `mine`).

    Arguments:
        model: theta of shape `(rows, parameter)` -> x, written for one run
        prior: of theta
        parameter_names: one for each parameter; `theta_0`, `theta_1`, ... if None
        theta_ref: where joint log ratios have their denominator if none is asked for, shape `(parameter,)`; the mean of
            the prior if None

    Raises:
        TypeError: if the model is no function, or the prior no distribution
        ValueError: if there is not a name for each parameter, or the prior has no mean and no reference is given

    Example: ALICES learns a ratio from it, half of the runs made at a reference.
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from mfsbi.gold import PyroSimulator, simulate
        >>> def counter(theta):
        ...     photons = pyro.sample("photons", dist.Poisson(theta[..., 0].exp()))
        ...     return pyro.sample("measured", dist.Normal(photons, 0.5))
        >>> simulator = PyroSimulator(counter, dist.Normal(torch.zeros(1), 1.0).to_event(1))
        >>> theta, from_theta = simulator.prior.sample((100,)), torch.arange(100) % 2 == 0
        >>> gold = simulate(simulator, theta, theta_ref=torch.zeros(1), from_theta=from_theta, seed=0)
        >>> gold.x.shape, gold.joint_score.shape, gold.joint_log_ratio.shape
        (torch.Size([100, 1]), torch.Size([100, 1]), torch.Size([100]))
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        prior: Prior,
        parameter_names: Sequence[str] | None = None,
        *,
        theta_ref: Tensor | None = None,
    ) -> None:
        require_kind("model", model, Callable, "a Pyro program, a function theta -> x")  # type: ignore[arg-type]
        require_kind("prior", prior, Prior, "a distribution with `sample` and `log_prob`, such as torch's")
        event = torch.Size(prior.event_shape) if hasattr(prior, "event_shape") else prior.sample((1,)).shape[1:]
        if len(event) != 1:
            raise ValueError(
                f"`prior` should draw theta of shape (rows, parameter); one draw of it has shape {tuple(event)}. Let "
                "parameters be one event, `.to_event(1)`."
            )
        names = [f"theta_{i}" for i in range(event[0])] if parameter_names is None else list(parameter_names)
        if len(names) != event[0]:
            raise ValueError(f"`parameter_names` should name the {event[0]} parameters of the prior; got {names}.")
        self.model = model
        self.prior = prior
        self.parameter_names = names
        self.theta_ref = _mean_of(prior) if theta_ref is None else theta_ref
        require_last_axis("theta_ref", self.theta_ref, event[0], "the prior")
        require_finite("theta_ref", self.theta_ref, "Say `theta_ref=`, parameters that the program can be run at.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({getattr(self.model, '__qualname__', self.model)}, {self.prior})"

    def simulate(self, theta: Tensor, *, seed: int | None = None) -> Tensor:
        """Draw one x for each row of theta, shape `(rows, data)`.

        Raises:
            ValueError: if the program cannot be mined
        """
        return self.simulate_with_gold(theta, seed=seed).x

    def simulate_with_gold(
        self, theta: Tensor, *, theta_ref: Tensor | None = None, seed: int | None = None
    ) -> Simulated:
        """Draw one x for each row of theta, with the joint score and the joint log ratio to theta_ref.

        Arguments:
            theta: shape `(rows, parameter)`
            theta_ref: the parameters of the ratio's denominator, broadcast against theta; the simulator's own if None
            seed: for a repeatable draw

        Raises:
            ValueError: if the program cannot be mined
        """
        reference = self.theta_ref if theta_ref is None else theta_ref
        seed = int(torch.randint(2**31, ())) if seed is None else seed
        return mine(self.model, theta, theta_ref=reference, seed=seed)


def _mean_of(prior: Prior) -> Tensor:
    """Return the mean of a prior, or raise ValueError if it has none."""
    with suppress(NotImplementedError):
        mean = getattr(prior, "mean", None)
        if isinstance(mean, Tensor):
            return mean
    raise ValueError(f"{prior} has no mean, where the ratio could have its reference: say `theta_ref=`.")
