import pytest
import torch
from torch import Generator

from mfsbi.train.data import Batch, in_chunks, split


def numbered(rows):
    return Batch(torch.arange(rows)[:, None].float(), 10 * torch.arange(rows)[:, None].float())


def test_split_keeps_rows_together_and_loses_none():
    training, validation = split([numbered(100)], 0.1, Generator().manual_seed(0))
    assert (training.rows, validation.rows) == (90, 10)
    everything = torch.cat([training.theta, validation.theta])[:, 0]
    assert sorted(everything.tolist()) == list(range(100))
    assert (training.x == 10 * training.theta).all()


def test_rows_keep_their_fate_when_parts_are_added():
    first = split([numbered(40)], 0.2, Generator().manual_seed(0))
    longer = split([numbered(40), numbered(10)], 0.2, Generator().manual_seed(0))
    assert [part.rows for part in longer] == [40, 10]
    assert (longer[0].theta[:32] == first[0].theta).all()
    assert (longer[1].theta[:8] == first[1].theta).all()


def test_rows_keep_their_fate_when_parts_are_left_out():
    both = split([numbered(40), numbered(10)], 0.2, Generator().manual_seed(0))
    second = split([numbered(40), numbered(10)], 0.2, Generator().manual_seed(0), [False, True])
    assert [part.rows for part in second] == [8, 2]
    assert (second[0].theta == both[0].theta[32:]).all()
    assert (second[1].theta == both[1].theta[8:]).all()


@pytest.mark.parametrize("kept", [None, [False, True, True, True]])
def test_parts_of_few_rows_hold_one_out(kept):
    parts = [numbered(40 if kept else 1), numbered(1), numbered(1), numbered(2)]
    training, validation = split(parts, 0.1, Generator().manual_seed(0), kept)
    assert (training.rows, validation.rows) == (3 if kept else 4, 1)


def test_one_seed_gives_one_split():
    first, second = (split([numbered(50)], 0.2, Generator().manual_seed(3))[1] for _ in range(2))
    assert (first.theta == second.theta).all()


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 2.0])
def test_a_fraction_outside_the_unit_interval_is_refused(fraction):
    with pytest.raises(ValueError, match="`validation_fraction` should be between 0 and 1"):
        split([numbered(10)], fraction, Generator())


def test_a_single_row_cannot_be_split():
    with pytest.raises(ValueError, match="at least 2 rows"):
        split([numbered(1)], 0.5, Generator())


@pytest.mark.parametrize(("rows", "size", "batches"), [(10, 3, 3), (10, 5, 2), (2, 5, 1)])
def test_minibatches_are_distinct_rows_of_full_size(rows, size, batches):
    drawn = list(numbered(rows).minibatches(size, Generator().manual_seed(0)))
    seen = torch.cat([batch.theta for batch in drawn])[:, 0].tolist()
    assert len(drawn) == batches
    assert len(set(seen)) == len(seen)
    assert all((batch.x == 10 * batch.theta).all() for batch in drawn)


def test_chunks_give_what_one_call_gives():
    data = numbered(25)
    torch.testing.assert_close(in_chunks(lambda rows: rows.x.sum(-1), data, size=4), data.x[:, 0])
