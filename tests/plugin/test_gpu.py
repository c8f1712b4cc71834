"""Everything a trainer and its posterior do, on a GPU: skipped where there is none.

What `sample_chains` draws is on the processor again; estimators move their inputs to themselves.
"""

import os
import subprocess
import sys
from tempfile import TemporaryDirectory

import pytest
import torch
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import BoxUniform

from mfsbi import (
    ALICES,
    Chains,
    ManifoldNLE,
    Plan,
    Store,
    calibrate,
    ensemble_posterior,
    interpolate,
    load,
    load_trainer,
    outlier_p_value,
    posterior_predictive,
    sample_chains,
    save,
    simulate_to_store,
    to_arviz,
    train_ensemble,
)
from mfsbi.plugin.samplers import SAMPLERS
from mfsbi.seeds import seeded
from simulators.polynomial import PolynomialSurface
from tests.plugin.contract import FEW, PRIOR, SPEC, TRUTH, assert_exact, chains, observed, simulate, train
from tests.problems import DENSITIES, SPECS, mined_surface, off_plane
from tests.train.killing import ALWAYS, killed_after

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:.*(not clearly better|effective|R-hat|normaliz|steps accepted)"),
]

GPU = "cuda"
SURFACE = PolynomialSurface()
QUICK = {"max_num_epochs": 2, "training_batch_size": 100}


@pytest.fixture(scope="module")
def trained():
    return train(GPU)


def gold():
    theta, at_theta, mined = mined_surface()
    return theta, mined.x, mined._asdict() | {"from_theta": at_theta}


def likelihood(name="MFlow"):
    theta, x, mined = gold()
    trainer = ManifoldNLE(SURFACE.prior, SPECS[name], device=GPU, show_progress_bars=False)
    kept = {"joint_score": mined["joint_score"], "from_theta": mined["from_theta"]} if name in DENSITIES else {}
    return trainer.append_simulations(theta, x, **kept)


def ratio():
    theta, x, mined = gold()
    trainer = ALICES(SURFACE.prior, width=16, depth=2, device=GPU, show_progress_bars=False)
    known = {name: mined[name] for name in ("joint_score", "joint_log_ratio", "from_theta")}
    return trainer.append_simulations(theta, x, **known)


def assert_at(device, estimator):
    assert {value.device.type for value in estimator.state_dict().values()} == {device}


@pytest.mark.parametrize("name", DENSITIES)
def test_every_model_trains_there_and_has_the_density_of_its_twin_here(name):
    trainer = likelihood(name)
    estimator = trainer.train(**QUICK)
    assert_at("cuda", estimator)
    theta, x, _ = gold()
    assert estimator.model.distance(x[:5], theta[:5]).shape == (5,)
    drawn = Chains(theta[None, :6], theta[None, :6, 0])
    assert posterior_predictive(drawn, estimator.model.sample, 2).shape == (1, 6, 2, x.shape[1])
    with seeded(0):
        twin = SPECS[name](theta, x).double()
    twin.load_state_dict(estimator.state_dict())
    rows = {"input": x[:50].double(), "condition": theta[:50].double()}
    expected, there = twin.log_prob(**rows), estimator.double().log_prob(**rows)
    torch.testing.assert_close(there.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_the_posterior_is_exact(trained):
    x = observed(4)
    posterior = chains(trained).set_default_x(x)
    assert_exact(posterior.sample((400,), show_progress_bars=False).cpu(), x, 60)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_road_leads_to_the_posterior(trained, sampler):
    x = observed(4)
    settings = {"bounds": [(-2, 2), (-2, 2)]} if sampler == "grid" else {}
    found = sample_chains(chains(trained), x, 100, sampler=sampler, seed=0, **settings)
    assert ((found.mean - off_plane(x).mean(0)).abs() < 0.2).all()
    assert to_arviz(found) is not None


def test_observations_and_simulations_may_be_there_too(trained):
    x = observed(4)
    posterior = chains(trained)
    theta = PRIOR.sample((5,))
    here, there = posterior.potential(theta, x=x), posterior.potential(theta.to(GPU), x=x.to(GPU))
    torch.testing.assert_close(here, there)
    prior = BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2), device=GPU)
    trainer = ManifoldNLE(prior, SPEC, device=GPU, show_progress_bars=False)
    rows = PRIOR.sample((300,))
    trainer.append_simulations(rows.to(GPU), simulate(rows).to(GPU)).train(**QUICK)
    assert_at("cuda", trainer.estimator)
    assert torch.isfinite(chains(trainer).potential(theta, x=x)).all()


