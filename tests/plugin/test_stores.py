"""Trainers that learn from a store, read at once or streamed."""

import pytest
import torch

from mfsbi import ALICES, ManifoldNLE, MFlow, Plan, Store, simulate_to_store
from mfsbi.flows import SplineCouplings
from simulators.polynomial import PolynomialSurface

SMALL = SplineCouplings(layers=2, width=8, depth=1)
SURFACE = PolynomialSurface()
TRAINERS = {
    "likelihood": lambda: ManifoldNLE(SURFACE.prior, MFlow(2, chart=SMALL, latent=SMALL), show_progress_bars=False),
    "ratio": lambda: ALICES(SURFACE.prior, width=8, depth=1, show_progress_bars=False),
}
QUICK = {"max_num_epochs": 2, "training_batch_size": 50, "score_weight": 1.0}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "store"
    simulate_to_store(Plan(SURFACE, rows=400, shard_rows=40, seed=1), path, show_progress_bar=False)
    return path


@pytest.fixture
def streamed(monkeypatch):
    monkeypatch.setattr("mfsbi.plugin.rounds.IN_MEMORY", 2000)
    monkeypatch.setattr("mfsbi.train.data.BLOCK", 2000)


def trained(trainer):
    kind = {"restarts": 0} if isinstance(trainer, ManifoldNLE) else {}
    if isinstance(trainer, ManifoldNLE):
        with pytest.warns(UserWarning, match="not clearly better"):
            return trainer.train(**QUICK, **kind)
    return trainer.train(**QUICK)


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_store_that_fits_is_as_good_as_its_arrays(kind, path):
    rows = Store(path).read()
    one = TRAINERS[kind]().append_simulations(Store(path))
    other = TRAINERS[kind]().append_simulations(rows.theta, rows.x, joint_score=rows.joint_score)
    assert one.simulations.digest() == other.simulations.digest()
    assert one.simulations.rows == 400


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("kind", TRAINERS)
def test_a_store_that_does_not_fit_is_streamed(kind, path):
    trainer = TRAINERS[kind]().append_simulations(Store(path))
    training, held_out = trainer.simulations.split(0.1, 0, discard_prior_samples=False)
    assert (training.rows, held_out.rows) == (360, 40)
    assert not (training.excerpt.x[:, None] == held_out.x).all(-1).any()
    estimator = trained(trainer)
    assert len(trainer.history.epochs) == 2
    assert estimator.training_record["simulations"] == 400
    assert trainer.build_posterior() is not None


@pytest.mark.usefixtures("streamed")
def test_what_is_streamed_has_to_be_all_there_is(path):
    theta = SURFACE.prior.sample((50,))
    trainer = TRAINERS["likelihood"]().append_simulations(theta, SURFACE.simulate(theta, seed=0))
    with pytest.raises(ValueError, match="what is streamed has to be all there is"):
        trainer.append_simulations(Store(path))
    trainer = TRAINERS["likelihood"]().append_simulations(Store(path))
    with pytest.raises(ValueError, match="nothing can join them"):
        trainer.append_simulations(theta, SURFACE.simulate(theta, seed=0))


def test_a_store_is_passed_alone(path):
    with pytest.raises(ValueError, match="pass it alone, without x, joint_score"):
        TRAINERS["likelihood"]().append_simulations(Store(path), torch.zeros(3, 3), joint_score=torch.zeros(3, 1))
    with pytest.raises(ValueError, match="`x` is missing"):
        TRAINERS["likelihood"]().append_simulations(torch.zeros(3, 1))


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("shard_rows", [200, 70])
def test_what_is_held_out_does_not_depend_on_the_size_of_shards(shard_rows, tmp_path):
    store = simulate_to_store(Plan(SURFACE, rows=200, shard_rows=shard_rows), tmp_path / "s", show_progress_bar=False)
    trainer = TRAINERS["likelihood"]().append_simulations(store)
    training, held_out = trainer.simulations.split(0.4, 0, discard_prior_samples=False)
    assert (held_out.x == store.x[:80]).all()
    assert (training.store.x == store.x[80:]).all()
    seen = torch.cat([batch.x for batch in training.minibatches(40, torch.Generator().manual_seed(0))])
    assert sorted(seen.tolist()) == sorted(store.x[80:].tolist())


@pytest.mark.usefixtures("streamed")
@pytest.mark.parametrize("fraction", [0.0, 1.5])
def test_no_and_all_rows_of_a_stream_cannot_be_held_out(fraction, path):
    trainer = TRAINERS["likelihood"]().append_simulations(Store(path))
    with pytest.raises(ValueError, match="`validation_fraction` should be between 0 and 1"):
        trainer.train(validation_fraction=fraction)


@pytest.mark.usefixtures("streamed")
def test_theta_outside_the_prior_is_refused_from_a_store_as_well(tmp_path):
    wide = torch.distributions.Independent(torch.distributions.Uniform(torch.tensor([-1.4]), torch.tensor([1.4])), 1)
    plan = Plan(SURFACE, rows=200, shard_rows=50, prior=wide)
    store = simulate_to_store(plan, tmp_path / "s", show_progress_bar=False)
    with pytest.raises(ValueError, match="`theta` should lie inside the prior"):
        TRAINERS["likelihood"]().append_simulations(store)


def test_simulations_that_failed_are_left_out_with_a_warning(tmp_path):
    class Failing(PolynomialSurface):
        def simulate_with_gold(self, theta, *, theta_ref=None, seed=None):
            if theta[0, 0] > 0.9:
                raise RuntimeError("too large")
            return super().simulate_with_gold(theta, theta_ref=theta_ref, seed=seed)

    plan = Plan(Failing(), rows=100, shard_rows=10)
    store = simulate_to_store(plan, tmp_path / "s", max_failures=0.5, show_progress_bar=False)
    assert store.failed
    with pytest.warns(UserWarning, match="failed and are left out"):
        trainer = TRAINERS["likelihood"]().append_simulations(store)
    assert trainer.simulations.rows == 100 - store.failed
