"""The demo: from simulator to posterior on the polynomial surface, judged against the exact one.

It simulates, trains an M-flow with nothing set, samples the posterior of 20 observations by sbi's MCMC, computes the
exact posterior on a grid, and leaves draws, estimator, figures and numbers in a folder.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mfsbi import plots
from mfsbi.checks import require_positive
from mfsbi.inference.grid import grid_posterior
from mfsbi.inference.potential import exact_potential
from mfsbi.inference.to_arviz import Diagnostics, diagnose, plot_rank, plot_trace, to_arviz, write
from mfsbi.metrics import total_variation
from mfsbi.models import AbstractModel
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.sampling import sample_chains
from mfsbi.plugin.saving import save
from mfsbi.plugin.specs import MFlow
from mfsbi.seeds import derived, seeded
from mfsbi.types import KnownTruth

__all__ = ["DemoResult", "prepare_folder", "run_demo"]

EVENTS = 20
TRUE_THETA = 0.0


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Arguments:
        reconstruction_error: mean |x - project(x)| over new points of the surface
        manifold_distance: mean vertical distance of model samples to the true surface
        mean: posterior mean of the model's draws
        std: their standard deviation
        exact_mean: mean of the exact posterior
        exact_std: its standard deviation
        total_variation: TV of the model's posterior and the exact one, on a grid
        diagnostics: of the chains
        collapses: starts of the chart that were given up
        seconds: of the whole demo
    """

    reconstruction_error: float
    manifold_distance: float
    mean: float
    std: float
    exact_mean: float
    exact_std: float
    total_variation: float
    diagnostics: Diagnostics
    collapses: int
    seconds: float


def prepare_folder(out: Path) -> None:
    """Create the folder and make sure that files can be written there, before any work is done.

    Arguments:
        out: the folder, whose parents are created as well

    Raises:
        OSError: if that is not possible; the message names the folder
    """
    probe = out / ".writable"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise OSError(f"Cannot write to the folder {out}: {error.strerror}. Choose another one with --out.") from error


def run_demo(
    surface: KnownTruth,
    out: Path,
    *,
    seed: int = 0,
    simulations: int = 20_000,
    quiet: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> DemoResult:
    """Run the demo and leave its files in `out`.

    Arguments:
        surface: the simulator; one parameter on (-1, 1), data in three dimensions
        out: folder for draws, estimator, figures and numbers; created if needed
        seed: of everything
        simulations: pairs (theta, x) to learn from
        quiet: no progress bars
        tell: called with a line about each step as it begins

    Raises:
        ValueError: if simulations is not positive, or the simulator has several parameters
        KeyboardInterrupt: if training was interrupted; the estimator so far has been saved
        OSError: if the folder cannot be written to
    """
    require_positive("simulations", simulations)
    if len(surface.parameter_names) != 1:
        raise ValueError(f"The demo draws the posterior of 1 parameter; this simulator has {surface.parameter_names}.")
    prepare_folder(out)
    start = time.perf_counter()

    tell(f"Simulating {simulations:,} pairs (theta, x) ...")
    with seeded(derived(seed, 100)):
        theta, x_o_theta = surface.prior.sample((simulations,)), torch.full((EVENTS, 1), TRUE_THETA)
    x = surface.simulate(theta, seed=derived(seed, 101))
    x_o = surface.simulate(x_o_theta, seed=derived(seed, 102))

    tell("Training an M-flow: first the manifold, then the density on it ...")
    spec, bars = MFlow(manifold_dim=surface.manifold_dim), False if quiet else None
    trainer = ManifoldNLE(surface.prior, spec, seed=seed, show_progress_bars=bars)
    trainer.append_simulations(theta, x)
    estimator = trainer.train()
    save(estimator, out / "estimator.safetensors")
    if trainer.history.interrupted:
        raise KeyboardInterrupt

    tell(f"Sampling the posterior of {EVENTS} observations by tempered SMC ...")
    posterior = trainer.build_posterior()
    chains = sample_chains(posterior, x_o, seed=derived(seed, 103), show_progress_bars=bars)
    data = to_arviz(chains, surface.parameter_names, x=x_o, prior=theta[:5000])
    write(data, out / "posterior.nc")

    tell("Comparing with the exact posterior ...")
    exact = grid_posterior(exact_potential(surface, x_o), [-1], [1])
    learned = grid_posterior(lambda grid: posterior.potential(grid, x_o), [-1], [1])
    samples, points = _samples(surface, estimator.model, derived(seed, 104))
    result = DemoResult(
        reconstruction_error=float(estimator.model.distance(points).detach().mean()),
        manifold_distance=float(surface.vertical_distance(samples).clamp(max=10).mean()),
        mean=chains.mean.item(),
        std=chains.std.item(),
        exact_mean=exact.mean.item(),
        exact_std=exact.std.item(),
        total_variation=total_variation(exact.probability, learned.probability),
        diagnostics=diagnose(chains),
        collapses=len(trainer.history.collapses),
        seconds=time.perf_counter() - start,
    )
    numbers = {**vars(result), "diagnostics": result.diagnostics._asdict()}
    (out / "result.json").write_text(json.dumps(numbers, indent=1))

    tell("Drawing ...")
    history = trainer.history
    losses, courses = ({loss: look(loss) for loss in history.losses} for look in (history.of, history.course))
    off = surface.out_of_distribution(40, seed=derived(seed, 105), noise=0.5)
    clouds = points[:5000], samples[:5000], off, estimator.model.project(off).detach()
    curves = exact.theta[:, 0], exact.density, learned.density, chains.pooled[:, 0]
    grid, truth, model, draws = (curve.numpy() for curve in curves)
    figures = {
        "training": plots.training_curves(losses, courses),
        "surface": plots.surface(*(cloud.numpy() for cloud in clouds)),
        "posterior": plots.posterior_against_truth(grid, truth, model, draws, TRUE_THETA, surface.parameter_names[0]),
        "trace": plot_trace(data),
        "rank": plot_rank(data),
    }
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=130)
    return result


@torch.no_grad()
def _samples(surface: KnownTruth, model: AbstractModel, seed: int, rows: int = 10_000) -> tuple[Tensor, Tensor]:
    """Return samples of the model and new points of the simulator, theta drawn from the prior."""
    with seeded(seed):
        theta = surface.prior.sample((rows,))
        return model.sample(theta), surface.simulate(theta, seed=derived(seed, 1))