def test_calibration_prediction_and_geometry(trained):
    theta = PRIOR.sample((6,))
    x = simulate(theta[:, None].expand(-1, 3, -1).reshape(-1, 2)).view(6, 3, 3)
    assert calibrate(chains(trained), theta, x, draws=20).draws.shape == (6, 20, 2)
    model = trained.estimator.model
    assert interpolate(model, observed(2), observed(2)).shape == (2, 10, 3)
    assert outlier_p_value(model, observed(5), observed(50)).shape == (5,)
    estimator = trained.estimator
    assert estimator.sample((7,), condition=TRUTH[None]).shape == (7, 1, 3)


def test_a_ratio():
    trainer = ratio()
    assert_at("cuda", trainer.train(**QUICK))
    few = MCMCPosteriorParameters(num_chains=2, warmup_steps=5, init_strategy_parameters=dict(FEW))
    posterior = trainer.build_posterior(posterior_parameters=few)
    for sampler in SAMPLERS:
        settings = {"bounds": [(-1, 1)]} if sampler == "grid" else {}
        found = sample_chains(posterior, gold()[1][:3], 20, sampler=sampler, **settings)
        assert torch.isfinite(found.log_prob).all()


@pytest.mark.parametrize("new", [likelihood, ratio])
def test_ensembles(new):
    members = train_ensemble(new(), 2, **QUICK)
    for member in members:
        assert_at("cuda", member)
    trainer = new()
    posterior = ensemble_posterior(trainer, members)
    posterior.set_default_x(gold()[1][:2])
    assert posterior.potential(gold()[0][:3]).shape == (3,)
    assert posterior.sample((4,), show_progress_bars=False).shape == (4, 1)


@pytest.mark.parametrize("new", [likelihood, ratio])
def test_a_training_goes_on_where_it_was_stopped(new, tmp_path, monkeypatch):
    whole = new().train(**QUICK)
    keeping = {"checkpoint": tmp_path, "checkpoint_minutes": ALWAYS}
    with killed_after(2, monkeypatch):
        new().train(**QUICK, **keeping)
    again = new().train(**QUICK, **keeping, resume_training=True)
    torch.testing.assert_close(*(each.state_dict() for each in (whole, again)), rtol=1e-3, atol=1e-4)


def test_models_are_kept_and_come_back_here(tmp_path):
    trainer = likelihood()
    estimator = trainer.train(**QUICK)
    save(estimator, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert_at("cpu", again)
    assert all((value.cpu() == again.state_dict()[name]).all() for name, value in estimator.state_dict().items())
    save(trainer, tmp_path / "trainer.safetensors")
    resumed = load_trainer(tmp_path / "trainer.safetensors", SURFACE.prior, device=GPU)
    assert_at("cuda", resumed.train(**QUICK))
    resumed.train(**QUICK).cpu()
    assert_at("cuda", resumed.train(**QUICK))


def test_stores_are_streamed_there(tmp_path, monkeypatch):
    monkeypatch.setattr("mfsbi.plugin.rounds.IN_MEMORY", 2000)
    monkeypatch.setattr("mfsbi.train.data.BLOCK", 2000)
    simulate_to_store(Plan(SURFACE, rows=400, shard_rows=40, seed=1), tmp_path / "store", show_progress_bar=False)
    for trainer in (
        ManifoldNLE(SURFACE.prior, SPECS["MFlow"], device=GPU, show_progress_bars=False),
        ALICES(SURFACE.prior, width=16, depth=2, device=GPU, show_progress_bars=False),
    ):
        trainer.append_simulations(Store(tmp_path / "store"))
        assert_at("cuda", trainer.train(**QUICK))
        assert len(trainer.history.epochs) == 2


def test_nothing_of_the_processor_alone_wakes_the_gpus():
    """Those that sleep take no memory, and a process that never used them can be forked."""
    program = """
import torch
from mfsbi import AF, ManifoldNLE, Plan, SplineCouplings, simulate_to_store
from mfsbi.seeds import seeded
from simulators.polynomial import PolynomialSurface
import sys
torch.manual_seed(5)
surface = PolynomialSurface()
store = simulate_to_store(Plan(surface, rows=400, shard_rows=100, seed=1), sys.argv[1], show_progress_bar=False)
trainer = ManifoldNLE(surface.prior, AF(SplineCouplings(1, 8)), show_progress_bars=False).append_simulations(store)
trainer.train(max_num_epochs=1, checkpoint=sys.argv[2])
assert not torch.cuda.is_initialized()
here = torch.rand(2, device="cuda")
torch.manual_seed(5)
assert (here == torch.rand(2, device="cuda")).all()
with seeded(3):
    first = torch.rand(2, device="cuda")
with seeded(3):
    assert (torch.rand(2, device="cuda") == first).all()
"""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-c", program, f"{folder}/store", f"{folder}/kept"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
