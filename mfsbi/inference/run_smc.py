r"""Sequential Monte Carlo: posteriors of several modes, and their evidence, from few calls of many theta each.

Particles begin as draws of the prior and are led to the posterior by way of

    p_b(theta) = p(theta) L(theta)^b / Z_b,    0 = b_0 < b_1 < ... < b_T = 1,    L the likelihood,

(Del Moral, Doucet & Jasra, J. R. Stat. Soc. B 68 (2006) 411). Each b is as far from the last as leaves the weights
L^(b - b') an effective share of one half. Particles are resampled by these weights, which costs those of a lost region
their place, and moved by steps that leave p_b as it is. The evidence comes along,

    Z_1 = prod_t  mean of L^(b_t - b_{t-1}) over the particles at b_{t-1}.

**Steps** are taken by all particles at once, in unconstrained coordinates y, and are proposals accepted by Metropolis
and Hastings's rule. They take turns:

* *along differences*: y + g (y_a - y_b), a and b two particles as they were when they were resampled (ter Braak,
  Stat. Comput. 16 (2006) 239), g near 2.38 / sqrt(2d) or, for one in five, 1, which leads from mode to mode;
* *about the mean* m: m + sqrt(1 - r^2) (y - m) + r s e, e normal with the particles' covariance and s^2 such that all
  this leaves Student's t of five degrees of freedom as it is (Grumitt et al., arXiv:2407.07781); exact for what is
  nearly normal, in many dimensions, too.

The sizes g and r follow the share of steps that are accepted. Steps are taken until particles are no farther from
where they were resampled than two thirds of the steps before, within a hundredth: then they have forgotten it. Where
they still change between modes after two hundred steps they need not go on: the modes have their masses by weights.

**Populations.** Chains are populations that are weighted and resampled apart, but take steps of one size along each
other's differences, at temperatures they share. So they are nearly independent, and their evidences nearly unbiased:
where they disagree, R-hat says so, and the scatter of their evidences is the error of the mean. Neither sees what all
of them missed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import require_positive_integer, warn
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.samplers import Problem
from mfsbi.seeds import seeded

__all__ = ["SMC"]

EFFECTIVE = 0.5
"""Share of particles that the weights of one temperature leave."""

FEWEST, MOST = 4, 200
"""Steps at one temperature, about."""

REMEMBERED = 0.3
"""Correlation of the particles' log likelihood with that of where they came from that is too much."""

LONGER, FARTHER = 1.5, 1.01
"""After so many times the steps, the distance from the start has to have grown by this factor to go on."""

JUMPS = 0.2
"""Share of steps along differences that go all the way."""

FREEDOM = 5.0
"""Degrees of freedom of the law that steps about the mean leave as it is."""

WANTED, LARGEST = {"differences": 0.3, "mean": 0.4}, {"differences": 3.0, "mean": 1.0}
"""Share of steps that should be accepted, and their largest size."""

_Proposal: TypeAlias = Callable[[Tensor, float], tuple[Tensor, Tensor]]
"""y and a size -> new y, and the log of the ratio of the densities of the step back and of the step."""


