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

None of this is taken on trust. The program is run again (`plate`) on the values of the first run: by halves of the
rows, at other theta (`runs`), and a small step and all the way there, where the log probability must have changed as
its gradients foretell (`slopes`). Where runs differ that should agree, an error names the site. Checks see best with
many rows, theta that differ from row to row, and float64; a fault of one row in a hundred may pass them.

References: Brehmer, Louppe, Pavez, Cranmer, arXiv:1805.12244, 1805.00020; Bingham et al., arXiv:1810.09538 (Pyro).
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mfsbi.checks import require_finite, require_kind, require_seed, require_tensor
from mfsbi.gold import runs, slopes
from mfsbi.gold.plate import lent, run_program
from mfsbi.seeds import derived
from mfsbi.simulations import Simulated
from mfsbi.types import ProgramError

__all__ = ["mine"]


def mine(
    model: Callable[[Tensor], Tensor], theta: Tensor, *, theta_ref: Tensor | None = None, seed: int = 0
) -> Simulated:
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
    with lent(theta.dtype):
        run = run_program(model, theta.clone().requires_grad_(), seed=seed)
        again = partial(run_program, model, seed=derived(seed, 1))
        runs.require_fixed_x(run)
        runs.require_independent_rows(again, run)
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
    return Simulated(theta, run.x.detach(), joint_score, joint_log_ratio)


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
