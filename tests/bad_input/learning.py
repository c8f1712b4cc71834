"""Bad specs, trainers, simulations and settings: a call on `made`, its error if not ValueError, and the message."""

from functools import partial
from types import SimpleNamespace

import torch
from torch.distributions import Independent, Uniform

from mfsbi import (
    AF,
    ALICES,
    FOM,
    PIE,
    AffineCouplings,
    ManifoldNLE,
    MeFlow,
    MFlow,
    Phase,
    SplineCouplings,
    alternating,
    sequential,
)
from mfsbi.train.losses import Alices, latent_nll

NAN, INF = float("nan"), float("inf")
WIDE = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)


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


SPECS = {
    "no dimensions": (lambda at: MFlow(0), "`manifold_dim` should be a positive integer; got 0"),
    "half a dimension": (lambda at: MeFlow(2.5), "`manifold_dim` should be a positive integer; got 2.5"),
    "a float of dimensions": (lambda at: MFlow(2.0), "`manifold_dim` should be a positive integer; got 2.0"),
    "dimensions without end": (lambda at: PIE(INF), "`manifold_dim` should be a positive integer; got inf"),
    "dimensions in words": (lambda at: MFlow("2"), TypeError, "`manifold_dim` should be a number; got '2', a str"),
    "True dimensions": (lambda at: MFlow(True), TypeError, "`manifold_dim` should be a number; got True, a bool"),
    "coordinates in a list": (lambda at: MFlow(2, coordinates=[0]), r"a tuple of different .*got \[0\]"),
    "half a coordinate": (lambda at: PIE(2, coordinates=(0.5,)), r"`coordinates` should be .*got \(0.5,\)"),
    "coordinates by name": (lambda at: MFlow(2, coordinates=("px",)), "`coordinates` should be a tuple"),
    "one coordinate alone": (lambda at: MFlow(2, coordinates=1), "`coordinates` should be a tuple.*got 1"),
    "coordinates that x lacks": (
        lambda at: MFlow(2, coordinates=(0, 3))(at.theta, at.x),
        "`coordinates` should be among the 3 features of x",
    ),
    "as many dimensions as features": (
        lambda at: MeFlow(3)(at.theta, at.x),
        "`manifold_dim` should be below the number of features of x, 3.*got 3",
    ),
    "a flow by its name": (lambda at: AF("spline"), TypeError, r"`AF.latent` should be a flow .* such as .*'spline'"),
    "a class for couplings": (lambda at: MFlow(2, SplineCouplings), TypeError, "`MFlow.chart` should be a flow"),
    "no thickness": (lambda at: PIE(2, epsilon=0), "`epsilon` should be positive; got 0"),
    "infinite thickness": (lambda at: PIE(2, epsilon=INF), "`epsilon` should be positive and finite"),
    "no function": (lambda at: FOM(None, torch.sin), TypeError, "`decode` should be a function of rows; got None"),
    "a function of arrays": (
        lambda at: FOM(torch.sin, lambda x: x.numpy())(at.theta, at.x),
        TypeError,
        r"`encode\(x\)` should be a torch tensor; got array.*ndarray",
    ),
    "a map that is not undone": (
        lambda at: FOM(lambda u: 2 * u, lambda x: x)(at.theta, at.x),
        "`encode` should undo `decode`",
    ),
    "half a layer": (lambda at: SplineCouplings(layers=1.5), "`SplineCouplings.layers` .*integer; got 1.5"),
    "units in words": (lambda at: SplineCouplings(width="9"), TypeError, "`SplineCouplings.width` .* number; got '9'"),
    "a bound that is no number": (lambda at: SplineCouplings(bound=NAN), "`SplineCouplings.bound` .* nan"),
    "infinite sharpness": (lambda at: AffineCouplings(sharpness=INF), "sharpness` .* finite; got inf"),
    "integers to build for": (lambda at: AF()(at.theta, at.x.long()), "floating point.*got torch.int64"),
    "one row to build for": (lambda at: AF()(at.theta[:1], at.x[:1]), "at least 2 rows of `x`.*got 1"),
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
    "a negative seed": (lambda at: ALICES(WIDE, seed=-1), "`seed` should be a non-negative integer; got -1"),
    "half a seed": (lambda at: ManifoldNLE(WIDE, AF(), seed=0.5), TypeError, "`seed` .* integer; got 0.5, a float"),
    "a seed too large": (lambda at: ManifoldNLE(WIDE, AF(), seed=2**80), r"`seed` .* below 2\^63; got 1208"),
    "no such device": (lambda at: ManifoldNLE(WIDE, AF(), device="gpu"), "`device` should be .* got 'gpu'"),
    "no units in a ratio": (lambda at: ALICES(WIDE, width=0), "`width` should be a positive integer; got 0"),
}


