"""Commands that measure: the demo, benchmarks and their reports."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mfsbi.bench.dimensions import as_markdown as dimensions_as_markdown
from mfsbi.bench.dimensions import compare_dimensions
from mfsbi.bench.report import by_simulations
from mfsbi.bench.report import panel as panel_report
from mfsbi.bench.report import report as report_results
from mfsbi.bench.run import run_table
from mfsbi.bench.samplers import as_markdown, compare_samplers
from mfsbi.bench.speed import speed as measure_speed
from mfsbi.bench.tables import PANEL
from mfsbi.cli.common import SeedOption, command, console, say
from mfsbi.demo import EVENTS, DemoResult, run_demo
from mfsbi.plots import scaling
from mfsbi.registry import registered

__all__ = ["bench", "demo", "report"]

bench = typer.Typer(help="Measure mfsbi and others side by side.", no_args_is_help=True)

TABLES_FOLDER = Path("notebooks/tables")


@command(ValueError, OSError)
def report(
    table: Annotated[str, typer.Argument(help="polynomial, circle or lhc.")] = "polynomial",
    preset: Annotated[str, typer.Option(help="smoke, quick or paper; of lhc also 1e3, 1e4, 1e5.")] = "paper",
    out: Annotated[Path, typer.Option(help="Folder of results.")] = TABLES_FOLDER,
    figure: Annotated[
        Path | None, typer.Option(help="File for a figure of the KL to the exact posterior by number of simulations.")
    ] = None,
) -> None:
    """Print the results of a benchmark as Markdown: medians, the published numbers beside them, and every run."""
    say(report_results(table, preset, out))
    if figure is not None:
        scaling(*by_simulations(table, out), "mean KL to the exact posterior, nats").savefig(figure, dpi=120)


@command(ValueError, OSError)
def demo(
    simulator: Annotated[str, typer.Argument(help="Name of a registered simulator of a surface.")] = "polynomial",
    *,
    out: Annotated[Path, typer.Option(help="Folder for draws, estimator and figures.")] = Path("mfsbi-demo"),
    seed: SeedOption = 0,
    simulations: Annotated[int, typer.Option(min=100, help="Simulations to learn from.")] = 20_000,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but the table and the folder.")],
) -> None:
    """Simulate, train, sample, compare with the exact posterior and draw: the whole path in about a minute."""
    tell = (lambda _: None) if quiet else console.print
    result = run_demo(registered(simulator), out, seed=seed, simulations=simulations, quiet=quiet, tell=tell)
    console.print(_numbers(result, simulator))
    say(f"Draws, estimator, figures and numbers are in {out.resolve()}")


@bench.command()
def speed(
    out: Annotated[Path | None, typer.Option(help="Folder for speed.md and speed.json.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch, on both sides.")] = 2,
) -> None:
    """Time the kernels against zuko, nflows, sbi and the plain way, in turns, and print the ratios."""
    say(str(measure_speed(threads=threads, out=out, tell=_tell)))


@bench.command()
@command(ValueError, OSError)
def samplers(
    simulators: Annotated[list[str] | None, typer.Argument(help="Registered simulators; default: two.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for samplers.md and samplers.json.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
) -> None:
    """Learn simulators and compare what each sampler brings per second, and slice on sbi's own potential."""
    chosen = tuple(simulators) if simulators else ("polynomial", "sphere")
    say(as_markdown(compare_samplers(chosen, threads=threads, out=out, tell=_tell)))


@bench.command()
@command(ValueError, OSError)
def panel(
    preset: Annotated[
        str, typer.Option(help="smoke, quick (1,000 simulations, 20 minutes), 1e4, 1e5, or paper for all three.")
    ] = "quick",
    only: Annotated[str, typer.Option(help="Problems whose name holds these letters; all if not given.")] = "",
    out: Annotated[Path, typer.Option(help="Folder of results; what lies there is not run again.")] = TABLES_FOLDER,
) -> None:
    """Train with defaults on a dozen small problems, plain and on curved manifolds, and judge by exact posteriors."""
    for each in PANEL_SCALES.get(preset, (preset,)):
        for name in (name for problem in PANEL for name in (f"law-{problem}", f"law-{problem}-lifted")):
            if only in name:
                run_table(name, each, out, tell=_tell)
        say(panel_report(each, out))


@bench.command()
@command(ValueError, OSError, ImportError)
def dimension(
    laws: Annotated[list[str] | None, typer.Argument(help="Laws of the panel; all if not given.")] = None,
    rows: Annotated[int, typer.Option(min=100, help="Simulations of each.")] = 10_000,
    out: Annotated[Path | None, typer.Option(help="Folder for dimensions.md and dimensions.json.")] = None,
) -> None:
    """Find the dimensions of curved manifolds, beside two estimators of scikit-dimension (extra `bench`)."""
    say(dimensions_as_markdown(compare_dimensions(laws or PANEL, rows, out=out, tell=_tell)))


def _of_table(table: str, presets: str) -> Callable[..., None]:
    """Return the command that runs a table and prints its report."""

    @command(ValueError, OSError)
    def run(
        preset: Annotated[str, typer.Option(help=presets)] = "quick",
        only: Annotated[str, typer.Option(help="Rows whose name holds these letters; all if not given.")] = "",
        out: Annotated[Path, typer.Option(help="Folder of results; what lies there is not run again.")] = TABLES_FOLDER,
    ) -> None:
        run_table(table, preset, out, only=only, tell=_tell)
        say(report_results(table, preset, out))

    return run


PANEL_SCALES = {"quick": ("1e3",), "paper": ("1e3", "1e4", "1e5")}
TABLES = {
    "polynomial": "smoke (a minute), quick (a quarter of an hour) or paper.",
    "circle": "smoke (a minute), quick (minutes) or paper.",
    "lhc": "smoke (minutes), quick (half an hour), paper (a night); 1e3, 1e4, 1e5.",
}
PURPOSES = {
    "polynomial": "every model of the paper on the polynomial surface; an interrupted run goes on where it was.",
    "circle": "models on a Gaussian on a circle, which no single chart covers.",
    "lhc": "every model on the LHC process, with joint scores and without, by its exact posterior.",
}
for _table, _presets in TABLES.items():
    bench.command(name=_table, help=f"Train and judge {PURPOSES[_table]}")(_of_table(_table, _presets))


def _tell(line: object) -> None:
    """Print a line of progress, beside the result."""
    Console(stderr=True).print(line, soft_wrap=True)


def _numbers(result: DemoResult, simulator: str) -> Table:
    """Return the demo's numbers as one table."""
    table = Table(title=f"M-flow on the simulator {simulator!r}, {EVENTS} observations", title_justify="left")
    table.add_column("quantity", no_wrap=True)
    table.add_column("model", justify="right")
    table.add_column("exact", justify="right")
    moments = f"{result.mean:+.3f} ± {result.std:.3f}", f"{result.exact_mean:+.3f} ± {result.exact_std:.3f}"
    table.add_row("reconstruction error", f"{result.reconstruction_error:.4f}", "0")
    table.add_row("manifold distance of samples", f"{result.manifold_distance:.4f}", "0")
    table.add_row("posterior mean ± sd of theta", *moments)
    table.add_row("TV distance of the posteriors", f"{result.total_variation:.4f}", "0")
    table.add_row("R-hat", f"{max(result.diagnostics.r_hat):.4f}", "1")
    table.add_row("effective sample size, bulk", f"{min(result.diagnostics.ess_bulk):.0f}", "")
    table.add_row("collapsed charts, restarted", f"{result.collapses}", "")
    table.add_row("seconds", f"{result.seconds:.0f}", "")
    return table
