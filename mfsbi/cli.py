"""The command line: words become objects here, once."""

from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from typing import Annotated, Any, NoReturn, cast

import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mfsbi.bench.report import report as report_results
from mfsbi.bench.run import run_table
from mfsbi.bench.samplers import as_markdown, compare_samplers
from mfsbi.bench.speed import speed as measure_speed
from mfsbi.checks import require_features
from mfsbi.demo import EVENTS, DemoResult, run_demo
from mfsbi.inference.chains import Chains
from mfsbi.inference.to_arviz import diagnose, to_arviz, write
from mfsbi.plots import calibration
from mfsbi.plugin.calibrating import calibrate as run_calibration
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES
from mfsbi.plugin.sampling import SAMPLERS, sample_chains
from mfsbi.plugin.saving import SPECS, Trainer, load, save, trainer_for
from mfsbi.plugin.specs import AF, FOM, Spec
from mfsbi.registry import registered
from mfsbi.seeds import derived, seeded
from mfsbi.sources import Source, bounds_of, box, read_arrays, simulator, source_of
from mfsbi.types import Simulator

__all__ = ["app"]

app = typer.Typer(
    help="Neural likelihoods for simulators whose data lie on a manifold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
bench = typer.Typer(help="Measure mfsbi and others side by side.", no_args_is_help=True)
app.add_typer(bench, name="bench")
console = Console()

TABLES_FOLDER = Path("notebooks/tables")
MISTAKES = (ValueError, TypeError, RuntimeError, ArithmeticError, OSError)
"""Errors whose message is for the user."""

PriorOption = Annotated[
    list[str], typer.Option("--prior", help="LOW:HIGH of a parameter with a uniform prior; once for each, in order.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything: the same seed gives the same result.")]


@app.callback()
def main() -> None:
    """Neural likelihoods for simulators whose data lie on a manifold."""


@app.command()
def report(
    table: Annotated[str, typer.Argument(help="polynomial, circle or lhc.")] = "polynomial",
    preset: Annotated[str, typer.Option(help="smoke, quick or paper.")] = "paper",
    out: Annotated[Path, typer.Option(help="Folder of results.")] = TABLES_FOLDER,
) -> None:
    """Print the results of a benchmark as Markdown: medians, the published numbers beside them, and every run."""
    try:
        console.print(report_results(table, preset, out), soft_wrap=True, markup=False, highlight=False)
    except (ValueError, OSError) as error:
        _fail(error)


@app.command()
def demo(
    simulator: Annotated[str, typer.Argument(help="Name of a registered simulator of a surface.")] = "polynomial",
    out: Annotated[Path, typer.Option(help="Folder for draws, estimator and figures.")] = Path("mfsbi-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything: the same seed gives the same result.")] = 0,
    simulations: Annotated[int, typer.Option(min=100, help="Simulations to learn from.")] = 1_000_000,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the table and the folder.")] = False,  # noqa: FBT002
) -> None:
    """Simulate, train, sample, compare with the exact posterior and draw: the whole path in about two minutes."""
    try:
        surface = registered(simulator)
        result = run_demo(
            surface,
            out,
            seed=seed,
            simulations=simulations,
            quiet=quiet,
            tell=(lambda _: None) if quiet else console.print,
        )
    except (ValueError, OSError) as error:
        _fail(error)
    console.print(_table(result, simulator))
    console.print(
        f"Draws, estimator, figures and numbers are in {escape(str(out.resolve()))}", highlight=False, soft_wrap=True
    )


