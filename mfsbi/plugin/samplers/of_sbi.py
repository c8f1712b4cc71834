r"""Samplers of sbi: its MCMC, and independent draws of the prior or of a fitted density, of which some are taken.

Candidates theta are resampled by weights w that make draws of the posterior of them. Candidates of the prior p have the
likelihood as their weight. Where a density q was fitted first, k candidates come from q for each one of the prior, and

    w = p(theta|x) / (k q(theta) + p(theta))

up to a constant: the prior covers what q misses, so that weights are bounded by the likelihood (a defensive mixture;
Hesterberg 1995). The effective share of n candidates is (sum w)^2 / (n sum w^2) (Kong 1992).
"""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mfsbi.checks import require_positive_integer, warn
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.samplers import Problem
from mfsbi.plugin.host import MCMCPosterior, importance_sample, rejection_sample
from mfsbi.plugin.posteriors import VIPosterior
from mfsbi.seeds import seeded

__all__ = ["CHAINS", "Importance", "Rejection", "Slice", "Variational"]

CHAINS = 4
"""Into how many chains independent draws are split."""


@dataclass(frozen=True)
class Slice:
    """The MCMC of the posterior itself, with its own number of chains and warm-up."""

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return the chains, cut from sbi's pool, which holds one after the other.

        Raises:
            TypeError: if the posterior is not sampled by MCMC
        """
        problem.require_continuous("slice")
        posterior = problem.posterior
        if not isinstance(posterior, MCMCPosterior):
            raise TypeError(f"`posterior` should be sbi's MCMCPosterior; got {type(posterior).__name__}.")
        bars, count = problem.show_progress_bars, posterior.num_chains
        with seeded(seed):
            pooled = MCMCPosterior.sample(posterior, (count * draws,), x=problem.x, show_progress_bars=bars)
        info = Info(posterior.method, warmup_steps=posterior.warmup_steps, thin=posterior.thin)
        return problem.chains(pooled.view(count, draws, -1), info)


@dataclass(frozen=True)
class Rejection:
    """Draws of the prior, each kept with a probability that grows with its likelihood; exact and independent."""

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return the draws in four chains.

        Arguments:
            problem: the posterior to draw from
            draws: of each chain; the time they take grows with how much narrower the posterior is than the prior
            seed: of everything random
        """
        with seeded(seed):
            theta, share = rejection_sample(
                problem.potential,
                problem.prior,
                theta_transform=problem.transform,
                num_samples=CHAINS * draws,
                num_samples_to_find_max=1000,
                show_progress_bars=problem.show_progress_bars,
                device=problem.device,
            )
        info = Info("rejection", markov=False, acceptance=float(share))
        return problem.chains(theta.view(CHAINS, draws, -1), info)


@dataclass(frozen=True)
class Importance:
    """Draws of the prior, resampled by their weights (SIR).

    Arguments:
        oversampling: candidates for each draw

    Raises:
        ValueError: if it is not a positive integer
    """

    oversampling: int = 32

    def __post_init__(self) -> None:
        require_positive_integer("oversampling", self.oversampling)

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return the draws in four chains, with a warning if few candidates carry the weight.

        Arguments:
            problem: the posterior to draw from
            draws: of each chain; a draw may stand there more than once
            seed: of the candidates and of the choice among them
        """
        candidates = self.oversampling * CHAINS * draws
        with seeded(seed), torch.no_grad():
            theta, weight = importance_sample(
                problem.potential, problem.prior, candidates, show_progress_bars=problem.show_progress_bars
            )
            theta, share = _resampled(theta, weight, CHAINS * draws)
        return problem.chains(theta.view(CHAINS, draws, -1), Info("importance", markov=False, acceptance=share))


@dataclass(frozen=True)
class Variational:
    """A density of sbi fitted to the posterior, whose draws are resampled by their weights.

    The defaults are a tenth of the work of sbi's.

    Arguments:
        q: sbi's name of a density; "gaussian" for one parameter and "maf" for several if None
        oversampling: candidates from q for each draw
        max_num_iters: steps of the fit
        n_particles: draws in each step
        learning_rate: of the fit
        gamma: by which the learning rate shrinks in each step
        min_num_iters: steps before the fit may end early
        clip_value: the largest norm of a gradient
        warm_up_rounds: steps in which q first follows the prior
        check_for_convergence: whether the fit ends early when its loss is flat

    Raises:
        ValueError: if oversampling is not a positive integer
    """

    q: str | None = None
    oversampling: int = 8
    max_num_iters: int = 500
    n_particles: int = 64
    learning_rate: float = 1e-2
    gamma: float = 0.999
    min_num_iters: int = 10
    clip_value: float = 10.0
    warm_up_rounds: int = 100
    check_for_convergence: bool = True

    def __post_init__(self) -> None:
        require_positive_integer("oversampling", self.oversampling)

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return the draws in four chains, with a warning if few candidates carry the weight.

        Raises:
            ValueError: if the prior has parameters that take few values, which no density can follow
        """
        problem.require_continuous("vi")
        prior, count = problem.prior, CHAINS * draws
        training = {name: value for name, value in asdict(self).items() if name not in ("q", "oversampling")}
        q = self.q or ("gaussian" if problem.parameters == 1 else "maf")
        with seeded(seed):
            fitted = VIPosterior(problem.potential, prior, q, problem.transform, device=problem.device)
            fitted.set_default_x(problem.x)
            fitted.train(show_progress_bar=problem.show_progress_bars, quality_control=False, **training)
            candidates = fitted.sample((self.oversampling * count,), show_progress_bars=False).detach()
            candidates = torch.cat([candidates, prior.sample(torch.Size([count]))])
            with torch.no_grad():
                of_q = fitted.q.log_prob(candidates).nan_to_num(-torch.inf) + torch.tensor(self.oversampling).log()
                of_both = torch.logaddexp(of_q, prior.log_prob(candidates))
                weight = problem.log_prob(candidates) - of_both
            theta, share = _resampled(candidates, weight, count)
        return problem.chains(theta.view(CHAINS, draws, -1), Info("vi", markov=False, acceptance=share))


def _resampled(candidates: Tensor, log_weight: Tensor, draws: int) -> tuple[Tensor, float]:
    """Return candidates drawn by their weights, and the effective share, with a warning if that is too small."""
    weight = log_weight.double().softmax(0)
    share = float(1 / (len(weight) * weight.square().sum()))
    if share * len(weight) < draws:
        warn(
            f"Only {share * len(weight):.0f} of {len(weight)} candidates make {draws} draws of the posterior. Raise "
            "`oversampling`, or take another sampler, such as slice or nuts.",
        )
    return candidates[torch.multinomial(weight, draws, replacement=True)], share
