"""Commands that learn: train, sample, calibrate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any, cast

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfsbi.checks import require_features, warn
from mfsbi.cli.common import (
    MISTAKES,
    PriorOption,
    QuietOption,
    SeedOption,
    command,
    console,
    require_place,
    say,
    together,
)
from mfsbi.inference.chains import Chains
from mfsbi.inference.to_arviz import diagnose, require_names, to_arviz, write
from mfsbi.plots import calibration
from mfsbi.plugin.calibrating import calibrate as run_calibration
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES
from mfsbi.plugin.samplers import SAMPLERS
from mfsbi.plugin.sampling import sample_chains
from mfsbi.plugin.saving import SPECS, Estimator, Trainer, load, save, trainer_for
from mfsbi.plugin.specs import AF, FOM
from mfsbi.priors import box
from mfsbi.seeds import derived
from mfsbi.sources import Source, prior_of, read_arrays, simulator, source_of
from mfsbi.train.ranks import Ranks
from mfsbi.types import Prior

__all__ = ["calibrate", "sample", "train"]


@dataclass(frozen=True, kw_only=True)
class OriginOptions:
    """Where simulations come from."""

    source: Annotated[
        list[str] | None,
        typer.Argument(help="A registered simulator, MODULE:NAME, a store, or arrays: sims.npz, or theta.npy x.npy."),
    ] = None
    madminer: Annotated[Path | None, typer.Option(help="A folder of MadMiner's samples instead.")] = None
    sample: Annotated[str, typer.Option(help="Name of the sample in that folder.")] = "train"


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """What is learned."""

    model: Annotated[str, typer.Option(help="AF, PIE, MFlow, MeFlow or PAE; ALICES for a ratio.")] = "MFlow"
    manifold_dim: Annotated[int | None, typer.Option(min=1, help="The simulator's if it knows.")] = None
    coordinates: Annotated[str, typer.Option(help="Features that the others follow from, such as 0,3,4.")] = ""


@dataclass(frozen=True, kw_only=True)
class LearningOptions:
    """How long to learn, and from what."""

    simulations: Annotated[int, typer.Option(min=20, help="To draw from a simulator.")] = 100_000
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the simulations; as many as they ask for if not given.")
    ] = None
    no_gold: Annotated[bool, typer.Option("--no-gold", help="Leave out joint scores and joint log ratios.")]
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Keep the state in OUT.checkpoints, and go on from there if it did not end."),
    ]


@command(*MISTAKES)
def train(
    origin: OriginOptions,
    *,
    out: Annotated[Path, typer.Option(help="File for the trained model.")] = Path("model.safetensors"),
    model: ModelOptions,
    prior: PriorOption,
    learning: LearningOptions,
    seed: SeedOption = 0,
    quiet: QuietOption,
) -> None:
    """Learn p(x|theta), or by ALICES its ratio to a reference, and save the model with its simulations.

    Where joint scores are known, a likelihood learns from them as well (SCANDAL). ALICES takes joint log ratios, too:
    a simulator that knows them draws every other x at the mean theta of the prior; others are compared with all x.

    mfsbi train polynomial

    mfsbi train sims    # a store of `mfsbi simulate`, streamed if it is larger than 256 MiB

    mfsbi train mymodule:simulate --prior -1:1 --prior 0:10 --manifold-dim 2

    mfsbi train polynomial --resume    # the same line again after a kill goes on where it was

    mfsbi train --madminer data/samples --prior -1:1 --prior -1:1 --manifold-dim 14

    torchrun --nproc-per-node 4 -m mfsbi train polynomial    # the same training, each step shared by four processes
    """
    require_place(out)
    with together() as ranks:
        found = source_of(origin.source or [], prior, origin.madminer, origin.sample)
        trainer = _new_trainer(model, found, seed=seed, device=ranks.device, quiet=quiet)
        _append(trainer, found, learning, seed=seed)
        kept = out.with_name(f"{out.name}.checkpoints")
        settings: dict[str, Any] = {"checkpoint": kept, "resume_training": True} if learning.resume else {}
        if learning.no_gold:
            settings["score_weight"] = 0.0
        estimator = trainer.train(max_num_epochs=learning.epochs, **settings)
        if ranks.first:
            out.parent.mkdir(parents=True, exist_ok=True)  # it was there when the training began
            save(trainer if trainer.simulations.store is None else estimator, out)
        if ranks.first and learning.resume and trainer.history.interrupted:
            say(f"The training was interrupted, and its state stays in {kept}: the same line again goes on.")
        elif ranks.first and learning.resume:
            rmtree(kept)
    say(str(trainer.history))
    say(f"The model is in {out}")
    if trainer.history.interrupted:
        raise typer.Exit(130)


@dataclass(frozen=True, kw_only=True)
class BeliefOptions:
    """What is believed of theta before x is seen."""

    simulator_name: Annotated[str, typer.Option("--simulator", help="Whose prior to take.")] = ""
    prior: PriorOption

    def prior_and_names(self) -> tuple[Prior, list[str]]:
        """Return the prior, between bounds if they are given, and a name for each parameter."""
        if not self.simulator_name:
            return box(self.prior), require_names(None, len(self.prior))
        known = simulator(self.simulator_name, self.prior)
        return prior_of(known, self.prior), require_names(known.parameter_names, len(known.parameter_names))


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """How the posterior is drawn."""

    sampler: Annotated[str, typer.Option(help=f"{', '.join(SAMPLERS)}.")] = "smc"
    draws: Annotated[int, typer.Option(min=4, help="Of each chain, after warm-up.")] = 250


@command(*MISTAKES)
def sample(
    model: Annotated[Path, typer.Argument(help="A file of `mfsbi train` or `mfsbi.save`.")],
    x: Annotated[Path, typer.Argument(help="Observations that share one theta: .npy, or .npz with x.")],
    *,
    out: Annotated[Path, typer.Option(help="ArviZ file of the draws, .nc or .zarr.")] = Path("posterior.nc"),
    belief: BeliefOptions,
    chains: ChainOptions,
    seed: SeedOption = 0,
    quiet: QuietOption,
) -> None:
    """Draw the posterior of theta given observations, by any sampler, and say whether it converged.

    mfsbi sample model.safetensors x.npy --simulator polynomial --sampler nuts
    """
    require_place(out, ".nc", ".zarr")
    prior, names = belief.prior_and_names()
    (observed,) = read_arrays([x], ["x"])
    posterior = trainer_for(_loaded(model), prior).build_posterior()
    bars = not quiet and Console(stderr=True).is_terminal
    found = sample_chains(posterior, observed, chains.draws, sampler=chains.sampler, seed=seed, show_progress_bars=bars)
    write(to_arviz(found, names, x=observed), out)
    console.print(_summary(found, names))
    say(f"The draws are in {out}")


@dataclass(frozen=True, kw_only=True)
class ExamOptions:
    """How large an exam of a posterior is."""

    sets: Annotated[int, typer.Option(min=2, help="Data sets to draw from a simulator.")] = 200
    events: Annotated[int, typer.Option(min=1, help="Observations of each.")] = 10
    draws: Annotated[int, typer.Option(min=10, help="Of the posterior of each.")] = 200


@command(*MISTAKES)
def calibrate(
    model: Annotated[Path, typer.Argument(help="A file of `mfsbi train` or `mfsbi.save`.")],
    source: Annotated[
        list[str],
        typer.Argument(help="A registered simulator, MODULE:NAME, or arrays theta and x with a row for each data set."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Figure, .png or .pdf.")] = Path("calibration.png"),
    prior: PriorOption,
    exam: ExamOptions,
    seed: SeedOption = 0,
) -> None:
    """Examine whether the posterior means what it says, on data sets whose theta is known.

    Exit code 1 if it does not (p below 0.01).

    mfsbi calibrate model.safetensors polynomial --sets 300 --events 20
    """
    require_place(out, ".png", ".pdf", ".svg")
    origin = source_of(source, prior)
    if origin.store is not None:
        raise ValueError("A store has one x for each theta: name its simulator, or give arrays of data sets.")
    if origin.simulations is not None:
        theta, x = origin.simulations.theta, origin.simulations.x
    else:
        rows = origin.for_likelihood(exam.sets, seed=seed, gold=False, events=exam.events)
        theta, x = rows.theta[:: exam.events], rows.x.view(exam.sets, exam.events, -1)
    names = origin.parameter_names
    require_features("theta", theta, len(names), "the prior")
    posterior = trainer_for(_loaded(model), origin.prior).build_posterior()
    bars = Console(stderr=True).is_terminal
    result = run_calibration(posterior, theta, x, exam.draws, seed=derived(seed, 2), show_progress_bars=bars)
    regions = {"highest density": result.levels, "around a random point": result.closeness}
    figure = calibration(
        {name: column.numpy() for name, column in zip(names, result.ranks.unbind(-1), strict=True)},
        {name: values.numpy() for name, values in regions.items()},
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    say(str(result))
    say(f"The figure is in {out}")
    if not result.passed:
        raise typer.Exit(1)


def _loaded(path: Path) -> Estimator:
    """Return the estimator of a file, with a warning if it did not learn all that it should."""
    estimator = load(path)
    if estimator.training_record.get("interrupted"):
        warn(f"The training of {path} was interrupted: what it says may be far off.")
    return estimator


def _append(trainer: Trainer, origin: Source, learning: LearningOptions, *, seed: int) -> None:
    """Give a trainer what it learns from, and say what that is."""
    if origin.store is not None:
        say(f"Learning from {origin.store}.")
        trainer.append_simulations(origin.store)
        return
    rows_of = origin.for_ratio if isinstance(trainer, ALICES) else origin.for_likelihood
    rows = Ranks.current().from_first(lambda: rows_of(learning.simulations, seed=seed, gold=not learning.no_gold))
    if origin.simulations is not None and len(rows.theta) < len(origin.simulations.theta):
        say(f"A likelihood learns from what was drawn at theta0 alone, not from all {origin.simulations}.")
    say(f"Learning from {rows}.")
    trainer.append_simulations(rows)


def _coordinates(text: str) -> tuple[int, ...]:
    """Return the features of "0,3,4"."""
    try:
        return tuple(int(number) for number in text.split(",")) if text else ()
    except ValueError as error:
        raise ValueError(f"`--coordinates` should be numbers of features, such as 0,3,4; got {text!r}.") from error


def _new_trainer(model: ModelOptions, origin: Source, *, seed: int, device: str, quiet: bool) -> Trainer:
    """Return an untrained trainer of a model by its name."""
    names = [*(name for name in SPECS if name != FOM.__name__), ALICES.__name__]
    if model.model not in names:
        raise ValueError(f"`--model` should be one of {', '.join(names)}; got {model.model!r}.")
    coordinates = _coordinates(model.coordinates)
    if coordinates and model.model in (ALICES.__name__, AF.__name__):
        raise ValueError(f"`--coordinates` are those of a manifold, which {model.model} has not; leave them out.")
    settings: dict[str, Any] = {"seed": seed, "device": device, "show_progress_bars": False if quiet else None}
    if model.model == ALICES.__name__:
        return ALICES(origin.prior, **settings)
    kind, dim = cast(Any, SPECS[model.model]), model.manifold_dim or origin.manifold_dim
    if kind is AF:
        return ManifoldNLE(origin.prior, AF(), **settings)
    if dim is None:
        raise ValueError("`--manifold-dim` is missing: how many dimensions x has; `mfsbi.dimension_scan(x)` suggests.")
    return ManifoldNLE(origin.prior, kind(manifold_dim=dim, coordinates=coordinates), **settings)


def _summary(chains: Chains, names: Sequence[str]) -> Table:
    """Return a row for each parameter."""
    table = Table(title=f"Posterior by {chains.info.sampler}", title_justify="left")
    table.add_column("parameter")
    for column in ("mean", "sd", "5 %", "95 %", "R-hat", "ESS"):
        table.add_column(column, justify="right")
    diagnostics = diagnose(chains)
    low, high = torch.quantile(chains.pooled, torch.tensor([0.05, 0.95]).to(chains.pooled), dim=0)
    for i, name in enumerate(names):
        values = [f"{float(value[i]):.3f}" for value in (chains.mean, chains.std, low, high)]
        table.add_row(escape(name), *values, f"{diagnostics.r_hat[i]:.3f}", f"{diagnostics.ess_bulk[i]:.0f}")
    return table
