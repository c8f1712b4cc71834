"""Several processes learn what one does."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mfsbi import Store
from mfsbi.train.checkpoint import Keeper
from mfsbi.train.ranks import Ranks, process_group
from tests.train.together import SCHEDULES, STREAMED, learned, rows, streamed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return what two processes have left."""
    folder = tmp_path_factory.mktemp("together")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    known["CUDA_VISIBLE_DEVICES"] = ""  # one GPU would not do for two
    command = [sys.executable, "-m", "tests.train.together", str(folder)]
    processes = [
        subprocess.Popen(command, env={**os.environ, **known, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"
    ]
    try:
        assert [process.wait(timeout=300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return folder


@pytest.fixture(params=["0", "1"])
def two(folder, request):
    """Return what one of the two processes found, and what it was told."""
    return torch.load(folder / f"{request.param}.pt")


@pytest.fixture(scope="module")
def data():
    torch.set_default_dtype(torch.float64)
    yield rows()
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", SCHEDULES)
def test_two_processes_learn_what_one_does(name, two, data):
    values, losses = learned(name, SCHEDULES[name], data)
    torch.testing.assert_close(two[0][name][1], losses, rtol=0, atol=1e-9)
    torch.testing.assert_close(two[0][name][0], values, rtol=0, atol=1e-7)


def test_two_processes_learn_from_a_stream_what_one_does(folder, two, data):
    values, losses = learned("", STREAMED, streamed(Store(folder / "store")))
    torch.testing.assert_close(two[0]["streamed"][1], losses, rtol=0, atol=1e-9)
    torch.testing.assert_close(two[0]["streamed"][0], values, rtol=0, atol=1e-7)


def test_sigterm_of_one_process_ends_both_and_they_go_on_bit_for_bit(folder, two):
    found, said = two
    assert said["SIGTERM"] == "SystemExit: 143"
    assert (found["resumed"][0] == found["noisy"][0]).all()
    assert (found["resumed"][1] == found["noisy"][1]).all()
    assert {path.name for path in folder.iterdir()} == {"0.pt", "1.pt", "kept", "store"}


def test_ctrl_c_of_one_process_interrupts_both(two):
    found, said = two
    assert "Training was interrupted in phase 1 of 1" in said["SIGINT"]
    assert len(found["interrupted"][1]) == 1


def test_refusals_reach_both(two):
    said = two[1]
    assert said["from_first"] == "ValueError: on the first alone"
    assert "same numbers of rows to learn from and to judge by; they have [(322, 81), (321, 81)]" in said["other rows"]
    assert "the same digests of rows, which one seed or `Ranks.from_first` gives; they have" in said["another order"]
    assert "a row for each of 2 processes; one has 1. Take fewer" in said["few rows"]


@pytest.mark.parametrize(("rows", "size"), [(10, 1), (10, 3), (2, 3), (101, 4)])
def test_shares_are_all_rows_once_and_in_order(rows, size):
    order = list(range(rows))
    shares = [order[Ranks(rank, size).share(rows)] for rank in range(size)]
    assert [row for share in shares for row in share] == order
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_second_ctrl_c_waits_for_no_other_process():
    keeper = Keeper(None, Ranks(0, 2))
    with keeper.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert keeper.interrupted
        with pytest.raises(SystemExit, match="130"):
            os.kill(os.getpid(), signal.SIGINT)


def test_one_process_is_the_first_of_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with process_group() as ranks:
        assert ranks == Ranks(0, 1) == Ranks.current()
        assert ranks.first
        assert ranks.device == "cpu"
        assert ranks.any(True, False) == (True, False)


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="a GPU for each process; there are 1.*CUDA_VISIBLE_DEVICES="), process_group():
        pass
