r"""Judging what was learned of a law, plain or lifted, by its exact density and its exact posteriors.

* gap: E[log p(x|theta) - log q(x|theta)] in nats, over theta of the prior and x given theta, which is the mean
  KL(p || q); for densities of the same space alone. Its worst tenth is the mean over the rows that lose most.
* TV of posteriors of one event and of twenty, mean over sets: with draws theta_i of the exact posterior (emcee, from
  candidates of the prior that the exact likelihood chooses) and w_i = q(x|theta_i) / p(x|theta_i),

      TV = 1/2 mean_i |w_i / mean w - 1|.

  Mass of the model where the exact posterior has none is not seen by it.
"""

from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, biject_to

from mfsbi.bench.judge import Candidate
from mfsbi.inference.potential import exact_potential
from mfsbi.inference.run_emcee import run_emcee
from mfsbi.seeds import derived, seeded
from mfsbi.types import KnownLikelihood

__all__ = ["judge_law"]

POINTS, CANDIDATES, STEPS = 5_000, 20_000, 300
EVENTS = 1, 20
TRUTH_SEED = 47


class _Exact(NamedTuple):
    """Events and draws of their exact posterior, with the exact log likelihood at each."""

    x: Tensor
    theta: Tensor
    log_likelihood: Tensor


def judge_law(candidate: Candidate, law: KnownLikelihood, sets: int) -> dict[str, Any]:
    """Return the columns of the panel.

    Arguments:
        candidate: what is judged
        law: the simulator
        sets: of events, of either size
    """
    result: dict[str, Any] = {}
    if candidate.log_prob is not None:
        with seeded(derived(TRUTH_SEED, 0)):
            theta = law.prior.sample((POINTS,))
        x = law.simulate(theta, seed=derived(TRUTH_SEED, 1))
        lost = law.log_prob(x.double(), theta.double()) - candidate.log_prob(x, theta).double()
        result = {"gap": float(lost.mean()), "worst": float(lost.topk(len(lost) // 10).values.mean())}
    for events in EVENTS:
        values = [_distance(candidate, exact) for exact in _posteriors(cast(Any, law), events, sets)]
        result |= {f"tv_{events}": sum(values) / sets, f"tvs_{events}": values}
    return result


def _distance(candidate: Candidate, exact: _Exact) -> float:
    """Return the TV distance of a posterior."""
    learned = candidate.potential(exact.x.float())(exact.theta.float()).double()
    weights = (learned - exact.log_likelihood).softmax(0) * len(learned)
    return float(0.5 * (weights - 1).abs().mean())


@lru_cache(maxsize=8)
def _posteriors(law: KnownLikelihood, events: int, sets: int) -> list[_Exact]:
    """Return sets of events with draws of their exact posteriors."""
    with seeded(derived(TRUTH_SEED, 2)):
        theta = law.prior.sample((sets,)).double()
        candidates = law.prior.sample((CANDIDATES,)).double()
    found = []
    for number, truth in enumerate(theta):
        seed = derived(TRUTH_SEED, 3, events, number)
        x = law.simulate(truth.expand(events, -1), seed=seed).double()
        found.append(_exact_posterior(law, x, candidates, seed))
    return found


def _exact_posterior(law: KnownLikelihood, x: Tensor, candidates: Tensor, seed: int) -> _Exact:
    """Return draws of the exact posterior of x, from walkers that begin at the likeliest candidates."""
    prior: Distribution = law.prior  # type: ignore[assignment]  # those of laws are torch's
    posterior, parameters = exact_potential(law, x), candidates.shape[1]

    def likelihood(theta: Tensor) -> Tensor:
        return posterior(theta) - prior.log_prob(theta)

    walkers = max(40, 4 * parameters)
    with seeded(seed):
        starts = candidates[torch.multinomial(likelihood(candidates).softmax(0), walkers, replacement=True)]
        transform = biject_to(prior.support).inv
        spread = 0.01 * transform(candidates).std(0)
        starts = transform.inv(transform(starts) + spread * torch.randn_like(starts))
    settings = {"transform": transform, "seed": seed, "show_progress_bars": False, "warmup": STEPS}
    draws = run_emcee(posterior, starts, STEPS // 6, thin=6, **settings).draws.flatten(0, 1)
    return _Exact(x, draws, likelihood(draws))
