"""Rows of results as Markdown, with the published numbers beside ours and every run shown."""

from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from mfsbi.bench.output import as_table
from mfsbi.bench.run import experiments, read_results
from mfsbi.bench.tables import PANEL, TABLES

__all__ = ["by_simulations", "panel", "report"]

COLUMNS = {
    "closure": "sample closure",
    "distance": "distance",
    "reconstruction": "reconstruction",
    "auc": "AUC",
    "auc_likelihood": "AUC, likelihood",
    "tv": "TV",
    "kl": "KL",
    "kl_density": "KL of densities",
    "mmd2": "MMD²",
    "gap": "gap, nats",
    "worst": "worst tenth",
    "tv_1": "TV, 1 event",
    "tv_20": "TV, 20 events",
    "log_posterior": "log posterior",
    "exact_log_posterior": "exact log posterior",
    "cpu_seconds": "CPU s",
}

POLYNOMIAL = {
    "AF": {"distance": 0.005, "mmd2": 0.071, "auc_likelihood": 0.99},
    "PIE (original)": {"distance": 0.035, "reconstruction": 1.278, "mmd2": 0.131, "auc": 0.933},
    "PIE (unconditional manifold)": {"distance": 0.006, "reconstruction": 1.253, "mmd2": 0.075, "auc": 0.972},
    "PAE": {"distance": 0.002, "reconstruction": 0.002, "auc": 0.99},
    "MFlow simultaneous": {"distance": 0.006, "reconstruction": 0.011, "mmd2": 0.026, "auc": 0.974},
    "MFlow alternating": {"distance": 0.002, "reconstruction": 0.003, "mmd2": 0.02, "auc": 0.986},
    "MFlow sequential": {"distance": 0.009, "reconstruction": 0.013, "mmd2": 0.017, "auc": 0.961},
    "MeFlow simultaneous": {"distance": 0.005, "reconstruction": 0.006, "mmd2": 0.033, "auc": 0.975},
    "MeFlow alternating": {"distance": 0.003, "reconstruction": 0.003, "mmd2": 0.03, "auc": 0.985},
    "MeFlow sequential": {"distance": 0.002, "reconstruction": 0.002, "mmd2": 0.007, "auc": 0.987},
}
"""Medians of five runs, Brehmer & Cranmer, arXiv:2003.13913, table 2; the AUC there is the better of the two."""

LHC = {
    "AF": {"closure": 0.0019, "log_posterior": -3.94},
    "PIE (original)": {"closure": 0.0023, "reconstruction": 2.054, "log_posterior": -4.68},
    "PIE (unconditional manifold)": {"closure": 0.0022, "reconstruction": 1.681, "log_posterior": -1.82},
    "PAE": {"closure": 0.0073, "reconstruction": 0.052},
    "MFlow": {"closure": 0.0045, "reconstruction": 0.012, "log_posterior": -1.71},
    "MeFlow": {"closure": 0.0046, "reconstruction": 0.029, "log_posterior": -1.44},
    "AF (SCANDAL)": {"closure": 0.0565, "log_posterior": -0.40},
    "PIE (original, SCANDAL)": {"closure": 0.1293, "reconstruction": 3.09, "log_posterior": 0.03},
    "PIE (unconditional manifold, SCANDAL)": {"closure": 0.1019, "reconstruction": 1.751, "log_posterior": 0.23},
    "PAE (SCANDAL)": {"closure": 0.0323, "reconstruction": 0.053},
    "MFlow (SCANDAL)": {"closure": 0.0371, "reconstruction": 0.011, "log_posterior": 0.11},
    "MeFlow (SCANDAL)": {"closure": 0.0291, "reconstruction": 0.03, "log_posterior": 0.14},
    "ALICES": {"log_posterior": 0.05},
}
"""Ibid., the LHC table, on MadGraph's events, whose exact posterior nobody knows; ALICES had 48 features, 15 events."""

PLAIN = "AF", "AF (SCANDAL)", "sbi NLE, maf", "sbi NLE, nsf"
LIFTED = "MFlow", "MFlow (SCANDAL)", "AF", "sbi NLE, maf", "sbi NLE, nsf"
"""Rows of the panel that are shown, on plain x and on lifted."""

LEAST = 1e-3
"""Below which a number of the panel is taken for this in a geometric mean."""

PUBLISHED: dict[str, dict[str, dict[str, float]]] = {"polynomial": POLYNOMIAL, "lhc": LHC}


