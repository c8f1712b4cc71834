import emcee
import numpy as np
import pytest
import torch

from mfsbi.inference.run_emcee import Emcee, run_emcee

STD = torch.tensor([1.0, 0.05])


def log_prob(theta):
    return -0.5 * ((theta - 1) / STD).square().sum(-1)


@pytest.fixture
def starts():
    return torch.randn(16, 2, generator=torch.Generator().manual_seed(0))


def test_a_stretched_gaussian_is_found_from_far_away(starts):
    chains = run_emcee(log_prob, starts, 500, seed=1)
    assert chains.draws.shape == (16, 500, 2)
    assert ((chains.mean - 1).abs() < 0.15 * STD).all()
    torch.testing.assert_close(chains.std, STD, rtol=0.1, atol=0)
    torch.testing.assert_close(chains.log_prob[3], log_prob(chains.draws[3]))
    assert 0.3 < chains.info.acceptance < 1


def test_one_seed_gives_one_result_and_leaves_the_global_state_alone(starts):
    before = np.random.get_state()[1].copy(), torch.random.get_rng_state()  # noqa: NPY002
    first, second, other = (run_emcee(log_prob, starts, 20, warmup=5, seed=seed).draws for seed in (1, 1, 2))
    assert (first == second).all()
    assert not (first == other).all()
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert (torch.random.get_rng_state() == before[1]).all()


def test_moves_and_backends_are_emcees_own(starts, tmp_path):
    backend = emcee.backends.HDFBackend(str(tmp_path / "steps.h5"))
    chains = run_emcee(log_prob, starts, 20, warmup=5, moves=emcee.moves.DEMove(), backend=backend)
    assert backend.iteration == 25
    again = run_emcee(log_prob, chains.draws[:, -1], 10, warmup=5, backend=backend)
    assert again.draws.shape == (16, 10, 2)


def test_settings_may_be_a_value(starts):
    by_name = run_emcee(log_prob, starts, 10, warmup=5, thin=2, seed=1)
    assert (run_emcee(log_prob, starts, 10, sampler=Emcee(warmup=5, thin=2), seed=1).draws == by_name.draws).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": Emcee(), "warmup": 5}, r"`sampler` has its own settings, Emcee\(.*: leave out `warmup`"),
        ({"sampler": Emcee(), "thin": 1, "walkers": 8}, "`starts` has a row for each walker: leave out `walkers`"),
        ({"walkers": 8}, "leave out `walkers`"),
        ({"pool": None}, "unexpected keyword argument 'pool'"),
    ],
)
def test_settings_that_come_twice_or_do_not_exist_are_refused(settings, message, starts):
    with pytest.raises(TypeError, match=message):
        run_emcee(log_prob, starts, 10, **settings)


def test_what_cannot_be_sampled_is_refused(starts):
    with pytest.raises(ValueError, match="at least 4 walkers, twice the parameters; got 3"):
        run_emcee(log_prob, starts[:3])
    with pytest.raises(ValueError, match="finite at every start; it is -inf at one"):
        run_emcee(lambda theta: torch.where(theta[:, 0] > 0, 0.0, -torch.inf), starts)


@pytest.mark.parametrize(("calls", "kept"), [(20, True), (4, False)])
def test_an_interrupt_keeps_the_draws_so_far(calls, kept, starts):
    left = iter(range(calls))

    def interrupted(theta):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return log_prob(theta)

    if kept:
        with pytest.warns(UserWarning, match="interrupted; . of 50 draws"):
            chains = run_emcee(interrupted, starts, 50, warmup=5, thin=1)
        assert 0 < chains.draws.shape[1] < 10
    else:
        with pytest.raises(KeyboardInterrupt):
            run_emcee(interrupted, starts, 50, warmup=5)
