import numpy as np
import pytest
import torch

from mfsbi.seeds import alone, derived, distinct, seeded, spawned


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


@pytest.mark.parametrize("make", [spawned, distinct])
def test_long_seeds_are_whole_numbers_that_generators_take(make):
    seeds = [make(0, number) for number in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62
    assert make(0, 1) != make(1, 1)


def test_distinct_seeds_differ_in_the_bits_that_torch_takes():
    numbers = range(0, 2**32, 2**32 // 2000)
    bits = np.array([distinct(5, number) % 2**32 for number in [*numbers, *range(1, 2000)]])
    assert len(np.unique(bits)) == len(bits)
    assert abs(np.mean(bits / 2**32) - 0.5) < 0.05
    assert abs(np.corrcoef(bits[:-1], bits[1:])[0, 1]) < 0.1


def test_numpy_takes_all_bits_of_a_long_seed():
    draws = []
    for seed in (2**40 + 5, 2**41 + 5):
        with seeded(seed):
            draws.append(draw()[1])
    assert (draws[0] != draws[1]).all()


def test_alone_a_thread_computes_in_float32_and_settings_come_back(float64):
    threads = torch.get_num_threads()
    with alone():
        assert torch.ones(1).dtype == torch.float32
        assert torch.get_num_threads() == 1
    assert torch.ones(1).dtype == torch.float64
    assert torch.get_num_threads() == threads
