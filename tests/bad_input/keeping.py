"""Bad files, gold and stores: a call, its error if not ValueError, and the message."""

import pyro
import torch
from pyro.distributions import Normal
from torch.distributions import Independent, Uniform

from mfsbi import (
    AF,
    ManifoldNLE,
    MFlow,
    Plan,
    SplineCouplings,
    Store,
    load,
    load_trainer,
    save,
    simulate_to_store,
    workers,
)
from mfsbi.gold import mine, read_madminer, simulate

NAN = float("nan")
WIDE = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)


def stored(path="new", plan=None, **settings):
    """Return a call that simulates into a store."""
    return lambda at: simulate_to_store(
        Plan(at.surface, **({"rows": 10, "shard_rows": 5} | (plan or {}))), at.folder / path, **settings
    )


FILES = {
    "no file": (lambda at: load(at.folder / "no"), FileNotFoundError, "There is no file .*no"),
    "a folder for a file": (lambda at: save(at.estimator, at.folder / "occupied"), OSError, "Cannot write .* a folder"),
    "no folder for a file": (lambda at: save(at.estimator, at.folder / "no" / "a"), OSError, "Cannot write .*no.a"),
    "a foreign file": (lambda at: load(at.folder / "pickle"), "is not a file of mfsbi"),
    "a torn file": (lambda at: load(at.folder / "torn"), "is not a file of mfsbi"),
    "a newer file": (lambda at: load(at.folder / "newer"), "says 'mfsbi 99'. If a newer mfsbi wrote it, upd"),
    "the spec of another file": (lambda at: load(at.folder / "estimator", MFlow(2)), "was written by AF.*not by MFlow"),
    "the name of a spec": (lambda at: load(at.folder / "estimator", "AF"), TypeError, "`spec` should be .* got 'AF'"),
    "an object for a part": (
        lambda at: load(at.folder / "estimator", parts=[SplineCouplings()]),
        TypeError,
        "`parts` should be dataclasses, each a `FlowConfig` or a `ChartConfig`; got SplineC",
    ),
    "a part that is none": (lambda at: load(at.folder / "estimator", parts=[MFlow]), TypeError, "`parts` should be"),
    "a part of our name": (
        lambda at: load(at.folder / "estimator", parts=[type("SplineCouplings", (SplineCouplings,), {})]),
        "there is another SplineCouplings in mfsbi",
    ),
    "no trainer in the file": (
        lambda at: load_trainer(at.folder / "estimator", at.surface.prior),
        "should hold a trainer; it lacks 'trainer'.*there is `load`",
    ),
    "the prior of another file": (
        lambda at: load_trainer(at.folder / "trainer", WIDE),
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
    "whole parameters": (lambda at: mine(program, at.theta.long()), "`theta` should be floating numbers"),
    "a reference of other parameters": (
        lambda at: mine(program, at.theta, theta_ref=torch.zeros(3)),
        "`theta_ref` should broadcast against theta",
    ),
    "a seed below zero": (lambda at: mine(program, at.theta, seed=-1), "`seed` should be a non-negative"),
    "a simulator in words": (lambda at: simulate("surface", at.theta), TypeError, "`simulator` should be a simulator"),
    "labels with two axes": (
        lambda at: simulate(at.surface, at.theta, theta_ref=torch.zeros(1), from_theta=torch.ones(60, 1)),
        r"`from_theta` should have shape \(rows,\), a label for each; got \(60, 1\)",
    ),
    "a point of other parameters": (
        lambda at: simulate(at.surface, at.theta, theta_ref=torch.zeros(3), from_theta=torch.ones(60)),
        r"`theta_ref` should have shape \(1,\) or that of theta, \(60, 1\); got \(3,\)",
    ),
    "labels without a reference": (
        lambda at: simulate(at.surface, at.theta, from_theta=torch.ones(60)),
        "pass `theta_ref`",
    ),
    "no folder of MadMiner's": (lambda at: read_madminer(at.folder / "no"), FileNotFoundError, "There is no folder"),
    "no sample of MadMiner's": (lambda at: read_madminer(at.folder), FileNotFoundError, "should hold a sample 'train'"),
}


STORES = {
    "half a simulation": (stored(plan={"rows": 2.5}), "`rows` should be a positive integer; got 2.5"),
    "no rows in a shard": (stored(plan={"shard_rows": 0}), "`shard_rows` .* positive integer; got 0"),
    "half a seed of a plan": (stored(plan={"seed": 0.5}), TypeError, "`seed` .* integer; got 0.5, a float"),
    "a plan for a name": (lambda at: Plan("polynomial", 10), TypeError, "`simulator` should be .* got 'polynomial'"),
    "a plan for a function": (lambda at: Plan(program, 10), TypeError, "`simulator` should be one with `prior`"),
    "a plan's prior in words": (stored(plan={"prior": "box"}), TypeError, "`prior` should be a distribution.*'box'"),
    "a plan's prior of other parameters": (
        stored(plan={"prior": WIDE}),
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
        "`seed` of the store .* is 0; here it is 1, .* choose another place",
    ),
    "a part that is none": (stored(part=(2, 2)), r"`part` should be \(i, N\) .*got \(2, 2\)"),
    "half a part": (stored(part=(0.5, 2)), r"`part` should be \(i, N\) .*got \(0.5, 2\)"),
    "more failures than all": (stored(max_failures=NAN), "`max_failures` .* between 0 and 1; got nan"),
    "an executor in words": (stored(executor="dask"), TypeError, "`executor` should have `submit`.*got 'dask'"),
    "no workers": (lambda at: workers(0).__enter__(), "`workers` should be a positive integer; got 0"),
    "no store": (lambda at: Store(at.folder / "no"), FileNotFoundError, "There is no store"),
    "a row beyond the last": (lambda at: at.store.read([10]), IndexError, "`rows` should lie below 10"),
    "a mask of rows": (
        lambda at: at.store.read([True] * 10),
        TypeError,
        r"`rows` .* list of whole numbers; got \[True",
    ),
    "blocks below a shard": (lambda at: at.store.blocks(4, seed=0), "`rows_in_memory` .* 5 rows .*got 4"),
}
