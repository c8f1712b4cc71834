"""Estimators and trainers on disk: one file with weights, what built them, and what they were trained on.

| key of the description | holds |
|---|---|
| `kind` | `likelihood` of a `ManifoldNLE` or `ratio` of `ALICES`; `likelihood` if it is missing |
| `spec`, `fields`, `data_dim`, `parameter_dim` | how to build the estimator; a ratio has no spec |
| `training` | losses of each epoch, collapsed starts, the number of simulations and their SHA-256 |
| `versions` | of mfsbi, torch, sbi and Python, for whoever looks for a difference |
| `trainer` | the seed and the round of each batch of simulations, which then are among the tensors |

A trainer's file is an estimator's file with the simulations added, so `load` reads both. Nothing is pickled, and no
file says what to execute (`mfsbi.plugin.describing`): the functions of a `FOM`, the prior, and charts and flows that
are not in this library are in none, and whoever loads one brings them along.
"""

import platform
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from mfsbi import files
from mfsbi.checks import require_kind, require_seed, require_whole
from mfsbi.plugin.describing import KINDS, SPECS, UNREADABLE, Estimator, Part, Source, describe, require_parts
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES, GoldenRatio
from mfsbi.plugin.spec import Spec
from mfsbi.simulations import Simulations
from mfsbi.train.record import History
from mfsbi.types import Prior

__all__ = ["SPECS", "Estimator", "Trainer", "load", "load_trainer", "save", "trainer_for"]

Trainer: TypeAlias = ManifoldNLE | ALICES

SIMULATIONS = "simulations."
"""How the names of a trainer's simulations begin among the tensors."""

FIELDS = tuple(each.name for each in fields(Simulations))


def save(trained: Estimator | Trainer, path: str | Path) -> None:
    """Write a trained estimator, or a trainer with its estimator and simulations, to one file.

    Arguments:
        trained: what `train()` returned, or the trainer itself
        path: the file, by custom ending in .safetensors

    Raises:
        ValueError: if the trainer streams its simulations, which then are in a store and not in a file
        TypeError: if the estimator was not built by one of mfsbi's own specs or trainers, or a part of its spec has
            fields that no file can hold
        RuntimeError: if the trainer has not trained
        OSError: if the file cannot be written
    """
    estimator: Any = trained
    tensors: dict[str, Tensor] = {}
    description: dict[str, Any] = {}
    if isinstance(trained, Trainer):
        if trained.simulations.store is not None:
            raise ValueError(f"The simulations stay in {trained.simulations.store.path}: save `trainer.estimator`.")
        if trained.estimator is None:
            raise RuntimeError("This trainer has no trained estimator yet: call `train()` before `save`.")
        estimator = trained.estimator
        description["trainer"] = {"seed": trained.seed, "rounds": [part.number for part in trained.simulations]}
        for number, part in enumerate(trained.simulations):
            tensors |= {f"{SIMULATIONS}{number}.{name}": value for name, value in part.batch.fields.items()}
    description |= describe(estimator) | {
        "training": estimator.training_record,
        "versions": {name: version(name) for name in ("mfsbi", "torch", "sbi")} | {"python": platform.python_version()},
    }
    files.write(Path(path), estimator.state_dict() | tensors, description)


def load(path: str | Path, spec: Spec | None = None, *, parts: Iterable[Part] = ()) -> Estimator:
    """Return the estimator that `save` wrote, in evaluation mode: of a likelihood or of a ratio, as the file says.

    Arguments:
        path: the file
        spec: what built the estimator; needed for a `FOM`, whose functions no file holds
        parts: classes of charts and flows of your own that the file names, unless an installed package registers them
            as entry points in the group `mfsbi.parts`

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: if the file is foreign, of an unknown version, names a part that is not known, or does not fit the
            spec it names or the one given
    """
    return _estimator(_read(path, spec, parts)[0])


