"""`mfsbi bench speed`: the kernels everybody waits for, against peers, in one run.

Sizes are those of the paper's LHC process (40 features, 14 on the manifold) unless a row says otherwise. Weights are
those of new models moved at random, since a new flow is the identity. Every side has the same number of threads.
"""

import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Uniform

from mfsbi.bench import peers
from mfsbi.bench.duel import Duel, Score, as_markdown, run, timed
from mfsbi.bench.output import keep, torch_threads
from mfsbi.charts import FlowChart, Standardized
from mfsbi.flows import AffineCouplings, Flow, SplineCoupling, SplineCouplings
from mfsbi.models import ManifoldModel
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.host import LikelihoodBasedPotential, MCMCPosterior, MCMCPosteriorParameters
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.specs import SPLINES, MFlow
from mfsbi.registry import named, registered
from mfsbi.seeds import derived, seeded
from mfsbi.train.data import Batch
from mfsbi.train.losses import latent_nll, reconstruction
from mfsbi.train.schedules import Phase

__all__ = ["Sizes", "SpeedTable", "speed"]

EVENTS = 20
PEERS = "sbi's potential, the same estimator", "sbi's potential, every row evaluated"
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
        chains: of a posterior
        warmup_steps: of each chain before
        pairs: how often each pair is timed
        steps: of 500 rows, for the chart of the surface; a third of them, of 1,500 rows, for the density on it
        seeds: how often the surface is learned
    """

    rows: int = 1000
    few_rows: int = 100
    layers: int = 10
    chart_layers: int = 20
    draws: int = 1000
    chains: int = 20
    warmup_steps: int = 200
    pairs: int = 7
    steps: int = 4500
    seeds: int = 5


@dataclass(frozen=True)
class SpeedTable:
    """The rows, and what is said about the run as a whole.

    Arguments:
        scores: a row for each duel, in order
        facts: what has no peer, by what it is
    """

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
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    scores = []
    with torch_threads(threads), seeded(0):
        for duel in _duels(sizes):
            scores.append(run(duel, sizes.pairs))
            tell(as_markdown(scores[-1:]).splitlines()[-1])
        table = SpeedTable(scores, _facts(sizes, threads))
    if out is not None:
        keep(out, "speed", table, {"rows": [asdict(score) for score in scores], "facts": table.facts})
    return table


def _duels(sizes: Sizes) -> Iterator[Duel]:
    yield from _flow_duels(sizes)
    yield from _density_duels(sizes)
    yield from _phase_duels(sizes)
    yield from _posterior_duels(sizes)
    yield Duel("import", "import sbi", partial(_python, "import mfsbi"), partial(_python, "import sbi"), pairs=3)


def _flow_duels(sizes: Sizes) -> Iterator[Duel]:
    settings = SplineCouplings(layers=sizes.layers, bins=11, bound=10.0)
    ours = perturbed(settings.build(40))
    zuko = perturbed(peers.zuko_flow(40, settings))
    nflows: Any = perturbed(peers.nflows_flow(40, settings))
    for rows, target in ((sizes.rows, 3), (sizes.few_rows, 2)):
        x = torch.randn(rows, 40)
        name = f"training step, 40-D, {sizes.layers} couplings, batch {rows}"
        own = _step(ours, partial(ours.forward_and_log_det, x))
        yield Duel(name, "zuko", own, _step(zuko, partial(peers.call_zuko, zuko, x)), target)
        yield Duel(name, "nflows", own, _step(nflows, partial(nflows, x)), target)
        yield Duel(name, "ours, its networks alone", own, partial(_step_networks, ours, rows))
    y = torch.randn(sizes.rows, 40)
    inverse, name = _quiet(ours.inverse, y), f"inverse, 40-D, batch {sizes.rows}"
    yield Duel(name, "zuko", inverse, _quiet(peers.invert_zuko, zuko, y), 3)
    yield Duel(name, "nflows", inverse, _quiet(nflows.inverse, y), 3)


def _density_duels(sizes: Sizes) -> Iterator[Duel]:
    model, half = _model(sizes, 14), _model(sizes, 7)
    chart = cast(FlowChart, cast(Standardized, model.chart).chart)  # its frame adds a constant to the log-volume
    name = f"exact log_prob, d = 40, n = 14, {sizes.chart_layers} couplings"
    x, few, many = (torch.randn(rows, 40) for rows in (sizes.few_rows, 8, 10 * sizes.few_rows))

    def exact(x: Tensor, model: ManifoldModel = model) -> Callable[[], None]:
        return _quiet(model.log_prob, x, _theta(x))

    def plain(volume: Callable[[FlowChart, Tensor], Tensor], x: Tensor) -> Tensor:
        u = model.chart.encode(x)
        return model.latent.log_prob(u, _theta(x)) - volume(chart, u)

    by_layers = partial(plain, peers.log_volume_by_layers, few)
    yield Duel(f"{name}, batch {len(x)}", "vmap(jacfwd)", exact(x), _quiet(plain, peers.log_volume_by_jacfwd, x), 3)
    yield Duel(f"{name}, batch 8", "reverse passes layer by layer", exact(few), by_layers, 100, pairs=3)
    name = f"its cost, batch {len(x)} against {len(many)}: linear is 10"
    yield Duel(name, "ours, 10 times the rows", exact(x), exact(many))
    name = f"its cost, n = 7 against 14, batch {len(many)}: linear is 2"
    yield Duel(name, "ours, twice n", exact(many, half), exact(many))
    wide = FlowChart(perturbed(AffineCouplings(layers=sizes.layers).build(200, cut=100)), 100)
    u = torch.randn(len(x), 100)
    yield Duel(
        f"gradient of the log-volume, d = 200, n = 100, {sizes.layers} affine couplings, batch {len(u)}",
        "ours, exact instead of noisy",
        lambda: wide.noisy_log_volume(u).mean().backward(),
        lambda: wide.log_volume(u).mean().backward(),
    )


def _phase_duels(sizes: Sizes) -> Iterator[Duel]:
    theta, x = torch.rand(sizes.rows, 2), torch.randn(sizes.rows, 40)
    model = _model(sizes, 14)
    zuko = perturbed(peers.zuko_flow(40, SplineCouplings(layers=sizes.chart_layers, bins=11)))

    def project_by_zuko() -> tuple[Tensor, Tensor]:
        u = peers.call_zuko(zuko, x)[0][:, :14]
        return x - peers.invert_zuko(zuko, nn.functional.pad(u, (0, 26))), torch.zeros(())

    batch = Batch(theta, x)
    with torch.no_grad():
        cached = replace(batch, u=model.chart.encode(x))

    def step(loss: Callable[[ManifoldModel, Batch], Tensor], batch: Batch) -> Callable[[], None]:
        return lambda: loss(model, batch).mean().backward()

    name = f"of an M-flow, d = 40, n = 14, {sizes.chart_layers} couplings, batch {sizes.rows}"
    yield Duel(f"phase M step {name}", "zuko", step(reconstruction, batch), _step(zuko, project_by_zuko))
    ours, encoding = step(latent_nll, cached), step(latent_nll, batch)
    yield Duel(f"phase D step {name}", "ours, encoding x", ours, encoding, 3)


def _posterior_duels(sizes: Sizes) -> Iterator[Duel]:
    prior = _prior(1)
    theta = prior.sample((2000,))
    x = torch.randn(2000, 3) + theta
    surface = MFlow(2, latent=SPLINES)(theta, x).eval()
    process = ManifoldEstimator(_model(sizes, 14)).eval()
    name = f"potential, {EVENTS} events x {sizes.chains} chains, 20 calls"
    problems = (
        ("d = 3, n = 2", surface, prior, x[:EVENTS]),
        ("d = 40, n = 14", process, _prior(2), torch.randn(EVENTS, 40)),
    )
    for problem, estimator, given, x_o in problems:
        starts = given.sample((sizes.chains,))
        own, *others = (
            partial(_call, posterior.potential_fn, starts) for posterior in _posteriors(given, estimator, x_o, sizes)
        )
        for peer, other in zip(PEERS, others, strict=True):
            yield Duel(f"{name}, {problem}", peer, own, other, 10)
    shape = (sizes.draws,)
    posteriors = _posteriors(prior, surface, x[:EVENTS], sizes)
    ours, stock, _ = (partial(each.sample, shape, x=x[:EVENTS], show_progress_bars=False) for each in posteriors)
    yield Duel(f"posterior.sample({shape}), {EVENTS} events, d = 3, n = 2", PEERS[0], ours, stock, 5, pairs=2)


def _posteriors(prior: Distribution, estimator: ManifoldEstimator, x_o: Tensor, sizes: Sizes) -> list[MCMCPosterior]:
    """Return posteriors of the same estimator with the same sampler: by our potential, and by those of `PEERS`."""
    settings = {
        "num_chains": sizes.chains,
        "warmup_steps": sizes.warmup_steps,
        "init_strategy_parameters": {"num_candidate_samples": 50 * sizes.chains},
    }
    parameters = MCMCPosteriorParameters(**settings)
    spec = MFlow(estimator.model.chart.manifold_dim, latent=SPLINES)
    posteriors = [ManifoldNLE(prior, spec).build_posterior(estimator, posterior_parameters=parameters)]
    for peer in (estimator, peers.EveryRow(estimator.model).eval()):
        posteriors.append(MCMCPosterior(LikelihoodBasedPotential(peer, prior, x_o), prior, **settings))
    for posterior in posteriors:
        posterior.set_default_x(x_o)
        posterior.potential_fn.set_x(x_o, x_is_iid=True)
    return posteriors


def _call(potential: Callable[..., Tensor], theta: Tensor) -> None:
    for _ in range(20):
        potential(theta, track_gradients=False)


def _prior(parameters: int) -> Distribution:
    """Return a uniform prior that is -inf outside, not an error."""
    uniform = Uniform(-torch.ones(parameters), torch.ones(parameters), validate_args=False)
    return Independent(uniform, 1, validate_args=False)


def _facts(sizes: Sizes, threads: int) -> dict[str, str | float]:
    peak = f"peak_of_log_prob(Sizes(few_rows={sizes.few_rows}, chart_layers={sizes.chart_layers}))"
    return {
        "threads": threads,
        "torch": torch.__version__,
        **_event_rates(50 * sizes.rows, 100 * sizes.rows),
        "MiB at the peak of a process that evaluates 10,000 rows of the exact log_prob, d = 40, n = 14": float(
            _python(f"from mfsbi.bench.speed import Sizes, peak_of_log_prob; print({peak})")
        ),
        **{f"polynomial M-flow from scratch, seed {seed}": learn_surface(sizes, seed) for seed in range(sizes.seeds)},
    }


def _event_rates(rows: int, points: int) -> dict[str, float]:
    """Return how fast the LHC process makes events and evaluates its exact likelihood, on one core.

    In events per second, features included, microseconds per likelihood and seconds per grid of theta.

    Arguments:
        rows: events that are made
        points: thetas at which 20 events are evaluated
    """
    process: Any = named("lhc")  # beyond a `Simulator` it knows its likelihood as a quadratic form
    with seeded(0):
        theta, grid = process.prior.sample((rows,)), process.prior.sample((points,))
    with torch_threads(1):
        process.simulate(theta[:100], seed=0)
        x, of_prior = timed(lambda: process.simulate(theta, seed=1))
        _, of_standard_model = timed(lambda: process.simulate(torch.zeros_like(theta), seed=2))
        some = x[: max(1, rows // 10)]
        _, of_form = timed(lambda: process.likelihood(some))
        form = process.likelihood(x[:20])
        _, of_grid = timed(lambda: form.log_likelihood(grid))
    per_event = 1e6 * of_form / len(some)
    return {
        "LHC events per second, one core, theta from the prior (aim 20,000)": round(rows / of_prior),
        "the same at theta = 0 (aim 50,000)": round(rows / of_standard_model),
        "microseconds per event for its exact likelihood as a quadratic form (aim 50)": round(per_event, 1),
        f"seconds for 20 events at {points:,} theta after that (aim 0.1)": round(of_grid, 4),
    }


def _python(code: str) -> str:
    """Return what a fresh process of Python prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout  # noqa: S603 - our own code


