import pytest
import torch

from mfsbi import Chains
from mfsbi.inference.chains import Info


def test_pooled_draws_have_the_moments_of_all_chains():
    chains = Chains(torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]]), torch.zeros(2, 2))
    assert chains.pooled.shape == (4, 1)
    assert chains.mean == 3
    assert chains.std.item() == pytest.approx((20 / 3) ** 0.5)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"`draws` should have shape \(chain, draw, parameter\)"):
        Chains(torch.zeros(2, 3, 1), torch.zeros(2, 4))


def test_what_applies_to_a_sampler_is_read_like_a_dictionary():
    info = Info("importance", markov=False, seconds=2.0, acceptance=0.0)
    assert info["seconds"] == info.seconds == info[5] == 2.0
    assert (info.get("acceptance", 1.0), info.get("divergences", 0), info.get("warmup_steps")) == (0.0, 0, None)
    assert ["acceptance" in info, "divergences" in info, "nonsense" in info] == [True, False, False]
    assert dict(info) == {"sampler": "importance", "markov": False, "seconds": 2.0, "acceptance": 0.0}
    assert Info(**info) == info


@pytest.mark.parametrize("word", ["nonsense", "count", "divergences"])
def test_what_does_not_apply_is_not_there(word):
    with pytest.raises(KeyError, match=word):
        Info("importance")[word]
