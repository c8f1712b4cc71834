import re
from pathlib import Path

import arviz
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:The ch")
def test_the_example_runs(short_chains, tmp_path, monkeypatch):
    """As it stands, but on fewer simulations and epochs."""
    example, _ = EXAMPLES
    shorter = example.replace("20_000", "600").replace("epochs=20", "epochs=4")
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
