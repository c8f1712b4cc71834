import json
import re

import numpy as np
import pytest

from mfsbi.simulating import Plan, check, simulate_to_store
from mfsbi.store import Store
from tests.simulating.problems import Fragile, Noisy

PLAN = Plan(Fragile(share=0.1), rows=60, shard_rows=30)


@pytest.fixture
def path(tmp_path):
    simulate_to_store(PLAN, tmp_path / "store", max_failures=0.5)
    return tmp_path / "store"


def test_a_sound_store_has_no_fault_and_comes_out_the_same_again(path):
    assert check(Store(path)) == []
    assert check(Store(path), PLAN, again=2) == []


def flip(path):
    file = path / "x" / "c.1.0"
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)


def shorten(path):
    (path / "x" / "c.1.0").write_bytes(b"short")


def lose(path):
    (path / "theta" / "c.1.0").unlink()


def forget(path):
    (path / "failed" / "1.jsonl").unlink()


def tear(path):
    (path / "failed" / "1.jsonl").write_text('{"row": 3')


def reseed(path):
    file = path / "marks" / "c.1.0"
    marks = np.fromfile(file, dtype="<u8")
    marks[0] += 1
    marks.tofile(file)


FAULTS = {
    flip: "its bytes are not those that were written",
    shorten: "cannot be read: .* should have 360 bytes; it has 5",
    lose: "cannot be read: .*No such file",
    forget: "rows failed, .* are flagged, 0 have reasons",
    tear: "cannot be read: .*failed/1.jsonl should hold a line of JSON",
    reseed: "its seed is not the one",
}


@pytest.mark.parametrize("damage", FAULTS, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_mended_by_making_the_shard_again(damage, path):
    damage(path)
    (fault,) = check(Store(path))
    assert fault.startswith("Shard 1: ")
    assert re.search(FAULTS[damage], fault)
    (path / "marks" / "c.1.0").unlink()
    simulate_to_store(PLAN, path, max_failures=0.5)
    assert check(Store(path), PLAN, again=2) == []


class Drifting(Noisy):
    """Depends on what its code does not show."""

    _cached_offset = 0.0

    def simulate(self, theta, *, seed=None):
        return super().simulate(theta, seed=seed) + self._cached_offset


def test_a_simulator_that_changed_unseen_is_found_by_simulating_again(tmp_path):
    plan = Plan(Drifting(), rows=20, shard_rows=10)
    store = simulate_to_store(plan, tmp_path / "store")
    plan.simulator._cached_offset = 1.0
    assert check(store, plan, again=1)[0].endswith("made again, it differs in x.")


def test_another_plan_or_none_is_refused(path):
    with pytest.raises(ValueError, match="`rows` of the store"):
        check(Store(path), Plan(Fragile(share=0.1), rows=61), again=1)
    with pytest.raises(ValueError, match="needs the `plan`"):
        check(Store(path), again=1)


def test_attributes_are_those_of_the_file(path):
    assert Store(path).attributes == json.loads((path / "zarr.json").read_text())["attributes"]
