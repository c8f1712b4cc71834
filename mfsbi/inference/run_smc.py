r"""Sequential Monte Carlo: posteriors of several modes, and their evidence, from few calls of many theta each.

Particles begin as draws of the prior and are led to the posterior by way of

    p_b(theta) = p(theta) L(theta)^b / Z_b,    0 = b_0 < b_1 < ... < b_T = 1,    L the likelihood,

(Del Moral, Doucet & Jasra, J. R. Stat. Soc. B 68 (2006) 411). Each b is as far from the last as leaves the weights
L^(b - b') an effective share of one half. Particles are resampled by these weights, which costs those of a lost region
their place, and moved by steps that leave p_b as it is. The evidence comes along,

    Z_1 = prod_t  mean of L^(b_t - b_{t-1}) over the particles at b_{t-1};

where L is zero at most of the prior, more draws of it are taken until enough are where it is not, and the share of
these comes before the product.

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

**Several data sets** are taken at once, each at a temperature and with steps of its own: what one of them waits for
does not hold up the others, and calls of the likelihood stay large.

**Populations.** Chains are populations that are weighted and resampled apart, but take steps of one size along each
other's differences, at temperatures they share. So they are nearly independent, and their evidences nearly unbiased:
where they disagree, R-hat says so, and the scatter of their evidences is the error of the mean. Neither sees what all
of them missed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mfsbi.checks import require_positive_integer, warn
from mfsbi.inference.chains import Chains, Info
from mfsbi.inference.samplers import Problem
from mfsbi.inference.smc_steps import Normal, about_mean, along_differences
from mfsbi.seeds import seeded

__all__ = ["SMC", "Populations"]

EFFECTIVE = 0.5
"""Share of particles that the weights of one temperature leave."""

FEWEST, MOST = 4, 200
"""Steps at one temperature, about."""

REMEMBERED = 0.3
"""Correlation of the particles' log likelihood with that of where they came from that is too much."""

LONGER, FARTHER = 1.5, 1.01
"""After so many times the steps, the distance from the start has to have grown by this factor to go on."""

STEPS = {"differences": along_differences, "mean": about_mean}
"""In turns."""

WANTED, LARGEST = {"differences": 0.3, "mean": 0.4}, {"differences": 3.0, "mean": 1.0}
"""Share of steps that should be accepted, and their largest size."""

BATCHES, FEWEST_STARTS = 100, 10
"""Batches of draws of the prior at most, where the posterior is zero at most of them, and those that must be left."""


