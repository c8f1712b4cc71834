import pytest
import torch

from mfsbi import Chains


def test_pooled_draws_have_the_moments_of_all_chains():
    chains = Chains(torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]]), torch.zeros(2, 2))
    assert chains.pooled.shape == (4, 1)
    assert chains.mean == 3
    assert chains.std.item() == pytest.approx((20 / 3) ** 0.5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`draws` should have shape \(chain, draw, parameter\)"):
        Chains(torch.zeros(2, 3, 1), torch.zeros(2, 4))