def load_trainer(
    path: str | Path,
    prior: Prior | None,
    spec: Spec | None = None,
    *,
    parts: Iterable[Part] = (),
    device: str = "cpu",
) -> Trainer:
    """Return the trainer that `save` wrote: it builds posteriors, takes more simulations and trains on.

    Arguments:
        path: the file
        prior: of theta, as the trainer had it
        spec: as for `load`
        parts: as for `load`
        device: where to train on

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: as `load`; if the file holds an estimator alone; if the prior is not one of these simulations; if
            there is no such device
    """
    source, tensors = _read(path, spec, parts)
    estimator = _estimator(source)
    try:
        rounds, seed = (source.description["trainer"][name] for name in ("rounds", "seed"))
        for number in rounds:
            require_kind("rounds", number, int, "whole numbers")
            require_whole("rounds", number)
        batches = _simulations(tensors, len(rounds))
        history = History.of_record(estimator.training_record)
        require_kind("seed", seed, int, "a whole number")
        require_seed(seed)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} should hold a trainer; it lacks {error}. For an estimator alone there is `load`."
        ) from error
    trainer = trainer_for(estimator, prior, seed=seed, device=device)
    try:
        for part, number in zip(batches, rounds, strict=True):
            trainer.simulations.append(part, number, exclude_invalid_x=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} holds simulations that do not fit: {error}") from error
    trainer.history = history
    return trainer


def trainer_for(estimator: Estimator, prior: Prior | None, *, seed: int = 0, device: str = "cpu") -> Trainer:
    """Return a trainer without simulations that has this estimator.

    Arguments:
        estimator: trained
        prior: of theta
        seed: of the trainer
        device: where it trains, and evaluates posteriors

    Raises:
        ValueError: if the prior has other parameters than the estimator, or there is no such device
    """
    trainer: Trainer
    if isinstance(estimator, GoldenRatio):
        model = estimator.model
        trainer = ALICES(cast(Prior, prior), width=model.width, depth=model.depth, seed=seed, device=device)
    else:
        trainer = ManifoldNLE(prior, cast(Spec, estimator.spec), seed=seed, device=device)
    parameters = describe(estimator)["parameter_dim"]
    if trainer.parameter_dim != parameters:
        raise ValueError(f"The prior has {trainer.parameter_dim} parameters, the estimator {parameters}.")
    cast(Any, trainer).estimator = estimator
    return trainer


def _read(path: str | Path, spec: Spec | None, parts: Iterable[Part]) -> tuple[Source, dict[str, Tensor]]:
    """Return what a file holds of an estimator, with what the caller brings along, and its tensors of simulations."""
    if spec is not None:
        require_kind("spec", spec, Spec, "a spec such as FOM(decode, encode)")
    own = require_parts(parts)
    tensors, description = files.read(Path(path))
    simulations = {name: tensors.pop(name) for name in list(tensors) if name.startswith(SIMULATIONS)}
    return Source(Path(path), tensors, description, spec, own), simulations


def _estimator(source: Source) -> Estimator:
    """Return the estimator of a file that was read."""
    path, weights, description = source.path, source.weights, source.description
    kind = description.get("kind", "likelihood")
    if kind not in list(KINDS):  # a list, for what cannot be hashed
        raise ValueError(f"{path} holds the kind {kind!r}; this version knows {sorted(KINDS)}.")
    training = description.get("training", {})
    if not isinstance(training, dict):
        raise ValueError(f"{path} should record its training as an object, not {training!r}.")  # noqa: TRY004
    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{path} should hold weights of 16 to 64 bits; they are {dtype}. Save it again.")
    estimator = KINDS[kind](source).to(dtype)
    try:
        estimator.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit what it describes, {estimator!r}: {error}") from error
    estimator.training_record = training
    return estimator.eval()


def _simulations(tensors: dict[str, Tensor], rounds: int) -> list[Simulations]:
    """Return one batch for each round; raise ValueError if there are tensors of simulations that are in none."""
    batches = [{f"{SIMULATIONS}{number}.{field}": field for field in FIELDS} for number in range(rounds)]
    for name in tensors.keys() - {name for names in batches for name in names}:
        raise ValueError(f"a place for {name!r} among {rounds} rounds of {FIELDS}")
    held = ({field: tensors[name] for name, field in names.items() if name in tensors} for names in batches)
    return [Simulations(**each) for each in held]
