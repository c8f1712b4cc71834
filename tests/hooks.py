"""Switched on for every test run: shapes in annotations are executed, doctests find a seeded namespace."""

import matplotlib as mpl
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

mpl.use("Agg")
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome where a float is
install_import_hook(["mfsbi", "simulators"], "tests.hooks.checked")


@pytest.fixture(autouse=True)
def _seeded_doctest_namespace(doctest_namespace):
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch


@pytest.fixture
def short_chains(monkeypatch):
    """Make the default MCMC a short one."""
    from mfsbi.plugin import host, likelihood

    settings = {"num_chains": 4, "warmup_steps": 10, "init_strategy_parameters": {"num_candidate_samples": 100}}
    monkeypatch.setitem(likelihood.DEFAULTS, "mcmc", lambda: host.MCMCPosteriorParameters(**settings))


@pytest.fixture
def float64():
    """Make float64 the default type within one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
