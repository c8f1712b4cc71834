import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from mfsbi.priors import bounds_of, box
from mfsbi.simulating import Plan, simulate_to_store
from mfsbi.sources import _Function, read_arrays, simulator, source_of
from mfsbi.types import Simulator
from simulators.polynomial import PolynomialSurface
from tests.simulating.problems import Noisy

MODULE = """
import torch
from simulators.polynomial import PolynomialSurface

surface = PolynomialSurface()
number = 3

def double(theta):
    return torch.cat([2 * theta, theta + torch.randn(len(theta), 1)], dim=-1)

def wrong(theta):
    return theta[:1]

def failing(theta):
    raise ArithmeticError("did not converge")

class Nameless:
    prior = surface.prior

    def simulate(self, theta, seed=None):
        return theta

class Needy(PolynomialSurface):
    def __init__(self, k):
        self.k = k
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_simulators.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_simulators"
    sys.modules.pop("my_simulators", None)


def test_a_registered_name_is_its_simulator():
    assert isinstance(simulator("polynomial"), PolynomialSurface)


@pytest.mark.parametrize("attribute", ["surface", "PolynomialSurface"])
def test_an_object_or_a_class_in_a_module_is_a_simulator(module, attribute):
    assert isinstance(simulator(f"{module}:{attribute}"), PolynomialSurface)


def test_a_function_is_a_simulator_once_its_prior_is_known(module):
    source = simulator(f"{module}:double", ["-1:1", "0:10"])
    assert isinstance(source, Simulator)
    theta = source.prior.sample((5,))
    assert theta.shape == (5, 2)
    state = torch.get_rng_state()
    x = source.simulate(theta, seed=1)
    assert (torch.get_rng_state() == state).all()
    assert x.shape == (5, 3 + 1)
    assert (source.simulate(theta, seed=1) == x).all()
    assert (source.simulate(theta, seed=2) != x).any()


@pytest.mark.parametrize(
    ("word", "prior", "error", "message"),
    [
        ("nonsense", [], ValueError, "there is no simulator 'nonsense'"),
        ("no_such_module:f", [], ValueError, "Cannot find 'no_such_module:f'"),
        ("my_simulators:absent", [], ValueError, "Cannot find 'my_simulators:absent'"),
        ("my_simulators:double", [], ValueError, "is a function: say its prior by one --prior LOW:HIGH"),
        ("my_simulators:number", [], TypeError, "should be a simulator or a function theta -> x; it is int"),
        ("my_simulators:Nameless", [], TypeError, "it is Nameless, which has no parameter_names as a simulator has"),
        ("my_simulators:Needy", [], TypeError, "cannot be made without arguments: .*'k'. Name an object of it"),
        ("my_simulators:double", ["1:-1"], ValueError, "LOW:HIGH with numbers LOW < HIGH.*got '1:-1'"),
        ("my_simulators:double", ["one"], ValueError, "LOW:HIGH with numbers LOW < HIGH.*got 'one'"),
        ("my_simulators:double", ["0:inf"], ValueError, "got '0:inf'"),
    ],
)
def test_words_that_stand_for_nothing_are_refused(module, word, prior, error, message):
    with pytest.raises(error, match=message):
        simulator(word, prior)


def test_x_that_does_not_match_theta_is_refused(module):
    source = simulator(f"{module}:wrong", ["0:1"])
    with pytest.raises(ValueError, match=r"one row for each of the 4 rows of theta; got \(1, 1\)"):
        source.simulate(torch.zeros(4, 1))


@dataclass
class Frame:
    """What numpy can make an array of, as of a data frame."""

    values: np.ndarray

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype=dtype)


def returning(x):
    return _Function(lambda theta: x, box(["0:1"]), ["theta_0"]).simulate(torch.zeros(2, 1), seed=0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"a": torch.zeros(2), "b": torch.zeros(2)}, "got a dict with keys 'a', 'b'. .*by stacking its values"),
        (None, "got None. Let the function end with `return x`"),
        ("0 1", "got a str. Return one array"),
        ([{"a": 1}, {"a": 2}], "got a list of 2, the first of them a dict"),
        ([[1, 2], [3]], "got a list of 2, the first of them a list"),
        (np.array([[1.0], [None]]), "got a ndarray of type object"),
        (np.array([["a"], ["b"]]), "got a ndarray of type <U1"),
        (np.ones((2, 1)) * 1j, "got a ndarray of complex128. Return real and imaginary parts"),
        (torch.ones(2, 1) * 1j, "got a Tensor of torch.complex64. Return real and imaginary parts"),
        (Frame(np.array([["a"], ["b"]])), "got a Frame"),
        (len, "got a builtin_function_or_method"),
    ],
)
def test_x_that_is_no_array_of_numbers_is_told_as_what_it_is(x, message):
    with pytest.raises(TypeError, match=f"an array or tensor of numbers, shape .rows, features.*{message}"):
        returning(x)


@pytest.mark.parametrize(
    "x",
    [
        np.ones((2, 3)),
        np.ones((2, 3), dtype=int),
        np.ones((2, 3), dtype=bool),
        torch.ones(2, 3, dtype=torch.float64),
        [[1, 1, 1], [1.0, 1.0, 1.0]],
        [torch.ones(3), torch.ones(3)],
        (np.ones(3), np.ones(3)),
        Frame(np.ones((2, 3))),
    ],
    ids=repr,
)
def test_x_may_be_whatever_numpy_makes_numbers_of(x):
    found = returning(x)
    assert found.dtype == torch.get_default_dtype()
    assert (found == torch.ones(2, 3)).all()


def test_bounds_of_priors():
    assert bounds_of(box(["-1:1", "0:10"])) == [(-1.0, 1.0), (0.0, 10.0)]
    assert bounds_of(PolynomialSurface().prior) == [(-1.0, 1.0)]
    with pytest.raises(ValueError, match="A grid needs a prior with bounds"):
        bounds_of(Normal(torch.zeros(1), torch.ones(1)))


@pytest.fixture
def arrays(tmp_path):
    theta, x = np.zeros((4, 1)), np.ones((4, 3), dtype=np.float32)
    np.savez(tmp_path / "sims.npz", theta=theta, x=x)
    np.save(tmp_path / "theta.npy", theta)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.save(tmp_path / "nan.npy", np.array([[1.0], [np.nan]]))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04broken")
    (tmp_path / "text.npy").write_text("1 2 3")
    return tmp_path


@pytest.mark.parametrize("names", [["sims.npz"], ["theta.npy", "x.npy"]])
def test_arrays_come_in_one_file_or_in_several(arrays, names):
    theta, x = read_arrays([arrays / name for name in names], ["theta", "x"])
    assert theta.shape == (4, 1)
    assert x.shape == (4, 3)
    assert theta.dtype == x.dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    ("names", "wanted", "error", "message"),
    [
        (["absent.npy"], ["x"], FileNotFoundError, "There is no file"),
        (["sims.npz"], ["y"], ValueError, "should hold y; it holds theta, x"),
        (["theta.npy"], ["theta", "x"], ValueError, "Expected one .npz file with theta and x, or one .npy file each"),
        (["objects.npy"], ["x"], ValueError, "cannot be read as arrays of numbers"),
        (["broken.npz"], ["x"], ValueError, "cannot be read as arrays of numbers"),
        (["text.npy"], ["x"], ValueError, "cannot be read as arrays of numbers"),
        (["words.npy"], ["x"], ValueError, "`x` should be an array of numbers; its type is <U1"),
        (["nan.npy"], ["x"], ValueError, "`x` should be finite; 1 of 2 rows"),
    ],
)
def test_files_that_hold_something_else_are_refused(arrays, names, wanted, error, message):
    with pytest.raises(error, match=message):
        read_arrays([arrays / name for name in names], wanted)


def stored(path, **options):
    return simulate_to_store(Plan(PolynomialSurface(), rows=5, name="polynomial", **options), path).path


def test_a_store_has_the_prior_it_was_made_with_and_the_manifold_of_its_simulator(tmp_path):
    narrow = source_of([str(stored(tmp_path / "narrow", prior=box(["-0.1:0.1"])))])
    own = source_of([str(stored(tmp_path / "own"))])
    assert bounds_of(narrow.prior) == [(pytest.approx(-0.1), pytest.approx(0.1))]
    assert bounds_of(own.prior) == [(-1.0, 1.0)]
    assert narrow.manifold_dim == own.manifold_dim == 2
    assert bounds_of(source_of([str(narrow.store.path)], ["-3:3"]).prior) == [(-3.0, 3.0)]


def test_a_store_whose_prior_nobody_knows_asks_for_it(tmp_path):
    path = stored(tmp_path / "store", prior=Independent(Normal(torch.zeros(1), 0.1), 1))
    with pytest.raises(ValueError, match=r"The prior of .* is .*Normal.*, which cannot be made again"):
        source_of([str(path)])
    assert bounds_of(source_of([str(path)], ["-1:1"]).prior) == [(-1.0, 1.0)]


def test_an_unbounded_prior_of_a_simulator_is_its_own(tmp_path, monkeypatch):
    noisy = Noisy()
    noisy.prior = Independent(Normal(torch.zeros(2), 1.0), 1)
    monkeypatch.setattr("mfsbi.sources.simulator", lambda word, bounds: noisy)
    path = simulate_to_store(Plan(noisy, rows=5, name="noisy"), tmp_path / "store").path
    assert source_of([str(path)]).prior is noisy.prior


def test_a_simulator_that_fails_is_told_where_failures_are_noted(module):
    source = source_of([f"{module}:failing"], ["-1:1"])
    with pytest.raises(RuntimeError, match="ArithmeticError: did not converge. `mfsbi simulate` notes"):
        source.for_likelihood(10, seed=0)