def peak_of_log_prob(sizes: Sizes) -> float:
    """Return the peak memory of this process, imports included, after the exact log_prob of 10,000 rows, in MiB.

    Linux counts what the parent held in `ru_maxrss`, but not in `VmHWM`.
    """
    model, x = _model(sizes, 14), torch.randn(100 * sizes.few_rows, 40)
    with torch.no_grad():
        model.log_prob(x, _theta(x))
    status = Path("/proc/self/status")
    if status.exists():
        return round(int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def learn_surface(sizes: Sizes, seed: int) -> str:
    """Train an M-flow on the polynomial surface, the chart from scratch, and say how long that took and how well.

    Arguments:
        sizes: whose steps count, of new simulations each: one pass over all of them for each part
        seed: of theta, simulations, weights and the order of the rows

    Raises:
        KeyboardInterrupt: after Ctrl-C, since half a training has no time
    """
    surface = registered("polynomial")
    with seeded(derived(seed, 0)):
        theta, new = surface.prior.sample((500 * sizes.steps,)), surface.prior.sample((10_000,))
    spec = MFlow(surface.manifold_dim, latent=SPLINES)
    trainer = ManifoldNLE(surface.prior, spec, seed=seed, show_progress_bars=False)
    trainer.append_simulations(theta, surface.simulate(theta, seed=derived(seed, 1)))
    schedule = [Phase(reconstruction, ("chart",), 1, decay=0.0, rows=500), Phase(latent_nll, ("latent",), 1, rows=1500)]
    estimator, seconds = timed(lambda: trainer.train(schedule=schedule, validation_fraction=0.01))
    if trainer.history.interrupted:
        raise KeyboardInterrupt
    with torch.no_grad(), seeded(derived(seed, 2)):
        error = estimator.model.distance(surface.simulate(new, seed=derived(seed, 3))).mean()
        distance = surface.vertical_distance(estimator.model.sample(new)).mean()
    return f"{seconds:.0f} s, reconstruction {error:.4f}, distance of samples {distance:.4f}"


def perturbed(module: Module) -> Module:
    """Return the module with its weights moved at random, so that it is not the identity."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return module


def _model(sizes: Sizes, manifold_dim: int) -> ManifoldModel:
    """Return an M-flow of the sizes of the LHC process: 40 features, 2 parameters, latent flow of 10 couplings."""
    chart = SplineCouplings(layers=sizes.chart_layers, bins=11, bound=10.0)
    spec = MFlow(manifold_dim, chart=chart, latent=SplineCouplings(layers=sizes.layers, bins=11))
    return cast(ManifoldModel, perturbed(spec.build(torch.rand(100, 2), torch.randn(100, 40))).eval())


def _theta(x: Tensor) -> Tensor:
    return torch.zeros(len(x), 2)


def _step(module: nn.Module, forward: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """Return a training step up to the optimiser: the likelihood and its gradients."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        y, log_det = forward()
        (0.5 * y.square().sum(-1) - log_det).mean().backward()

    return step


def _step_networks(flow: Flow, rows: int) -> None:
    """Put numbers through the networks of a flow and gradients back, which a faster spline cannot save."""
    flow.zero_grad(set_to_none=True)
    for layer in cast(Sequence[SplineCoupling], flow.layers):
        outputs = layer.network(torch.ones(len(layer.kept), rows, requires_grad=True))
        outputs.backward(torch.ones_like(outputs))


def _quiet(work: Callable[..., Tensor], *arguments: object) -> Callable[[], None]:
    """Return the work without gradients."""

    def quiet() -> None:
        with torch.no_grad():
            work(*arguments)

    return quiet