@dataclass(frozen=True)
class SMC:
    """Particles led from the prior to the posterior, whose evidence is in `Chains.info`.

    A mode that is much narrower than the others may be missed if no particle of the first ones is near it, as by any
    sampler: more particles see finer. Ctrl-C before the end leaves no draws.

    Arguments:
        chains: populations, whose disagreement tells whether there were too few particles
        particles: of each population, at least; as many as the draws if those are more

    Raises:
        ValueError: if there are fewer than two of either
    """

    chains: int = 4
    particles: int = 250

    def __post_init__(self) -> None:
        for name in ("chains", "particles"):
            require_positive_integer(name, getattr(self, name))
        if min(self.chains, self.particles) < 2:
            raise ValueError(f"`chains` and `particles` should be 2 or more; got {self.chains} and {self.particles}.")

    def draw(self, problem: Problem, draws: int, seed: int) -> Chains:
        """Return one chain for each population; draws are in no order.

        Raises:
            ValueError: if parameters take few values, the log posterior is NaN, or -inf at almost all
                draws of the prior
        """
        problem.require_continuous("smc")
        each = max(self.particles, draws)
        with seeded(seed), torch.no_grad():
            target = _Target(problem)
            particles = _Particles(target, self.chains, target.begin(self.chains * each))
            bar = tqdm(total=1.0, disable=not problem.show_progress_bars, desc="tempering", leave=False)
            with bar:
                while particles.temperature < 1:
                    particles.resample()
                    steps = particles.move()
                    bar.set_postfix(steps=steps, refresh=False)
                    bar.update(particles.temperature - bar.n)
            theta = target.theta(particles.y).view(self.chains, each, -1)
            theta = torch.stack([own[torch.randperm(each)[:draws]] for own in theta])
        log_evidence, error = _mean_evidence(particles.log_evidence)
        info = Info(
            "smc",
            markov=False,
            acceptance=particles.accepted,
            log_evidence=log_evidence,
            log_evidence_error=error,
        )
        return problem.chains(theta, info)


class _Target:
    """The prior and the likelihood in unconstrained coordinates y."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.kind = problem, torch.get_default_dtype()

    def begin(self, count: int) -> Tensor:
        """Return y of draws of the prior, shape `(count, d)`, in float64."""
        return self.problem.transform(self.problem.prior.sample(torch.Size([count]))).double().cpu()

    def theta(self, y: Tensor) -> Tensor:
        """Return theta of rows y."""
        return self.problem.transform.inv(y.to(self.problem.device, self.kind))

    def __call__(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(y) and log L, each of shape `(rows,)`; -inf where there is no posterior."""
        rows = y.to(self.problem.device, self.kind)
        theta = self.problem.transform.inv(rows)
        volume = self.problem.transform.log_abs_det_jacobian(theta, rows).reshape(len(y), -1).sum(-1)
        log_prior, log_posterior = self.problem.prior.log_prob(theta), self.problem.log_prob(theta)
        wrong = torch.isnan(log_posterior) | (log_posterior == math.inf)
        if wrong.any():
            raise ValueError(
                f"The log posterior should be a number or -inf; it is {float(log_posterior[wrong][0])} at "
                f"{int(wrong.sum())} of {len(y)} theta, such as {theta[wrong][0].tolist()}. Narrow the prior."
            )
        there = log_prior.isfinite() & volume.isfinite() & log_posterior.isfinite()
        nowhere = torch.full_like(log_prior, -math.inf)
        parts = log_prior - volume, log_posterior - log_prior
        log_prior, log_likelihood = (torch.where(there, part, nowhere).double().cpu() for part in parts)
        return log_prior, log_likelihood