def report(table: str, preset: str, folder: Path) -> str:
    """Return the results of a table as Markdown: medians with the published ones in brackets, then every run.

    Arguments:
        table: its name
        preset: its budget's name
        folder: where results lie, such as `notebooks/tables`

    Raises:
        FileNotFoundError: if there are none
        ValueError: if there is no such table or preset, or a file is not a result
    """
    wanted = experiments(table, preset)
    rows: dict[str, list[dict[str, Any]]] = {}
    for found in read_results(folder, wanted):
        rows.setdefault(found["experiment"]["row"], []).append(found["result"])
    if not rows:
        raise FileNotFoundError(f"There are no results of {table}-{preset} in {folder}: run `mfsbi bench` first.")
    runs = [result for results in rows.values() for result in results]
    keys = [key for key in COLUMNS if any(key in result for result in runs)]
    published = PUBLISHED.get(table, {})
    order = [*(name for name in published if name in rows), *(name for name in sorted(rows) if name not in published)]
    heads = [COLUMNS[key] for key in keys]
    lines = [
        f"Medians over runs{'; published medians in brackets' if published else ''}. "
        f"{len(runs)} of {len(wanted)} runs are there.",
        "",
        as_table(
            ["row", "runs", *heads, "restarted", "failed"],
            [_medians_of(name, rows[name], keys, published.get(name, {})) for name in order],
        ),
        "",
        "Every run, seeds in order.",
        "",
        as_table(["row", *heads], [[name, *(_runs(rows[name], key) for key in keys)] for name in order]),
    ]
    return "\n".join(lines)


def panel(preset: str, folder: Path) -> str:
    """Return the results of the panel as Markdown: gaps on plain x, and distances of posteriors, plain and lifted.

    Last come geometric means over the problems where every row has the number; gaps below a thousandth of a nat count
    as that.

    Arguments:
        preset: its budget's name
        folder: where results lie

    Raises:
        FileNotFoundError: if there are none
        ValueError: if there is no such preset, or a file is not a result
    """
    found = {name: _panel_results(name, preset, folder) for name in PANEL}
    if not any(found.values()):
        raise FileNotFoundError(f"There are no results of the panel, {preset}, in {folder}: run `mfsbi bench panel`.")
    parts = [_panel_table("gap, nats, plain x", found, "gap", [("plain", row) for row in PLAIN])]
    for events in (1, 20):
        columns = [("plain", row) for row in PLAIN] + [("lifted", row) for row in LIFTED]
        parts.append(_panel_table(f"TV of posteriors, events: {events}", found, f"tv_{events}", columns))
    parts.append(_panel_table("CPU s, plain x", found, "cpu_seconds", [("plain", row) for row in PLAIN]))
    return "\n\n".join(parts)


def _panel_results(name: str, preset: str, folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the result of each row of a problem, first seeds, by "plain" or "lifted" and its name."""
    tables = {"plain": f"law-{name}", "lifted": f"law-{name}-lifted"}
    runs = {kind: read_results(folder, experiments(table, preset)) for kind, table in tables.items()}
    return {(kind, run["experiment"]["row"]): run["result"] for kind, each in runs.items() for run in reversed(each)}


def _panel_table(
    title: str, found: dict[str, dict[tuple[str, str], dict[str, Any]]], key: str, columns: list[tuple[str, str]]
) -> str:
    """Return a table of one number, problems by rows, with geometric means."""
    values = {name: [results.get(column, {}).get(key) for column in columns] for name, results in found.items()}
    whole = [row for row in values.values() if None not in row]
    lines = [[name, *("–" if value is None else _number(value) for value in row)] for name, row in values.items()]
    if whole:
        means = [geometric_mean([max(value, LEAST) for value in column]) for column in zip(*whole, strict=True)]
        lines.append([f"geometric mean of {len(whole)}", *map(_number, means)])
    heads = [f"{row}, lifted" if kind == "lifted" else row for kind, row in columns]
    return as_table([title, *heads], lines)


def by_simulations(
    table: str, folder: Path, key: str = "kl"
) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Return the median of a column by model and number of simulations, without joint scores and with them.

    Of models that were measured with several numbers.

    Arguments:
        table: its name
        folder: where results lie
        key: of the column
    """
    plain: dict[str, dict[int, list[float]]] = {}
    golden: dict[str, dict[int, list[float]]] = {}
    runs = [run for preset in TABLES[table].curve for run in experiments(table, preset)]
    for each in sorted(runs, key=lambda run: (-run.budget.simulations, run.row.name, run.seed)):
        lines, name = golden if each.row.golden else plain, each.row.model or each.row.name
        for found in read_results(folder, [each]):
            if key in found["result"]:
                points = lines.setdefault(name, {})
                points.setdefault(each.budget.simulations, []).append(found["result"][key])
    return _medians(plain), _medians(golden)


def _medians(lines: dict[str, dict[int, list[float]]]) -> dict[str, dict[int, float]]:
    """Return the median of each point of lines that have several."""
    return {name: {n: median(runs) for n, runs in points.items()} for name, points in lines.items() if len(points) > 1}


def _medians_of(name: str, results: list[dict[str, Any]], keys: list[str], published: dict[str, float]) -> list[str]:
    cells = []
    for key in keys:
        values = [result[key] for result in results if key in result]
        shown = f" ({published[key]:g})" if key in published else ""
        cells.append((_number(median(values)) if values else "–") + shown)
    restarted = sum(result.get("collapses", 0) > 0 for result in results)
    failed = sum("failed" in result for result in results)
    return [name, str(len(results)), *cells, str(restarted), str(failed)]


def _runs(results: list[dict[str, Any]], key: str) -> str:
    return " ".join(_number(result[key]) for result in results if key in result) or "–"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3g}"
