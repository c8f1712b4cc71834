r"""New data as the posterior expects them.

The posterior predictive distribution is p(x'|x) = \int p(x'|theta) p(theta|x) dtheta: for each draw of theta, new x are
drawn from the model or from the simulator itself. Where data like those observed are rare, the posterior, the model or
the simulator is wrong (Gelman et al., Bayesian Data Analysis, chapter 6); where only the model's differ, the model is.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mfsbi.checks import require_finite, require_kind, require_positive_integer, require_seed, require_tensor
from mfsbi.inference.chains import Chains
from mfsbi.seeds import derived, seeded

__all__ = ["posterior_predictive"]


def posterior_predictive(
    chains: Chains, simulate: Callable[[Tensor], Tensor], observations: int = 1, *, thin: int = 1, seed: int = 0
) -> Tensor:
    """Return new data sets, one for each draw of the posterior, shape `(chain, draw, observations, data)`.

    Arguments:
        chains: draws of the posterior
        simulate: theta of shape `(rows, parameter)` -> one x for each row, `(rows, data)`: `estimator.model.sample`
            for the model's own, or the simulator; theta is where the chains are, the processor after `sample_chains`
        observations: of each data set, which share its theta; as many as were observed to compare with these
        thin: every how many draws of a chain
        seed: of what draws from torch's or numpy's global generators

    Raises:
        ValueError: if simulate returns another number of rows, or values that are not finite
    """
    require_kind("chains", chains, Chains, "`Chains`, as `sample_chains` returns them")
    require_kind("simulate", simulate, Callable, "a function theta -> x, such as `estimator.model.sample`")  # type: ignore[arg-type]
    require_seed(seed)
    require_positive_integer("observations", observations)
    require_positive_integer("thin", thin)
    draws = chains.draws[:, ::thin]
    theta = draws.flatten(0, 1).repeat_interleave(observations, dim=0)
    with seeded(derived(seed, 0)), torch.no_grad():  # not the stream the draws may have come from
        x = simulate(theta)
    require_tensor("simulate(theta)", x)
    if x.ndim != 2 or len(x) != len(theta):
        raise ValueError(f"`simulate` should return {len(theta)} rows, one for each theta; got shape {tuple(x.shape)}.")
    require_finite("x", x, "Look for the cause in `simulate`.")
    return x.view(*draws.shape[:2], observations, -1)