SIMULATIONS = {
    "x in a list": (append(x=lambda at: at.x.tolist()), TypeError, r"`x` should be a torch tensor; got \[.* a list"),
    "x of numpy": (append(x=lambda at: at.x.numpy()), TypeError, "`x` should be .* ndarray. Try torch.as_tensor"),
    "x in words": (append(x=lambda at: "x"), TypeError, "`x` should be a torch tensor; got 'x', a str"),
    "no x": (append(x=lambda at: None), "`x` is missing: pass theta and x"),
    "complex x": (append(x=lambda at: at.x + 1j), TypeError, "`x` should be .* real numbers; got torch.complex64"),
    "complex theta": (append(lambda at: at.theta + 1j), TypeError, "`theta` should be .* real numbers; got torch.comp"),
    "sparse x": (append(x=lambda at: at.x.to_sparse()), TypeError, "`x` should be a dense tensor.*sparse_coo"),
    "x without numbers": (append(x=lambda at: at.x.to("meta")), TypeError, "`x` should be a dense tensor.*on meta"),
    "x with one axis": (append(x=lambda at: at.x[:, 0]), r"`x` should have shape \(rows, data\).*\(60,\)"),
    "x with three axes": (append(x=lambda at: at.x[None]), r"`x` should have shape .*got \(1, 60, 3\)"),
    "x without features": (append(x=lambda at: at.x[:, :0]), r"`x` should have shape .*got \(60, 0\)"),
    "no rows": (append(lambda at: at.theta[:0], lambda at: at.x[:0]), r"`x` should have .*got \(0, 3\)"),
    "other features than before": (
        append(x=lambda at: at.x[:, :2]),
        r"`x` should have shape \(rows, 3\), 3 being the features of earlier simulations; got shape \(60, 2\)",
    ),
    "NaN in x": (
        append(x=lambda at: changed(at.x, 3, NAN)),
        "`x` should be finite; 1 of 60 rows hold NaN or infinity, the first of them row 3.*exclude_invalid_x=True",
    ),
    "infinity in x": (append(x=lambda at: changed(at.x, 3, -INF)), "`x` should be finite; 1 of 60 rows"),
    "too large for float32": (
        append(x=lambda at: 1e300 * at.x.double()),
        r"`x` holds .*e\+300, more than float32 can: choose other units",
    ),
    "x of which no row is valid": (
        append(x=lambda at: NAN * at.x, exclude_invalid_x=True),
        "`x` should have valid rows; all 60 hold NaN or infinity",
    ),
    "a single number for a label": (
        lambda at: ALICES(at.surface.prior).append_simulations(at.theta, at.x, from_theta=torch.tensor(1.0)),
        "got 60 rows of `theta` and a number instead of rows of `from_theta`",
    ),
    "scores without measure": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).append_simulations(
            at.theta, at.x, joint_score=1e18 * torch.tensor([[1.0], [-1.0]]).repeat(30, 1)
        ),
        "`joint_score` times the spread of theta should be below 1e\\+12",
    ),
    "theta with one axis": (append(lambda at: at.theta[:, 0]), r"`theta` should have shape \(rows, 1\)"),
    "more parameters than the prior": (
        append(lambda at: at.theta.expand(-1, 2)),
        r"`theta` should have shape \(rows, 1\), 1 being the features of the prior; got shape \(60, 2\)",
    ),
    "NaN in theta": (append(lambda at: changed(at.theta, 5, NAN)), "`theta` should be finite.*row 5"),
    "theta outside the prior": (
        append(lambda at: changed(at.theta, 7, 1.5)),
        r"`theta` should lie inside the prior; 1 of 60.*row 7: \[1.5\]",
    ),
    "rows that do not match": (
        append(lambda at: at.theta[:5]),
        "one row per simulation each; got 5 rows of `theta` and 60 of `x`",
    ),
    "a negative round": (append(from_round=-1), "`from_round` should not be negative; got -1"),
    "a round in words": (append(from_round="first"), TypeError, "`from_round` should be a number; got 'first'"),
    "gold for some rounds": (
        lambda at: at.trainer.append_simulations(at.theta, at.x, joint_score=torch.zeros(60, 1)),
        "`joint_score` should come with every round or with none",
    ),
    "gold in a list": (append(joint_score=[1.0]), TypeError, r"`joint_score` should be a torch tensor; got \[1.0\]"),
    "labels in a list": (append(from_theta=[True, False] * 30), TypeError, r"`from_theta` should be a torch tensor"),
    "labels in a list for a ratio": (
        lambda at: ALICES(at.surface.prior).append_simulations(at.theta, at.x, from_theta=[True, False] * 30),
        TypeError,
        "`from_theta` should be a torch tensor",
    ),
    "a store and x": (
        lambda at: at.trainer.append_simulations(at.store, at.x),
        "A store brings x and its gold: pass it alone, without x",
    ),
    "ratios without labels": (
        lambda at: ALICES(at.surface.prior).append_simulations(at.theta, at.x, joint_log_ratio=torch.zeros(60)),
        "`joint_log_ratio` needs rows drawn at the reference as well: pass `from_theta`",
    ),
    "labels that are none": (
        lambda at: ALICES(at.surface.prior).append_simulations(at.theta, at.x, from_theta=torch.full((60,), 0.5)),
        r"`from_theta` should say True .* it holds \[0.5\]",
    ),
}


