"""Likelihood-ratio intervals of a learned likelihood: by Wilks's theorem, and with critical values from simulations.

    found = profile(posterior, x_o, "mass", parameter_names=["mass", "width"])
    found.intervals(0.95)  # by the chi-squared law
    belt = confidence_belt(posterior, found, simulator)
    belt.intervals(0.95)  # covers by construction, even if the learned likelihood is wrong

A posterior is asked for its likelihood, and for where its prior allows theta; the density of the prior plays no role.
The derivations are in `mfsbi.inference.profile` and `mfsbi.inference.neyman`, the search in
`mfsbi.inference.profiling`.
"""

import inspect
from collections.abc import Callable, Sequence
from copy import deepcopy
from math import inf
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import require_finite, require_kind, require_positive_integer, require_seed, require_tensor
from mfsbi.inference.maximum import Likelihood, Support
from mfsbi.inference.neyman import ConfidenceBelt
from mfsbi.inference.profile import ProfileLikelihood
from mfsbi.inference.profiling import likelihood_ratios, profile_likelihood
from mfsbi.inference.run_smc import SMC
from mfsbi.inference.samplers import bars_shown
from mfsbi.inference.to_arviz import require_names
from mfsbi.plugin.host import NeuralPosterior
from mfsbi.plugin.parameter_prior import ParameterPrior, masked
from mfsbi.plugin.potential import ManifoldPotential, OwnPotential, RatioPotential
from mfsbi.plugin.sampling import require_observations, require_posterior
from mfsbi.seeds import derived, seeded
from mfsbi.types import Simulator

__all__ = ["confidence_belt", "profile"]

Bounds: TypeAlias = Sequence[float] | Sequence[Sequence[float]]
"""(low, high), or one such pair for each parameter of interest."""

POINTS = {1: 101, 2: 31, 3: 13}
"""Of the grid, along each of so many parameters of interest."""

BELT = {1: 21, 2: 7, 3: 5}
"""Points at which toys are simulated."""

DRAWS = 128
"""Of the prior, from which searches begin."""

QUARTILES = 1.349
"""Between the quartiles of a standard normal."""

FAR = 40.0
"""In unconstrained coordinates, where a parameter with a bound has come to it."""


