"""Mistakes at every public door: an error that names the argument, what was expected and what came; nothing is left.

Users do not run with the annotations that the rest of the suite executes, so these tests switch them off.
"""

import re
import warnings
from hashlib import sha256
from types import SimpleNamespace

import jaxtyping
import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal
from safetensors.torch import save_file
from torch.distributions import Independent, Uniform
from typer.testing import CliRunner

from mfsbi import (
    AF,
    ALICES,
    FOM,
    PIE,
    AffineCouplings,
    Chains,
    ManifoldNLE,
    MeFlow,
    MFlow,
    Phase,
    Plan,
    SplineCouplings,
    Store,
    alternating,
    calibrate,
    dimension_scan,
    interpolate,
    load,
    load_trainer,
    outlier_p_value,
    posterior_predictive,
    sample_chains,
    save,
    sequential,
    simulate_to_store,
    to_arviz,
    workers,
)
from mfsbi.cli import app
from mfsbi.gold import mine, read_madminer, simulate
from mfsbi.plugin.host import MCMCPosteriorParameters
from mfsbi.train.losses import latent_nll
from tests.problems import SMALL, surface_data, write_mined_surface

NAN, INF = float("nan"), float("inf")
SHORT = MCMCPosteriorParameters(num_chains=2, warmup_steps=2, init_strategy_parameters={"num_candidate_samples": 20})
WIDE = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)
CHAINS = Chains(torch.zeros(2, 4, 2), torch.zeros(2, 4))
CURVE = torch.randn(120, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", autouse=True)
def _as_users_have_it():
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return what a user has after a first training, and files of it, good and damaged."""
    folder = tmp_path_factory.mktemp("made")
    surface, theta, x = surface_data(60)
    trainers = []
    for spec in (AF(SMALL), MFlow(2, SMALL, SMALL)):
        trainer = ManifoldNLE(surface.prior, spec, show_progress_bars=False).append_simulations(theta, x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # two epochs find no manifold
            trainer.train(max_num_epochs=2, restarts=0)
        trainers.append(trainer)
    trainer, other = trainers
    save(trainer.estimator, folder / "estimator")
    save(trainer, folder / "trainer")
    simulate_to_store(Plan(surface, rows=10, shard_rows=5), folder / "store")
    (folder / "torn").write_bytes((folder / "trainer").read_bytes()[:-50])
    (folder / "pickle").write_bytes(b"\x80\x04K\x01.")
    (folder / "occupied").mkdir()
    (folder / "occupied" / "mine").write_text("mine")
    save_file({"a": torch.ones(1)}, folder / "newer", {"format": "mfsbi 99", "description": "{}"})
    for name, array in {"x": x[:5], "theta": theta, "many": x, "nan": x[:5] * NAN}.items():
        np.save(folder / f"{name}.npy", array.numpy())
    (folder / "mined").mkdir()
    write_mined_surface(folder / "mined")
    np.save(folder / "words.npy", np.array(["a", "b"]))
    np.savez(folder / "sims.npz", theta=theta.numpy(), x=x.numpy())
    return SimpleNamespace(
        folder=folder,
        surface=surface,
        theta=theta,
        x=x,
        trainer=trainer,
        estimator=trainer.estimator,
        model=other.estimator.model,
        posterior=trainer.build_posterior(posterior_parameters=SHORT),
        store=Store(folder / "store"),
    )


def changed(value, row, number):
    """Return a copy with another number in one row."""
    value = value.clone()
    value[row] = number
    return value


def append(theta=lambda at: at.theta, x=lambda at: at.x, **more):
    """Return a call that gives new simulations to the trainer."""
    return lambda at: at.trainer.append_simulations(theta(at), x(at), **more)


def train(**settings):
    """Return a call that trains on."""
    return lambda at: at.trainer.train(**({"max_num_epochs": 2} | settings))


def sampled(x=lambda at: at.x[:4], **settings):
    """Return a call that samples a posterior."""
    return lambda at: sample_chains(at.posterior, x(at), **({"draws": 4} | settings))


def calibrated(theta=lambda at: at.theta[:4], x=lambda at: at.x[:4], **settings):
    """Return a call that calibrates a posterior."""
    return lambda at: calibrate(at.posterior, theta(at), x(at), **({"draws": 4, "sampler": "importance"} | settings))


def stored(path="new", plan=None, **settings):
    """Return a call that simulates into a store."""
    return lambda at: simulate_to_store(
        Plan(at.surface, **({"rows": 10, "shard_rows": 5} | (plan or {}))), at.folder / path, **settings
    )


SPECS = {
    "no dimensions": (lambda at: MFlow(0), ValueError, "`manifold_dim` should be a positive integer; got 0"),
    "half a dimension": (lambda at: MeFlow(2.5), ValueError, "`manifold_dim` should be a positive integer; got 2.5"),
    "dimensions without end": (lambda at: PIE(INF), ValueError, "`manifold_dim` should be a positive integer; got inf"),
    "dimensions in words": (lambda at: MFlow("2"), TypeError, "`manifold_dim` should be a number; got '2', a str"),
    "True dimensions": (lambda at: MFlow(True), TypeError, "`manifold_dim` should be a number; got True, a bool"),
    "as many dimensions as features": (
        lambda at: MeFlow(3)(at.theta, at.x),
        ValueError,
        "`manifold_dim` should be below the number of features of x, 3.*got 3",
    ),
    "a flow by its name": (lambda at: AF("spline"), TypeError, r"`AF.latent` should be couplings such as .*'spline'"),
    "a class for couplings": (lambda at: MFlow(2, SplineCouplings), TypeError, "`MFlow.chart` should be couplings"),
    "no thickness": (lambda at: PIE(2, epsilon=0), ValueError, "`epsilon` should be positive; got 0"),
    "infinite thickness": (lambda at: PIE(2, epsilon=INF), ValueError, "`epsilon` should be positive and finite"),
    "no function": (lambda at: FOM(None, torch.sin), TypeError, "`decode` should be a function of rows; got None"),
    "a function of arrays": (
        lambda at: FOM(torch.sin, lambda x: x.numpy())(at.theta, at.x),
        TypeError,
        r"`encode\(x\)` should be a torch tensor; got array.*ndarray",
    ),
    "a map that is not undone": (
        lambda at: FOM(lambda u: 2 * u, lambda x: x)(at.theta, at.x),
        ValueError,
        "`encode` should undo `decode`",
    ),
    "half a layer": (lambda at: SplineCouplings(layers=1.5), ValueError, "`SplineCouplings.layers` .*integer; got 1.5"),
    "units in words": (lambda at: SplineCouplings(width="9"), TypeError, "`SplineCouplings.width` .* number; got '9'"),
    "a bound that is no number": (lambda at: SplineCouplings(bound=NAN), ValueError, "`SplineCouplings.bound` .* nan"),
    "infinite sharpness": (lambda at: AffineCouplings(sharpness=INF), ValueError, "sharpness` .* finite; got inf"),
    "integers to build for": (lambda at: AF()(at.theta, at.x.long()), ValueError, "floating point.*got torch.int64"),
    "one row to build for": (lambda at: AF()(at.theta[:1], at.x[:1]), ValueError, "at least 2 rows of `x`.*got 1"),
    "lists to build for": (
        lambda at: AF()(at.theta, at.x.tolist()),
        TypeError,
        r"`x` should be a torch tensor; got \[",
    ),
}

TRAINERS = {
    "a prior in words": (lambda at: ManifoldNLE("box", AF()), TypeError, "`prior` should be a distribution.*'box'"),
    "scipy's prior": (lambda at: ManifoldNLE(SimpleNamespace(rvs=1), AF()), TypeError, "`prior` should be a distribut"),
    "no prior for a ratio": (lambda at: ALICES(None), TypeError, "`prior` should be a distribution.*got None"),
    "a spec by its name": (
        lambda at: ManifoldNLE(at.surface.prior, "maf"),
        TypeError,
        "`density_estimator` should be a spec such as MFlow.* got str",
    ),
    "a negative seed": (
        lambda at: ALICES(WIDE, seed=-1),
        ValueError,
        "`seed` should be a non-negative integer; got -1",
    ),
    "half a seed": (lambda at: ManifoldNLE(WIDE, AF(), seed=0.5), TypeError, "`seed` .* integer; got 0.5, a float"),
    "a seed too large": (
        lambda at: ManifoldNLE(WIDE, AF(), seed=2**80),
        ValueError,
        r"`seed` .* below 2\^63; got 1208",
    ),
    "no such device": (lambda at: ManifoldNLE(WIDE, AF(), device="gpu"), ValueError, "`device` should be .* got 'gpu'"),
    "no units in a ratio": (
        lambda at: ALICES(WIDE, width=0),
        ValueError,
        "`width` should be a positive integer; got 0",
    ),
}

SIMULATIONS = {
    "x in a list": (append(x=lambda at: at.x.tolist()), TypeError, r"`x` should be a torch tensor; got \[.* a list"),
    "x of numpy": (append(x=lambda at: at.x.numpy()), TypeError, "`x` should be .* ndarray. Try torch.as_tensor"),
    "x in words": (append(x=lambda at: "x"), TypeError, "`x` should be a torch tensor; got 'x', a str"),
    "no x": (append(x=lambda at: None), ValueError, "`x` is missing: pass theta and x"),
    "complex x": (append(x=lambda at: at.x + 1j), TypeError, "`x` should be .* real numbers; got torch.complex64"),
    "complex theta": (append(lambda at: at.theta + 1j), TypeError, "`theta` should be .* real numbers; got torch.comp"),
    "sparse x": (append(x=lambda at: at.x.to_sparse()), TypeError, "`x` should be a dense tensor.*sparse_coo"),
    "x without numbers": (append(x=lambda at: at.x.to("meta")), TypeError, "`x` should be a dense tensor.*on meta"),
    "x with one axis": (append(x=lambda at: at.x[:, 0]), ValueError, r"`x` should have shape \(rows, data\).*\(60,\)"),
    "x with three axes": (append(x=lambda at: at.x[None]), ValueError, r"`x` should have shape .*got \(1, 60, 3\)"),
    "x without features": (append(x=lambda at: at.x[:, :0]), ValueError, r"`x` should have shape .*got \(60, 0\)"),
    "no rows": (append(lambda at: at.theta[:0], lambda at: at.x[:0]), ValueError, r"`x` should have .*got \(0, 3\)"),
    "other features than before": (
        append(x=lambda at: at.x[:, :2]),
        ValueError,
        r"`x` should have shape \(rows, 3\), 3 being the features of earlier simulations; got shape \(60, 2\)",
    ),
    "NaN in x": (
        append(x=lambda at: changed(at.x, 3, NAN)),
        ValueError,
        "`x` should be finite; 1 of 60 rows hold NaN or infinity, the first of them row 3.*exclude_invalid_x=True",
    ),
    "infinity in x": (append(x=lambda at: changed(at.x, 3, -INF)), ValueError, "`x` should be finite; 1 of 60 rows"),
    "too large for float32": (append(x=lambda at: 1e300 * at.x.double()), ValueError, "`x` should be finite; 60 of 60"),
    "theta with one axis": (append(lambda at: at.theta[:, 0]), ValueError, r"`theta` should have shape \(rows, 1\)"),
    "more parameters than the prior": (
        append(lambda at: at.theta.expand(-1, 2)),
        ValueError,
        r"`theta` should have shape \(rows, 1\), 1 being the features of the prior; got shape \(60, 2\)",
    ),
    "NaN in theta": (append(lambda at: changed(at.theta, 5, NAN)), ValueError, "`theta` should be finite.*row 5"),
    "theta outside the prior": (
        append(lambda at: changed(at.theta, 7, 1.5)),
        ValueError,
        r"`theta` should lie inside the prior; 1 of 60.*row 7: \[1.5\]",
    ),
    "rows that do not match": (
        append(lambda at: at.theta[:5]),
        ValueError,
        "one row per simulation each; got 5 rows of `theta` and 60 of `x`",
    ),
    "a negative round": (append(from_round=-1), ValueError, "`from_round` should not be negative; got -1"),
    "a round in words": (append(from_round="first"), TypeError, "`from_round` should be a number; got 'first'"),
    "gold for some rounds": (
        lambda at: at.trainer.append_simulations(at.theta, at.x, joint_score=torch.zeros(60, 1)),
        ValueError,
        "`joint_score` should come with every round or with none",
    ),
    "gold in a list": (append(joint_score=[1.0]), TypeError, r"`joint_score` should be a torch tensor; got \[1.0\]"),
    "a store and x": (
        lambda at: at.trainer.append_simulations(at.store, at.x),
        ValueError,
        "A store brings x and its gold: pass it alone, without x",
    ),
    "ratios without labels": (
        lambda at: ALICES(at.surface.prior).append_simulations(at.theta, at.x, joint_log_ratio=torch.zeros(60)),
        ValueError,
        "`joint_log_ratio` needs rows drawn at the reference as well: pass `from_theta`",
    ),
    "labels that are none": (
        lambda at: ALICES(at.surface.prior).append_simulations(at.theta, at.x, from_theta=torch.full((60,), 0.5)),
        ValueError,
        r"`from_theta` should say True .* it holds \[0.5\]",
    ),
}

TRAINING = {
    "no epochs": (train(max_num_epochs=0), ValueError, "`epochs` should be at least 1; got 0"),
    "half an epoch": (train(max_num_epochs=1.5), ValueError, "`epochs` should be a whole number; got 1.5"),
    "epochs in words": (train(max_num_epochs="all"), TypeError, "`epochs` should be a number; got 'all'"),
    "a learning rate that is no number": (train(learning_rate=NAN), ValueError, "`learning_rate` .* positive; got nan"),
    "an infinite learning rate": (
        train(learning_rate=INF),
        ValueError,
        "`learning_rate` should be positive and finite",
    ),
    "no learning rate": (train(learning_rate=None), TypeError, "`learning_rate` should be a number; got None"),
    "no rows a step": (train(training_batch_size=0), ValueError, "`training_batch_size` .* positive integer; got 0"),
    "half a row a step": (train(training_batch_size=2.5), ValueError, "`training_batch_size` .* integer; got 2.5"),
    "nothing held out": (train(validation_fraction=0), ValueError, "`validation_fraction` .* between 0 and 1; got 0"),
    "a share in words": (train(validation_fraction="1/9"), TypeError, "`validation_fraction` should be a number; got"),
    "an end after half an epoch": (train(stop_after_epochs=1.5), ValueError, "`stop_after_epochs` .*integer; got 1.5"),
    "a negative norm": (train(clip_max_norm=-1), ValueError, "`clip_max_norm` should be positive; got -1"),
    "infinite decay": (
        train(weight_decay=INF),
        ValueError,
        "`weight_decay` should not be negative but finite; got inf",
    ),
    "fewer than no restarts": (train(restarts=-1), ValueError, "`restarts` should not be negative; got -1"),
    "half a restart": (train(restarts=0.5), ValueError, "`restarts` should be a whole number; got 0.5"),
    "a negative weight": (train(score_weight=-1), ValueError, "`score_weight` should not be negative; got -1"),
    "a schedule by its name": (
        train(schedule="sequential"),
        TypeError,
        "`schedule` should be a list of phases.* got 'sequential'",
    ),
    "a schedule not called": (train(schedule=sequential), TypeError, "`schedule` should be a list of phases"),
    "an empty schedule": (train(schedule=[]), ValueError, "`schedule` should have at least one phase"),
    "a loss by its name": (
        train(schedule=[Phase("nll", ("latent",), 1)]),
        TypeError,
        "`Phase.loss` should be a function of a model and a batch; got 'nll'",
    ),
    "a phase without epochs": (
        train(schedule=[Phase(latent_nll, ("latent",), 0)]),
        ValueError,
        "`Phase.epochs` should be a positive integer; got 0",
    ),
    "a phase without rows": (
        train(schedule=[Phase(latent_nll, ("latent",), 1, rows=0)]),
        ValueError,
        "`Phase.rows` should be a positive integer; got 0",
    ),
    "parts there are not": (
        train(schedule=[Phase(latent_nll, ("charts",), 1)]),
        ValueError,
        r"should train a tuple of parts out of \('chart', 'latent'\); got \('charts',\)",
    ),
    "one pass for two parts": (lambda at: alternating(1), ValueError, "`epochs` should be at least 2.*got 1"),
    "minutes that are none": (train(checkpoint_minutes=NAN), ValueError, "`checkpoint_minutes` .* positive; got nan"),
    "a file for checkpoints": (
        lambda at: at.trainer.train(max_num_epochs=2, checkpoint=at.folder / "trainer"),
        OSError,
        "Checkpoints need a folder, and .*trainer cannot be one",
    ),
    "nowhere to resume from": (train(resume_training=True), ValueError, "`resume_training` needs `checkpoint`"),
    "nothing to train on": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).train(),
        RuntimeError,
        "no simulations yet: call `append_simulations",
    ),
    "too few rows": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).append_simulations(at.theta[:19], at.x[:19]).train(),
        ValueError,
        "at least 20 simulations.*got 19",
    ),
    "a feature that never varies": (
        lambda at: (
            ManifoldNLE(at.surface.prior, AF())
            .append_simulations(at.theta, torch.cat([at.x, torch.ones(60, 1)], 1))
            .train()
        ),
        ValueError,
        r"`x` should vary in every feature; features \[3\] are constant. Drop them",
    ),
}

ESTIMATORS = {
    "another number of features": (
        lambda at: at.estimator.log_prob(at.x[:, :1], at.theta),
        ValueError,
        r"`input` should have shape \(batch, 3\) or \(sample, batch, 3\); got \(60, 1\)",
    ),
    "four axes": (lambda at: at.estimator.log_prob(at.x[None, None], at.theta), ValueError, r"got \(1, 1, 60, 3\)"),
    "batches that do not fit": (
        lambda at: at.estimator.log_prob(at.x[:5], at.theta[:3]),
        ValueError,
        r"equal sample and batch sizes, or 1; got \(1, 5\) and \(1, 3\)",
    ),
    "rows in a list": (lambda at: at.estimator.log_prob(at.x.tolist(), at.theta), TypeError, "`input` should be a tor"),
    "complex rows": (
        lambda at: at.estimator.log_prob(at.x + 1j, at.theta),
        TypeError,
        "`input` should be .* real numbers; got torch.complex64",
    ),
    "a loss without theta": (lambda at: at.estimator.loss(at.x, condition=None), TypeError, "`condition` .* got None"),
    "fewer than no draws": (
        lambda at: at.estimator.sample((-1,), at.theta),
        ValueError,
        r"`sample_shape` should be a tuple of whole numbers, none negative; got \(-1,\)",
    ),
    "a number of draws": (lambda at: at.estimator.sample(3, at.theta), ValueError, "`sample_shape` .* got 3"),
    "draws at a sample axis": (
        lambda at: at.estimator.sample((2,), at.theta[None]),
        ValueError,
        r"`condition` should have shape \(batch, 1\); got \(1, 60, 1\)",
    ),
    "NaN on a manifold": (lambda at: at.model.log_prob(at.x * NAN, at.theta), ArithmeticError, r"no volume at row \(0"),
    "one feature that would be broadcast": (
        lambda at: at.model.project(at.x[:, :1]),
        ValueError,
        r"`x` should have shape \(\*, 3\), 3 being the features of the data .* got shape \(60, 1\)",
    ),
    "parameters that would be broadcast": (
        lambda at: at.model.sample(at.theta.expand(-1, 2)),
        ValueError,
        r"`theta` should have shape \(\*, 1\), 1 being the features of theta in training; got shape \(60, 2\)",
    ),
}

POSTERIORS = {
    "an untrained trainer": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).build_posterior(),
        RuntimeError,
        r"no trained estimator yet: call `train\(\)`",
    ),
    "a network of one's own": (
        lambda at: at.trainer.build_posterior(torch.nn.Identity()),
        TypeError,
        "`density_estimator` should be an estimator of ManifoldNLE; got Identity",
    ),
    "another prior": (
        lambda at: at.trainer.build_posterior(prior=WIDE),
        ValueError,
        "`prior` should have the trainer's 1 parameters; it has 2",
    ),
    "an unknown way to sample": (
        lambda at: at.trainer.build_posterior(sample_with="magic"),
        ValueError,
        "`sample_with` should be one of .*got 'magic'",
    ),
    "settings in a dictionary": (
        lambda at: at.trainer.build_posterior(posterior_parameters={"num_chains": 4}),
        TypeError,
        "`posterior_parameters` should be MCMC-.*; got dict",
    ),
    "an unknown sampler": (sampled(sampler="gibbs"), ValueError, r"`sampler` should be one of \['emcee'.*got 'gibbs'"),
    "no draws": (sampled(draws=0), ValueError, "`draws` should be a positive integer; got 0"),
    "half a draw": (sampled(draws=2.5, sampler="importance"), ValueError, "`draws` .* integer; got 2.5"),
    "observations of other features": (
        sampled(lambda at: at.x[:4, :2]),
        ValueError,
        r"`x` should have shape \(rows, 3",
    ),
    "no observations": (sampled(lambda at: at.x[:0]), ValueError, r"with an observation; got \(0, 3\)"),
    "observations of NaN": (sampled(lambda at: at.x * NAN, sampler="nuts"), ValueError, "`x` should be finite; 60 of"),
    "observations of nothing": (sampled(lambda at: None), TypeError, "`x` should be a torch tensor; got None"),
    "a warm-up before the start": (sampled(sampler="emcee", warmup=-1), ValueError, "`warmup` should not be negative"),
    "no chains": (sampled(sampler="nuts", chains=0), ValueError, "`chains` should be a positive integer; got 0"),
    "half an oversampling": (sampled(sampler="importance", oversampling=1.5), ValueError, "`oversampling` .* got 1.5"),
    "bounds of other parameters": (
        sampled(sampler="grid", bounds=[(-1, 1)] * 3),
        ValueError,
        r"`bounds` should be 1 finite pairs \(low, high\) with low < high, one for each parameter; got \[",
    ),
    "bounds upside down": (sampled(sampler="grid", bounds=[(1, -1)]), ValueError, "`bounds` should be 1 finite pairs"),
    "a setting there is not": (sampled(sampler="nuts", speed=3), TypeError, "unexpected keyword argument 'speed'"),
    "an estimator for a posterior": (
        lambda at: sample_chains(at.estimator, at.x, sampler="emcee"),
        TypeError,
        "`posterior` should come from build_posterior.*got a ManifoldEstimator",
    ),
    "an exam without draws": (calibrated(draws=0), ValueError, "`draws` should be a positive integer; got 0"),
    "an exam of other rows": (calibrated(lambda at: at.theta[:3]), ValueError, "got 3 rows of `theta` and 4 of `x`"),
    "an exam of one set": (
        calibrated(lambda at: at.theta[:1], lambda at: at.x[:1]),
        ValueError,
        r"`theta` should have shape \(sets, 1\) with two sets or more.*got \(1, 1\) and \(1, 3\)",
    ),
    "an exam of other parameters": (
        calibrated(lambda at: at.theta[:4].expand(-1, 2)),
        ValueError,
        r"`theta` should have shape \(sets, 1\) .*got \(4, 2\)",
    ),
    "a truth that is no number": (calibrated(lambda at: at.theta[:4] * NAN), ValueError, "`theta` should be finite; 4"),
    "an exam of NaN": (calibrated(x=lambda at: changed(at.x[:4], 3, NAN)), ValueError, "`x` should be finite; 1 of 4"),
    "an exam of no posterior": (
        lambda at: calibrate(at.estimator, at.theta, at.x),
        TypeError,
        "`posterior` should be a posterior, as .* got ManifoldEstimator",
    ),
}

USES = {
    "no tolerance": (lambda at: dimension_scan(CURVE, tolerance=NAN), ValueError, "`tolerance` .* positive; got nan"),
    "half a step": (lambda at: dimension_scan(CURVE, steps=1.5), ValueError, "`steps` .* positive integer; got 1.5"),
    "one number for dimensions": (lambda at: dimension_scan(CURVE, dims=2), TypeError, "`dims` .* in a list; got 2"),
    "dimensions of letters": (
        lambda at: dimension_scan(CURVE, dims="12"),
        ValueError,
        "`dims` should be whole numbers",
    ),
    "all dimensions": (lambda at: dimension_scan(CURVE, dims=[3]), ValueError, r"`dims` .* between 1 and 2.*got \(3,"),
    "no dimensions to try": (lambda at: dimension_scan(CURVE, dims=[]), ValueError, "`dims` should be whole numbers"),
    "a scan of NaN": (lambda at: dimension_scan(CURVE * NAN), ValueError, "`x` should be finite; 120 of 120 rows"),
    "a scan of few rows": (
        lambda at: dimension_scan(at.x),
        ValueError,
        "at least 100 rows, a tenth to judge by; got 60",
    ),
    "a scan of a list": (
        lambda at: dimension_scan([[0.0]]),
        TypeError,
        r"`x` should be a torch tensor; got \[\[0.0\]\]",
    ),
    "outliers of an estimator": (
        lambda at: outlier_p_value(at.estimator, at.x, at.x),
        TypeError,
        "`model` should be a model, such as `estimator.model`; got ManifoldEstimator",
    ),
    "nothing ordinary": (
        lambda at: outlier_p_value(at.model, at.x, at.x[:0]),
        ValueError,
        "`ordinary` should have at least one row",
    ),
    "outliers of other features": (
        lambda at: outlier_p_value(at.model, at.x[:, :2], at.x),
        ValueError,
        r"`x` should have shape \(rows, 3\)",
    ),
    "ordinary points of NaN": (
        lambda at: outlier_p_value(at.model, at.x, at.x * NAN),
        ValueError,
        "`ordinary` should be finite; 60 of 60 rows",
    ),
    "a curve of one point": (
        lambda at: interpolate(at.model, at.x[0], at.x[1], steps=1),
        ValueError,
        "`steps` should be at least 2",
    ),
    "a curve between numbers": (
        lambda at: interpolate(at.model, at.x[0, 0], at.x[1, 0]),
        ValueError,
        r"`start` should have shape \(\*, 3\).*got shape \(\)",
    ),
    "a curve from NaN": (
        lambda at: interpolate(at.model, at.x[0] * NAN, at.x[1]),
        ValueError,
        "`start` should be finite",
    ),
    "no new observations": (
        lambda at: posterior_predictive(CHAINS, at.model.sample, 0),
        ValueError,
        "`observations` should be a positive integer; got 0",
    ),
    "draws instead of chains": (
        lambda at: posterior_predictive(CHAINS.draws, at.model.sample),
        TypeError,
        "`chains` should be `Chains`.*a Tensor",
    ),
    "a simulator instead of a function": (
        lambda at: posterior_predictive(CHAINS, at.surface),
        TypeError,
        "`simulate` should be a function theta -> x.*got PolynomialSurface",
    ),
    "a simulator that loses rows": (
        lambda at: posterior_predictive(CHAINS, lambda theta: theta[1:]),
        ValueError,
        "`simulate` should return 8 rows, one for each theta",
    ),
    "new data of NaN": (
        lambda at: posterior_predictive(CHAINS, torch.log),
        ValueError,
        "`x` should be finite; 8 of 8 rows.*Look for the cause in `simulate`",
    ),
    "new data of numpy": (
        lambda at: posterior_predictive(CHAINS, lambda theta: theta.numpy()),
        TypeError,
        r"`simulate\(theta\)` should be a torch tensor; got array",
    ),
    "chains of one axis too few": (
        lambda at: Chains(torch.zeros(4, 1), torch.zeros(4)),
        ValueError,
        r"`draws` should have shape \(chain, draw, parameter\).*got \(4, 1\)",
    ),
    "a name too few": (
        lambda at: to_arviz(CHAINS, ["a"]),
        ValueError,
        r"`parameter_names` should have 2 .*got \['a'\]",
    ),
    "one name for two parameters": (lambda at: to_arviz(CHAINS, ["a", "a"]), ValueError, "no two the same; got"),
    "names in one word": (lambda at: to_arviz(CHAINS, "ab"), ValueError, "`parameter_names` should have 2 .*got 'ab'"),
    "draws of another prior": (
        lambda at: to_arviz(CHAINS, prior=torch.zeros(5, 3)),
        ValueError,
        r"`prior` should have shape \(rows, 2\)",
    ),
    "new data of other chains": (
        lambda at: to_arviz(CHAINS, posterior_predictive=torch.zeros(3, 4, 1, 3)),
        ValueError,
        r"`posterior_predictive` should have shape \(chain, draw, \*\), \(2, 4\).*has shape \(3, 4, 1, 3\)",
    ),
}

FILES = {
    "no file": (lambda at: load(at.folder / "no"), FileNotFoundError, "There is no file .*no"),
    "a folder for a file": (lambda at: save(at.estimator, at.folder / "occupied"), OSError, "Cannot write .* a folder"),
    "no folder for a file": (lambda at: save(at.estimator, at.folder / "no" / "a"), OSError, "Cannot write .*no.a"),
    "a foreign file": (lambda at: load(at.folder / "pickle"), ValueError, "is not a file of mfsbi"),
    "a torn file": (lambda at: load(at.folder / "torn"), ValueError, "is not a file of mfsbi"),
    "a newer file": (
        lambda at: load(at.folder / "newer"),
        ValueError,
        "says 'mfsbi 99'. If a newer mfsbi wrote it, upd",
    ),
    "the spec of another file": (
        lambda at: load(at.folder / "estimator", MFlow(2)),
        ValueError,
        "was written by AF.*not by MFlow",
    ),
    "the name of a spec": (lambda at: load(at.folder / "estimator", "AF"), TypeError, "`spec` should be .* got 'AF'"),
    "no trainer in the file": (
        lambda at: load_trainer(at.folder / "estimator", at.surface.prior),
        ValueError,
        "should hold a trainer; it lacks 'trainer'.*there is `load`",
    ),
    "the prior of another file": (
        lambda at: load_trainer(at.folder / "trainer", WIDE),
        ValueError,
        "The prior has 2 parameters, the estimator 1",
    ),
    "nothing to save": (
        lambda at: save(None, at.folder / "a"),
        TypeError,
        "Only estimators and trainers .* got NoneType",
    ),
    "a posterior to save": (
        lambda at: save(at.posterior, at.folder / "a"),
        TypeError,
        "Only estimators .* got MCMCPost",
    ),
    "an untrained trainer to save": (
        lambda at: save(ManifoldNLE(at.surface.prior, AF()), at.folder / "a"),
        RuntimeError,
        r"call `train\(\)` before `save`",
    ),
}


def program(theta):
    return pyro.sample("x", Normal(theta[..., 0], 1.0))


GOLD = {
    "a program in words": (
        lambda at: mine("program", at.theta),
        TypeError,
        "`model` should be a Pyro program.*'program'",
    ),
    "parameters in a list": (
        lambda at: mine(program, [[0.0]]),
        TypeError,
        r"`theta` should be a torch tensor; got \[\[",
    ),
    "whole parameters": (lambda at: mine(program, at.theta.long()), ValueError, "`theta` should be floating numbers"),
    "a reference of other parameters": (
        lambda at: mine(program, at.theta, theta_ref=torch.zeros(3)),
        ValueError,
        "`theta_ref` should broadcast against theta",
    ),
    "a seed below zero": (lambda at: mine(program, at.theta, seed=-1), ValueError, "`seed` should be a non-negative"),
    "a simulator in words": (lambda at: simulate("surface", at.theta), TypeError, "`simulator` should be a simulator"),
    "labels with two axes": (
        lambda at: simulate(at.surface, at.theta, theta_ref=torch.zeros(1), from_theta=torch.ones(60, 1)),
        ValueError,
        r"`from_theta` should have shape \(rows,\), a label for each; got \(60, 1\)",
    ),
    "a point of other parameters": (
        lambda at: simulate(at.surface, at.theta, theta_ref=torch.zeros(3), from_theta=torch.ones(60)),
        ValueError,
        r"`theta_ref` should have shape \(1,\) or that of theta, \(60, 1\); got \(3,\)",
    ),
    "labels without a reference": (
        lambda at: simulate(at.surface, at.theta, from_theta=torch.ones(60)),
        ValueError,
        "pass `theta_ref`",
    ),
    "no folder of MadMiner's": (lambda at: read_madminer(at.folder / "no"), FileNotFoundError, "There is no folder"),
    "no sample of MadMiner's": (lambda at: read_madminer(at.folder), FileNotFoundError, "should hold a sample 'train'"),
}

STORES = {
    "half a simulation": (stored(plan={"rows": 2.5}), ValueError, "`rows` should be a positive integer; got 2.5"),
    "no rows in a shard": (stored(plan={"shard_rows": 0}), ValueError, "`shard_rows` .* positive integer; got 0"),
    "half a seed of a plan": (stored(plan={"seed": 0.5}), TypeError, "`seed` .* integer; got 0.5, a float"),
    "a plan for a name": (lambda at: Plan("polynomial", 10), TypeError, "`simulator` should be .* got 'polynomial'"),
    "a plan for a function": (lambda at: Plan(program, 10), TypeError, "`simulator` should be one with `prior`"),
    "a plan's prior in words": (stored(plan={"prior": "box"}), TypeError, "`prior` should be a distribution.*'box'"),
    "a plan's prior of other parameters": (
        stored(plan={"prior": WIDE}),
        ValueError,
        r"The prior should draw finite theta of shape \(2, 1\).*got shape \(2, 2\)",
    ),
    "a simulator for a plan": (
        lambda at: simulate_to_store(at.surface, at.folder / "new"),
        TypeError,
        "`plan` should be a `Plan`; got PolynomialSurface",
    ),
    "a file for a store": (stored("trainer"), OSError, "Cannot make the store .*trainer: Not a directory"),
    "an occupied folder": (stored("occupied"), OSError, "Cannot make the store .*occupied: Directory not empty"),
    "another seed": (
        stored("store", plan={"seed": 1}),
        ValueError,
        "`seed` of the store .* is 0; here it is 1, .* choose another place",
    ),
    "a part that is none": (stored(part=(2, 2)), ValueError, r"`part` should be \(i, N\) .*got \(2, 2\)"),
    "half a part": (stored(part=(0.5, 2)), ValueError, r"`part` should be \(i, N\) .*got \(0.5, 2\)"),
    "more failures than all": (stored(max_failures=NAN), ValueError, "`max_failures` .* between 0 and 1; got nan"),
    "an executor in words": (stored(executor="dask"), TypeError, "`executor` should have `submit`.*got 'dask'"),
    "no workers": (lambda at: workers(0).__enter__(), ValueError, "`workers` should be a positive integer; got 0"),
    "no store": (lambda at: Store(at.folder / "no"), FileNotFoundError, "There is no store"),
    "a row beyond the last": (lambda at: at.store.read([10]), IndexError, "`rows` should lie below 10"),
    "a mask of rows": (
        lambda at: at.store.read([True] * 10),
        TypeError,
        r"`rows` .* list of whole numbers; got \[True",
    ),
    "blocks below a shard": (lambda at: at.store.blocks(4, seed=0), ValueError, "`rows_in_memory` .* 5 rows .*got 4"),
}

CALLS = SPECS | TRAINERS | SIMULATIONS | TRAINING | ESTIMATORS | POSTERIORS | USES | FILES | GOLD | STORES


def everything(at):
    """Return all files, and hashes of what the trainer has learned and learns from."""
    files = {str(path): path.read_bytes() if path.is_file() else b"" for path in at.folder.rglob("*")}
    weights = sha256(b"".join(value.numpy().tobytes() for value in at.estimator.state_dict().values())).hexdigest()
    trainer = at.trainer.simulations.digest(), at.trainer.estimator is at.estimator, str(at.trainer.history)
    return files, weights, trainer, at.estimator.training, torch.get_rng_state().tolist()


COMMANDS = {
    "train without a prior": ("train {}/sims.npz --model AF", "The prior is missing"),
    "train a prior in words": (
        "train {}/sims.npz --model AF --prior wide",
        "`--prior` should be LOW:HIGH .*got 'wide'",
    ),
    "train a prior upside down": ("train {}/sims.npz --model AF --prior 1:-1", "LOW < HIGH.*got '1:-1'"),
    "train without a dimension": ("train {}/sims.npz --prior -1:1", "`--manifold-dim` is missing"),
    "train half a dimension": ("train polynomial --manifold-dim 1.5", "Invalid value for '--manifold-dim'"),
    "train as many dimensions": (
        "train polynomial --manifold-dim 3 --model MeFlow --simulations 50",
        "below the number",
    ),
    "train a spec with functions": ("train polynomial --model FOM", "`--model` should be one of AF, PIE"),
    "train nothing": ("train --model ALICES", "or --madminer FOLDER alone; got nothing"),
    "train two simulators": ("train polynomial circle", "Expected one simulator, or files of arrays"),
    "train two sources": ("train polynomial --madminer {}", "got polynomial --madminer /"),
    "train an unknown simulator": ("train nonsense", "there is no simulator 'nonsense'; registered are circle"),
    "train what cannot be imported": ("train nowhere:simulate --prior -1:1", "Cannot find 'nowhere:simulate'"),
    "train too few simulations": ("train polynomial --simulations 5", "Invalid value for '--simulations'"),
    "train a single epoch": ("train polynomial --simulations 50 --epochs 1", "`epochs` should be at least 2"),
    "train a seed below zero": ("train polynomial --seed -1", "Invalid value for '--seed'"),
    "train into no folder": ("train polynomial --out {}/no/model", "there is no folder"),
    "train into a folder": ("train polynomial --out {}/occupied", "Cannot write .*occupied: a folder is there"),
    "train arrays in the wrong order": (
        "train {0}/many.npy {0}/theta.npy --prior -1:1 --model AF",
        r"`theta` should have shape \(rows, 1\)",
    ),
    "train words": ("train {0}/theta.npy {0}/words.npy --prior -1:1 --model AF", "`x` should be an array of numbers"),
    "train no file": ("train {0}/theta.npy {0}/no.npy --prior -1:1 --model AF", "There is no file"),
    "train from no folder": ("train --madminer {}/no --prior -1:1", "There is no folder"),
    "train from no sample": ("train --madminer {} --prior -1:1", "should hold a sample 'train'"),
    "train a sample without a prior": ("train --madminer {}/mined", "The prior is missing"),
    "train a sample of fewer parameters": (
        "train --madminer {}/mined --prior -1:1 --prior -1:1 --model ALICES",
        r"`theta` should have shape \(rows, 2\)",
    ),
    "sample a foreign file": ("sample {0}/pickle {0}/x.npy --prior -1:1", "is not a file of mfsbi"),
    "sample a torn file": ("sample {0}/torn {0}/x.npy --prior -1:1", "is not a file of mfsbi"),
    "sample a newer file": ("sample {0}/newer {0}/x.npy --prior -1:1", "If a newer mfsbi wrote it"),
    "sample NaN": ("sample {0}/trainer {0}/nan.npy --prior -1:1", "`x` should be finite; 5 of 5 rows"),
    "sample other features": ("sample {0}/trainer {0}/theta.npy --prior -1:1", r"`x` should have shape \(rows, 3\)"),
    "sample another prior": ("sample {0}/trainer {0}/x.npy --prior -1:1 --prior 0:1", "The prior has 2 parameters"),
    "sample no prior": ("sample {0}/trainer {0}/x.npy", "The prior is missing"),
    "sample by magic": ("sample {0}/trainer {0}/x.npy --prior -1:1 --sampler magic", "`sampler` should be one of"),
    "sample three draws": ("sample {0}/trainer {0}/x.npy --prior -1:1 --draws 3", "Invalid value for '--draws'"),
    "calibrate no file": ("calibrate {0}/trainer {0}/no.npz --prior -1:1", "There is no file"),
    "calibrate a picture of words": (
        "calibrate {0}/trainer polynomial --sets 2 --events 1 --draws 10 --out {0}/picture.words",
        "`--out` should end in .*; got .*picture.words",
    ),
    "calibrate other simulators": ("calibrate {}/trainer circle", "The prior has 2 parameters, the estimator 1"),
    "calibrate one set": ("calibrate {}/trainer polynomial --sets 1", "Invalid value for '--sets'"),
    "simulate half a row": ("simulate polynomial -n 1.5 --out {}/new", "positive whole number.*got 1.5"),
    "simulate many": ("simulate polynomial -n many --out {}/new", "-n"),
    "simulate more than a disk": ("simulate polynomial -n 1e15 --out {}/new", "GB more and .* GB are free"),
    "simulate a part from one": ("simulate polynomial -n 50 --shard 2/2 --out {}/new", "i from 0 to N - 1; got 2/2"),
    "simulate a part in words": ("simulate polynomial -n 50 --shard first --out {}/new", "`--shard` should be i/N"),
    "simulate into no folder": ("simulate polynomial -n 50 --out {}/no/new", "there is no folder"),
    "simulate what is unknown": ("simulate nonsense -n 50 --out {}/new", "there is no simulator 'nonsense'"),
    "simulate into another store": (
        "simulate polynomial -n 50 --out {}/store",
        "`rows` of the store .* is 10; here it",
    ),
    "check no store": ("store check {}/no", "There is no store"),
    "check a foreign folder": ("store check {}/occupied", "There is no store"),
    "check by another simulator": ("store check {}/store --again 1 --simulator circle", "of the store .* here it is"),
    "see no store": ("store info {}/no", "There is no store"),
    "demo an unknown simulator": ("demo nonsense --out {}/new", "there is no simulator 'nonsense'; registered are"),
    "demo a simulator without truth": ("demo lhc --out {}/new", "'lhc' lacks `log_prob` or a known manifold"),
    "demo below a file": ("demo --out {}/trainer/demo", "Cannot write to the folder.*Choose another one with --out"),
    "demo fewer than no simulations": ("demo --simulations -5", "Invalid value for '--simulations'"),
    "demo many simulations": ("demo --simulations many", "Invalid value for '--simulations'"),
    "demo markup": ("demo [/b] --out {}/new", r"there is no simulator '\[/b\]'"),
    "report an unknown table": ("report cube --out {}", "there is no table 'cube'"),
    "report nothing": ("report circle --preset smoke --out {}", "run `mfsbi bench` first"),
    "bench an unknown preset": (
        "bench circle --preset huge --out {}/new",
        "there is no preset 'huge'; there are smoke",
    ),
    "bench an unknown row": ("bench circle --preset smoke --only GAN --out {}/new", "no row of 'circle' has 'GAN'"),
    "bench samplers without parameters": ("bench samplers lorenz", "'lorenz' has no parameters"),
    "bench no threads": ("bench speed --threads 0", "Invalid value for '--threads'"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_mistake_on_the_command_line_is_an_exit_code_and_leaves_nothing_behind(made, name, monkeypatch):
    line, message = COMMANDS[name]
    monkeypatch.chdir(made.folder)
    before = everything(made)
    result = CliRunner().invoke(app, line.format(made.folder).split())
    assert result.exit_code == 2, result.output
    assert re.search(message, re.sub(r"[\s│]+", " ", result.stderr)), result.stderr
    assert everything(made) == before


@pytest.mark.parametrize("name", CALLS)
def test_a_mistake_is_an_error_that_says_what_is_wrong_and_leaves_nothing_behind(made, name):
    call, error, message = CALLS[name]
    before = everything(made)
    with pytest.raises(error) as caught:
        call(made)
    assert type(caught.value) is error
    assert re.search(message, str(caught.value)), caught.value
    assert everything(made) == before