class Populations(NamedTuple):
    """Draws of the posteriors of some data sets, in no order.

    Arguments:
        theta: shape `(sets, populations, draws, parameter)`
        log_evidence: log p(x) by each population, shape `(sets, populations)`
        acceptance: the mean share of steps that were accepted, shape `(sets,)`
    """

    theta: Tensor
    log_evidence: Tensor
    acceptance: Tensor


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
            ValueError: if parameters take few values, the log posterior is NaN, or zero at almost all draws of the
                prior
        """
        found = self.draw_each(problem, draws, seed)
        log_evidence, error = _mean_evidence(found.log_evidence[0])
        info = Info("smc", markov=False, acceptance=float(found.acceptance[0]))
        info = info._replace(log_evidence=log_evidence, log_evidence_error=error)
        return problem.chains(found.theta[0], info)

    def draw_each(self, problem: Problem, draws: int, seed: int) -> Populations:
        """Return draws for each data set of a problem, all of which are worked on at once.

        Arguments:
            problem: of one data set, or of several
            draws: of each population
            seed: of everything random

        Raises:
            ValueError: as `draw`
        """
        problem.require_continuous("smc")
        each, sets = max(self.particles, draws), max(1, problem.sets)
        with seeded(seed), torch.no_grad():
            target = _Target(problem)
            particles = _Particles(target, sets, self.chains, each)
            bar = tqdm(total=float(sets), disable=not problem.show_progress_bars, desc="tempering", leave=False)
            with bar:
                while len(active := particles.active):
                    particles.move(active)
                    bar.update(float(particles.temperature.sum()) - bar.n)
            particles.warn_if_remembered()
            theta = target.theta(particles.y.flatten(0, 1)).view(sets * self.chains, each, -1)
            theta = torch.stack([own[torch.randperm(each)[:draws]] for own in theta])
        theta = theta.view(sets, self.chains, draws, -1)
        return Populations(theta, particles.log_evidence, particles.accepted / particles.proposed)


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

    def __call__(self, y: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(y) and log L, each of shape `(some, particles)`; -inf where there is no posterior.

        Arguments:
            y: shape `(some, particles, d)`
            which: the data set that each of the first axis is of, shape `(some,)`
        """
        rows = y.flatten(0, 1).to(self.problem.device, self.kind)
        theta = self.problem.transform.inv(rows)
        volume = self.problem.transform.log_abs_det_jacobian(theta, rows).reshape(len(rows), -1).sum(-1)
        log_prior = self.problem.prior.log_prob(theta)
        log_posterior = self.problem.log_prob_of_sets(theta.view(*y.shape[:2], -1), which).flatten()
        wrong = torch.isnan(log_posterior) | (log_posterior == math.inf)
        if wrong.any():
            raise ValueError(
                f"The log posterior should be a number or -inf; it is {float(log_posterior[wrong][0])} at "
                f"{int(wrong.sum())} of {len(rows)} theta, such as {theta[wrong][0].tolist()}. Narrow the prior."
            )
        there = log_prior.isfinite() & volume.isfinite() & log_posterior.isfinite()
        nowhere = torch.full_like(log_prior, -math.inf)
        parts = log_prior - volume, log_posterior - log_prior
        log_prior, log_likelihood = (torch.where(there, part, nowhere).double().cpu() for part in parts)
        return log_prior.view(y.shape[:2]), log_likelihood.view(y.shape[:2])


