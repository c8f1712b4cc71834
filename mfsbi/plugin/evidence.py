r"""The evidence of a model, and Bayes factors of models: of simulators, or of priors.

The evidence is the probability of the observations before theta is known,

    p(x_1, ..., x_m|M) = int p(theta|M) prod_j p(x_j|theta, M) dtheta,

and the ratio of two is the Bayes factor, by which the observations change the odds of two models (Kass & Raftery 1995).
It comes from tempered SMC (`mfsbi.inference.run_smc`), by several populations of particles whose scatter gives its
error; the evidence of a population is nearly unbiased, so the mean of evidences, not that of their logarithms, is
taken. A mode that all populations miss is in neither, see `mfsbi.SMC`.

A Bayes factor means what it says only if both models say how probable the same thing is. Densities in data space can
be compared with each other, those on manifolds of n dimensions only if it is one manifold, and those of coordinates, or
ratios, only if they come from one network. An evidence depends on the prior even where the posterior does not: a prior
ten times as wide costs a factor of ten for each parameter that the data determine.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from scipy import stats
from torch import Tensor, nn

from mfsbi.checks import require_kind, warn
from mfsbi.inference.run_smc import SMC
from mfsbi.models import AmbientModel, DensityModel
from mfsbi.plugin.host import NeuralPosterior
from mfsbi.plugin.potential import ManifoldPotential
from mfsbi.plugin.sampling import require_posterior, sample_chains

__all__ = ["Comparison", "Evidence", "compare", "log_evidence"]

POPULATIONS = 8
"""Whose evidences are averaged, and whose scatter is the error."""

DRAWS = 100
"""Of each population, to be examined; its particles are as many at least."""

FAR_APART = 1.0
"""Nats of the error from which on an evidence is of no use."""

SURE = 0.95
"""Of the interval that the error is half of."""


class Evidence(NamedTuple):
    """The log of an evidence, in nats.

    Arguments:
        log: log p(x), of all observations together; of a ratio, the log of its mean over the prior
        error: half the width of the interval of 95 %, of Student's t with as many degrees as populations but one
    """

    log: float
    error: float

    def __str__(self) -> str:
        return f"{self.log:.2f} ± {self.error:.2f}"


@dataclass(frozen=True)
class Comparison:
    """What observations say of models.

    Arguments:
        evidence: of each model, by its name
    """

    evidence: Mapping[str, Evidence]

    @property
    def probability(self) -> dict[str, float]:
        """The probability of each model, if all were equally probable before the observations."""
        logs = torch.tensor([each.log for each in self.evidence.values()], dtype=torch.float64)
        return dict(zip(self.evidence, logs.softmax(0).tolist(), strict=True))

    def log_bayes_factor(self, first: str, second: str) -> Evidence:
        """Return log p(x|first) - log p(x|second) with its error; above zero the observations favour the first.

        Raises:
            KeyError: if there is no model of such a name
        """
        one, other = self.evidence[first], self.evidence[second]
        return Evidence(one.log - other.log, math.hypot(one.error, other.error))

    def __str__(self) -> str:
        width = max(map(len, self.evidence))
        rows = (
            f"{name:{width}}  log p(x) {each}  probability {self.probability[name]:.3g}"
            for name, each in self._best_first
        )
        return "\n".join(rows)

    @property
    def _best_first(self) -> list[tuple[str, Evidence]]:
        return sorted(self.evidence.items(), key=lambda item: -item[1].log)


def log_evidence(
    posterior: NeuralPosterior,
    x: Tensor,
    *,
    particles: int = 250,
    seed: int = 0,
    show_progress_bars: bool | None = None,
) -> Evidence:
    """Return log p(x) of a model under its prior, with an error.

    Arguments:
        posterior: as `build_posterior()` of a `ManifoldNLE` or of `ALICES` returns it
        x: iid observations, shape `(observations, data)`
        particles: of each of eight populations; the error falls as one over the root of their number
        seed: of everything random
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError, TypeError: as `sample_chains`
    """
    sampler = SMC(chains=POPULATIONS, particles=particles)
    chains = sample_chains(posterior, x, sampler, draws=DRAWS, seed=seed, show_progress_bars=show_progress_bars)
    log, error = cast(tuple[float, float], (chains.info.log_evidence, chains.info.log_evidence_error))
    found = Evidence(log, error * float(stats.t.ppf((1 + SURE) / 2, POPULATIONS - 1)))
    if found.error > FAR_APART:
        warn(
            f"Populations of particles disagree on log p(x): {found}. A Bayes factor by this one means little. Raise "
            f"`particles`, now {particles}."
        )
    return found


def compare(
    posteriors: Mapping[str, NeuralPosterior],
    x: Tensor,
    *,
    particles: int = 250,
    seed: int = 0,
    show_progress_bars: bool | None = None,
) -> Comparison:
    """Return the evidence of several models for the same observations; `print` shows them with their probabilities.

    Arguments:
        posteriors: two or more, by name: of trainers of several simulators, or of one estimator with several priors
        x: iid observations, shape `(observations, data)`
        particles: of each of eight populations, for each model
        seed: of everything random
        show_progress_bars: True, False, or None for "only on a terminal"

    Raises:
        ValueError: if there are fewer than two, or their densities are counted in different spaces
        TypeError: if one is no posterior of a `ManifoldNLE` or of `ALICES`
    """
    if len(posteriors) < 2:
        raise ValueError(f"`posteriors` should be two or more, by name; got {len(posteriors)}.")
    for name, each in posteriors.items():
        require_kind(f"posteriors[{name!r}]", each, NeuralPosterior, "a posterior, as `build_posterior()` returns it")
        require_posterior(each, SMC())
    _require_one_space(posteriors)
    return Comparison(
        {
            name: log_evidence(each, x, particles=particles, seed=seed, show_progress_bars=show_progress_bars)
            for name, each in posteriors.items()
        }
    )


def _require_one_space(posteriors: Mapping[str, NeuralPosterior]) -> None:
    """Raise ValueError if densities are counted in different spaces, and warn if their manifolds were learned apart."""
    (first, one), *others = posteriors.items()
    space, part = _space(one)
    for name, each in others:
        found, own = _space(each)
        same = _alike(part, own)
        if found != space or (not space.can_be_learned_apart and not same):
            raise ValueError(
                f"{first!r} is counted {space.where} and {name!r} {found.where}: the ratio of such evidences is no "
                "Bayes factor. Train models of one kind, such as `AF`, or take one estimator with several priors."
            )
        if space.on_manifold and not same:
            warn(
                f"{first!r} and {name!r} learned their manifolds apart: their Bayes factor holds as far as these are "
                "one and the same, and says nothing of which of them the observations lie on: see `distance`."
            )


class _Space(NamedTuple):
    """Where a density is counted."""

    where: str
    can_be_learned_apart: bool
    on_manifold: bool = False


def _space(posterior: NeuralPosterior) -> tuple[_Space, nn.Module]:
    """Return where the density of a posterior is counted, and the part that decides it."""
    potential = cast(Any, posterior).potential_fn
    if not isinstance(potential, ManifoldPotential):
        return _Space("as a ratio", can_be_learned_apart=False), cast(nn.Module, potential.ratio_estimator)
    model = potential.likelihood_estimator.model
    if not isinstance(model, DensityModel):
        return _Space("in coordinates", can_be_learned_apart=False), model.chart
    if isinstance(model, AmbientModel) or model.chart.manifold_dim == model.chart.data_dim:
        return _Space("in data space", can_be_learned_apart=True), model.chart
    dims = model.chart.manifold_dim
    return _Space(f"on a manifold of {dims} dimensions", can_be_learned_apart=True, on_manifold=True), model.chart


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Return whether two parts have the same weights."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        isinstance(value, Tensor) and value.shape == second[name].shape and bool((value == second[name]).all())
        for name, value in first.items()
    )
