import numpy as np
import torch

from mfsbi import Chains, posterior_predictive, to_arviz

CHAINS = Chains(torch.randn(4, 500, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(4, 500))


def simulate(theta):
    return torch.cat([theta, theta.sum(-1, keepdim=True)], dim=-1) + 0.1 * torch.randn(len(theta), 3)


def test_each_data_set_comes_from_its_own_draw():
    x = posterior_predictive(CHAINS, simulate, 5, thin=10, seed=1)
    assert x.shape == (4, 50, 5, 3)
    torch.testing.assert_close(x[..., :2].mean(2), CHAINS.draws[:, ::10], rtol=0, atol=0.3)
    assert x[2, 7, :, 0].std() > 0.01
    assert (x == posterior_predictive(CHAINS, simulate, 5, thin=10, seed=1)).all()
    assert not (x == posterior_predictive(CHAINS, simulate, 5, thin=10, seed=2)).any()


def test_its_spread_is_that_of_posterior_and_noise():
    x = posterior_predictive(CHAINS, lambda theta: theta + 2 * torch.randn_like(theta))
    np.testing.assert_allclose(x.std().item(), 5**0.5, rtol=0.05)


def test_model_and_simulator_stand_side_by_side():
    predictive = {"x": posterior_predictive(CHAINS, simulate, 5), "x_simulator": torch.zeros(4, 500, 5, 3)}
    group = to_arviz(CHAINS, x=torch.zeros(5, 3), posterior_predictive=predictive)["posterior_predictive"]
    assert group["x"].shape == group["x_simulator"].shape == (4, 500, 5, 3)
