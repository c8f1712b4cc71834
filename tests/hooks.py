"""Switched on for every test run: shapes in annotations are executed, doctests find a seeded namespace."""

import functools
import gc
import inspect
import os
import signal

import jaxtyping
import matplotlib as mpl
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook, jaxtyped

mpl.use("Agg")
torch.set_num_threads(1)  # several workers run at once, and threads of one would wait for cores of another
os.environ["OMP_NUM_THREADS"] = "1"  # for notebooks and programs that tests start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in background jobs of scripts, where nobody hears Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
gc.disable()  # until tests are collected: until then nearly all stays, and looking for what does not takes long
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is welcome where a float is
install_import_hook(["mfsbi", "simulators"], "tests.hooks.checked")


def jaxtyped_once(thing=None, *, typechecker):
    """Do what `jaxtyped` does at half its price: every argument is checked once, not again with what is returned."""
    if thing is None:
        return functools.partial(jaxtyped_once, typechecker=typechecker)
    if not inspect.isfunction(thing):
        return jaxtyped(thing, typechecker=typechecker)
    check = typechecker(thing)

    @functools.wraps(thing)
    def wrapped(*args, **kwargs):
        if jaxtyping.config.jaxtyping_disable:
            return thing(*args, **kwargs)
        with jaxtyped("context"):
            return check(*args, **kwargs)

    return wrapped


jaxtyping.jaxtyped = jaxtyped_once  # which the hook above looks up


SLOWEST = (
    "tests/test_notebooks.py",
    "tests/bench/test_lhc_table.py",
    "tests/plugin/test_priors.py",
    "tests/train/test_noise.py",
    "tests/plugin/test_scales.py",
    "tests/test_cli.py",
)
"""Files of which one should not be left over for one worker at the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put the slowest files first; workers take whole files in this order."""
    order = {file: number for number, file in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(SLOWEST)))


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop():
    """Look for garbage again, but not among all that was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded_doctest_namespace(doctest_namespace):
    torch.manual_seed(0)
    doctest_namespace["torch"] = torch


@pytest.fixture(scope="module")
def as_users_have_it():
    """Switch off the annotations that tests execute, in a whole module: users run without."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def short_tuning(monkeypatch):
    """Let sbi's slice sampler begin with wide brackets and tune them in few steps, not tiny ones in fifty."""
    from sbi.samplers.mcmc.slice_numpy import SliceSamplerVectorized

    full, short = SliceSamplerVectorized.__init__, {"tuning": 3, "init_width": 2.0}
    monkeypatch.setattr(SliceSamplerVectorized, "__init__", lambda *args, **kw: full(*args, **(kw | short)))


@pytest.fixture
def short_chains(monkeypatch, short_tuning):
    """Make the default MCMC a short one."""
    from mfsbi.plugin import host, posteriors

    settings = {"num_chains": 4, "warmup_steps": 10, "init_strategy_parameters": {"num_candidate_samples": 100}}
    for word in ("smc", "mcmc"):
        monkeypatch.setitem(posteriors.DEFAULTS, word, lambda: host.MCMCPosteriorParameters(**settings))


@pytest.fixture(scope="session", autouse=True)
def _short_search(request):
    """Let trainings look for linear coordinates only shortly, but in slow exams."""
    with pytest.MonkeyPatch.context() as patch:
        if request.config.option.markexpr == "not slow":
            patch.setattr("mfsbi.train.directions.LONGEST", 40)
        yield


@pytest.fixture
def short_noise(monkeypatch):
    """Let the noise of joint scores be found by few passes, where it only has to be a number."""
    monkeypatch.setattr("mfsbi.train.noise.EPOCHS", 3)


@pytest.fixture
def float64():
    """Make float64 the default type within one test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