def profile(
    posterior: NeuralPosterior,
    x: Tensor,
    parameters: int | str | Sequence[int | str] = 0,
    *,
    parameter_names: Sequence[str] | None = None,
    bounds: Bounds | None = None,
    points: int | None = None,
    show_progress_bars: bool | None = None,
) -> ProfileLikelihood:
    """Return the profile likelihood ratio q of one to three parameters of interest psi on a regular grid.

        q(psi) = 2 [max log p(x|psi', nu') - max_nu log p(x|psi, nu)]

    All other parameters, nu, are maximised within the support of the prior at every point. The search is not random:
    it begins at draws of the prior that are the same ones every time.

    Arguments:
        posterior: as `build_posterior()` of a `ManifoldNLE` or of `ALICES` returns it
        x: iid events that share one theta, shape `(events, data)`
        parameters: those of interest, by index or name
        parameter_names: of all parameters; theta_0, theta_1, ... if not given
        bounds: (low, high) of each parameter of interest, or of the only one; the prior's if None
        points: along each parameter of interest; 101 for one, 31 for two and 13 for three if None
        show_progress_bars: True, False, or None for "only on a terminal"

    Returns:
        q with theta_hat, `intervals`, `region` and `p_value` by Wilks's theorem; `print` shows them

    Raises:
        ValueError: if shapes or bounds do not fit, x is not finite, a parameter is unknown, there are more than three,
            the prior takes few values or sums to one, or the likelihood is NaN or nowhere above zero
        TypeError: if x is not a tensor, or the posterior not one of a `ManifoldNLE` or of `ALICES`

    Example:
        >>> from mfsbi import AF, ManifoldNLE, profile
        >>> from simulators.polynomial import PolynomialSurface
        >>> surface = PolynomialSurface()
        >>> theta = surface.prior.sample((400,))
        >>> trainer = ManifoldNLE(surface.prior, AF()).append_simulations(theta, surface.simulate(theta, seed=0))
        >>> posterior = trainer.train(max_num_epochs=2) and trainer.build_posterior()
        >>> found = profile(posterior, surface.simulate(torch.zeros(50, 1), seed=1), points=21)
        >>> found.q.shape, found.theta.shape
        (torch.Size([21]), torch.Size([21, 1]))
    """
    require_kind("posterior", posterior, NeuralPosterior, "a posterior, as `build_posterior()` returns it")
    require_posterior(posterior, SMC())
    require_observations(x)
    if x.ndim != 2:
        raise ValueError(f"`x` should have shape (events, data): one set of events; got {tuple(x.shape)}.")
    potential = deepcopy(_potential(posterior))
    prior = potential.prior
    names = require_names(parameter_names, prior.event_shape[0])
    chosen = _indices(parameters, names)
    support = _support(prior)
    if points is None:
        points = POINTS[len(chosen)]
    require_positive_integer("points", points)
    if points < 2:
        raise ValueError(f"`points` should be 2 or more; got {points}.")
    low, high = _ends(bounds, chosen, support).T.tolist()
    axes = {i: torch.linspace(low[k], high[k], points, dtype=torch.float64) for k, i in enumerate(chosen)}
    potential.set_x(x, x_is_iid=True)  # which warns of observations out of reach
    likelihood = _likelihood(potential, x[None])
    bars = bars_shown(wanted=show_progress_bars)
    return profile_likelihood(likelihood, support, axes, names, show_progress_bars=bars)


def confidence_belt(
    posterior: NeuralPosterior,
    found: ProfileLikelihood,
    simulator: Simulator | Callable[..., Tensor] | None = None,
    *,
    toys: int = 500,
    points: int | None = None,
    seed: int = 0,
    show_progress_bars: bool | None = None,
) -> ConfidenceBelt:
    """Return critical values of q from simulations (Neyman, Feldman & Cousins), whose intervals cover by construction.

    At points psi of the grid of a profile likelihood, toys of as many events are simulated at (psi, nu_hat(psi)), and
    q(psi) of each is computed by the learned likelihood. **With toys of the true simulator the coverage is right even
    if the learned likelihood is wrong**: a worse one only makes wider intervals. Toys that the model draws itself are
    right only as far as the model is: they mend Wilks's theorem where events are few or an edge is near, and nothing
    else.

    Without nuisance parameters a belt serves all data of as many events: make it once, and call
    `belt.intervals(0.95, profile(posterior, x_o))` for any. With nuisance parameters it is of the data it was made for,
    and its coverage approximate.

    Arguments:
        posterior: the one that was profiled
        found: its profile likelihood
        simulator: one with `simulate(theta, seed=...)`, or a function theta -> x of shapes `(rows, parameter)` and
            `(rows, data)`, which gets a `seed` if it takes one and else draws from torch's or numpy's global
            generators; the model's own samples if None
        toys: at each point; n of them give a coverage with a standard deviation of sqrt(level (1 - level) / n)
        points: of the belt along each parameter of interest, out of those of the grid; 21 for one, 7 for two and 5 for
            three if None
        seed: of the toys
        show_progress_bars: a bar over points, True, False, or None for "only on a terminal"

    Returns:
        the belt, with `intervals`, `region`, `p_value`, `critical` and the coverage of Wilks's intervals

    Raises:
        ValueError: if the profile is not of this posterior's parameters, its grid leaves the support of the prior, or
            the simulator returns other shapes or values that are not finite
        TypeError: if an argument is of the wrong kind, or a ratio, which draws no events, has no simulator
    """
    require_kind("posterior", posterior, NeuralPosterior, "a posterior, as `build_posterior()` returns it")
    require_posterior(posterior, SMC())
    require_kind("found", found, ProfileLikelihood, "what `profile(posterior, x)` returned")
    require_positive_integer("toys", toys)
    require_seed(seed)
    potential = _potential(posterior)
    if found.theta.shape[-1] != potential.prior.event_shape[0]:
        raise ValueError(
            f"`found` should be of the {potential.prior.event_shape[0]} parameters of `posterior`; it has "
            f"{found.theta.shape[-1]}."
        )
    points = BELT[len(found.axes)] if points is None else points
    require_positive_integer("points", points)
    kept = [torch.linspace(0, len(axis) - 1, max(2, points)).round().long().unique() for axis in found.axes]
    theta = found.theta
    for axis, index in enumerate(kept):
        theta = theta.index_select(axis, index)
    rows = theta.flatten(0, -2)
    inside = potential.prior.inside(rows.to(potential.device)).cpu()
    if not inside.all():
        raise ValueError(
            f"Toys cannot be simulated outside the support of the prior; {int((~inside).sum())} of {len(rows)} points "
            f"lie there, the first of them {rows[~inside][0].tolist()}. Give `profile` narrower `bounds`."
        )
    draw = _drawing(potential, simulator)
    ratios, bars = [], bars_shown(wanted=show_progress_bars)
    for number, each in enumerate(tqdm(rows, disable=not bars, desc="toys")):
        x = _toys(draw, each, toys, found.events, derived(seed, number))
        ratios.append(likelihood_ratios(_likelihood(potential, x), toys, each, found.parameters, found.support))
    axes = tuple(axis[index] for axis, index in zip(found.axes, kept, strict=True))
    return ConfidenceBelt(found, axes, torch.stack(ratios).sort(-1).values.view(*theta.shape[:-1], toys))


