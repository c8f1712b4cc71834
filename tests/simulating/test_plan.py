import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from mfsbi.priors import box
from mfsbi.simulating import Plan, simulate_to_store
from mfsbi.simulating.fingerprint import fingerprint
from mfsbi.simulating.plan import require_same
from mfsbi.sources import simulator
from simulators.polynomial import PolynomialSurface
from tests.simulating.problems import Fragile, Noisy


class Holding(Noisy):
    """Holds whatever it is given."""

    def __init__(self, what):
        super().__init__()
        self.what = what


def double(theta):
    return 2 * theta


def triple(theta):
    return 3 * theta


def times(theta, factor):
    return factor * theta


def multiplier(factor):
    def multiply(theta):
        return factor * theta

    return multiply


def network(seed):
    torch.manual_seed(seed)
    return nn.Linear(2, 2)


LARGE = np.zeros(5000)
CHANGED = LARGE.copy()
CHANGED[2500] = 1  # where repr shows dots
DIFFERENT = {
    "numbers": (1.0, 1.5),
    "tensors": (torch.from_numpy(LARGE), torch.from_numpy(CHANGED)),
    "arrays": (LARGE, CHANGED),
    "lists of arrays": ([LARGE], [CHANGED]),
    "dictionaries": ({"a": LARGE}, {"a": CHANGED}),
    "functions": (double, triple),
    "partials": (partial(times, factor=2), partial(times, factor=3)),
    "positions of partials": (partial(times, 2), partial(times, 3)),
    "closures": (multiplier(2), multiplier(3)),
    "methods": (Noisy(1.0).simulate, Noisy(2.0).simulate),
    "sets": ({"a", "b"}, {"a", "c"}),
    "classes": (Noisy, Fragile),
    "objects": (Noisy(1.0), Noisy(2.0)),
    "networks": (network(0), network(1)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_a_simulator_holds_tells_it_from_others(name):
    one, other = (fingerprint(Holding(what)) for what in DIFFERENT[name])
    assert one != other
    assert one == fingerprint(Holding(DIFFERENT[name][0]))


def test_the_order_of_a_set_says_nothing():
    """Of strings it is another one in each process; of these numbers it is that in which they came."""
    one, other = {0, 8}, {8, 0}
    assert repr(one) != repr(other)
    assert fingerprint(Holding([one, {"a": frozenset(one)}])) == fingerprint(Holding([other, {"a": frozenset(other)}]))


def test_numbers_of_numpy_are_numbers(tmp_path, monkeypatch):
    for name in ("require_positive_integer", "require_seed"):  # to which only tests refuse to pass them
        monkeypatch.setattr(f"mfsbi.simulating.plan.{name}", lambda *_: None)
    plan = Plan(Noisy(), rows=1)
    vars(plan).update(rows=np.int64(20), seed=np.int64(1), shard_rows=np.int32(10))
    plan.__post_init__()
    store = simulate_to_store(plan, tmp_path / "store")
    assert simulate_to_store(Plan(Noisy(), rows=20, seed=1, shard_rows=10), store.path).marks == store.marks


def test_code_tells_simulators_apart_and_caches_do_not():
    surface = PolynomialSurface()
    before = fingerprint(surface)
    surface._cache = 3
    assert fingerprint(surface) == before == fingerprint(PolynomialSurface())
    assert before != fingerprint(PolynomialSurface(tolerance=1e-3))
    assert fingerprint(Noisy()) != fingerprint(Fragile())


def test_functions_are_told_apart_by_their_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hashes = []
    for i, body in enumerate(["2 * theta", "3 * theta"]):
        (tmp_path / f"module_{i}.py").write_text(f"def simulate(theta):\n    return {body}\n")
        hashes.append(fingerprint(simulator(f"module_{i}:simulate", ["0:1"])))
    assert hashes[0] != hashes[1]


MODULE = """
import helping_module
WIDTHS = {"narrow": 1.0}
scale = 2.0
calls = []


def helper(theta):
    return theta * scale


class Box:
    def __init__(self, width):
        self._width = width

    def clip(self, theta):
        return theta.clamp(-self._width, self._width)


def simulate(theta):
    calls.append(len(theta))
    return helper(Box(WIDTHS["narrow"]).clip(theta)) + helping_module.offset(theta)
"""
HELPING = """
from functools import lru_cache
START = 1


@lru_cache
def begin():
    return START


def offset(theta):
    return theta.new_full(theta.shape, [begin() for _ in range(1)][0])
"""
CHANGES = {
    "a helper": ("theta * scale", "theta / scale"),
    "a number": ("scale = 2.0", "scale = 3.0"),
    "a constant": ('"narrow": 1.0', '"narrow": 1.5'),
    "a method": ("clamp(-self", "clamp(0 * self"),
    "another module's constant": ("START = 1", "START = 2"),
    "another module's function": ("return START", "return 2 * START"),
}
NO_CHANGES = {
    "nothing": ("", ""),
    "a variable": ("calls = []", "calls = [1]"),
    "an unused function": ("class Box", "def other():\n    return 7\n\n\nclass Box"),
}


@pytest.mark.parametrize("name", [*CHANGES, *NO_CHANGES])
def test_code_is_followed_to_all_that_a_function_uses_and_no_further(name, tmp_path, monkeypatch):
    hashes = []
    for number, (old, new) in enumerate([("", ""), {**CHANGES, **NO_CHANGES}[name]]):
        folder = tmp_path / str(number)
        folder.mkdir()
        for module, text in (("main_module", MODULE), ("helping_module", HELPING)):
            (folder / f"{module}.py").write_text(text.replace(old, new) if old else text)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(folder)
        function = simulator("main_module:simulate", ["0:1"])
        hashes.append(fingerprint(function))
        function.simulate(torch.zeros(2, 1), seed=0)
        assert fingerprint(function) == hashes[-1]
    assert (hashes[0] == hashes[1]) == (name in NO_CHANGES)


LAZY = """
import functools, logging, math
import numpy as np
import scipy.stats
import torch
from dataclasses import dataclass

x, log, noise = 3.0, torch.Tensor.log, scipy.stats.norm(0, 1)
_TABLE, MEMO_CACHE, LOG = None, {}, logging.getLogger("told")


@dataclass(slots=True)
class Slotted:
    names: frozenset = frozenset("abcdefgh")


class Lazy:
    parameter_names, prior = ("a",), None

    def __init__(self):
        self.xp, self.itself, self.slotted = torch, self, Slotted()
        self.log, self._grid, self._width, self.rng = LOG, None, 2, np.random.default_rng(0)
        self.keys = {frozenset("abcdefgh"): 1, 1: "one", "1": math.sin, ("a", 2): {"b", "c", ("d", frozenset("efgh"))}}
        self.objects, self.half = np.array([None, "a"], dtype=object), torch.ones(2, dtype=torch.bfloat16)

    @functools.cached_property
    def table(self):
        return torch.arange(9)

    def simulate(self, theta, *, seed=None):
        global _TABLE
        if _TABLE is None:
            _TABLE = torch.linspace(0, 1, 9)
        MEMO_CACHE[seed] = self._grid = self.table
        self.rng.normal()
        return theta.x if theta.numel() == 0 else theta + noise.mean()
"""
CHANGED = {
    "a number within": ("self._width, self.rng = LOG, None, 2", "self._width, self.rng = LOG, None, 3"),
    "a slot": ('frozenset("abcdefgh")\n\n', 'frozenset("abcdefg")\n\n'),
    "what is cached": ("torch.arange(9)", "torch.arange(8)"),
    "an unrelated variable by the name of an attribute": ("x, log, noise = 3.0", "x, log, noise = 4.0"),
}


LAZILY = """
import importlib, json, sys, logging, torch
from mfsbi.simulating.fingerprint import fingerprint
if sys.argv[1] == "2":
    logging.basicConfig()
    torch.set_printoptions(precision=2)
found = []
for folder in sys.argv[2:]:
    sys.path.insert(0, folder)
    sys.modules.pop("lazily", None)
    lazy = importlib.import_module("lazily").Lazy()
    found.append(fingerprint(lazy))
    for seed in range(2):
        lazy.simulate(torch.ones(3, 1), seed=seed)
    assert fingerprint(lazy) == found[-1]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return what two processes say: the hash of an object, and those of it and of its changes by name."""
    folders = {name: tmp_path_factory.mktemp("lazily") for name in ("nothing", *CHANGED)}
    for name, folder in folders.items():
        changed = LAZY.replace(*CHANGED[name]) if name in CHANGED else LAZY
        assert (changed == LAZY) == (name == "nothing")
        (folder / "lazily.py").write_text(changed)
    said = []
    for number, names in (("1", ["nothing"]), ("2", folders)):
        done = subprocess.run(
            [sys.executable, "-c", LAZILY, number, *(folders[name] for name in names)],
            env={**os.environ, "PYTHONHASHSEED": number, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(dict(zip(names, json.loads(done.stdout), strict=True)))
    return said[0]["nothing"], said[1]


@pytest.mark.parametrize("name", ["nothing", *CHANGED])
def test_objects_of_all_kinds_have_one_fingerprint_in_every_process(name, told):
    """With other orders of sets, after other work, and with other options of printing."""
    one, others = told
    assert (one == others[name]) == (name in {"nothing", "an unrelated variable by the name of an attribute"})


def test_a_function_says_its_version_or_its_module_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.py").write_text(
        "__version__ = '3'\ndef a(theta): return theta\ndef b(theta): return theta\nb.version = 4\n"
    )
    versions = [Plan(simulator(f"told:{name}", ["0:1"]), rows=1).attributes()["simulator_version"] for name in "ab"]
    assert versions == ["3", "4"]


def test_attributes_are_json_and_do_not_depend_on_settings():
    plan = Plan(PolynomialSurface(), rows=10, name="polynomial")
    found = plan.attributes()
    torch.set_default_dtype(torch.float64)
    try:
        again = plan.attributes()
    finally:
        torch.set_default_dtype(torch.float32)
    assert again == found
    assert found["simulator"] == "polynomial"
    assert found["parameter_names"] == ["theta"]
    assert found["gold"] is True
    assert Plan(PolynomialSurface(), rows=10, gold=False).attributes()["gold"] is False
    assert set(found["versions"]) == {"mfsbi", "torch", "numpy", "python"}


def test_priors_differ_by_their_draws_or_their_densities():
    one, other = (Plan(Noisy(), rows=1, prior=box(["0:1", word])).attributes() for word in ("0:1", "0:2"))
    assert one["prior_draws"] != other["prior_draws"]
    normal = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    assert len(Plan(Noisy(), rows=1, prior=normal).attributes()["prior_log_probs"]) == 16


@pytest.mark.parametrize("other", [{"rows": 10**7 + 1, "seed": 10**6}, {"rows": 10**7, "seed": 10**6 + 1}])
def test_numbers_that_nearly_agree_are_told_apart(other, tmp_path):
    plan = Plan(Noisy(), rows=10**7, seed=10**6)
    stored = {**plan.attributes(), "rows": plan.rows, "shard_rows": 100}
    require_same(tmp_path, stored, plan, plan.attributes())
    with pytest.raises(ValueError, match="`rows` of|`seed` of"):
        require_same(tmp_path, stored, another := Plan(Noisy(), **other), another.attributes())


def test_draws_that_differ_by_rounding_are_those_of_one_prior(tmp_path):
    plan = Plan(Noisy(), rows=10)
    stored = {**plan.attributes(), "rows": 10, "shard_rows": 5}
    stored["prior_draws"] = [[value * (1 + 1e-7) for value in row] for row in stored["prior_draws"]]
    require_same(tmp_path, stored, plan, plan.attributes())
