"""What all commands share: their options by one name, how to speak, and how to fail.

A command is a function that `command` makes ready for typer. Options that belong together are a frozen dataclass, which
is one argument of the function and an option for each of its fields on the command line:

    @dataclass(frozen=True, kw_only=True)
    class Sizes:
        rows: Annotated[int, typer.Option(help="Rows of each shard.")] = 100
        check: Annotated[bool, typer.Option("--check", help="Check them.")]

    @command(ValueError)
    def simulate(sizes: Sizes, *, seed: SeedOption = 0) -> None: ...
"""

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console
from rich.markup import escape
from typer.models import OptionInfo

from mfsbi.train.ranks import Ranks, process_group

__all__ = [
    "MISTAKES",
    "PriorOption",
    "QuietOption",
    "SeedOption",
    "command",
    "console",
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
FOLDERS = {".zarr"}
"""Endings of files that are folders."""

QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything: the same seed gives the same result.")]


def command(*mistakes: type[Exception]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make functions commands: dataclasses become options, and mistakes a message and exit code 2.

    Flags and lists have no default in the function: they are off, or empty, unless they are given.

    Arguments:
        mistakes: errors whose message is for the user; others end the program with a traceback
    """

    def of(function: Callable[..., None]) -> Callable[..., None]:
        arguments = inspect.signature(function).parameters.values()
        groups: dict[str, Any] = {each.name: each.annotation for each in arguments if is_dataclass(each.annotation)}
        fields = {name: list(inspect.signature(kind).parameters.values()) for name, kind in groups.items()}
        options = [option for each in arguments for option in fields.get(each.name, [each])]

        @wraps(function)
        def run(**given: object) -> None:
            for name, kind in groups.items():
                given[name] = kind(**{field.name: given.pop(field.name) for field in fields[name]})
            try:
                function(**given)
            except typer.Exit:
                raise
            except mistakes as error:
                told = f"[red]Error:[/] {escape(str(error) or type(error).__name__)}"
                Console(stderr=True).print(told, highlight=False, soft_wrap=True)
                raise typer.Exit(2) from error

        run.__signature__ = inspect.Signature([_option(each) for each in options])  # type: ignore[attr-defined]
        return run

    return of


def _option(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter as typer takes it: by name, and with a default if it is a flag or an option of many values."""
    kind, told = get_args(parameter.annotation)
    empty = parameter.default is parameter.empty and isinstance(told, OptionInfo) and kind in (bool, list[str])
    return parameter.replace(kind=parameter.KEYWORD_ONLY, default=kind() if empty else parameter.default)


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
    if out.is_dir() and out.suffix not in FOLDERS:
        raise OSError(f"Cannot write {out}: a folder is there. Choose another place by --out.")
    if endings and out.suffix not in endings:
        raise ValueError(f"`--out` should end in {' or '.join(endings)}; got {out}.")
