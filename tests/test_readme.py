import re
from pathlib import Path
from statistics import median

import arviz
import pytest

from mfsbi.bench.report import COLUMNS, PUBLISHED
from mfsbi.bench.run import experiments, read_results

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)

SCHEMES = "simultaneous", "alternating", "sequential"
PEERS = "maf", "nsf", "zuko_nsf"
LIKELIHOODS = {"AF", "PIE (original)", "PIE (unconditional manifold)", *(f"sbi NLE, {net}" for net in PEERS)}


@pytest.mark.filterwarnings("ignore:The ch")
def test_the_example_runs(short_chains, tmp_path, monkeypatch):
    """As it stands, but on fewer simulations and epochs."""
    example, _ = EXAMPLES
    shorter = example.replace("20_000", "600").replace("trainer.train()", "trainer.train(max_num_epochs=4)")
    assert shorter.count("600") == shorter.count("epochs=4") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(shorter, "README.md", "exec"), {})
    assert "theta" in arviz.from_netcdf("posterior.nc")["posterior"].data_vars


def test_the_example_with_gold_runs():
    _, example = EXAMPLES
    assert "max_num_epochs=300" in example
    found = {}
    exec(compile(example.replace("max_num_epochs=300", "max_num_epochs=3"), "README.md", "exec"), found)
    assert found["trainer"].history.losses == ["scandal(nll)"]


def test_the_example_is_short():
    example, _ = EXAMPLES
    assert len([line for line in example.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("path", re.findall(r"\]\(((?!http)[^)]+)\)|`(\.github/[^`]+)`", README))
def test_files_it_names_are_there(path):
    assert (ROOT / (path[0] or path[1])).is_file()


def test_its_models_are_those_that_can_be_saved():
    from mfsbi.plugin.saving import SPECS

    table = README.split("## Models")[1].split("## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == set(SPECS)


TABLES = {
    "polynomial": {
        "`PIE`, chart depends on θ": "PIE (original)",
        "`PIE`": "PIE (unconditional manifold)",
        "`FOM`, on the true chart": "FOM",
        **{f"`{model}`, {scheme}": f"{model} {scheme}" for model in ("MFlow", "MeFlow") for scheme in SCHEMES},
        **{f"sbi's `NLE`, `{net}`": f"sbi NLE, {net}" for net in PEERS},
    },
    "lhc": {
        "`AF`, joint scores": "AF (SCANDAL)",
        "`PIE`, conditional chart": "PIE (original)",
        "`PIE`, conditional chart, joint scores": "PIE (original, SCANDAL)",
        "`PIE`": "PIE (unconditional manifold)",
        "`PIE`, joint scores": "PIE (unconditional manifold, SCANDAL)",
        **{f"`{model}`, joint scores": f"{model} (SCANDAL)" for model in ("PAE", "MFlow", "MeFlow")},
        "`ALICES`, joint scores and ratios": "ALICES",
        "sbi's `nsf`, 600 s": "sbi NLE, nsf",
    },
}
KEYS = {"distance of samples": "distance", "KL of posteriors": "kl", **{head: key for key, head in COLUMNS.items()}}


def cells_of(line):
    return [cell.strip().replace("−", "-") for cell in line.strip("|").split("|")]


def same(shown, value):
    """Whether a number is another one as far as it is written out."""
    return abs(float(shown) - value) <= 0.501 * 10 ** -len(shown.partition(".")[2])


@pytest.mark.parametrize(("table", "after"), [("polynomial", "The AUC of `AF`"), ("lhc", "The KL of `MFlow`")])
def test_its_tables_are_the_results_that_lie_there(table, after):
    """Each number is the median of the runs, and the published one is beside it."""
    text = README.split(after)[0]
    heads, _, *lines = text[text.rindex("\n| | ") :].strip().splitlines()
    found = {}
    for result in read_results(ROOT / "notebooks" / "tables", experiments(table, "paper")):
        found.setdefault(result["experiment"]["row"], []).append(result["result"])
    rows = {TABLES[table].get(name, name.strip("`")): cells for name, *cells in map(cells_of, lines)}
    assert set(rows) == set(found)
    for name, cells in rows.items():
        for head, cell in zip(cells_of(heads)[1:], cells, strict=True):
            shown = re.findall(r"-?\d+(?:\.\d+)?", cell)
            if head == "runs":
                assert shown == [str(len(found[name]))]
                continue
            key = "auc_likelihood" if head == "AUC" and name in LIKELIHOODS else KEYS[head]
            values = [result[key] for result in found[name] if key in result]
            published = PUBLISHED[table].get(name, {})
            stated = published.get(key, published.get("auc") if head == "AUC" else None)
            expected = [median(values)] if values else []
            expected += [stated] if values and stated is not None else []
            assert len(shown) == len(expected), (name, head, cell)
            assert all(map(same, shown, expected)), (name, head, cell, expected)
