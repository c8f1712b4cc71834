"""What benches have in common: so many threads, tables as Markdown, and files of what was measured."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

__all__ = ["as_table", "keep", "torch_threads"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute by so many threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def as_table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """Return a Markdown table.

    Arguments:
        heads: of the columns
        rows: the cells of each
        words: how many columns, the first ones, hold words; the others hold numbers, which stand on the right
    """
    rule = ["---"] * words + ["---:"] * (len(heads) - words)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, rule, *rows))


def keep(folder: Path, name: str, text: object, numbers: object) -> None:
    """Write a table as `name.md` and its numbers as `name.json`.

    Arguments:
        folder: has to be there
        name: of both files
        text: of the table, as `str` shows it
        numbers: as JSON can hold them
    """
    (folder / f"{name}.md").write_text(f"{text}\n")
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1))
