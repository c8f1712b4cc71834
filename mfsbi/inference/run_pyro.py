r"""The door to Pyro: Hamiltonian Monte Carlo and NUTS, which follow the gradient of the log posterior.

They walk in unconstrained coordinates y = T(theta), in which the posterior has the density

    log p(y|x) = log p(theta|x) + log |det dtheta/dy|,    theta = T^-1(y)

(Hoffman & Gelman, arXiv:1111.4246; Betancourt, arXiv:1701.02434). Step size and mass are adapted during the warm-up;
trajectories that diverge are counted, since they mark places where the posterior was not explored.

HMC's trajectories last a quarter of the period of a standard normal by default, after which a draw is independent of
the one before. Pyro's default of 2 pi is a full period, which leads back to the same point at four times the cost.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Transform, identity_transform
from tqdm.auto import tqdm

from mfsbi.checks import require_positive_integer, require_whole, warn
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.samplers import Problem, leave_out
from mfsbi.seeds import derived, seeded, undisturbed

with undisturbed():  # pyro switches torch's validation of distributions on
    from pyro.infer import mcmc

__all__ = ["HMC", "NUTS", "run_pyro"]


@dataclass(frozen=True)
class Hamiltonian:
    """What `NUTS` and `HMC` share.

    Arguments:
        chains: how many
        warmup: steps before the draws, in which step size and mass are adapted
        target_accept_prob: to which the step size is adapted
        step_size: the first one
        adapt_step_size: whether to adapt it
        adapt_mass_matrix: whether to adapt the mass
        full_mass: whether the mass is a matrix rather than its diagonal

    Raises:
        ValueError: if chains is not a positive integer, or warmup is negative
    """

    chains: int = 4
    warmup: int = 250
    target_accept_prob: float = 0.8
    step_size: float = 1
    adapt_step_size: bool = True
    adapt_mass_matrix: bool = True
    full_mass: bool = False

    _kind: ClassVar[type[mcmc.HMC]]

    def __post_init__(self) -> None:
        require_positive_integer("chains", self.chains)
        require_whole("warmup", self.warmup)

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return the chains, which begin at draws of the prior."""
        problem.require_continuous(self._name)
        return run_pyro(
            problem.potential,
            problem.starts(self.chains, derived(seed, 0)),
            draws,
            kernel=self,
            transform=problem.transform,
            seed=derived(seed, 1),
            show_progress_bars=problem.show_progress_bars,
        )

    @property
    def _name(self) -> str:
        return type(self).__name__.lower()

    def _kernel(self, energy: Callable[[dict[str, Tensor]], Tensor]) -> mcmc.HMC:
        """Return Pyro's kernel for a potential energy of the unconstrained coordinates."""
        own = "chains", "warmup"
        settings = {name: value for name, value in asdict(self).items() if name not in own}
        return self._kind(potential_fn=energy, **settings)


@dataclass(frozen=True)
class NUTS(Hamiltonian):
    """Pyro's NUTS, whose trajectories end where they turn back.

    Arguments, besides those of `Hamiltonian`:
        max_tree_depth: a trajectory has at most 2 to this power steps
        use_multinomial_sampling: whether to choose points of a trajectory by their weight, rather than by a slice
    """

    max_tree_depth: int = 10
    use_multinomial_sampling: bool = True

    _kind = mcmc.NUTS


class _BoundedHMC(mcmc.HMC):
    """Pyro's HMC with a limit for the steps of a trajectory, as NUTS has."""

    def __init__(
        self, *, trajectory_length: float | None, num_steps: int | None, max_num_steps: int, **settings: object
    ) -> None:
        length = math.pi / 2 if trajectory_length is None and num_steps is None else trajectory_length
        super().__init__(trajectory_length=length, num_steps=num_steps, **settings)
        self.max_num_steps = max_num_steps

    @property
    def num_steps(self) -> int:
        """The steps of a trajectory."""
        return min(self.max_num_steps, int(super().num_steps))


