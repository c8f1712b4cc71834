import sys

import numpy as np
import pyro
import pytest
import torch
from pyro import distributions as dist

from mfsbi.gold import PyroSimulator
from mfsbi.simulating import Plan, simulate_to_store
from mfsbi.simulating.shards import draw, shapes_of
from mfsbi.store import Layout
from mfsbi.types import ProgramError
from simulators.polynomial import PolynomialSurface
from tests.simulating.problems import Fragile, Noisy, contents

LAYOUT = Layout(300, 150, {"theta": (2,), "x": (3,)})


@pytest.fixture(scope="module")
def shard():
    return draw(Plan(Fragile(share=0.1), rows=300), LAYOUT, 1)


def test_failing_rows_are_flagged_and_told_and_the_others_kept(shard):
    theta, x, failed = (shard.arrays[name] for name in ("theta", "x", "failed"))
    raising, infinite = theta[:, 0] > 0.9, theta[:, 1] >= 0.9
    assert 0 < raising.sum() < 40
    assert (failed == raising | infinite).all()
    assert np.isnan(x[failed]).all()
    assert np.isfinite(x[~failed]).all()
    assert len(np.unique(x[~failed])) == 3 * (~failed).sum()
    assert [reason["row"] for reason in shard.reasons] == (150 + np.flatnonzero(failed)).tolist()
    for reason in shard.reasons:
        row = reason["row"] - 150
        assert reason["theta"] == theta[row].tolist()
        if raising[row]:
            assert reason["error"] == "ArithmeticError: no solution"
            assert reason["traceback"].count('raise ArithmeticError("no solution")') == 1
        else:
            assert reason["error"] == "not finite: x"


def test_failures_are_the_same_again(shard):
    again = draw(Plan(Fragile(share=0.1), rows=300), LAYOUT, 1)
    assert [reason["row"] for reason in again.reasons] == [reason["row"] for reason in shard.reasons]
    assert all(values.tobytes() == shard.arrays[name].tobytes() for name, values in again.arrays.items())


class Counting(Noisy):
    """Fails at the one row whose theta is largest, and counts its calls."""

    calls = 0
    threshold = 2.0

    def simulate(self, theta, *, seed=None):
        self.calls += 1
        if (theta[:, 0] >= self.threshold).any():
            raise ValueError
        return super().simulate(theta, seed=seed)


def test_one_bad_row_costs_few_calls():
    plan = Plan(Counting(), rows=300)
    plan.simulator.threshold = float(draw(plan, LAYOUT, 0).arrays["theta"][:, 0].max())
    plan.simulator.calls = 0
    assert draw(plan, LAYOUT, 0).arrays["failed"].sum() == 1
    assert plan.simulator.calls <= 2 * np.ceil(np.log2(150)) + 2


def test_reasons_lie_in_the_store(tmp_path):
    store = simulate_to_store(Plan(Fragile(share=0.1), rows=60, shard_rows=30), tmp_path / "store", max_failures=0.5)
    assert len(store) + store.failed == 60
    assert 0 < store.failed == sum(len(store.reasons(shard)) for shard in (0, 1))
    assert "failed/1.jsonl" in contents(tmp_path / "store")


def test_gold_comes_along_where_it_is_known():
    plan = Plan(PolynomialSurface(), rows=20)
    shapes = shapes_of(plan)
    assert shapes == {"theta": (1,), "x": (3,), "joint_score": (1,), "joint_log_ratio": ()}
    assert set(draw(plan, Layout(20, 20, shapes), 0).arrays) == {*shapes, "failed"}
    assert set(shapes_of(Plan(PolynomialSurface(), rows=20, gold=False))) == {"theta", "x"}


class Odd(Noisy):
    """Returns whatever it is told."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def simulate(self, theta, *, seed=None):
        return self.x


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2),
        torch.zeros(1, 3),
        torch.zeros(2, 0),
        None,
        np.zeros((2, 3)),
        torch.zeros(2, 3, dtype=torch.complex64),
        torch.eye(2).to_sparse(),
    ],
)
def test_x_that_is_no_rows_is_refused(x):
    with pytest.raises(ValueError, match=r"`x` should be a tensor of shape \(rows, features\), rows being 2.*; got"):
        shapes_of(Plan(Odd(x), rows=10))


def test_whole_numbers_are_kept_or_refused():
    assert shapes_of(Plan(Odd(torch.full((2, 3), 2**24)), rows=10))["x"] == (3,)
    with pytest.raises(ValueError, match="whole numbers beyond 16,777,216"):
        shapes_of(Plan(Odd(torch.full((2, 3), 2**24 + 1)), rows=10))


def test_a_simulator_that_always_fails_is_refused_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)failed at 8 of 8 theta from the prior.*no solution"):
        shapes_of(Plan(Fragile(share=2.0), rows=10))


def test_a_prior_of_another_number_of_parameters_is_refused():
    with pytest.raises(ValueError, match=r"finite theta of shape \(2, 2\), one column for each of \['a', 'b'\]"):
        shapes_of(Plan(Noisy(), rows=10, prior=PolynomialSurface().prior))


class Failing(Noisy):
    """Raises what it was given, in the calls it was told."""

    def __init__(self, error, calls):
        super().__init__()
        self.error, self.calls = error, calls

    def simulate(self, theta, *, seed=None):
        if self.calls.pop(0):
            raise self.error
        return super().simulate(theta, seed=seed)


NO_MEMORY = [MemoryError(), RuntimeError("[...] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8")]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_what_fails_for_want_of_memory_is_not_taken_for_a_bad_row(error):
    with pytest.raises(type(error)):
        draw(Plan(Failing(error, [True]), rows=300), LAYOUT, 0)


def test_what_fails_once_leaves_no_trace():
    shaky = draw(Plan(Failing(OSError("busy"), [True, False]), rows=300), LAYOUT, 0)
    assert shaky.arrays["x"].tobytes() == draw(Plan(Noisy(), rows=300), LAYOUT, 0).arrays["x"].tobytes()
    assert shaky.reasons == []


class Scaling(Noisy):
    """Changes theta in place before it fails."""

    def simulate(self, theta, *, seed=None):
        theta *= 10
        if len(theta) > 20:
            raise ValueError
        return theta[:, :1].repeat(1, 3)


def test_what_a_simulator_does_to_theta_is_not_done_to_ours():
    arrays = draw(Plan(Scaling(), rows=300), LAYOUT, 0).arrays
    np.testing.assert_allclose(arrays["x"][:, 0], 10 * arrays["theta"][:, 0])


class Leaving(Noisy):
    """Ends the program."""

    def simulate(self, theta, *, seed=None):
        sys.exit(0)


def test_a_simulator_that_ends_the_program_is_an_error():
    with pytest.raises(RuntimeError, match="The simulator ended the program, by exit code 0"):
        draw(Plan(Leaving(), rows=300), LAYOUT, 0)


def test_a_program_that_is_wrong_is_no_failure_of_rows(tmp_path):
    def model(theta):
        z = pyro.sample("z", dist.Normal(theta[..., 0], 1.0))
        return pyro.sample("x", dist.Normal(z - z.mean(), 0.5))

    plan = Plan(PyroSimulator(model, Noisy().prior), rows=60)
    with pytest.raises(ProgramError, match="Rows should be independent"):
        simulate_to_store(plan, tmp_path / "store")
