import numpy as np
import pytest
import torch

from mfsbi.seeds import derived, seeded


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
