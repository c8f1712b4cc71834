"""Switched on for every test run: shapes in annotations are executed, doctests find a seeded namespace."""

import os

import matplotlib as mpl
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

mpl.use("Agg")
torch.set_num_threads(1)  # several workers run at once, and threads of one would wait for cores of another
os.environ["OMP_NUM_THREADS"] = "1"  # for notebooks and programs that tests start
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome where a float is
install_import_hook(["mfsbi", "simulators"], "tests.hooks.checked")


@pytest.fixture(autouse=True)
def _seeded_doctest_namespace(doctest_namespace):
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch


@pytest.fixture
def short_chains(monkeypatch):
    """Make the default MCMC a short one."""
    from mfsbi.plugin import host, posteriors

    settings = {"num_chains": 4, "warmup_steps": 10, "init_strategy_parameters": {"num_candidate_samples": 100}}
    monkeypatch.setitem(posteriors.DEFAULTS, "mcmc", lambda: host.MCMCPosteriorParameters(**settings))


@pytest.fixture
def float64():
    """Make float64 the default type within one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
