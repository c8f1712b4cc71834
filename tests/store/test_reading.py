import json
import warnings

import numpy as np
import pytest
import torch
import xarray

from mfsbi.simulating import Plan, simulate_to_store
from mfsbi.store import Layout, Store
from simulators.polynomial import PolynomialSurface
from tests.simulating.problems import Fragile

PLAN = Plan(Fragile(share=0.1), rows=95, shard_rows=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with failures in it, four of whose five shards are finished."""
    path = tmp_path_factory.mktemp("part") / "store"
    for part in (0, 1, 2, 4):
        found = simulate_to_store(PLAN, path, part=(part, 5), max_failures=0.5)
    return found


def test_arrays_hold_the_rows_that_are_finished_and_did_not_fail(store):
    assert store.finished.tolist() == [0, 1, 2, 4]
    assert not store.complete
    assert store.failed > 0
    assert len(store) == 75 - store.failed == len(store.theta) == len(store.x)
    assert store.x.isfinite().all()
    assert (store.theta < 0.9).all()
    assert f"{len(store)} of 95 simulations of Fragile" in repr(store)


SELECTIONS = [slice(None), slice(5, 40, 3), slice(60, 10, -7), slice(0, 0), [0], [], [31, 2, 2, 50], [-1, 0]]


@pytest.mark.parametrize("rows", SELECTIONS, ids=str)
def test_rows_are_read_in_the_order_asked_for(store, rows):
    found = store.read(rows)
    theta, x = store.theta.numpy(), store.x.numpy()
    assert (found.theta.numpy() == theta[rows if isinstance(rows, slice) else np.array(rows, dtype=int)]).all()
    assert (found.x.numpy() == x[rows if isinstance(rows, slice) else np.array(rows, dtype=int)]).all()
    assert found.joint_score is None


@pytest.mark.parametrize("first", [1, 17, 18, 30, 50])
def test_the_first_rows_can_be_left_out(store, first):
    rest = store.after(first)
    assert len(rest) == len(store) - first
    assert (rest.x == store.x[first:]).all()
    assert (rest.read([0, 5, -1]).theta == store.theta[first:][[0, 5, -1]]).all()
    assert (rest.after(3).x == store.x[first + 3 :]).all()
    blocks = torch.cat([block.x for block in rest.blocks(20, seed=0)])
    assert sorted(blocks.tolist()) == sorted(store.x[first:].tolist())


@pytest.mark.parametrize("row", [75, -80])
def test_rows_that_are_not_there_are_refused(store, row):
    with pytest.raises(IndexError, match="`rows` should lie below"):
        store.read([row])


def keys(theta):
    return sorted(map(tuple, theta.tolist()))


@pytest.mark.parametrize("memory", [20, 39, 45, 1000])
def test_blocks_visit_every_row_once_in_bounded_memory(store, memory):
    blocks = list(store.blocks(memory, seed=1))
    assert all(len(block.theta) == len(block.x) <= memory for block in blocks)
    assert keys(torch.cat([block.theta for block in blocks])) == keys(store.theta)
    pairs = {tuple(theta): x for theta, x in zip(store.theta.tolist(), store.x.tolist(), strict=True)}
    assert all(
        pairs[tuple(theta)] == x
        for block in blocks
        for theta, x in zip(block.theta.tolist(), block.x.tolist(), strict=True)
    )


def test_passes_differ_by_their_seed_alone(store):
    one, same, other = (torch.cat([block.x for block in store.blocks(40, seed=seed)]) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert (torch.cat([block.x for block in store.blocks(1000, seed=1)]) != store.x).any()


def test_a_block_that_holds_no_shard_is_refused_at_once(store):
    with pytest.raises(ValueError, match=r"`rows_in_memory` should hold a shard, 20 rows of .*; got 19"):
        store.blocks(19, seed=0)


def test_gold_is_read_along(tmp_path):
    store = simulate_to_store(Plan(PolynomialSurface(), rows=30, shard_rows=10), tmp_path / "store")
    found = store.read(slice(5, 15))
    assert found.joint_score.shape == (10, 1)
    assert found.joint_log_ratio.shape == (10,)
    (block,) = store.blocks(30, seed=0)
    assert block.joint_log_ratio.sort().values.tolist() == store.read().joint_log_ratio.sort().values.tolist()


def test_xarray_sees_one_dataset(store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(store.path, chunks=None)
    assert dict(data.sizes) == {"row": 95, "parameter": 2, "feature": 3, "shard": 5, "mark": 3}
    there = np.repeat([True, True, True, False, True], 20)[:95]
    assert (np.isfinite(data["theta"].values).all(axis=1) == there).all()
    sound = there & ~data["failed"].values
    assert (data["x"].values[sound] == store.x.numpy()).all()
    assert (data["marks"].values[:, 1].sum()) == store.failed
    assert data.attrs["parameter_names"] == ["a", "b"]


def test_an_empty_store_can_be_read(tmp_path):
    path = tmp_path / "store"
    simulate_to_store(PLAN, path, part=(5, 6))
    store = Store(path)
    assert len(store) == len(store.x) == len(store.read().theta) == 0
    assert list(store.blocks(100, seed=0)) == []


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no store"):
        Store(tmp_path / "nothing")
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a store of mfsbi"):
        Store(tmp_path)
    (tmp_path / "zarr.json").write_text(json.dumps({"attributes": {"format": "mfsbi store 99"}}))
    with pytest.raises(ValueError, match="If a newer mfsbi wrote it"):
        Store(tmp_path)


@pytest.mark.parametrize("numbers", [(0, 1), (1, 0), (10.5, 1)])
def test_layouts_of_no_rows_are_refused(numbers):
    with pytest.raises((ValueError, TypeError)):
        Layout(*numbers, {})


def test_x_may_have_any_shape(tmp_path):
    layout = Layout(10, 4, {"theta": (1,), "x": (2, 3)})
    assert layout.shards == 3
    assert [layout.rows_of(shard) for shard in range(3)] == [4, 4, 2]
    assert str(layout.file_of("x", 1)) == "x/c.1.0.0"