@dataclass(frozen=True)
class HMC(Hamiltonian):
    """Pyro's HMC, whose trajectories have a fixed length.

    Arguments, besides those of `Hamiltonian`:
        trajectory_length: in units of the posterior's spread; pi / 2 if neither it nor num_steps is given
        num_steps: steps of the first size in a trajectory, which say its length
        max_num_steps: at most so many steps, since the warm-up shrinks them towards zero where a density jumps

    Raises:
        TypeError: if both trajectory_length and num_steps are given
    """

    trajectory_length: float | None = None
    num_steps: int | None = None
    max_num_steps: int = 1024

    _kind = _BoundedHMC

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trajectory_length is not None:
            leave_out([] if self.num_steps is None else ["num_steps"], "`trajectory_length` says it too")


KERNELS: dict[str, Callable[..., Hamiltonian]] = {"nuts": NUTS, "hmc": HMC}


def run_pyro(
    log_prob: Callable[[Tensor], Tensor],
    starts: Tensor,
    draws: int = 250,
    *,
    kernel: str | Hamiltonian = "nuts",
    transform: Transform = identity_transform,
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: object,
) -> Chains:
    """Sample by Pyro's NUTS or HMC, one chain from each start; Ctrl-C keeps the chains that are finished.

    Arguments:
        log_prob: theta of shape `(rows, parameter)` -> log posterior up to a constant, differentiable
        starts: where the chains begin, shape `(chains, parameter)`
        draws: of each chain, after the warm-up
        kernel: "nuts", "hmc", or a value with its settings, whose `chains` are not used: there is one for each start
        transform: theta -> unconstrained coordinates
        seed: of the momenta
        show_progress_bars: show a bar over the chains
        settings: those of `NUTS` or `HMC` by name, if `kernel` is a word, such as warmup

    Returns:
        the chains, with the mean acceptance and the number of divergent trajectories in `info`

    Raises:
        ValueError: if the kernel is unknown or log_prob is not finite at a start
        TypeError: if there is no such setting, or settings come beside a value, or chains beside starts
        KeyboardInterrupt: if interrupted before the first chain is finished
    """
    require_positive_integer("draws", draws)
    leave_out({"chains"} & settings.keys(), "`starts` has a row for each chain")
    leave_out(() if isinstance(kernel, str) else settings, f"`kernel` has its own settings, {kernel}")
    if isinstance(kernel, str) and kernel not in KERNELS:
        raise ValueError(f"`kernel` should be one of {sorted(KERNELS)}; got {kernel!r}.")
    how = KERNELS[kernel](**settings) if isinstance(kernel, str) else kernel
    with torch.no_grad():
        first = log_prob(starts)
    if not torch.isfinite(first).all():
        raise ValueError(
            f"`log_prob` should be finite at every start; it is {first[~torch.isfinite(first)][0]} at one."
        )

    def energy(at: dict[str, Tensor]) -> Tensor:
        y = at["y"]
        theta = transform.inv(y)
        return -(log_prob(theta[None])[0] - transform.log_abs_det_jacobian(theta, y).sum())

    began, chains, accepted, divergent = time.perf_counter(), [], [], 0
    try:
        for number, start in enumerate(tqdm(starts, disable=not show_progress_bars, desc=how._name, leave=False)):
            # pyro fills global state: its generator is torch's
            with seeded(derived(seed, number)), undisturbed():
                walk = mcmc.MCMC(
                    how._kernel(energy),
                    num_samples=draws,
                    warmup_steps=how.warmup,
                    initial_params={"y": transform(start).detach()},
                    disable_progbar=True,
                )
                walk.run()
            report = walk.diagnostics()
            accepted.append(float(report["acceptance rate"]["chain 0"]))
            divergent += len(report["divergences"]["chain 0"])
            chains.append(transform.inv(walk.get_samples()["y"]).detach())
    except KeyboardInterrupt:
        if not chains:
            raise
        warn(f"Sampling was interrupted; {len(chains)} of {len(starts)} chains are kept.")
    theta = torch.stack(chains)
    with torch.no_grad():
        values = log_prob(theta.flatten(0, 1)).view(theta.shape[:2])
    info = Info(
        how._name,
        warmup_steps=how.warmup,
        seed=seed,
        seconds=time.perf_counter() - began,
        acceptance=sum(accepted) / len(accepted),
        divergences=divergent,
    )
    return Chains(theta, values, info)
