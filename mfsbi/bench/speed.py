"""`mfsbi bench speed`: the kernels everybody waits for, against peers, in one run.

Sizes are those of the paper's LHC process (40 features, 14 on the manifold) unless a row says otherwise. Weights are
those of new models moved at random, since a new flow is the identity. Every side has the same number of threads.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mfsbi.bench import peers
from mfsbi.bench.duel import Duel, Score, as_markdown, run
from mfsbi.charts import FlowChart
from mfsbi.flows import Flow, SplineCouplings
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import LikelihoodBasedPotential, MCMCPosterior, MCMCPosteriorParameters
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.specs import MFlow
from mfsbi.seeds import seeded
from mfsbi.train.data import Batch
from mfsbi.train.losses import latent_nll, reconstruction

__all__ = ["Sizes", "SpeedTable", "speed"]

EVENTS, CHAINS = 20, 20
Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Sizes:
    """How large the measured problems are; the defaults are what is reported, smaller ones serve tests.

    Arguments:
        rows: of a large batch
        few_rows: of a small one
        layers: couplings of the flow that is trained
        chart_layers: couplings of the chart
        draws: of a posterior
        warmup_steps: of each chain before
        pairs: how often each pair is timed
    """

    rows: int = 1000
    few_rows: int = 100
    layers: int = 10
    chart_layers: int = 20
    draws: int = 1000
    warmup_steps: int = 200
    pairs: int = 7


@dataclass(frozen=True)
class SpeedTable:
    """The rows, and what is said about the run as a whole."""

    scores: list[Score]
    facts: dict[str, str | float]

    def __str__(self) -> str:
        facts = [f"- {name}: {value}" for name, value in self.facts.items()]
        return "\n".join([as_markdown(self.scores), "", *facts])


def speed(
    sizes: Sizes | None = None,
    *,
    threads: int = 2,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> SpeedTable:
    """Run all duels and return the table.

    Arguments:
        sizes: of the problems; the reported ones if not given
        threads: of torch, on both sides; the number before comes back
        out: folder for `speed.md` and `speed.json`, created if needed
        tell: called with each row as it is measured
    """
    sizes = Sizes() if sizes is None else sizes
    before = torch.get_num_threads()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    scores = []
    try:
        with seeded(0):
            for duel in _duels(sizes):
                scores.append(run(duel))
                tell(as_markdown(scores[-1:]).splitlines()[-1])
            table = SpeedTable(scores, _facts(sizes, threads))
    finally:
        torch.set_num_threads(before)
    if out is not None:
        (out / "speed.md").write_text(f"{table}\n")
        rows = [score.as_json() for score in scores]
        (out / "speed.json").write_text(json.dumps({"rows": rows, "facts": table.facts}, indent=1))
    return table


def _duels(sizes: Sizes) -> Iterator[Duel]:
    yield from _flow_duels(sizes)
    yield from _density_duels(sizes)
    yield from _phase_duels(sizes)
    yield from _posterior_duels(sizes)
    yield Duel("import", "import sbi", _importing("mfsbi"), _importing("sbi"), pairs=min(3, sizes.pairs))


def _flow_duels(sizes: Sizes) -> Iterator[Duel]:
    settings = SplineCouplings(layers=sizes.layers, bins=11, bound=10.0)
    ours = perturbed(settings.build(40))
    zuko = perturbed(peers.zuko_flow(40, settings))
    nflows: Any = perturbed(peers.nflows_flow(40, settings))
    for peer in (zuko, nflows):
        _require_like_sizes(ours, peer)
    for rows, target in ((sizes.rows, 3), (sizes.few_rows, 2)):
        x = torch.randn(rows, 40)
        name = f"training step, 40-D, {sizes.layers} couplings, batch {rows}"
        own = _step(ours, partial(ours.forward_and_log_det, x))
        yield Duel(name, "zuko", own, _step(zuko, partial(peers.call_zuko, zuko, x)), target, sizes.pairs)
        yield Duel(name, "nflows", own, _step(nflows, partial(nflows, x)), target, sizes.pairs)
    y = torch.randn(sizes.rows, 40)
    inverse, name = _quiet(lambda: ours.inverse(y)), f"inverse, 40-D, batch {sizes.rows}"
    yield Duel(name, "zuko", inverse, _quiet(partial(peers.invert_zuko, zuko, y)), 3, sizes.pairs)
    yield Duel(name, "nflows", inverse, _quiet(lambda: nflows.inverse(y)), 3, sizes.pairs)


def _density_duels(sizes: Sizes) -> Iterator[Duel]:
    chart, name = _chart(sizes, 14), "exact log-volume, d = 40, n = 14"
    u, few = torch.randn(sizes.few_rows, 14), torch.randn(8, 14)
    ours = _quiet(lambda: chart.log_volume(u))
    yield Duel(
        f"{name}, batch {len(u)}",
        "vmap(jacfwd)",
        ours,
        _quiet(lambda: peers.log_volume_by_jacfwd(chart, u)),
        3,
        sizes.pairs,
    )
    yield Duel(
        f"{name}, batch 8",
        "reverse passes layer by layer",
        _quiet(lambda: chart.log_volume(few)),
        lambda: peers.log_volume_by_layers(chart, few),
        100,
        min(3, sizes.pairs),
    )
    many, half = torch.randn(10 * len(u), 14), _chart(sizes, 7)
    yield Duel(
        f"{name}, batch {len(u)} against {len(many)}",
        "ours, 10 times the rows",
        ours,
        _quiet(lambda: chart.log_volume(many)),
        None,
        sizes.pairs,
    )
    yield Duel(
        f"exact log-volume, n = 7 against 14, batch {len(u)}",
        "ours, twice n",
        _quiet(lambda: half.log_volume(u[:, :7])),
        ours,
        None,
        sizes.pairs,
    )


def _phase_duels(sizes: Sizes) -> Iterator[Duel]:
    theta, x = torch.rand(sizes.rows, 2), torch.randn(sizes.rows, 40)
    couplings = SplineCouplings(layers=sizes.chart_layers, bins=11)
    spec = MFlow(14, chart=couplings, latent=SplineCouplings(layers=10, bins=11))
    model = perturbed(spec(theta, x)).model
    zuko = perturbed(peers.zuko_flow(40, couplings))

    def project_by_zuko() -> tuple[Tensor, Tensor]:
        u = peers.call_zuko(zuko, x)[0][:, :14]
        return x - peers.invert_zuko(zuko, nn.functional.pad(u, (0, 26))), torch.zeros(())

    batch = Batch(theta, x)
    with torch.no_grad():
        cached = batch._replace(u=model.chart.encode(x))
    name = f"of an M-flow, d = 40, n = 14, {sizes.chart_layers} couplings, batch {sizes.rows}"
    yield Duel(
        f"phase M step {name}",
        "zuko",
        lambda: reconstruction(model, batch).mean().backward(),
        _step(zuko, project_by_zuko),
        None,
        sizes.pairs,
    )
    yield Duel(
        f"phase D step {name}",
        "ours, encoding x",
        lambda: latent_nll(model, cached).mean().backward(),
        lambda: latent_nll(model, batch).mean().backward(),
        3,
        sizes.pairs,
    )


def _posterior_duels(sizes: Sizes) -> Iterator[Duel]:
    uniform = torch.distributions.Uniform(
        -torch.ones(1), torch.ones(1), validate_args=False
    )  # -inf outside, not an error
    prior = torch.distributions.Independent(uniform, 1, validate_args=False)
    theta = prior.sample((2000,))
    x = torch.randn(2000, 3) + theta
    estimator = MFlow(manifold_dim=2)(theta, x).eval()
    x_o, starts = x[:EVENTS], prior.sample((CHAINS,))
    ours, theirs = _posteriors(prior, estimator, x_o, sizes.warmup_steps)
    calls = range(20)
    name = f"potential, {EVENTS} events x {CHAINS} chains"
    yield Duel(
        f"{name}, {len(calls)} calls",
        "sbi's potential",
        lambda: [ours.potential_fn(starts, track_gradients=False) for _ in calls],
        lambda: [theirs.potential_fn(starts, track_gradients=False) for _ in calls],
        10,
        sizes.pairs,
    )
    shape = (sizes.draws,)
    yield Duel(
        f"posterior.sample({shape}), {EVENTS} events",
        "sbi's potential",
        lambda: ours.sample(shape, x=x_o, show_progress_bars=False),
        lambda: theirs.sample(shape, x=x_o, show_progress_bars=False),
        5,
        min(2, sizes.pairs),
    )


def _posteriors(
    prior: torch.distributions.Distribution, estimator: ManifoldEstimator, x_o: Tensor, warmup_steps: int
) -> tuple[MCMCPosterior, MCMCPosterior]:
    """Return two posteriors of the same estimator with the same sampler: by our potential, and by sbi's."""
    settings = {"warmup_steps": warmup_steps, "init_strategy_parameters": {"num_candidate_samples": 1000}}
    parameters = MCMCPosteriorParameters(**settings)
    ours = ManifoldNLE(prior, MFlow(manifold_dim=2)).build_posterior(estimator, posterior_parameters=parameters)
    theirs = MCMCPosterior(LikelihoodBasedPotential(estimator, prior, x_o), prior, **settings)
    for posterior in (ours, theirs):
        posterior.set_default_x(x_o)
        posterior.potential_fn.set_x(x_o, x_is_iid=True)
    return ours, theirs


