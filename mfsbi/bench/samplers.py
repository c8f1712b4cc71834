"""`mfsbi bench samplers`: what each road to the posterior brings per second, side by side.

A model learns each simulator, and every sampler draws the posterior of the same observations, with its own defaults.
Slice runs a second time on sbi's potential of the same model, which evaluates every row in full. Rates are effective
draws of the worst parameter over all seconds, warm-up included.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from mfsbi.bench.output import as_table, keep, torch_threads
from mfsbi.bench.peers import EveryRow
from mfsbi.inference.chains import Chains
from mfsbi.inference.to_arviz import diagnose
from mfsbi.plugin.host import LikelihoodBasedPotential, MCMCPosterior
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.samplers import SAMPLERS
from mfsbi.plugin.sampling import sample_chains
from mfsbi.plugin.specs import MFlow
from mfsbi.registry import registered
from mfsbi.seeds import derived, seeded
from mfsbi.train.schedules import sequential

__all__ = ["Rate", "Scale", "as_markdown", "compare_samplers"]

ROADS = [road for road in SAMPLERS if road != "grid"]  # a grid's draws cost nothing: its cells do


@dataclass(frozen=True)
class Scale:
    """How much work; the defaults are what is reported, smaller ones serve tests.

    Arguments:
        simulations: to learn from
        epochs: passes over them
        events: observations that share one theta
        draws: of each chain
    """

    simulations: int = 100_000
    epochs: int = 12
    events: int = 20
    draws: int = 250


@dataclass(frozen=True)
class Rate:
    """One sampler on one posterior.

    Arguments:
        simulator: whose posterior
        sampler: by what
        chains: how many
        draws: of each
        seconds: of all, warm-up included
        effective: smallest effective sample size for means
        tails: the same for the 5 % and 95 % quantiles
        r_hat: the largest
    """

    simulator: str
    sampler: str
    chains: int
    draws: int
    seconds: float
    effective: float
    tails: float
    r_hat: float

    @property
    def per_second(self) -> float:
        """Effective draws per second."""
        return self.effective / self.seconds


def compare_samplers(
    simulators: Sequence[str] = ("polynomial", "sphere"),
    scale: Scale | None = None,
    *,
    threads: int = 2,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> list[Rate]:
    """Return one rate for each simulator and sampler.

    Arguments:
        simulators: names of registered ones, whose manifold is known
        scale: how much work; the reported one if not given
        threads: of torch; the number before comes back
        out: folder for `samplers.md` and `samplers.json`, created if needed
        tell: called with each row as it is measured

    Raises:
        ValueError: if a simulator is not registered, has no parameters, or its manifold is not known
    """
    scale = Scale() if scale is None else scale
    for name in simulators:
        registered(name)  # before any work is done
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    rates: list[Rate] = []
    with torch_threads(threads):
        for name in simulators:
            tell(f"Learning {name} from {scale.simulations:,} simulations ...")
            ours, stock, x = _posteriors(name, scale)
            for posterior, road, label in [(ours, road, road) for road in ROADS] + [(stock, "slice", "slice, stock")]:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # what they say is in the row
                    chains = sample_chains(posterior, x, scale.draws, sampler=road, seed=1, show_progress_bars=False)
                rates.append(_rate(name, label, chains))
                tell(as_markdown(rates[-1:]).splitlines()[-1])
    if out is not None:
        keep(out, "samplers", as_markdown(rates), [asdict(rate) for rate in rates])
    return rates


def as_markdown(rates: Sequence[Rate]) -> str:
    """Return the rates as a Markdown table."""
    heads = ["simulator", "sampler", "chains x draws", "seconds", "ESS, bulk", "ESS, tails", "R-hat", "ESS per second"]
    rows = []
    for rate in rates:
        size, seconds = f"{rate.chains} x {rate.draws}", f"{rate.seconds:.1f}"
        found = f"{rate.effective:.0f}", f"{rate.tails:.0f}", f"{rate.r_hat:.3f}", f"{rate.per_second:.3g}"
        rows.append([rate.simulator, rate.sampler, size, seconds, *found])
    return as_table(heads, rows, words=2)


def _posteriors(name: str, scale: Scale) -> tuple[MCMCPosterior, MCMCPosterior, Tensor]:
    """Return a learned posterior, the same one by sbi's own potential, and the observations."""
    simulator = registered(name)
    with seeded(0):
        theta, truth = simulator.prior.sample((scale.simulations,)), simulator.prior.sample()
    trainer = ManifoldNLE(simulator.prior, MFlow(simulator.manifold_dim), seed=0, show_progress_bars=False)
    trainer.append_simulations(theta, simulator.simulate(theta, seed=derived(0, 1)))
    estimator = trainer.train(schedule=sequential(scale.epochs))
    ours = trainer.build_posterior()
    x = simulator.simulate(truth.expand(scale.events, -1), seed=derived(0, 2))
    potential = LikelihoodBasedPotential(EveryRow(estimator.model).eval(), ours.potential_fn.prior, x)
    names = "theta_transform method num_chains warmup_steps thin init_strategy init_strategy_parameters"
    settings = {name: getattr(ours, name) for name in names.split()}
    return ours, MCMCPosterior(potential, ours.potential_fn.prior, **settings), x


def _rate(simulator: str, label: str, chains: Chains) -> Rate:
    found, (count, draws, _) = diagnose(chains), chains.draws.shape
    worst = min(found.ess_bulk), min(found.ess_tail), max(found.r_hat)
    return Rate(simulator, label, count, draws, chains.info.seconds, *worst)