class _Particles:
    """Populations of particles of each data set, at one temperature.

    Tensors have the data sets along their first axis and, where there is one, all particles of a set, population after
    population, along the second.

    Arguments:
        target: what they are led to
        sets: of data
        populations: of each set
        particles: of each population
    """

    def __init__(self, target: _Target, sets: int, populations: int, particles: int) -> None:
        self.target, self.populations, everyone = target, populations, torch.arange(sets)
        self.y = target.begin(sets * populations * particles).view(sets, populations * particles, -1)
        self.log_prior, self.log_likelihood = target(self.y, everyone)
        self.log_evidence = torch.zeros(sets, populations, dtype=torch.float64)
        self.temperature, self.accepted, self.proposed = torch.zeros(3, sets, dtype=torch.float64)
        self.sizes = {name: torch.ones_like(self.temperature) for name in STEPS}
        self.likeness, self.at = torch.zeros(2, sets, dtype=torch.float64)
        possible = self._by_population(self.log_likelihood > -math.inf).sum(-1).amin(-1)
        for number in (possible < EFFECTIVE * particles).nonzero()[:, 0].tolist():
            self._draw_more(number)
        self.start, self.before = self.y.clone(), self.log_likelihood.clone()
        d = self.y.shape[-1]  # normal laws come with the first temperature
        self.normal = Normal(self.y.new_zeros(sets, d), torch.eye(d, dtype=self.y.dtype).repeat(sets, 1, 1))
        self.steps, self.enough, self.farthest = torch.zeros(3, sets, dtype=torch.float64)
        self._resample(everyone)

    @property
    def active(self) -> Tensor:
        """Which data sets still have steps to take, shape `(some,)`."""
        return (self.enough < math.inf).nonzero()[:, 0]

    def move(self, which: Tensor) -> None:
        """Let particles of some data sets take steps; those who have forgotten their places go on or are done."""
        for name in STEPS:
            self._step(which, name)
        self.steps[which] += len(STEPS)
        due = which[self.steps[which] >= self.enough[which]]
        if not len(due):
            return
        distance = self.normal[due].whitened(self.y[due] - self.start[due]).norm(dim=-1).mean(-1)
        forgotten = (distance < FARTHER * self.farthest[due]) | (distance == 0)
        over = forgotten | (self.steps[due] >= MOST)
        self._look_back(due[over & ~forgotten])
        self.farthest[due] = distance
        self.enough[due] = (LONGER * self.steps[due]).ceil()
        done = due[over]
        hottest = self.temperature[done] >= 1
        self.enough[done[hottest]] = math.inf
        if not hottest.all():
            self._resample(done[~hottest])

    def warn_if_remembered(self) -> None:
        """Warn of data sets whose particles were still like those before all steps at some temperature."""
        number = (self.likeness > REMEMBERED).sum()
        if not number:
            return
        worst, sets = int(self.likeness.argmax()), len(self.likeness)
        where = f"In {int(number)} of {sets} data sets, worst{self._of_set(worst)}: at" if self._of_set(worst) else "At"
        warn(
            f"{where} temperature {float(self.at[worst]):.3g} particles remember where they came from: their "
            f"log likelihoods have a correlation of {float(self.likeness[worst]):.2f} with those before {MOST} steps. "
            "Regions of the posterior may have too many or too few draws: compare with another seed, or take another "
            "sampler, such as nuts."
        )

    def _resample(self, which: Tensor) -> None:
        """Go on to the next temperature, and let particles take each other's places by their weights there."""
        log_likelihood = self._by_population(self.log_likelihood[which])
        following = _next_temperature(log_likelihood, self.temperature[which])
        log_weight = (following - self.temperature[which])[:, None, None] * log_likelihood
        particles = log_weight.shape[-1]
        self.log_evidence[which] += log_weight.logsumexp(-1) - math.log(particles)
        chosen = _systematic(log_weight.softmax(-1))
        chosen = (chosen + particles * torch.arange(self.populations)[:, None]).flatten(1)
        for values in (self.log_prior, self.log_likelihood):
            values[which] = values[which].gather(1, chosen)
        self.y[which] = self.y[which].gather(1, chosen[..., None].expand(-1, -1, self.y.shape[-1]))
        self.temperature[which] = following
        self.start[which], self.before[which] = self.y[which], self.log_likelihood[which]
        self.normal[which] = Normal.of(self.y[which])
        self.steps[which], self.enough[which], self.farthest[which] = 0, FEWEST, 0

    def _step(self, which: Tensor, name: str) -> None:
        """Propose a new place for each particle and accept by Metropolis and Hastings's rule."""
        old, size = self.y[which], self.sizes[name][which]
        y, log_ratio = STEPS[name](old, size, self.start[which], self.normal[which])
        log_prior, log_likelihood = self.target(y, which)
        gain = self.temperature[which, None] * (log_likelihood - self.log_likelihood[which])
        gain = log_prior - self.log_prior[which] + gain + log_ratio
        gain = torch.where(log_likelihood > -math.inf, gain, -math.inf)  # nobody goes where there is no posterior
        taken = torch.rand_like(gain).log() < gain
        self.y[which] = torch.where(taken[..., None], y, old)
        self.log_prior[which] = torch.where(taken, log_prior, self.log_prior[which])
        self.log_likelihood[which] = torch.where(taken, log_likelihood, self.log_likelihood[which])
        share = taken.double().mean(-1)
        self.accepted[which] += share
        self.proposed[which] += 1
        self.sizes[name][which] = (size * (share - WANTED[name]).exp()).clamp(1e-3, LARGEST[name])

    def _look_back(self, which: Tensor) -> None:
        """Keep how much log likelihoods are like those before all steps; to change between modes may take longer."""
        for number in which.tolist():
            likeness = torch.stack([self.before[number], self.log_likelihood[number]]).corrcoef()[0, 1]
            if likeness > self.likeness[number]:
                self.likeness[number], self.at[number] = likeness, self.temperature[number]

    def _draw_more(self, number: int) -> None:
        """Draw from the prior until each population of a data set is where the posterior is not zero.

        The share of such draws is the first factor of the evidence.
        """
        particles, batches = self.y.shape[1] // self.populations, 1
        found = _possible(self._first(number))
        while (fewest := min(len(own[0]) for own in found)) < particles and batches < BATCHES:
            pairs = zip(found, _possible(self._drawn(number)), strict=True)
            found = [[*map(torch.cat, zip(*pair, strict=True))] for pair in pairs]
            batches += 1
        if fewest < min(FEWEST_STARTS, particles):
            raise ValueError(
                f"The posterior{self._of_set(number)} is zero at all but {fewest} of {batches * particles} "
                "draws of the prior, which are too few to start from. Is x within reach of the prior? If it is, take "
                'more `particles`, as in `sample_chains(posterior, x, "smc", particles=2000)`.'
            )
        places = [torch.arange(particles) % len(own[0]) for own in found]
        for values, parts in zip((self.y, self.log_prior, self.log_likelihood), zip(*found, strict=True), strict=True):
            values[number] = torch.cat([part[place] for part, place in zip(parts, places, strict=True)])
        count = torch.tensor([len(own[0]) for own in found], dtype=torch.float64)
        self.log_evidence[number] = (count / (batches * particles)).log()

    def _of_set(self, number: int) -> str:
        """Return which data set something is said of, if there are several."""
        problem = self.target.problem
        return f" for data set {problem.first + number}" if problem.sets else ""

    def _first(self, number: int) -> list[Tensor]:
        """Return y, log p(y) and log L of a data set's particles, population by population."""
        each = self.y, self.log_prior, self.log_likelihood
        return [values[number].unflatten(0, (self.populations, -1)) for values in each]

    def _drawn(self, number: int) -> list[Tensor]:
        """Return the same of as many further draws of the prior."""
        y = self.target.begin(self.y.shape[1])[None]
        each = y, *self.target(y, torch.tensor([number]))
        return [values[0].unflatten(0, (self.populations, -1)) for values in each]

    def _by_population(self, values: Tensor) -> Tensor:
        """Return values of shape `(some, populations * particles)` as `(some, populations, particles)`."""
        return values.unflatten(1, (self.populations, -1))