TRAINING = {
    "no epochs": (train(max_num_epochs=0), "`epochs` should be at least 1; got 0"),
    "half an epoch": (train(max_num_epochs=1.5), "`epochs` should be a whole number; got 1.5"),
    "epochs in words": (train(max_num_epochs="all"), TypeError, "`epochs` should be a number; got 'all'"),
    "a learning rate that is no number": (train(learning_rate=NAN), "`learning_rate` .* positive; got nan"),
    "an infinite learning rate": (train(learning_rate=INF), "`learning_rate` should be positive and finite"),
    "a learning rate in words": (
        train(learning_rate="low"),
        TypeError,
        "`learning_rate` should be a number; got 'low'",
    ),
    "no rows a step": (train(training_batch_size=0), "`training_batch_size` .* positive integer; got 0"),
    "half a row a step": (train(training_batch_size=2.5), "`training_batch_size` .* integer; got 2.5"),
    "nothing held out": (train(validation_fraction=0), "`validation_fraction` .* between 0 and 1; got 0"),
    "a share in words": (train(validation_fraction="1/9"), TypeError, "`validation_fraction` should be a number; got"),
    "an end after half an epoch": (train(stop_after_epochs=1.5), "`stop_after_epochs` .*integer; got 1.5"),
    "a negative norm": (train(clip_max_norm=-1), "`clip_max_norm` should be positive; got -1"),
    "infinite decay": (train(weight_decay=INF), "`weight_decay` should not be negative but finite; got inf"),
    "fewer than no restarts": (train(restarts=-1), "`restarts` should not be negative; got -1"),
    "half a restart": (train(restarts=0.5), "`restarts` should be a whole number; got 0.5"),
    "new starts of a ratio": (
        lambda at: ALICES(at.surface.prior).train(restarts=1),
        TypeError,
        "`restarts` are new starts of a chart, and a ratio has none: leave it out; got 1",
    ),
    "a density's loss for a ratio": (
        lambda at: (
            ALICES(at.surface.prior).append_simulations(at.theta, at.x).train([Phase(latent_nll, ("network",), 1)])
        ),
        TypeError,
        r"`Phase.loss` should be `Alices\(\)`, which a ratio is trained by; got latent_nll",
    ),
    "a ratio's loss for a density": (
        train(schedule=[Phase(Alices(), ("latent",), 1)]),
        TypeError,
        "`Phase.loss` should be a loss of a likelihood, such as `latent_nll`; got `alices`",
    ),
    "a decay that no phase of a ratio has": (
        lambda at: (
            ALICES(at.surface.prior)
            .append_simulations(at.theta, at.x)
            .train([Phase(Alices(), ("network",), 1, decay=0.0)], weight_decay=0.1)
        ),
        "`weight_decay` should be zero or None, since no phase of this schedule has weight decay; got 0.1",
    ),
    "a negative weight": (train(score_weight=-1), "`score_weight` should not be negative; got -1"),
    "a schedule by its name": (
        train(schedule="sequential"),
        TypeError,
        "`schedule` should be a list of phases.* got 'sequential'",
    ),
    "a schedule not called": (train(schedule=sequential), TypeError, "`schedule` should be a list of phases"),
    "an empty schedule": (train(schedule=[]), "`schedule` should have at least one phase"),
    "a loss by its name": (
        train(schedule=[Phase("nll", ("latent",), 1)]),
        TypeError,
        "`Phase.loss` should be a function of a model and a batch, with a `__name__`; got 'nll'",
    ),
    "a loss without a name": (
        train(schedule=[Phase(partial(latent_nll), ("latent",), 1)]),
        TypeError,
        r"`Phase.loss` should be .*, with a `__name__`; got functools.partial",
    ),
    "a phase without epochs": (
        train(schedule=[Phase(latent_nll, ("latent",), 0)]),
        "`Phase.epochs` should be a positive integer; got 0",
    ),
    "a phase without rows": (
        train(schedule=[Phase(latent_nll, ("latent",), 1, rows=0)]),
        "`Phase.rows` should be a positive integer; got 0",
    ),
    "parts there are not": (
        train(schedule=[Phase(latent_nll, ("charts",), 1)]),
        r"should train a tuple of parts out of \('chart', 'latent'\); got \('charts',\)",
    ),
    "one pass for two parts": (lambda at: alternating(1), "`epochs` should be at least 2.*got 1"),
    "minutes that are none": (train(checkpoint_minutes=NAN), "`checkpoint_minutes` .* positive; got nan"),
    "a file for checkpoints": (
        lambda at: at.trainer.train(max_num_epochs=2, checkpoint=at.folder / "trainer"),
        OSError,
        "Checkpoints need a folder, and .*trainer cannot be one",
    ),
    "nowhere to resume from": (train(resume_training=True), "`resume_training` needs `checkpoint`"),
    "nothing to train on": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).train(),
        RuntimeError,
        "no simulations yet: call `append_simulations",
    ),
    "too few rows": (
        lambda at: ManifoldNLE(at.surface.prior, AF()).append_simulations(at.theta[:19], at.x[:19]).train(),
        "at least 20 simulations.*got 19",
    ),
    "a feature that never varies": (
        lambda at: (
            ManifoldNLE(at.surface.prior, AF())
            .append_simulations(at.theta, torch.cat([at.x, torch.ones(60, 1)], 1))
            .train()
        ),
        r"`x` should vary in every feature; features \[3\] are constant. Drop them",
    ),
}
