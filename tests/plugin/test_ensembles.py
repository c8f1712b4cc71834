"""Ensembles: one trainer, several seeds."""

import os
import signal
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Timer

import pytest
import torch
from torch.distributions import Independent, Uniform

from mfsbi import AF, ALICES, FOM, ManifoldNLE, ensemble_posterior, train_ensemble, workers
from mfsbi.flows import SplineCouplings
from mfsbi.train.training import Training
from tests.problems import TILT, off_plane, plane

TINY = SplineCouplings(layers=1, width=8, depth=1)
PRIOR = Independent(Uniform(-torch.ones(1), torch.ones(1)), 1)
TRAINERS = {
    "likelihood": lambda: ManifoldNLE(PRIOR, AF(TINY), seed=0, show_progress_bars=False),
    "ratio": lambda: ALICES(PRIOR, width=8, depth=1, seed=0, show_progress_bars=False),
}
QUICK = {"max_num_epochs": 2, "training_batch_size": 100}


def weights(estimator):
    return torch.cat([value.flatten().double() for value in estimator.state_dict().values()])


@pytest.fixture(params=TRAINERS)
def trainer(request):
    return TRAINERS[request.param]().append_simulations(*plane())


def lambdas():
    """Return a trainer with functions that the standard library cannot pickle."""
    spec = FOM(lambda u: u @ TILT.T.to(u), off_plane, TINY)
    return ManifoldNLE(PRIOR, spec, seed=0, show_progress_bars=False)


def test_members_differ_and_are_the_trainers_with_their_seeds(trainer):
    first, second = train_ensemble(trainer, [3, 4], **QUICK)
    assert not torch.equal(weights(first), weights(second))
    assert torch.equal(weights(first), weights(trainer.with_seed(3).train(**QUICK)))
    assert trainer.estimator is None
    assert (trainer.seed, trainer.history.epochs) == (0, [])
    assert not first.training


def test_any_executor_gives_the_same():
    with workers(1) as processes, ThreadPoolExecutor(2) as threads:
        for new in [*TRAINERS.values(), lambdas]:
            trainer = new().append_simulations(*plane())
            expected = train_ensemble(trainer, 2, **QUICK)
            for executor in (processes, threads):
                found = train_ensemble(trainer, 2, executor=executor, **QUICK)
                assert [weights(one).tolist() for one in found] == [weights(one).tolist() for one in expected]
                assert found[0].training_record["sha256"] == expected[0].training_record["sha256"]


@pytest.mark.filterwarnings("ignore:.*unnormalized", "ignore:.*deprecated for methods")
def test_sbi_draws_from_all_members(trainer, short_chains):
    estimators = train_ensemble(trainer, 2, **QUICK)
    posterior = ensemble_posterior(trainer, estimators, weights=[1, 3])
    torch.manual_seed(0)  # shares of the draws are drawn as well
    x = plane(3)[1]
    posterior.set_default_x(x)
    draws = posterior.sample((24,), show_progress_bars=False)
    assert draws.shape == (24, 1)
    assert torch.isfinite(draws).all()
    theta = torch.tensor([[-0.5], [0.5]])
    members = torch.stack([trainer.build_posterior(estimator).potential(theta, x) for estimator in estimators])
    expected = (members + torch.tensor([[0.25], [0.75]]).log()).logsumexp(0)
    torch.testing.assert_close(posterior.potential(theta), expected)
    torch.testing.assert_close(posterior.log_prob(theta), expected)
    assert torch.equal(posterior.potential(torch.tensor([[2.0]])), torch.tensor([-torch.inf]))


def failing(seeds, trainer, monkeypatch):
    """Let members with some seeds diverge."""
    train = type(trainer).train

    def broken(self, **settings):
        if self.seed in seeds:
            raise ArithmeticError("diverged")
        return train(self, **settings)

    monkeypatch.setattr(type(trainer), "train", broken)


def test_an_ensemble_that_was_moved_draws_as_before(trainer, short_chains):
    estimators = train_ensemble(trainer, 2, **QUICK)
    posterior = ensemble_posterior(trainer, estimators).set_default_x(plane(3)[1])
    torch.manual_seed(0)
    before = posterior.sample((20,), show_progress_bars=False)
    assert posterior.to("cpu") is posterior
    torch.manual_seed(0)
    torch.testing.assert_close(posterior.sample((20,), show_progress_bars=False), before)


def test_a_member_that_fails_does_not_lose_the_others(trainer, monkeypatch):
    failing({4}, trainer, monkeypatch)
    with pytest.warns(UserWarning, match=r"2 of 3 members were trained. Failed seeds: 4 \(ArithmeticError: diverged\)"):
        assert len(train_ensemble(trainer, [3, 4, 5], **QUICK)) == 2


