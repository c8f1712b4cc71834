"""What all commands share: how to speak, how to fail, options by one name."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from mfsbi.train.ranks import Ranks, process_group

__all__ = [
    "MISTAKES",
    "PriorOption",
    "SeedOption",
    "console",
    "fail",
    "require_folder",
    "require_place",
    "say",
    "together",
]

console = Console()

MISTAKES = (ValueError, TypeError, RuntimeError, ArithmeticError, OSError, MemoryError)
"""Errors whose message is for the user."""

PriorOption = Annotated[
    list[str], typer.Option("--prior", help="LOW:HIGH of a parameter with a uniform prior; once for each, in order.")
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything: the same seed gives the same result.")]


def say(line: str) -> None:
    """Print a line as it is."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def together() -> Iterator[Ranks]:
    """Join the processes that torchrun started, if it did; the first of them speaks for all, but errors are its own."""
    with process_group() as ranks, warnings.catch_warnings():
        if not ranks.first:
            console.quiet = True
            warnings.simplefilter("ignore")
        yield ranks


def require_folder(out: Path) -> None:
    """Raise OSError unless a file can be made there, before any work is done."""
    if not out.resolve().parent.is_dir():
        raise OSError(f"Cannot write {out}: there is no folder {out.resolve().parent}. Choose another place by --out.")


def require_place(out: Path, *endings: str) -> None:
    """Raise OSError or ValueError unless a file of such an ending can be made there, before any work is done."""
    require_folder(out)
    if not os.access(out.resolve().parent, os.W_OK):
        raise OSError(f"Cannot write {out}: its folder may not be written to. Choose another place by --out.")
    if out.is_dir() and out.suffix != ".zarr":
        raise OSError(f"Cannot write {out}: a folder is there. Choose another place by --out.")
    if endings and out.suffix not in endings:
        raise ValueError(f"`--out` should end in {' or '.join(endings)}; got {out}.")


def fail(error: Exception) -> NoReturn:
    """Say what is wrong and end the program."""
    Console(stderr=True).print(
        f"[red]Error:[/] {escape(str(error) or type(error).__name__)}", highlight=False, soft_wrap=True
    )
    raise typer.Exit(2) from error
