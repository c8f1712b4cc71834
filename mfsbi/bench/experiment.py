"""Experiments: a row of a table with a seed. What was measured is a small JSON file named by what was done.

A file's name holds a hash of everything that decides the result, so that a table can be finished over several sittings
and a changed setting never meets an old number.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfsbi.bench.rows import Budget, Row

__all__ = ["Experiment", "read_results"]

VERSION = 2
"""To be raised when the judge or the training changes in a way that settings do not show."""


@dataclass(frozen=True)
class Experiment:
    """A row of a table with a seed.

    Arguments:
        table: its name
        preset: the budget's name
        budget: how much it may cost
        row: what is built and how it is trained
        seed: of the data, the weights and the order of the rows
    """

    table: str
    preset: str
    budget: Budget
    row: Row
    seed: int

    @property
    def description(self) -> dict[str, Any]:
        """All that decides the result, as plain values."""
        phases = [phase._asdict() | {"loss": phase.loss.__name__} for phase in self.row.schedule]
        return {
            "table": self.table,
            "row": self.row.name,
            "spec": re.sub(r"<[^<>]*>", "function", repr(self.row.spec)),
            "phases": phases,
            "cpu_seconds": self.row.cpu_seconds,
            "simulations": self.budget.simulations,
            "seed": self.seed,
            "version": VERSION,
        } | ({} if self.budget.sets == Budget.sets else {"sets": self.budget.sets})

    @property
    def name(self) -> str:
        """Row, seed and the hash of the description: `mflow-sequential.0.1a2b3c4d`."""
        text = json.dumps(self.description, sort_keys=True)
        slug = re.sub(r"[^a-z0-9]+", "-", self.row.name.lower()).strip("-")
        return f"{slug}.{self.seed}.{hashlib.sha256(text.encode()).hexdigest()[:8]}"

    def path(self, folder: Path) -> Path:
        """Return where the result lies or will lie."""
        return folder / f"{self.table}-{self.preset}" / f"{self.name}.json"

    def write(self, folder: Path, result: dict[str, Any]) -> None:
        """Write the result aside and move it into place, so that no half of it is ever read."""
        path = self.path(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}.draft")
        draft.write_text(json.dumps({"experiment": self.description, "result": result}, indent=1) + "\n")
        draft.replace(path)


def read_results(folder: Path, experiments: Iterable[Experiment]) -> list[dict[str, Any]]:
    """Return the results of these experiments: dictionaries with `experiment` and `result`, by row and seed.

    Arguments:
        folder: where the tables' folders lie
        experiments: those asked for; what has not been run is left out, and so is whatever else lies there

    Raises:
        ValueError: if a file is not such a result
    """
    results = []
    for path in (each.path(folder) for each in experiments):
        if not path.exists():
            continue
        found = json.loads(path.read_text())
        if not (isinstance(found, dict) and {"experiment", "result"} <= set(found)):
            raise ValueError(f"{path} should hold an `experiment` and its `result`; it does not.")
        results.append(found)
    return sorted(results, key=lambda found: (found["experiment"]["row"], found["experiment"]["seed"]))
