"""Estimators and trainers on disk: one file with weights, what built them, and what they were trained on.

| key of the description | holds |
|---|---|
| `kind` | `likelihood` of a `ManifoldNLE` or `ratio` of `ALICES`; a likelihood where it is missing, as in early files |
| `spec`, `fields`, `data_dim`, `parameter_dim` | how to build the estimator; a ratio has no spec |
| `training` | losses of each epoch, collapsed starts, the number of simulations and their SHA-256 |
| `versions` | of mfsbi, torch, sbi and Python, for whoever looks for a difference |
| `trainer` | the seed and the round of each batch of simulations, which then are among the tensors |

A trainer's file is an estimator's file with the simulations added, so `load` reads both. Nothing is pickled, and no
file says what to execute: the functions of a `FOM` and the prior are in none, and whoever loads one brings them along.
"""

import platform
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from mfsbi import files
from mfsbi.checks import require_kind
from mfsbi.flows import AffineCouplings, AutoregressiveSplines, Couplings, SplineCouplings
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES, GoldenRatio
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow, Spec
from mfsbi.ratio import RatioModel
from mfsbi.train.data import Batch
from mfsbi.train.record import History
from mfsbi.types import Prior

__all__ = ["Estimator", "Trainer", "load", "load_trainer", "save", "trainer_for"]

Estimator: TypeAlias = ManifoldEstimator | GoldenRatio
Trainer: TypeAlias = ManifoldNLE | ALICES
Description: TypeAlias = dict[str, Any]

SPECS: dict[str, type[Spec]] = {spec.__name__: spec for spec in (AF, FOM, PIE, MFlow, MeFlow, PAE)}
COUPLINGS: dict[str, type[Couplings]] = {
    kind.__name__: kind for kind in (AffineCouplings, AutoregressiveSplines, SplineCouplings)
}
SIMULATIONS = "simulations."
"""How the names of a trainer's simulations begin among the tensors."""


class Kind(NamedTuple):
    """How one kind of estimator is described and built again.

    Arguments:
        of: its class
        describe: what builds an estimator, for the description
        build: an estimator with other weights, from the path for messages, the description and the spec of the user
        trainer: its trainer, untrained, from the estimator, the prior and further arguments
    """

    of: type
    describe: Callable[[Any], Description]
    build: Callable[[Path, Description, Spec | None], Estimator]
    trainer: Callable[[Any, Prior | None, dict[str, Any]], Trainer]


def save(trained: Estimator | Trainer, path: str | Path) -> None:
    """Write a trained estimator, or a trainer with its estimator and simulations, to one file.

    Arguments:
        trained: what `train()` returned, or the trainer itself
        path: the file, by custom ending in .safetensors

    Raises:
        ValueError: if the trainer streams its simulations, which then are in a store and not in a file
        TypeError: if the estimator was not built by one of mfsbi's own specs or trainers
        RuntimeError: if the trainer has not trained
        OSError: if the file cannot be written
    """
    tensors: dict[str, Tensor] = {}
    description: Description = {}
    if isinstance(trained, Trainer):
        if trained.simulations.store is not None:
            raise ValueError(f"The simulations stay in {trained.simulations.store.path}: save `trainer.estimator`.")
        description["trainer"] = {"seed": trained.seed, "rounds": [part.number for part in trained.simulations]}
        for number, part in enumerate(trained.simulations):
            fields = part.batch._asdict().items()
            tensors |= {f"{SIMULATIONS}{number}.{name}": value for name, value in fields if value is not None}
    estimator: Any = trained.estimator if isinstance(trained, Trainer) else trained
    if estimator is None and isinstance(trained, Trainer):
        raise RuntimeError("This trainer has no trained estimator yet: call `train()` before `save`.")
    name = next((name for name, kind in KINDS.items() if isinstance(estimator, kind.of)), None)
    if name is None:
        raise TypeError(f"Only estimators and trainers of mfsbi can be saved; got {type(estimator).__name__}.")
    description |= KINDS[name].describe(estimator) | {
        "kind": name,
        "training": estimator.training_record,
        "versions": {name: version(name) for name in ("mfsbi", "torch", "sbi")} | {"python": platform.python_version()},
    }
    files.write(Path(path), estimator.state_dict() | tensors, description)


def load(path: str | Path, spec: Spec | None = None) -> Estimator:
    """Return the estimator that `save` wrote, in evaluation mode: of a likelihood or of a ratio, as the file says.

    Arguments:
        path: the file
        spec: what built the estimator; needed for a `FOM`, whose functions no file holds

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: if the file is foreign, of an unknown version, or does not fit the spec it names or the one given
    """
    _require_spec(spec)
    return _estimator(Path(path), *files.read(Path(path)), spec)


