import pytest
import torch
from torch.distributions import Distribution, biject_to, constraints

from mfsbi.inference.run_pyro import HMC, run_pyro

TO_REAL = biject_to(constraints.positive).inv


def log_prob(theta):
    """Two independent parameters, exponential with means 1 and 3."""
    return (-theta / torch.tensor([1.0, 3.0])).sum(-1)


@pytest.fixture
def starts():
    return torch.rand(2, 2, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize("kernel", ["nuts", "hmc"])
def test_a_density_on_the_positive_numbers_is_found_through_its_transform(kernel, starts):
    chains = run_pyro(log_prob, starts, 400, kernel=kernel, transform=TO_REAL, warmup=200, seed=1)
    assert chains.draws.shape == (2, 400, 2)
    assert (chains.draws > 0).all()
    torch.testing.assert_close(chains.mean, torch.tensor([1.0, 3.0]), rtol=0.2, atol=0)
    torch.testing.assert_close(chains.log_prob[1], log_prob(chains.draws[1]))
    assert chains.info.divergences < 20
    assert chains.info.acceptance > 0.5


def test_one_seed_gives_one_result_and_leaves_the_global_state_alone(starts):
    before = torch.random.get_rng_state(), Distribution._validate_args
    runs = [run_pyro(log_prob, starts, 5, transform=TO_REAL, warmup=5, seed=seed).draws for seed in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert not (runs[0] == runs[2]).all()
    assert not (runs[0][0] == runs[0][1]).all()
    assert (torch.random.get_rng_state() == before[0]).all()
    assert Distribution._validate_args == before[1]


def test_settings_may_be_a_value(starts):
    settings = {"warmup": 5, "trajectory_length": 1.0, "max_num_steps": 4}
    by_name = run_pyro(log_prob, starts, 5, kernel="hmc", transform=TO_REAL, seed=1, **settings)
    assert (
        run_pyro(log_prob, starts, 5, kernel=HMC(**settings), transform=TO_REAL, seed=1).draws == by_name.draws
    ).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernel": HMC(), "warmup": 5}, r"`kernel` has its own settings, HMC\(.*: leave out `warmup`"),
        ({"kernel": "hmc", "chains": 8}, "`starts` has a row for each chain: leave out `chains`"),
        ({"kernel": "hmc", "num_steps": 2, "trajectory_length": 1.0}, "leave out `num_steps`"),
        ({"jit_compile": True}, "unexpected keyword argument 'jit_compile'"),
    ],
)
def test_settings_that_come_twice_or_do_not_exist_are_refused(settings, message, starts):
    with pytest.raises(TypeError, match=message):
        run_pyro(log_prob, starts, 5, transform=TO_REAL, **settings)


def test_what_cannot_be_sampled_is_refused(starts):
    with pytest.raises(ValueError, match=r"one of \['hmc', 'nuts'\]; got 'walk'"):
        run_pyro(log_prob, starts, kernel="walk")
    with pytest.raises(ValueError, match="finite at every start; it is nan at one"):
        run_pyro(lambda theta: theta.sum(-1) * torch.nan, starts)


def test_an_interrupt_keeps_the_chains_that_are_finished(starts):
    calls = iter(range(10**6))
    count = []

    def counted(theta):
        count.append(next(calls))
        return log_prob(theta)

    run_pyro(counted, starts[:1], 5, transform=TO_REAL, warmup=5, seed=1)
    whole = len(count)

    def interrupted(theta):
        count.append(0)
        if len(count) == 2 * whole + 3:
            raise KeyboardInterrupt
        return log_prob(theta)

    with pytest.warns(UserWarning, match="1 of 2 chains are kept"):
        chains = run_pyro(interrupted, starts, 5, transform=TO_REAL, warmup=5, seed=1)
    assert chains.draws.shape == (1, 5, 2)
