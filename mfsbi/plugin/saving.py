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
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from mfsbi import files
from mfsbi.charts import Warped
from mfsbi.checks import require_kind, require_positive_integer, require_seed, require_whole
from mfsbi.flows import AffineCouplings, AutoregressiveSplines, Couplings, SplineCouplings
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.likelihood import ManifoldNLE
from mfsbi.plugin.ratio import ALICES, GoldenRatio
from mfsbi.plugin.sizes import size_of_spec
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow, Spec
from mfsbi.ratio import RatioModel
from mfsbi.simulations import Simulations
from mfsbi.train.record import History
from mfsbi.types import Prior
from mfsbi.warp import Warp

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

FIELDS = tuple(each.name for each in fields(Simulations))

WARP = "net.chart.warp.rate"
"""A tensor that is there where features of x are bent or shifted before they reach the chart."""

SLACK = 2
"""What a file describes may be so many times what it holds."""

UNREADABLE = KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError
"""What is raised where a description is not as `save` writes it."""


class Kind(NamedTuple):
    """How one kind of estimator is described and built again.

    Arguments:
        of: its class
        describe: what builds an estimator, for the description
        build: an estimator with other weights, from the path for messages, weights, description and the user's spec
        trainer: its trainer, untrained, from the estimator, the prior and further arguments
    """

    of: type
    describe: Callable[[Any], Description]
    build: Callable[[Path, dict[str, Tensor], Description, Spec | None], Estimator]
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
            tensors |= {f"{SIMULATIONS}{number}.{name}": value for name, value in part.batch.fields.items()}
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
        for number in about["rounds"]:
            require_kind("rounds", number, int, "whole numbers")
            require_whole("rounds", number)
        parts = _simulations(tensors, len(about["rounds"]))
        history = History.of_record(record)
        seed = about["seed"]
        require_kind("seed", seed, int, "a whole number")
        require_seed(seed)
    except UNREADABLE as error:
        raise ValueError(
            f"{path} should hold a trainer; it lacks {error}. For an estimator alone there is `load`."
        ) from error
    trainer = trainer_for(estimator, prior, seed=seed, device=device)
    try:
        for part, number in zip(parts, about["rounds"], strict=True):
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
    if kind not in list(KINDS):  # a list, for what cannot be hashed
        raise ValueError(f"{path} holds the kind {kind!r}; this version knows {sorted(KINDS)}.")
    training = description.get("training", {})
    if not isinstance(training, dict):
        raise ValueError(f"{path} should record its training as an object, not {training!r}.")  # noqa: TRY004
    weights = {name: value for name, value in tensors.items() if not name.startswith(SIMULATIONS)}
    dtype = next((value.dtype for value in weights.values() if value.is_floating_point()), torch.float32)
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{path} should hold weights of 16 to 64 bits; they are {dtype}. Save it again.")
    estimator = KINDS[kind].build(path, weights, description, spec).to(dtype)
    try:
        estimator.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit what it describes, {estimator!r}: {error}") from error
    estimator.training_record = training
    return estimator.eval()


def _require_held(path: Path, weights: dict[str, Tensor], what: str, asked: tuple[int, int]) -> None:
    """Raise ValueError if there are far fewer tensors and numbers in a file than what it describes has."""
    held = len(weights), sum(value.numel() for value in weights.values())
    for unit, wanted, there in zip(("tensors", "numbers"), asked, held, strict=True):
        if wanted > SLACK * there:
            raise ValueError(
                f"{path} describes {what} of at least {min(wanted, 10**15):,} {unit}; it holds {there:,}. "
                "Is it damaged? Take it from its source again."
            )


def _described_likelihood(estimator: ManifoldEstimator) -> Description:
    """Return the spec of an estimator, and what it is called with."""
    spec = estimator.spec
    if not isinstance(spec, Spec) or type(spec) not in SPECS.values():
        raise TypeError(f"The estimator should be built by one of {sorted(SPECS)}; it was by {type(spec).__name__}.")
    dims = {"data_dim": estimator.input_shape[0], "parameter_dim": estimator.condition_shape[0]}
    return {"spec": type(spec).__name__, "fields": _fields(spec)} | dims


