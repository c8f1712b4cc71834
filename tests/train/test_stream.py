"""Rows that stay on disk: each once in a pass, and learned from as if they were in memory."""

import pytest
import torch
from torch import Generator

from mfsbi import MFlow, Plan, sequential, simulate_to_store
from mfsbi.flows import SplineCouplings
from mfsbi.train.checkpoint import Checkpoints, Keeper
from mfsbi.train.data import Stream
from mfsbi.train.loop import fit
from mfsbi.train.schedules import Settings
from simulators.polynomial import PolynomialSurface

SMALL = SplineCouplings(layers=2, width=8, depth=1)
SETTINGS = Settings(training_batch_size=60, show_progress_bars=False)
ROW = 4 * (1 + 3 + 1 + 1)  # bytes of theta, x, joint score and joint log ratio


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    plan = Plan(PolynomialSurface(), rows=500, shard_rows=40, seed=3)
    return simulate_to_store(plan, tmp_path_factory.mktemp("stores") / "store", show_progress_bar=False)


def drawn(stream, size, seed=0, skip=0):
    return list(stream.minibatches(size, Generator().manual_seed(seed), skip=skip))


@pytest.mark.parametrize("size", [1, 7, 60, 130, 500])
@pytest.mark.parametrize("memory", [1, 100 * ROW, 10_000 * ROW])
def test_a_pass_has_every_row_once_but_for_a_smaller_last_batch(size, memory, store):
    batches = drawn(Stream(store, memory), size)
    assert [batch.rows for batch in batches] == [size] * (500 // size)
    x = torch.cat([batch.x for batch in batches])
    assert len(x.unique(dim=0)) == len(x)
    known = {tuple(row) for row in store.x.tolist()}
    assert {tuple(row) for row in x.tolist()} <= known


def test_a_batch_larger_than_all_rows_is_all_of_them(store):
    (batch,) = drawn(Stream(store, 100 * ROW), 501)
    assert batch.rows == 500


def test_rows_keep_their_theta_and_score(store):
    theta, score = (
        {tuple(x): y.tolist() for x, y in zip(store.x.tolist(), rows, strict=True)}
        for rows in (store.theta, store.read().joint_score)
    )
    for batch in drawn(Stream(store, 100 * ROW), 60):
        assert batch.theta.tolist() == [theta[tuple(x)] for x in batch.x.tolist()]
        assert batch.joint_score.tolist() == [score[tuple(x)] for x in batch.x.tolist()]


def test_an_excerpt_of_wide_rows_is_smaller(store, monkeypatch):
    assert Stream(store).excerpt.rows == 500
    monkeypatch.setattr("mfsbi.train.data.EXCERPT_BYTES", 100 * (ROW + 1))
    assert (Stream(store).excerpt.x == store.x[:100]).all()


def test_passes_differ_and_seeds_decide(store):
    stream = Stream(store, 100 * ROW)
    first, again, other = (torch.cat([b.x for b in drawn(stream, 60, seed)]) for seed in (0, 0, 1))
    assert (first == again).all()
    assert not (first == other).all()


def test_batches_left_out_at_the_beginning_change_nothing(store):
    stream = Stream(store, 100 * ROW)
    whole, rest = drawn(stream, 60), drawn(stream, 60, skip=3)
    assert [batch.x.tolist() for batch in rest] == [batch.x.tolist() for batch in whole[3:]]


def built(stream):
    torch.manual_seed(0)
    return MFlow(2, chart=SMALL, latent=SMALL).build(stream.excerpt.theta, stream.excerpt.x)


def test_a_stream_is_learned_from_and_resumed_bit_for_bit(store, tmp_path):
    stream = Stream(store.only(range(1, 13)), 100 * ROW)
    held_out = Stream(store.only([0]), 100 * ROW).excerpt
    whole, model, calls = built(stream), built(stream), []
    history = fit(whole, (stream, held_out), sequential(20), SETTINGS)
    assert min(history.of("reconstruction")[1]) < history.of("reconstruction")[1][0]

    class Killed(BaseException):
        pass

    class Kept(Checkpoints):
        def write(self, snapshot):
            super().write(snapshot)
            calls.append(1)
            if len(calls) == 14:
                raise Killed

    with pytest.raises(Killed):
        fit(
            model,
            (stream, held_out),
            sequential(20),
            SETTINGS,
            keeper=Keeper(Kept(tmp_path, {}, minutes=1e-9, resume=False)),
        )
    model = built(stream)
    fit(
        model, (stream, held_out), sequential(20), SETTINGS, keeper=Keeper(Kept(tmp_path, {}, minutes=1e9, resume=True))
    )
    found, expected = model.state_dict(), whole.state_dict()
    assert all((found[name] == expected[name]).all() for name in expected)
