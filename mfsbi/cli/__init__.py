"""The command line: words become objects here, once."""

import typer

from mfsbi.cli.benches import bench, demo, report
from mfsbi.cli.learning import calibrate, sample, train
from mfsbi.cli.storing import simulate, store

__all__ = ["app"]

app = typer.Typer(
    help="Neural likelihoods for simulators whose data lie on a manifold.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (report, demo, simulate, train, sample, calibrate):
    app.command()(command)
app.add_typer(store, name="store")
app.add_typer(bench, name="bench")


@app.callback()
def main() -> None:
    """Neural likelihoods for simulators whose data lie on a manifold."""