def load_trainer(path: str | Path, prior: Prior | None, spec: Spec | None = None, *, device: str = "cpu") -> Trainer:
    """Return the trainer that `save` wrote: it builds posteriors, takes more simulations and trains on.

    Arguments:
        path: the file
        prior: of theta, as the trainer had it
        spec: as for `load`
        device: where to train on

    Raises:
        FileNotFoundError: if there is no such file
        ValueError: as `load`; if the file holds an estimator alone; if the prior is not one of these simulations; if
            there is no such device
    """
    _require_spec(spec)
    tensors, description = files.read(Path(path))
    estimator = _estimator(Path(path), tensors, description, spec)
    try:
        about, record = description["trainer"], estimator.training_record
        parts = [_simulations(tensors, f"{SIMULATIONS}{number}.") for number in range(len(about["rounds"]))]
        history = History.of_record(record)
        seed = about["seed"]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} should hold a trainer; it lacks {error}. For an estimator alone there is `load`."
        ) from error
    trainer = trainer_for(estimator, prior, seed=seed, device=device)
    for part, number in zip(parts, about["rounds"], strict=True):
        trainer.simulations.append(part, number)
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
    kind = next(kind for kind in KINDS.values() if isinstance(estimator, kind.of))
    trainer = kind.trainer(estimator, prior, {"seed": seed, "device": device})
    parameters = kind.describe(estimator)["parameter_dim"]
    if trainer.parameter_dim != parameters:
        raise ValueError(f"The prior has {trainer.parameter_dim} parameters, the estimator {parameters}.")
    cast(Any, trainer).estimator = estimator
    return trainer


def _require_spec(spec: Spec | None) -> None:
    """Raise TypeError unless `spec` is one, or None."""
    if spec is not None:
        require_kind("spec", spec, Spec, "a spec such as FOM(decode, encode)")


def _estimator(path: Path, tensors: dict[str, Tensor], description: Description, spec: Spec | None) -> Estimator:
    """Return the estimator of a file that was read."""
    kind = description.get("kind", "likelihood")
    if kind not in KINDS:
        raise ValueError(f"{path} holds the kind {kind!r}; this version knows {sorted(KINDS)}.")
    estimator = KINDS[kind].build(path, description, spec)
    weights = {name: value for name, value in tensors.items() if not name.startswith(SIMULATIONS)}
    estimator.to(next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32))
    try:
        estimator.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit what it describes, {estimator!r}: {error}") from error
    estimator.training_record = description.get("training", {})
    return estimator.eval()


def _described_likelihood(estimator: ManifoldEstimator) -> Description:
    """Return the spec of an estimator, and what it is called with."""
    spec = estimator.spec
    if not isinstance(spec, Spec) or type(spec) not in SPECS.values():
        raise TypeError(f"The estimator should be built by one of {sorted(SPECS)}; it was by {type(spec).__name__}.")
    dims = {"data_dim": estimator.input_shape[0], "parameter_dim": estimator.condition_shape[0]}
    return {"spec": type(spec).__name__, "fields": _fields(spec)} | dims


def _built_likelihood(path: Path, description: Description, spec: Spec | None) -> ManifoldEstimator:
    """Return the estimator that the spec of a file, or the one given, builds."""
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
        return spec(*spec.example(*dims))


def _described_ratio(estimator: GoldenRatio) -> Description:
    """Return the size of an estimator's network."""
    model = estimator.model
    dims = {"data_dim": len(model.x_mean), "parameter_dim": len(model.theta_mean)}
    return {"fields": {"width": model.width, "depth": model.depth}} | dims


def _built_ratio(path: Path, description: Description, spec: Spec | None) -> GoldenRatio:
    """Return an estimator with a network of the size that a file says."""
    if spec is not None:
        raise ValueError(f"{path} holds a ratio of `ALICES`, which no spec builds: leave `spec` out; got {spec!r}.")
    try:
        x, theta = (torch.ones(description[name]) for name in ("data_dim", "parameter_dim"))
        with torch.random.fork_rng(devices=[]):
            return GoldenRatio(RatioModel(x, x.clone(), theta, theta.clone(), **description["fields"]))
    except (KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} describes its ratio in a way this version does not know: {error}.") from error


def _trainer_of_likelihood(estimator: ManifoldEstimator, prior: Prior | None, others: dict[str, Any]) -> ManifoldNLE:
    return ManifoldNLE(prior, cast(Spec, estimator.spec), **others)


def _trainer_of_ratio(estimator: GoldenRatio, prior: Prior | None, others: dict[str, Any]) -> ALICES:
    return ALICES(cast(Prior, prior), width=estimator.model.width, depth=estimator.model.depth, **others)


KINDS = {
    "likelihood": Kind(ManifoldEstimator, _described_likelihood, _built_likelihood, _trainer_of_likelihood),
    "ratio": Kind(GoldenRatio, _described_ratio, _built_ratio, _trainer_of_ratio),
}
"""What can be saved, by the word for it in a file."""


def _simulations(tensors: dict[str, Tensor], prefix: str) -> Batch:
    """Return the simulations whose tensors' names begin like this."""
    return Batch(**{name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})


def _fields(spec: Spec) -> dict[str, Any]:
    """Return what a spec holds besides functions, as JSON has it."""
    return {
        name: _plain(value) for name, value in vars(spec).items() if isinstance(value, Couplings) or not callable(value)
    }


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a spec's field as JSON has it: couplings by name and settings, tuples as lists, numbers as they are."""
    if isinstance(value, Couplings):
        return {"kind": type(value).__name__, **asdict(value)}
    return list(value) if isinstance(value, tuple) else value


def _field(value: Any) -> Any:  # noqa: ANN401
    """Return a spec's field from JSON."""
    if not isinstance(value, dict):
        return tuple(value) if isinstance(value, list) else value
    settings = dict(value)
    return COUPLINGS[settings.pop("kind")](**settings)