def _possible(values: list[Tensor]) -> list[list[Tensor]]:
    """Return y, log p(y) and log L of each population, without what is nowhere in the posterior."""
    kept = values[2] > -math.inf
    return [[each[number, own] for each in values] for number, own in enumerate(kept)]


def _next_temperature(log_likelihood: Tensor, temperature: Tensor) -> Tensor:
    """Return the largest temperatures at which the weights leave every population its effective share.

    Arguments:
        log_likelihood: shape `(sets, populations, particles)`
        temperature: that of the particles, shape `(sets,)`
    """
    possible = (log_likelihood > -math.inf).sum(-1).amin(-1)  # of draws of the prior: the others go in any case
    wanted = EFFECTIVE * possible

    def enough(following: Tensor) -> Tensor:
        log_weight = ((following - temperature)[:, None, None] * log_likelihood).log_softmax(-1)
        return (-(2 * log_weight).logsumexp(-1)).exp().amin(-1) >= wanted

    end = torch.ones_like(temperature)
    low, high = torch.full_like(end, math.log(1e-300)), torch.log1p(-temperature)
    for _ in range(60):  # bisection of the log of the step
        middle = (low + high) / 2
        taken = enough(temperature + middle.exp())
        low, high = torch.where(taken, middle, low), torch.where(taken, high, middle)
    step = torch.maximum(temperature + high.exp(), torch.nextafter(temperature, end))
    return torch.where(enough(end), end, step.clamp(max=1.0))


def _systematic(weight: Tensor) -> Tensor:
    """Return which particles take the places, each as often as its weight says but for one (systematic resampling).

    Arguments:
        weight: summing to one, shape `(*, particles)`
    """
    particles = weight.shape[-1]
    places = torch.arange(particles, dtype=weight.dtype) + torch.rand(*weight.shape[:-1], 1, dtype=weight.dtype)
    return torch.searchsorted(weight.cumsum(-1), places / particles).clamp(max=particles - 1)


def _mean_evidence(log_evidence: Tensor) -> tuple[float, float]:
    """Return the log of the mean of the populations' evidences, and its standard error.

    That is the larger one of the scatter of the evidences over their mean, which never exceeds one, and of their logs.
    """
    count = len(log_evidence)
    evidence = (log_evidence - log_evidence.max()).exp()
    error = float(torch.maximum(evidence.std() / evidence.mean(), log_evidence.std())) / math.sqrt(count)
    return float(log_evidence.logsumexp(0)) - math.log(count), error
