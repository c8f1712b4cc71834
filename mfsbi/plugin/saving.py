"""Estimators and trainers on disk: one file with weights, what built them, and what they were trained on.

| key of the description | holds |
|---|---|
| `spec`, `fields`, `data_dim`, `parameter_dim` | how to build the estimator |
| `training` | losses of each epoch, collapsed starts, the number of simulations and their SHA-256 |
| `versions` | of mfsbi, torch, sbi and Python, for whoever looks for a difference |
| `trainer` | the seed and the round of each batch of simulations, which then are among the tensors |

A trainer's file is an estimator's file with the simulations added, so `load` reads both. Nothing is pickled, and no
file says what to execute: the functions of a `FOM` and the prior are in none, and whoever loads one brings them along.
"""

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mfsbi import files
from mfsbi.flows import AffineCouplings, AutoregressiveSplines, Couplings, SplineCouplings
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow, Spec
from mfsbi.train.data import Batch
from mfsbi.train.loop import EpochRecord, History
from mfsbi.types import Prior

__all__ = ["load", "load_trainer", "save"]

SPECS: dict[str, type[Spec]] = {spec.__name__: spec for spec in (AF, FOM, PIE, MFlow, MeFlow, PAE)}
COUPLINGS: dict[str, type[Couplings]] = {
    kind.__name__: kind for kind in (AffineCouplings, AutoregressiveSplines, SplineCouplings)
}
SIMULATIONS = "simulations."
"""How the names of a trainer's simulations begin among the tensors."""


def save(trained: ManifoldEstimator | ManifoldNLE, path: str | Path) -> None:
    """Write a trained estimator, or a trainer with its estimator and simulations, to one file.

    Arguments:
        trained: what `train()` returned, or the trainer itself
        path: the file, by custom ending in .safetensors

    Raises:
        TypeError: if the estimator was not built by one of mfsbi's own specs
        RuntimeError: if the trainer has not trained
        OSError: if the file cannot be written
    """
    tensors: dict[str, Tensor] = {}
    description: dict[str, Any] = {}
    if isinstance(trained, ManifoldNLE):
        description["trainer"] = {"seed": trained.seed, "rounds": [part.number for part in trained.simulations]}
        for number, part in enumerate(trained.simulations):
            fields = part.batch._asdict().items()
            tensors |= {f"{SIMULATIONS}{number}.{name}": value for name, value in fields if value is not None}
    estimator = trained.estimator if isinstance(trained, ManifoldNLE) else trained
    if estimator is None:
        raise RuntimeError("This trainer has no trained estimator yet: call `train()` before `save`.")
    spec = estimator.spec
    if not isinstance(spec, Spec) or type(spec) not in SPECS.values():
        raise TypeError(f"The estimator should be built by one of {sorted(SPECS)}; it was by {type(spec).__name__}.")
    description |= {
        "spec": type(spec).__name__,
        "fields": _fields(spec),
        "data_dim": estimator.input_shape[0],
        "parameter_dim": estimator.condition_shape[0],
        "training": estimator.training_record,
        "versions": {name: version(name) for name in ("mfsbi", "torch", "sbi")} | {"python": platform.python_version()},
    }
    files.write(Path(path), estimator.state_dict() | tensors, description)


def load(path: str | Path, spec: Spec | None = None) -> ManifoldEstimator:
    """Return the estimator that `save` wrote, in evaluation mode.

    Arguments:
        path: the file
        spec: what built the estimator; needed for a `FOM`, whose functions no file holds

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: if the file is foreign, of an unknown version, or does not fit the spec it names or the one given
    """
    return _estimator(Path(path), *files.read(Path(path)), spec)


def load_trainer(path: str | Path, prior: Prior | None, spec: Spec | None = None) -> ManifoldNLE:
    """Return the trainer that `save` wrote: it builds posteriors, takes more simulations and trains on.

    Arguments:
        path: the file
        prior: of theta, as the trainer had it
        spec: as for `load`

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: as `load`; if the file holds an estimator alone; if the prior is not one of these simulations
    """
    tensors, description = files.read(Path(path))
    estimator = _estimator(Path(path), tensors, description, spec)
    try:
        about, record = description["trainer"], estimator.training_record
        parts = [_simulations(tensors, f"{SIMULATIONS}{number}.") for number in range(len(about["rounds"]))]
        epochs = [EpochRecord(*epoch) for epoch in record["epochs"]]
        history, seed = History(epochs, record["interrupted"], record["collapses"]), about["seed"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} should hold a trainer; it lacks {error}. For an estimator alone there is `load`."
        ) from error
    trainer = ManifoldNLE(prior, cast(Spec, estimator.spec), seed=seed)
    for part, number in zip(parts, about["rounds"], strict=True):
        trainer.simulations.append(part, number)
    trainer.estimator, trainer.history = estimator, history
    return trainer


def _estimator(
    path: Path, tensors: dict[str, Tensor], description: dict[str, Any], spec: Spec | None
) -> ManifoldEstimator:
    """Return the estimator of a file that was read."""
    if description.get("spec") not in SPECS:
        raise ValueError(f"{path} names the spec {description.get('spec')!r}; this version knows {sorted(SPECS)}.")
    if spec is None and description["spec"] == FOM.__name__:
        raise ValueError(
            f"{path} holds a `FOM`, whose functions are not in the file: pass `spec=FOM(decode, encode, ...)`."
        )
    try:
        if spec is None:
            spec = SPECS[description["spec"]](**{name: _field(value) for name, value in description["fields"].items()})
        elif (type(spec).__name__, _fields(spec)) != (description["spec"], description["fields"]):
            raise ValueError(f"{path} was written by {description['spec']}({description['fields']}), not by {spec!r}.")
        dims = description["parameter_dim"], description["data_dim"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} describes its spec in a way this version does not know: {error}.") from error
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced
        estimator = spec(*spec.example(*dims))
    weights = {name: value for name, value in tensors.items() if not name.startswith(SIMULATIONS)}
    estimator.to(next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32))
    try:
        estimator.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the spec it names, {spec!r}: {error}") from error
    estimator.training_record = description.get("training", {})
    return estimator.eval()


def _simulations(tensors: dict[str, Tensor], prefix: str) -> Batch:
    """Return the simulations whose tensors' names begin like this."""
    return Batch(**{name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})


def _fields(spec: Spec) -> dict[str, Any]:
    """Return what a spec holds besides functions, as JSON has it."""
    return {
        name: _plain(value) for name, value in vars(spec).items() if isinstance(value, Couplings) or not callable(value)
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a spec's field as JSON has it: couplings by their name and settings, numbers as they are."""
    return {"kind": type(value).__name__, **asdict(value)} if isinstance(value, Couplings) else value


def _field(value: Any) -> Any:  # noqa: ANN401
    """Return a spec's field from JSON."""
    if not isinstance(value, dict):
        return value
    settings = dict(value)
    return COUPLINGS[settings.pop("kind")](**settings)