@app.command()
def train(  # noqa: PLR0913 - options of a command
    source: Annotated[
        list[str] | None,
        typer.Argument(help="A registered simulator, MODULE:NAME, or arrays: sims.npz, or theta.npy x.npy."),
    ] = None,
    *,
    madminer: Annotated[Path | None, typer.Option(help="A folder of MadMiner's samples instead.")] = None,
    sample_name: Annotated[str, typer.Option("--sample", help="Name of the sample in that folder.")] = "train",
    out: Annotated[Path, typer.Option(help="File for the trained model.")] = Path("model.safetensors"),
    model: Annotated[str, typer.Option(help="AF, PIE, MFlow, MeFlow or PAE; ALICES for a ratio.")] = "MFlow",
    manifold_dim: Annotated[int | None, typer.Option(min=1, help="The simulator's if it knows.")] = None,
    prior: PriorOption = [],  # noqa: B006 - typer copies it
    simulations: Annotated[int, typer.Option(min=20, help="To draw from a simulator.")] = 100_000,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the simulations.")] = 50,
    no_gold: Annotated[bool, typer.Option("--no-gold", help="Leave out joint scores and joint log ratios.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the state in OUT.checkpoints, and go on from there if it was killed.")
    ] = False,
    seed: SeedOption = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Learn p(x|theta), or by ALICES its ratio to a reference, and save the model with its simulations.

    Where joint scores are known, a likelihood learns from them as well (SCANDAL). ALICES takes joint log ratios, too:
    a simulator that knows them draws every other x at the mean theta of the prior; others are compared with all x.

    mfsbi train polynomial

    mfsbi train mymodule:simulate --prior -1:1 --prior 0:10 --manifold-dim 2

    mfsbi train polynomial --resume    # the same line again after a kill goes on where it was

    mfsbi train --madminer data/samples --prior -1:1 --prior -1:1 --manifold-dim 14
    """
    try:
        _require_folder(out)
        origin = source_of(source or [], prior, madminer, sample_name)
        trainer = _new_trainer(model, manifold_dim, origin, seed=seed, show_progress_bars=False if quiet else None)
        rows_of = origin.for_ratio if isinstance(trainer, ALICES) else origin.for_likelihood
        rows = rows_of(simulations, seed=seed, gold=not no_gold)
        if origin.rows is not None and len(rows.theta) < len(origin.rows.theta):
            _say(f"A likelihood learns from what was drawn at theta0 alone, not from all {origin.rows}.")
        _say(f"Learning from {rows}.")
        kept = out.with_name(f"{out.name}.checkpoints")
        keeping: dict[str, Any] = {"checkpoint": kept, "resume_training": True} if resume else {}
        trainer.append_simulations(**rows.fields).train(max_num_epochs=epochs, **keeping)
        save(trainer, out)
        if resume:
            rmtree(kept)
    except MISTAKES as error:
        _fail(error)
    _say(str(trainer.history))
    _say(f"The model is in {out}")


@app.command()
def sample(  # noqa: PLR0913 - options of a command
    model: Annotated[Path, typer.Argument(help="A file of `mfsbi train` or `mfsbi.save`.")],
    x: Annotated[Path, typer.Argument(help="Observations that share one theta: .npy, or .npz with x.")],
    *,
    out: Annotated[Path, typer.Option(help="ArviZ file of the draws, .nc or .zarr.")] = Path("posterior.nc"),
    simulator_name: Annotated[str, typer.Option("--simulator", help="Whose prior to take.")] = "",
    prior: PriorOption = [],  # noqa: B006 - typer copies it
    sampler: Annotated[str, typer.Option(help=f"{', '.join(SAMPLERS)}.")] = "slice",
    draws: Annotated[int, typer.Option(min=4, help="Of each chain, after warm-up.")] = 250,
    seed: SeedOption = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
) -> None:
    """Draw the posterior of theta given observations, by any sampler, and say whether it converged.

    mfsbi sample model.safetensors x.npy --simulator polynomial --sampler nuts
    """
    try:
        _require_folder(out)
        known = simulator(simulator_name, prior) if simulator_name else None
        distribution = box(prior) if known is None else known.prior
        (observed,) = read_arrays([x], ["x"])
        posterior = trainer_for(load(model), distribution).build_posterior()
        settings = {"bounds": bounds_of(distribution)} if sampler == "grid" else {}
        chains = sample_chains(
            posterior, observed, draws, sampler=sampler, seed=seed, show_progress_bars=not quiet, **settings
        )
        names = list(known.parameter_names) if known is not None else [f"theta_{i}" for i in range(len(prior))]
        write(to_arviz(chains, names, x=observed), out)
    except MISTAKES as error:
        _fail(error)
    console.print(_summary(chains, names))
    _say(f"The draws are in {out}")


@app.command()
def calibrate(  # noqa: PLR0913 - options of a command
    model: Annotated[Path, typer.Argument(help="A file of `mfsbi train` or `mfsbi.save`.")],
    source: Annotated[
        list[str],
        typer.Argument(help="A registered simulator, MODULE:NAME, or arrays theta and x with a row for each data set."),
    ],
    *,
    out: Annotated[Path, typer.Option(help="Figure, .png or .pdf.")] = Path("calibration.png"),
    prior: PriorOption = [],  # noqa: B006 - typer copies it
    sets: Annotated[int, typer.Option(min=2, help="Data sets to draw from a simulator.")] = 200,
    events: Annotated[int, typer.Option(min=1, help="Observations of each.")] = 10,
    draws: Annotated[int, typer.Option(min=10, help="Of the posterior of each.")] = 200,
    seed: SeedOption = 0,
) -> None:
    """Examine whether the posterior means what it says, on data sets whose theta is known.

    Exit code 1 if it does not (p below 0.01).

    mfsbi calibrate model.safetensors polynomial --sets 300 --events 20
    """
    try:
        _require_folder(out)
        origin = source_of(source, prior)
        if origin.rows is not None:
            theta, x = origin.rows.theta, origin.rows.x
        else:
            with seeded(derived(seed, 0)):
                theta = origin.prior.sample((sets,))
            x = cast(Simulator, origin.simulator).simulate(theta[:, None].expand(-1, events, -1), seed=derived(seed, 1))
        names = origin.parameter_names
        require_features("theta", theta, len(names), "the prior")
        posterior = trainer_for(load(model), origin.prior).build_posterior()
        bars = Console(stderr=True).is_terminal
        result = run_calibration(posterior, theta, x, draws, seed=derived(seed, 2), show_progress_bars=bars)
        regions = {"highest density": result.levels, "around a random point": result.closeness}
        figure = calibration(
            {name: column.numpy() for name, column in zip(names, result.ranks.unbind(-1), strict=True)},
            {name: values.numpy() for name, values in regions.items()},
        )
        figure.savefig(out, dpi=130)
    except MISTAKES as error:
        _fail(error)
    _say(str(result))
    _say(f"The figure is in {out}")
    if not result.passed:
        raise typer.Exit(1)


@bench.command()
def speed(
    out: Annotated[Path | None, typer.Option(help="Folder for speed.md and speed.json.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch, on both sides.")] = 2,
) -> None:
    """Time the kernels against zuko, nflows, sbi and the plain way, in turns, and print the ratios."""
    table = measure_speed(threads=threads, out=out, tell=lambda row: Console(stderr=True).print(row, soft_wrap=True))
    console.print(str(table), soft_wrap=True, markup=False, highlight=False)


@bench.command()
def samplers(
    simulators: Annotated[list[str] | None, typer.Argument(help="Registered simulators; default: two.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for samplers.md and samplers.json.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
) -> None:
    """Learn simulators and compare what each sampler brings per second, and slice on sbi's own potential."""
    chosen = tuple(simulators) if simulators else ("polynomial", "sphere")
    try:
        rates = compare_samplers(
            chosen, threads=threads, out=out, tell=lambda row: Console(stderr=True).print(row, soft_wrap=True)
        )
    except (ValueError, OSError) as error:
        _fail(error)
    console.print(as_markdown(rates), soft_wrap=True, markup=False, highlight=False)


@bench.command()
def polynomial(
    preset: Annotated[str, typer.Option(help="smoke (a minute), quick (a quarter of an hour) or paper.")] = "quick",
    only: Annotated[str, typer.Option(help="Rows whose name holds these letters; all if not given.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of results; what lies there is not run again.")] = TABLES_FOLDER,
) -> None:
    """Train and judge every model of the paper on the polynomial surface; an interrupted run goes on where it was."""
    _run("polynomial", preset, only, out)


@bench.command()
def circle(
    preset: Annotated[str, typer.Option(help="smoke (a minute), quick (minutes) or paper.")] = "quick",
    only: Annotated[str, typer.Option(help="Rows whose name holds these letters; all if not given.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of results; what lies there is not run again.")] = TABLES_FOLDER,
) -> None:
    """Train and judge models on a Gaussian on a circle, which no single chart covers."""
    _run("circle", preset, only, out)


@bench.command()
def lhc(
    preset: Annotated[str, typer.Option(help="smoke (minutes), quick (half an hour) or paper (a night).")] = "quick",
    only: Annotated[str, typer.Option(help="Rows whose name holds these letters; all if not given.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of results; what lies there is not run again.")] = TABLES_FOLDER,
) -> None:
    """Train and judge every model on the LHC process, with joint scores and without, by its exact posterior."""
    _run("lhc", preset, only, out)


def _run(table: str, preset: str, only: str, out: Path) -> None:
    """Run a table and print its report."""
    try:
        run_table(table, preset, out, only=only, tell=lambda line: Console(stderr=True).print(line, soft_wrap=True))
        text = report_results(table, preset, out)
    except (ValueError, OSError) as error:
        _fail(error)
    console.print(text, soft_wrap=True, markup=False, highlight=False)


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _require_folder(out: Path) -> None:
    """Raise OSError unless a file can be made there, before any work is done."""
    if not out.resolve().parent.is_dir():
        raise OSError(f"Cannot write {out}: there is no folder {out.resolve().parent}. Choose another place by --out.")


def _new_trainer(
    model: str, manifold_dim: int | None, origin: Source, *, seed: int, show_progress_bars: bool | None
) -> Trainer:
    """Return an untrained trainer of the model of that name."""
    if model == ALICES.__name__:
        return ALICES(origin.prior, seed=seed, show_progress_bars=show_progress_bars)
    spec = _spec(model, manifold_dim, origin.simulator)
    return ManifoldNLE(origin.prior, spec, seed=seed, show_progress_bars=show_progress_bars)


def _spec(model: str, manifold_dim: int | None, known: Simulator | None) -> Spec:
    """Return the spec of that name."""
    names = [name for name in SPECS if name != FOM.__name__]
    if model not in names:
        raise ValueError(f"`--model` should be one of {', '.join([*names, ALICES.__name__])}; got {model!r}.")
    if SPECS[model] is AF:
        return AF()
    dim = manifold_dim if manifold_dim is not None else getattr(known, "manifold_dim", None)
    if dim is None:
        raise ValueError("`--manifold-dim` is missing: how many dimensions x has; `mfsbi.dimension_scan(x)` suggests.")
    return cast(Any, SPECS[model])(manifold_dim=dim)


def _summary(chains: Chains, names: Sequence[str]) -> Table:
    """Return a row for each parameter."""
    table = Table(title=f"Posterior by {chains.info['sampler']}", title_justify="left")
    for column in ("parameter", "mean", "sd", "5 %", "95 %", "R-hat", "ESS"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    diagnostics = diagnose(chains)
    low, high = torch.quantile(chains.pooled, torch.tensor([0.05, 0.95]).to(chains.pooled), dim=0)
    for i, name in enumerate(names):
        values = [f"{float(value[i]):.3f}" for value in (chains.mean, chains.std, low, high)]
        table.add_row(escape(name), *values, f"{diagnostics.r_hat[i]:.3f}", f"{diagnostics.ess_bulk[i]:.0f}")
    return table


def _fail(error: Exception) -> NoReturn:
    """Say what is wrong and end the program."""
    Console(stderr=True).print(f"[red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    raise typer.Exit(2) from error


def _table(result: DemoResult, simulator: str) -> Table:
    """Return the demo's numbers as one table."""
    table = Table(title=f"M-flow on the simulator {simulator!r}, {EVENTS} observations", title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("model", justify="right")
    table.add_column("exact", justify="right")
    table.add_row("reconstruction error", f"{result.reconstruction_error:.4f}", "0")
    table.add_row("manifold distance of samples", f"{result.manifold_distance:.4f}", "0")
    table.add_row(
        "posterior mean ± sd of theta",
        f"{result.mean:+.3f} ± {result.std:.3f}",
        f"{result.exact_mean:+.3f} ± {result.exact_std:.3f}",
    )
    table.add_row("TV distance of the posteriors", f"{result.total_variation:.4f}", "0")
    table.add_row("R-hat", f"{max(result.diagnostics.r_hat):.4f}", "1")
    table.add_row("effective sample size, bulk", f"{min(result.diagnostics.ess_bulk):.0f}", "")
    table.add_row("collapsed charts, restarted", f"{result.collapses}", "")
    table.add_row("seconds", f"{result.seconds:.0f}", "")
    return table