class _Particles:
    """Populations of particles at one temperature.

    Arguments:
        target: what they are led to
        populations: how many
        y: draws of the prior, shape `(populations * particles, d)`
    """

    def __init__(self, target: _Target, populations: int, y: Tensor) -> None:
        self.target, self.populations, self.y = target, populations, y
        self.log_prior, self.log_likelihood = target(y)
        self.temperature, self.accepted = 0.0, 0.0
        self.log_evidence = torch.zeros(populations, dtype=torch.float64)
        self.sizes = dict.fromkeys(WANTED, 1.0)
        possible = int((self.log_likelihood > -math.inf).view(populations, -1).sum(-1).min())
        if possible < 2:
            raise ValueError(
                f"The posterior is zero at all but {possible} of {len(y) // populations} draws of the prior, which "
                "are too few to start from. Is x within reach of the prior? If it is, take more `particles`, as in "
                '`sample_chains(posterior, x, "smc", particles=2000)`.'
            )

    def resample(self) -> None:
        """Go on to the next temperature, and let particles take each other's places by their weights there."""
        log_likelihood = self.log_likelihood.view(self.populations, -1)
        following = _next_temperature(log_likelihood, self.temperature)
        log_weight = (following - self.temperature) * log_likelihood
        self.log_evidence += log_weight.logsumexp(-1) - math.log(log_weight.shape[1])
        chosen = _systematic(log_weight.softmax(-1))
        chosen = (chosen + log_weight.shape[1] * torch.arange(self.populations)[:, None]).flatten()
        self.y, self.log_prior, self.log_likelihood = (
            each[chosen] for each in (self.y, self.log_prior, self.log_likelihood)
        )
        self.temperature = following

    def move(self) -> int:
        """Let particles forget where they were resampled, and return after how many steps they had."""
        start, before, normal = self.y, self.log_likelihood, _Normal.of(self.y)
        steps, enough, farthest, accepted = 0, FEWEST, 0.0, 0.0
        proposals: dict[str, _Proposal] = {"differences": _Differences(start, normal), "mean": _AboutMean(normal)}
        while True:
            for name, propose in proposals.items():
                steps, accepted = steps + 1, accepted + self._step(propose, name)
            self.accepted = accepted / steps
            if steps >= enough:
                distance = float(normal.whitened(self.y, start).norm(dim=1).mean())
                if distance < FARTHER * farthest or distance == 0.0:
                    return steps
                if steps >= MOST:
                    self._warn_if_remembered(before)
                    return steps
                farthest, enough = distance, math.ceil(LONGER * steps)

    def _warn_if_remembered(self, before: Tensor) -> None:
        """Warn if log likelihoods are still like those before all steps; to change between modes may take longer."""
        likeness = float(torch.stack([before, self.log_likelihood]).corrcoef()[0, 1])
        if likeness > REMEMBERED:
            warn(
                f"At temperature {self.temperature:.3g} particles remember where they came from: their log likelihoods "
                f"have a correlation of {likeness:.2f} with those before {MOST} steps. Regions of the posterior may "
                "have too many or too few draws: compare with another seed, or take another sampler, such as nuts."
            )

    def _step(self, propose: _Proposal, name: str) -> float:
        """Propose a new place for each particle, accept by Metropolis and Hastings's rule, and return the share."""
        y, log_ratio = propose(self.y, self.sizes[name])
        log_prior, log_likelihood = self.target(y)
        gain = log_prior - self.log_prior + self.temperature * (log_likelihood - self.log_likelihood) + log_ratio
        gain = torch.where(log_likelihood > -math.inf, gain, -math.inf)  # nobody goes where there is no posterior
        taken = torch.rand_like(gain).log() < gain
        self.y = torch.where(taken[:, None], y, self.y)
        self.log_prior = torch.where(taken, log_prior, self.log_prior)
        self.log_likelihood = torch.where(taken, log_likelihood, self.log_likelihood)
        share = float(taken.double().mean())
        self.sizes[name] = min(max(self.sizes[name] * math.exp(share - WANTED[name]), 1e-3), LARGEST[name])
        return share


