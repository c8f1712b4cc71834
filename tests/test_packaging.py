import importlib.metadata
import subprocess
import sys

import pytest

import mfsbi

GLOBAL_STATE = """
import random, warnings, logging, sys
import numpy as np, torch
import matplotlib as mpl

def state():
    return {
        "torch dtype": torch.get_default_dtype(),
        "torch seed": torch.get_rng_state().sum().item(),
        "numpy seed": np.random.get_state()[1].sum(),
        "python seed": hash(random.getstate()),
        "validation": torch.distributions.Distribution._validate_args,
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "numpy errors": tuple(np.geterr().items()),
        "rc": hash(str(dict(mpl.rcParams))),
        "excepthook": sys.excepthook is sys.__excepthook__,
        "root logger": len(logging.getLogger().handlers),
    }

before = state()
import os
files = set(os.listdir("."))
from mfsbi import *
import mfsbi.cli, mfsbi.demo, mfsbi.plots
after = state()
assert before == after, [(key, before[key], after[key]) for key in before if before[key] != after[key]]
assert set(os.listdir(".")) == files
assert not {"pytensor", "pymc", "distributed"} & set(sys.modules)
"""


def test_importing_everything_changes_no_global_state(tmp_path):
    command = [sys.executable, "-c", GLOBAL_STATE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_alone_is_light():
    code = "import sys, mfsbi; assert not {'torch', 'sbi', 'zuko', 'arviz'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", mfsbi.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(mfsbi, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="attribute nonsense"):
        _ = mfsbi.nonsense


def test_all_and_dir_list_the_public_names():
    assert {"ManifoldNLE", "MFlow", "load", "Store"} <= set(mfsbi.__all__) <= set(dir(mfsbi))


def test_both_packages_belong_to_this_distribution():
    owners = importlib.metadata.packages_distributions()
    for package in ("mfsbi", "simulators"):
        assert set(owners[package]) == {"mfsbi"}, f"another distribution owns {package!r}"


def test_the_simulators_are_registered():
    entries = importlib.metadata.entry_points(group="mfsbi.simulators")
    assert entries["polynomial"].load().__name__ == "PolynomialSurface"
