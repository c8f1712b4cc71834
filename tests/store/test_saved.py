"""A store that version 0.1.0 made, half of whose shards were left to do, is read, checked and finished by this one."""

from pathlib import Path
from shutil import copytree

import pytest

from mfsbi.simulating import Plan, check, simulate_to_store
from mfsbi.store import Store
from simulators.polynomial import PolynomialSurface

CANNOT_BE_TOLD = "simulator's code as another version of mfsbi does"


def plan(**settings):
    return Plan(PolynomialSurface(), **{"rows": 18, "shard_rows": 5, "seed": 7, "name": "polynomial", **settings})


@pytest.fixture
def saved(tmp_path):
    return Path(copytree(Path(__file__).parent / "saved" / "polynomial", tmp_path / "store"))


def test_it_is_read_and_checked(saved):
    store = Store(saved)
    assert (store.finished == [0, 2]).all()
    assert store.x.shape == (10, 3)
    with pytest.warns(UserWarning, match=CANNOT_BE_TOLD) as told:
        assert check(store, plan(), again=2) == []
    assert len(told) == 1


def test_it_is_gone_on_with_and_holds_what_a_new_one_holds(saved, tmp_path):
    with pytest.warns(UserWarning, match=CANNOT_BE_TOLD) as told:
        store = simulate_to_store(plan(), saved)
    assert len(told) == 1
    new = simulate_to_store(plan(), tmp_path / "new")
    assert store.complete
    assert store.marks == new.marks
    assert (store.x == new.x).all()


def test_another_plan_is_refused_as_ever(saved):
    with pytest.warns(UserWarning, match=CANNOT_BE_TOLD), pytest.raises(ValueError, match="`seed` of the store"):
        simulate_to_store(plan(seed=8), saved)
