"""A store that version 0.1.0 made is read, checked and finished by this one, which hashes simulators otherwise."""

import shutil
from pathlib import Path

import pytest

from mfsbi.simulating import Plan, check, simulate_to_store
from mfsbi.store import Store
from simulators.polynomial import PolynomialSurface

CANNOT_BE_TOLD = "the code of PolynomialSurface as another version of mfsbi does"


def plan(**settings):
    return Plan(PolynomialSurface(), **{"rows": 40, "shard_rows": 20, "seed": 4, **settings})


@pytest.fixture
def kept(tmp_path):
    """Return a copy of the store without its second shard."""
    folder = shutil.copytree(Path(__file__).parents[1] / "kept" / "store", tmp_path / "store")
    (folder / "marks" / "c.1.0").unlink()
    return folder


def test_it_is_checked_with_one_warning(kept):
    assert check(Store(kept)) == []
    with pytest.warns(UserWarning, match=CANNOT_BE_TOLD) as told:
        assert check(Store(kept), plan(), again=1) == []
    assert len(told) == 1


def test_it_is_finished_with_one_warning_and_holds_what_a_new_one_holds(kept, tmp_path):
    with pytest.warns(UserWarning, match=CANNOT_BE_TOLD) as told:
        store = simulate_to_store(plan(), kept)
    assert len(told) == 1
    new = simulate_to_store(plan(), tmp_path / "new")
    assert store.complete
    assert store.marks == new.marks
    assert (store.x == new.x).all()


def test_another_plan_is_refused_all_the_same(kept):
    with pytest.warns(UserWarning, match=CANNOT_BE_TOLD), pytest.raises(ValueError, match="`seed` of the store"):
        simulate_to_store(plan(seed=8), kept)
