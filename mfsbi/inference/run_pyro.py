r"""The door to Pyro: Hamiltonian Monte Carlo and NUTS, which follow the gradient of the log posterior.

They walk in unconstrained coordinates y = T(theta), where the posterior has the density

    log p(y|x) = log p(theta|x) + log |det dtheta/dy|,    theta = T^-1(y)

(Hoffman & Gelman, arXiv:1111.4246; Betancourt, arXiv:1701.02434). Step size and mass are adapted during the warm-up;
trajectories that diverge are counted, since they mark places where the posterior was not explored.

HMC's trajectories last a quarter of the period of a standard normal by default, where each draw is independent of the
one before; Pyro's 2 pi is a full period, after which such a posterior is back where it was at four times the cost.
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, identity_transform
from tqdm.auto import tqdm

from mfsbi.checks import require_positive_integer, require_whole
from mfsbi.inference.chains import Chains
from mfsbi.seeds import derived, seeded, undisturbed

with undisturbed():  # pyro switches torch's validation of distributions on
    from pyro.infer.mcmc import HMC, MCMC, NUTS

__all__ = ["run_pyro"]


class _BoundedHMC(HMC):
    """Pyro's HMC with a limit for the steps of a trajectory, as NUTS has: a density that jumps adapts them to nothing.

    Arguments:
        max_num_steps: as many as NUTS takes, unless given
        settings: those of Pyro's `HMC`
    """

    def __init__(self, *, max_num_steps: int = 1024, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(**settings)
        self.max_num_steps = max_num_steps

    @property
    def num_steps(self) -> int:
        """The steps of a trajectory."""
        return min(self.max_num_steps, int(super().num_steps))


def run_pyro(  # noqa: PLR0913 - what a sampler must be told
    log_prob: Callable[[Tensor], Tensor],
    starts: Tensor,
    draws: int = 250,
    *,
    kernel: str = "nuts",
    transform: Transform = identity_transform,
    warmup: int = 250,
    seed: int = 0,
    show_progress_bars: bool = False,
    **settings: Any,  # noqa: ANN401 - those of Pyro's kernel
) -> Chains:
    """Sample by Pyro's NUTS or HMC, one chain from each start; Ctrl-C keeps the chains that are finished.

    Arguments:
        log_prob: theta of shape `(rows, parameter)` -> log posterior up to a constant, differentiable
        starts: where the chains begin, shape `(chains, parameter)`
        draws: of each chain, after the warm-up
        kernel: "nuts" or "hmc"
        transform: theta -> unconstrained coordinates
        warmup: steps in which step size and mass are adapted
        seed: of the momenta
        show_progress_bars: show a bar over the chains
        settings: of Pyro's kernel, such as `target_accept_prob`, `max_tree_depth` for NUTS, or `max_num_steps` for HMC

    Returns:
        the chains, with the mean acceptance and the number of divergent trajectories in `info`

    Raises:
        ValueError: if the kernel is unknown or log_prob is not finite at a start
        KeyboardInterrupt: if interrupted before the first chain is finished
    """
    require_positive_integer("draws", draws)
    require_whole("warmup", warmup)
    kernels = {"nuts": NUTS, "hmc": _BoundedHMC}
    if kernel not in kernels:
        raise ValueError(f"`kernel` should be one of {sorted(kernels)}; got {kernel!r}.")
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

    if kernel == "hmc" and "num_steps" not in settings:
        settings = {"trajectory_length": math.pi / 2} | settings
    began, chains, accepted, divergent = time.perf_counter(), [], [], 0
    try:
        for number, start in enumerate(tqdm(starts, disable=not show_progress_bars, desc=kernel, leave=False)):
            # pyro fills global state: its generator is torch's
            with seeded(derived(seed, number)), undisturbed():
                walk = MCMC(
                    kernels[kernel](potential_fn=energy, **settings),
                    num_samples=draws,
                    warmup_steps=warmup,
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
        warnings.warn(f"Sampling was interrupted; {len(chains)} of {len(starts)} chains are kept.", stacklevel=2)
    theta = torch.stack(chains)
    with torch.no_grad():
        values = log_prob(theta.flatten(0, 1)).view(theta.shape[:2])
    info = {
        "sampler": kernel,
        "warmup_steps": warmup,
        "seed": seed,
        "seconds": time.perf_counter() - began,
        "acceptance": sum(accepted) / len(accepted),
        "divergences": divergent,
    }
    return Chains(theta, values, info)
