import numpy as np
import pytest
import torch

from mfsbi.seeds import alone, derived, seeded, spawned


def draw():
    return torch.rand(3), np.random.rand(3)  # noqa: NPY002 - the global state is the point


def test_one_seed_gives_one_draw_and_the_state_comes_back():
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    with seeded(1):
        first = draw()
    with seeded(1):
        second = draw()
    after = draw()
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    undisturbed = draw()
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert all((a == b).all() for a, b in zip(after, undisturbed, strict=True))


def test_the_state_comes_back_after_an_error():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    with pytest.raises(RuntimeError), seeded(1):
        (torch.rand(2).view(5))
    assert torch.rand(1) == expected


def test_derived_seeds_differ_by_use():
    seeds = {derived(0, 1), derived(0, 2), derived(1, 1), derived(0, 1, 1), derived(0, 1, 0), derived(0)}
    assert len(seeds) == 6
    assert derived(0, 1) == derived(0, 1)


def test_long_seeds_are_whole_numbers_that_generators_take_and_use():
    seeds = [spawned(0, shard) for shard in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    draws = []
    for seed in (2**40 + 5, 2**41 + 5):  # equal in their last 32 bits
        with seeded(seed):
            draws.append(draw())
    assert (draws[0][0] != draws[1][0]).all()
    assert (draws[0][1] != draws[1][1]).all()


def test_alone_a_thread_computes_in_float32_and_settings_come_back(float64):
    threads = torch.get_num_threads()
    with alone():
        assert torch.ones(1).dtype == torch.float32
        assert torch.get_num_threads() == 1
    assert torch.ones(1).dtype == torch.float64
    assert torch.get_num_threads() == threads
