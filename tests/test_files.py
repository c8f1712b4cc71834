import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mfsbi import files


def test_what_is_written_is_read(tmp_path):
    tensors = {"a": torch.randn(3, 2).T, "b": torch.arange(4)}
    files.write(tmp_path / "x.safetensors", tensors, {"answer": [42, "é"]})
    back, description = files.read(tmp_path / "x.safetensors")
    assert description == {"answer": [42, "é"]}
    assert all((back[name] == tensors[name]).all() for name in tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_numbers_of_numpy_are_written_as_numbers(tmp_path):
    files.write(tmp_path / "x.safetensors", {"a": torch.ones(1)}, {"seed": np.int64(3), "weight": np.float32(0.5)})
    assert files.read(tmp_path / "x.safetensors")[1] == {"seed": 3, "weight": 0.5}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.safetensors"
    files.write(path, {"a": torch.ones(1)}, {})
    with pytest.raises(TypeError):
        files.write(path, {"a": torch.zeros(1)}, {"not json": object()})
    assert files.read(path)[0]["a"] == 1


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="is not a file of mfsbi"):
        files.read(path)


def test_another_format_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"format": "mfsbi 99"})
    with pytest.raises(ValueError, match="should be of format 'mfsbi 1'; it says 'mfsbi 99'"):
        files.read(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
        files.read(tmp_path / "nowhere.safetensors")


def test_a_folder_that_is_not_there_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="Cannot write"):
        files.write(tmp_path / "nowhere" / "x.safetensors", {"a": torch.ones(1)}, {})


def test_a_file_without_description_is_refused(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", {"format": "mfsbi 1"})
    with pytest.raises(ValueError, match="no description"):
        files.read(tmp_path / "x.safetensors")