def _potential(posterior: NeuralPosterior) -> OwnPotential:
    potential = cast(Any, posterior).potential_fn
    if not isinstance(potential, ManifoldPotential | RatioPotential):
        raise TypeError(
            "`posterior` should come from build_posterior() of a ManifoldNLE or of ALICES; its potential is a "
            f"{type(potential).__name__}."
        )
    return potential


def _indices(parameters: int | str | Sequence[int | str], names: Sequence[str]) -> list[int]:
    """Return the indices of the parameters of interest."""
    wanted = [parameters] if isinstance(parameters, int | str) else list(parameters)
    known: dict[object, int] = {**{name: i for i, name in enumerate(names)}, **{i: i for i in range(len(names))}}
    unknown = [each for each in wanted if isinstance(each, bool) or each not in known]
    if unknown:
        raise ValueError(
            f"`parameters` should be among {list(names)}, by name or as numbers from 0 to {len(names) - 1}; got "
            f"{unknown}."
        )
    found = [known[each] for each in wanted]
    if not 1 <= len(found) <= 3 or len(set(found)) < len(found):
        raise ValueError(
            f"`parameters` should be 1 to 3 different parameters of interest, others being nuisance parameters; got "
            f"{wanted}. Beyond three a grid is too large."
        )
    return found


def _support(prior: ParameterPrior) -> Support:
    """Return where a prior allows theta; an end is infinite where no bound is known."""
    if prior.discrete:
        raise ValueError(
            "The prior has parameters that take few values, such as whole numbers: the likelihood has no maximum that "
            "gradients lead to. Fix them, and take the profile likelihood for each of their values."
        )
    way = prior.unconstrained
    with seeded(0):
        draws = prior.sample((DRAWS,))
    y = way(draws)
    if y.shape != draws.shape:
        raise ValueError(
            "Profile likelihoods are of parameters that may be chosen freely within bounds; those of this prior sum to "
            "one. Leave one of them out, as one less the others."
        )
    nearly, there = (
        torch.cat([way.inv(torch.full_like(y[:1].double(), y_far)) for y_far in (-far, far)]).cpu().sort(0).values
        for far in (FAR, 2 * FAR)
    )
    draws = draws.double().cpu()
    lower, upper = draws.quantile(torch.tensor([0.25, 0.75], dtype=torch.float64), dim=0)
    spread = (upper - lower) / QUARTILES
    bounded = (there - nearly).abs() <= 1e-3 * spread
    low, high = torch.where(bounded, there, torch.tensor([[-inf], [inf]], dtype=torch.float64))
    return Support(low, high, draws, spread)