@dataclass(frozen=True)
class _Normal:
    """A normal law with the mean and covariance of some rows."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, y: Tensor) -> "_Normal":
        """Return that of rows, shape `(rows, d)`, with a little in directions that they do not fill."""
        covariance = torch.cov(y.T).view(y.shape[1], y.shape[1])
        floor = 1e-9 * covariance.diagonal().clamp(min=covariance.diagonal().max() * 1e-12 + 1e-300)
        return cls(y.mean(0), torch.linalg.cholesky(covariance + floor.diag()))

    def drawn(self, rows: int) -> Tensor:
        """Return rows with the covariance and mean zero."""
        return torch.randn(rows, len(self.mean), dtype=self.mean.dtype) @ self.root.T

    def whitened(self, y: Tensor, origin: Tensor) -> Tensor:
        """Return y - origin in coordinates in which the law is standard, shape `(rows, d)`."""
        return torch.linalg.solve_triangular(self.root, (y - origin).T, upper=False).T


@dataclass(frozen=True)
class _Differences:
    """Steps along differences of two particles."""

    particles: Tensor
    normal: _Normal

    def __call__(self, y: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """Return proposals, and the log of the ratio of their densities backward and forward, which is zero."""
        rows, dims = y.shape
        first = torch.randint(rows, (rows,))
        second = (first + torch.randint(1, rows, (rows,))) % rows
        factor = torch.full((rows, 1), size * 2.38 / math.sqrt(2 * dims), dtype=y.dtype)
        factor[torch.rand(rows) < JUMPS] = 1.0
        step = (1 + 0.1 * torch.randn_like(factor)) * (self.particles[first] - self.particles[second])
        return y + factor * (step + 1e-3 * self.normal.drawn(rows)), torch.zeros(rows, dtype=y.dtype)


@dataclass(frozen=True)
class _AboutMean:
    """Steps that leave Student's t with the particles' mean and covariance as it is."""

    normal: _Normal

    def __call__(self, y: Tensor, size: float) -> tuple[Tensor, Tensor]:
        """Return proposals, and the log of the ratio of their densities backward and forward."""
        mean, (rows, dims) = self.normal.mean, y.shape
        before = self._square(y)
        shape = torch.full((rows,), (FREEDOM + dims) / 2, dtype=y.dtype)
        scale = ((FREEDOM + before) / 2 / torch._standard_gamma(shape)).sqrt()
        new = mean + math.sqrt(1 - size**2) * (y - mean) + size * scale[:, None] * self.normal.drawn(rows)
        after = self._square(new)
        return new, (FREEDOM + dims) / 2 * torch.log((FREEDOM + after) / (FREEDOM + before))

    def _square(self, y: Tensor) -> Tensor:
        """Return the squared distance from the mean in standard deviations, shape `(rows,)`."""
        return self.normal.whitened(y, self.normal.mean).square().sum(-1)


def _next_temperature(log_likelihood: Tensor, temperature: float) -> float:
    """Return the largest temperature at which the weights leave every population its effective share.

    Arguments:
        log_likelihood: shape `(populations, particles)`
        temperature: that of the particles
    """
    particles = log_likelihood.shape[1]
    possible = (log_likelihood > -math.inf).sum(-1).min()  # of draws of the prior: the others go in any case

    def share(following: float) -> float:
        log_weight = ((following - temperature) * log_likelihood).log_softmax(-1)
        return float((-(2 * log_weight).logsumexp(-1)).exp().min())

    wanted = EFFECTIVE * min(particles, int(possible))
    if share(1.0) >= wanted:
        return 1.0
    low, high = math.log(1e-300), math.log(1 - temperature)
    for _ in range(60):  # bisection of the log of the step
        middle = (low + high) / 2
        low, high = (middle, high) if share(temperature + math.exp(middle)) >= wanted else (low, middle)
    return min(1.0, max(temperature + math.exp(high), math.nextafter(temperature, 1.0)))


def _systematic(weight: Tensor) -> Tensor:
    """Return which particles take the places, each as often as its weight says but for one (systematic resampling).

    Arguments:
        weight: summing to one, shape `(populations, particles)`
    """
    populations, particles = weight.shape
    places = torch.arange(particles, dtype=weight.dtype) + torch.rand(populations, 1, dtype=weight.dtype)
    return torch.searchsorted(weight.cumsum(-1), places / particles).clamp(max=particles - 1)


def _mean_evidence(log_evidence: Tensor) -> tuple[float, float]:
    """Return the log of the mean of the populations' evidences, and its standard error.

    That is the larger one of the scatter of the evidences over their mean, which never exceeds one, and of their logs.
    """
    count = len(log_evidence)
    evidence = (log_evidence - log_evidence.max()).exp()
    error = float(torch.maximum(evidence.std() / evidence.mean(), log_evidence.std())) / math.sqrt(count)
    return float(log_evidence.logsumexp(0)) - math.log(count), error
