from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
FRESH = """
%reset -f
import os, warnings, torch
os.chdir({folder!r})
warnings.resetwarnings()
assert torch.get_default_dtype() == torch.float32 and torch.is_grad_enabled()
torch.seed()
"""
"""What a notebook finds in a kernel of its own: no names, no files, no seed."""


def code_of(path):
    cells = nbformat.read(path, as_version=4).cells
    return [line for cell in cells if cell.cell_type == "code" for line in cell.source.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def run():
    """Return a function that runs cells, all in one kernel: to start one takes as long as to run a notebook."""
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300)

    def run(cells):
        client.nb = nbformat.v4.new_notebook(cells=cells)
        client.reset_execution_trackers()
        code = [(index, cell) for index, cell in enumerate(cells) if cell.cell_type == "code"]
        return [output for index, cell in code for output in client.execute_cell(cell, index).outputs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MFSBI_TOY", "1")
        with client.setup_kernel():
            yield run


def cell(source):
    return nbformat.v4.new_code_cell(source)


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_at_toy_size(path, run, tmp_path):
    run([cell(FRESH.format(folder=str(tmp_path)))])
    outputs = run(nbformat.read(path, as_version=4).cells)
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3


def test_a_notebook_finds_no_names_of_another(run, tmp_path):
    before = run([cell("left = 1"), cell("print('left' in globals())")])
    after = run([cell(FRESH.format(folder=str(tmp_path))), cell("print('left' in globals())")])
    assert [before[-1].text, after[-1].text] == ["True\n", "False\n"]


def test_an_error_in_a_cell_is_one_of_the_test(run):
    with pytest.raises(CellExecutionError, match="what went wrong"):
        run([cell("raise ValueError('what went wrong')")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_short_and_small(path):
    assert len(code_of(path)) <= 150
    assert path.stat().st_size < 1_500_000