def _built_likelihood(
    path: Path, weights: dict[str, Tensor], description: Description, spec: Spec | None
) -> ManifoldEstimator:
    """Return the estimator that the spec of a file, or the one given, builds."""
    if description.get("spec") not in list(SPECS):
        raise ValueError(f"{path} names the spec {description.get('spec')!r}; this version knows {sorted(SPECS)}.")
    if spec is None and description["spec"] == FOM.__name__:
        raise ValueError(
            f"{path} holds a `FOM`, whose functions are not in the file: pass `spec=FOM(decode, encode, ...)`."
        )
    written = description["spec"], description.get("fields")
    if spec is not None and (type(spec).__name__, _fields(spec)) != written:
        raise ValueError(f"{path} was written by {written[0]}({written[1]}), not by {spec!r}.")
    try:
        built = _spec(*written) if spec is None else spec
        dims = _dims(description)
        asked = size_of_spec(built, *dims)
    except UNREADABLE as error:
        raise ValueError(f"{path} describes its spec in a way this version does not know: {error}.") from error
    _require_held(path, weights, "an estimator", asked)
    try:
        with torch.random.fork_rng(devices=[]):  # first weights are drawn, then replaced
            estimator = built(*built.example(*dims))
    except UNREADABLE as error:
        raise ValueError(f"{path} describes what cannot be built: {error}") from error
    if WARP in weights:
        estimator.model.chart = Warped(estimator.model.chart, Warp(dims[1]))
    return estimator


def _dims(description: Description) -> tuple[int, int]:
    """Return the numbers of parameters and of features."""
    parameters, features = description["parameter_dim"], description["data_dim"]
    for number in (parameters, features):
        require_kind("the dimensions", number, int, "whole numbers")
    require_whole("parameter_dim", parameters)
    require_positive_integer("data_dim", features)
    return parameters, features


def _spec(name: str, described: Any) -> Spec:  # noqa: ANN401
    """Return the spec of a file."""
    values = {key: _field(value) for key, value in described.items()}
    _require_fields(SPECS[name], values)
    return SPECS[name](**values)


def _require_fields(kind: type, values: dict[str, Any]) -> None:
    """Raise unless values fit the fields of a dataclass, with all that have no default, and booleans are booleans."""
    wanted = {each.name: each.type for each in fields(kind)}
    needed = {each.name for each in fields(kind) if each.default is each.default_factory is MISSING}
    if not needed <= set(values) <= set(wanted):
        raise ValueError(f"`{kind.__name__}` should have the fields {sorted(wanted)}; it has {sorted(values)}")
    for name, value in values.items():
        if wanted[name] is bool:
            require_kind(name, value, bool, "true or false")


def _described_ratio(estimator: GoldenRatio) -> Description:
    """Return the size of an estimator's network."""
    model = estimator.model
    dims = {"data_dim": len(model.x_mean), "parameter_dim": len(model.theta_mean)}
    return {"fields": {"width": model.width, "depth": model.depth}} | dims


def _built_ratio(path: Path, weights: dict[str, Tensor], description: Description, spec: Spec | None) -> GoldenRatio:
    """Return an estimator with a network of the size that a file says."""
    if spec is not None:
        raise ValueError(f"{path} holds a ratio of `ALICES`, which no spec builds: leave `spec` out; got {spec!r}.")
    try:
        parameters, features = _dims(description)
        if set(description["fields"]) != {"width", "depth"}:
            raise ValueError(f"its fields should be width and depth, not {description['fields']}")
        for name, value in description["fields"].items():
            require_kind(name, value, int, "a whole number")
            require_positive_integer(name, value)
        width, depth = (description["fields"][name] for name in ("width", "depth"))
    except UNREADABLE as error:
        raise ValueError(f"{path} describes its ratio in a way this version does not know: {error}.") from error
    _require_held(path, weights, "a ratio", (2 * depth, width * (features + parameters) + (depth - 1) * width**2))
    x, theta = torch.ones(features), torch.ones(parameters)
    with torch.random.fork_rng(devices=[]):
        return GoldenRatio(RatioModel(x, x.clone(), theta, theta.clone(), width, depth))


def _trainer_of_ratio(estimator: GoldenRatio, prior: Prior | None, others: dict[str, Any]) -> ALICES:
    return ALICES(cast(Prior, prior), width=estimator.model.width, depth=estimator.model.depth, **others)


KINDS = {
    "likelihood": Kind(
        ManifoldEstimator,
        _described_likelihood,
        _built_likelihood,
        lambda estimator, prior, others: ManifoldNLE(prior, estimator.spec, **others),
    ),
    "ratio": Kind(GoldenRatio, _described_ratio, _built_ratio, _trainer_of_ratio),
}
"""What can be saved, by the word for it in a file."""


def _simulations(tensors: dict[str, Tensor], rounds: int) -> list[Simulations]:
    """Return one batch for each round; raise ValueError if there are tensors of simulations that are in none."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(rounds)]
    places = {f"{SIMULATIONS}{number}.{field}": (number, field) for number in range(rounds) for field in FIELDS}
    for name in (name for name in tensors if name.startswith(SIMULATIONS)):
        if name not in places:
            raise ValueError(f"a place for {name!r} among {rounds} rounds of {FIELDS}")
        number, field = places[name]
        parts[number][field] = tensors[name]
    return [Simulations(**part) for part in parts]


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
    settings = {name: each for name, each in value.items() if name != "kind"}
    _require_fields(COUPLINGS[value["kind"]], settings)
    return COUPLINGS[value["kind"]](**settings)