def _ends(bounds: Bounds | None, chosen: Sequence[int], support: Support) -> Tensor:
    """Return from where to where the grid goes along each parameter of interest, one row each."""
    ends = torch.stack([support.low[chosen], support.high[chosen]], dim=-1)
    if bounds is not None:
        ends = torch.atleast_2d(torch.as_tensor(bounds, dtype=torch.float64))
    elif not torch.isfinite(ends).all():
        raise ValueError(
            "`bounds` should say from where to where the grid goes, (low, high) for each parameter of interest: the "
            f"prior has no ends of its own there; its draws lie between {support.draws[:, chosen].amin(0).tolist()} "
            f"and {support.draws[:, chosen].amax(0).tolist()}."
        )
    if ends.shape != (len(chosen), 2) or not (torch.isfinite(ends).all() and (ends[:, 0] < ends[:, 1]).all()):
        raise ValueError(
            f"`bounds` should be {len(chosen)} finite pairs (low, high) with low < high, one for each parameter of "
            f"interest; got {bounds}."
        )
    return ends


def _likelihood(potential: OwnPotential, x: Tensor) -> Likelihood:
    """Return the log likelihood of sets of events, -inf outside the support of the prior.

    Arguments:
        potential: of the learned likelihood, or ratio
        x: shape `(sets, events, data)`
    """
    prior, likelihood = potential.prior, potential.likelihood_of(x.to(potential.device))

    def log_prob(theta: Tensor, sets: Tensor) -> Tensor:
        of = sets.to(potential.device)
        return masked(prior, theta.to(potential.device), lambda rows: likelihood(rows[:, None], of)[:, 0])

    return Likelihood(log_prob, x.shape[1])


def _drawing(
    potential: OwnPotential, simulator: Simulator | Callable[..., Tensor] | None
) -> Callable[[Tensor, int], Tensor]:
    """Return (theta, seed) -> x."""
    if simulator is None:
        if not isinstance(potential, ManifoldPotential):
            raise TypeError("A ratio draws no events: give a `simulator`, with `simulate` or a function theta -> x.")
        model = potential.likelihood_estimator.model
        return lambda theta, _seed: model.sample(theta.to(potential.device))
    simulate = simulator.simulate if isinstance(simulator, Simulator) else simulator
    require_kind("simulator", simulate, Callable, "one with `simulate`, or a function theta -> x")  # type: ignore[arg-type]
    try:
        takes_seed = "seed" in inspect.signature(simulate).parameters
    except (TypeError, ValueError):  # some functions written in C do not say
        takes_seed = False
    return lambda theta, seed: simulate(theta, seed=seed) if takes_seed else simulate(theta)


def _toys(draw: Callable[[Tensor, int], Tensor], theta: Tensor, toys: int, events: int, seed: int) -> Tensor:
    """Return data sets simulated at one theta, shape `(toys, events, data)`."""
    rows = theta.to(torch.get_default_dtype()).expand(toys * events, -1).clone()
    with seeded(seed), torch.no_grad():
        x = draw(rows, seed)
    require_tensor("simulator(theta)", x)
    if x.ndim != 2 or len(x) != len(rows):
        raise ValueError(f"`simulator` should return {len(rows)} rows, one for each theta; got shape {tuple(x.shape)}.")
    require_finite("simulator(theta)", x, f"They were simulated at theta = {theta.tolist()}: look for the cause there.")
    return x.view(toys, events, -1)