def _facts(sizes: Sizes, threads: int) -> dict[str, str | float]:
    return {
        "threads": threads,
        "torch": torch.__version__,
        "MiB for 10,000 rows of the exact log-volume, d = 40, n = 14": _peak_mebibytes(sizes),
    }


def _peak_mebibytes(sizes: Sizes) -> float:
    """Return what the log-volume of 10,000 rows adds to the peak memory of a fresh process."""
    code = (
        "from mfsbi.bench.speed import Sizes, peak_of_log_volume;"
        f"print(peak_of_log_volume(Sizes(few_rows={sizes.few_rows}, chart_layers={sizes.chart_layers})))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    return float(answer.stdout)


def peak_of_log_volume(sizes: Sizes) -> float:
    """Return by how many MiB 10,000 rows raise the peak memory of this process above what 100 rows need."""
    chart = _chart(sizes, 14)
    with torch.no_grad():
        chart.log_volume(torch.randn(100, 14))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        chart.log_volume(torch.randn(100 * sizes.few_rows, 14))
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, 1)


def perturbed(module: Module) -> Module:
    """Return the module with its weights moved at random, so that it is not the identity."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return module


def _chart(sizes: Sizes, manifold_dim: int) -> FlowChart:
    return FlowChart(perturbed(SplineCouplings(layers=sizes.chart_layers, bins=11, bound=10.0).build(40)), manifold_dim)


def _step(module: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Return a training step up to the optimiser: the likelihood and its gradients."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        y, log_det = forward()
        (0.5 * y.square().sum(-1) - log_det).mean().backward()

    return step


def _quiet(work: Callable[[], Tensor]) -> Callable[[], None]:
    """Return the work without gradients."""

    def quiet() -> None:
        with torch.no_grad():
            work()

    return quiet


def _importing(module: str) -> Callable[[], Any]:
    return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)  # noqa: S603


def _require_like_sizes(ours: Flow, theirs: nn.Module) -> None:
    """Raise an error if two flows differ by more than 5 % in size: the duel would be unfair."""
    own, other = (sum(weight.numel() for weight in flow.parameters()) for flow in (ours, theirs))
    if abs(own / other - 1) > 0.05:
        raise RuntimeError(f"The flows of a duel should have equally many weights; they have {own} and {other}.")