def test_if_all_fail_the_first_error_is_raised(trainer, monkeypatch):
    failing({3, 4}, trainer, monkeypatch)
    with pytest.raises(ArithmeticError, match="diverged"):
        train_ensemble(trainer, [3, 4], **QUICK)


def test_an_interrupted_ensemble_keeps_what_it_has(trainer, monkeypatch):
    train = type(trainer).train

    def interrupted(self, **settings):
        estimator = train(self, **settings)
        estimator.training_record["interrupted"] = self.seed == 4
        return estimator

    monkeypatch.setattr(type(trainer), "train", interrupted)
    with pytest.warns(UserWarning, match="2 of 3 members were trained. Failed seeds: none; interrupted before 5"):
        assert len(train_ensemble(trainer, [3, 4, 5], **QUICK)) == 2


def test_ctrl_c_before_a_member_has_weights_keeps_those_before_it(trainer, monkeypatch):
    run, calls = Training.run, []

    def interrupted(self, *arguments, **settings):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        run(self, *arguments, **settings)

    monkeypatch.setattr(Training, "run", interrupted)
    with pytest.warns(UserWarning, match="2 of 4 members were trained. Failed seeds: none; interrupted before 5, 6"):
        assert len(train_ensemble(trainer, [3, 4, 5, 6], **QUICK)) == 2
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        train_ensemble(trainer, [3, 4], **QUICK)


class Interrupted(Executor):
    """Trains two members; the third is interrupted, then this process while it waits for the fourth."""

    def __init__(self):
        self.futures = []

    def submit(self, function, *arguments):
        self.futures.append(Future())
        if len(self.futures) < 3:
            self.futures[-1].set_result(function(*arguments))
        elif len(self.futures) == 3:
            self.futures[-1].set_exception(KeyboardInterrupt())
        else:
            Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        return self.futures[-1]


@pytest.fixture
def _ctrl_c():
    """Heed SIGINT also where a shell has started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
def test_ctrl_c_keeps_the_members_that_an_executor_has_trained(trainer):
    executor = Interrupted()
    with pytest.warns(UserWarning, match="2 of 4 members were trained. Failed seeds: none; interrupted before 5, 6"):
        found = train_ensemble(trainer, [3, 4, 5, 6], executor=executor, **QUICK)
    assert torch.equal(weights(found[1]), weights(trainer.with_seed(4).train(**QUICK)))
    assert executor.futures[3].cancelled()


def test_what_a_member_warns_of_is_said_with_its_seed(monkeypatch):
    trainer = ManifoldNLE(PRIOR, AF(TINY), seed=0, show_progress_bars=False).append_simulations(*plane())
    train = ManifoldNLE.train

    def warning(self, **settings):
        import warnings

        warnings.warn("something", stacklevel=2)
        return train(self, **settings)

    monkeypatch.setattr(ManifoldNLE, "train", warning)
    with pytest.warns(UserWarning, match="The member with seed 7: something"):
        train_ensemble(trainer, [7], **QUICK)


def test_each_member_keeps_checkpoints_of_its_own(trainer, tmp_path):
    train_ensemble(trainer, [3, 4], checkpoint=tmp_path, **QUICK)
    assert {path.name for path in tmp_path.iterdir()} == {"seed-3", "seed-4"}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (0, "`members` should be a positive integer; got 0"),
        ([], "`members` should be their number, or seeds that differ"),
        ([1, 1], r"seeds that differ from each other; got \[1, 1\]"),
        ([-1], "`seed` should be a non-negative integer; got -1"),
    ],
)
def test_members_out_of_range_are_refused(members, message, trainer):
    with pytest.raises(ValueError, match=message):
        train_ensemble(trainer, members)


def test_arguments_of_the_training_are_checked_by_it(trainer):
    with pytest.raises(ValueError, match="`learning_rate` should be positive; got -1"):
        train_ensemble(trainer, 2, learning_rate=-1.0)


def test_a_posterior_of_nothing_or_with_odd_weights_is_refused(trainer):
    with pytest.raises(ValueError, match="`estimators` should hold one estimator at least"):
        ensemble_posterior(trainer, [])
    estimators = train_ensemble(trainer, 1, **QUICK)
    with pytest.raises(ValueError, match=r"`weights` should be 1 positive numbers, one each; got \[1, 2\]"):
        ensemble_posterior(trainer, estimators, weights=[1, 2])
    for weights in ([1.0, float("nan")], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="`weights` should be 2 positive numbers, one each"):
            ensemble_posterior(trainer, estimators * 2, weights=weights)
