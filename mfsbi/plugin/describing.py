"""What builds an estimator, in a file and back, without pickle and without code.

A spec is described by its name and its fields. A part of it, a kind of flow or of chart, is an object with its name as
`kind` beside its fields; a tuple is a list. Functions are in no file: a `FOM` is loaded with `spec=FOM(...)`.

**Names.** A name is looked up among the parts of this library, then among those that the caller hands over
(`load(path, parts=[MyChart])`), then among the entry points that installed packages register for it in the group
`mfsbi.parts`, such as `MyChart = "package.module:MyChart"`. No other name is imported.

**Sizes.** A file may claim what it does not hold. So no whole number in a description may exceed the numbers in the
file, and an estimator is built twice: first on torch's meta device, where tensors have shapes and no memory, while its
tensors and their numbers are counted and stopped at twice what the file holds; then in earnest. For that, the `build`
of a part must not ask for values of tensors it has just made.
"""

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from mfsbi import files
from mfsbi.charts import Ambient, Autoencoder, ChartConfig, CutFlow, WithEncoder
from mfsbi.checks import require_kind, require_positive_integer, require_whole
from mfsbi.flows import (
    AffineCouplings,
    AutoregressiveMixtures,
    AutoregressiveSplines,
    FlowConfig,
    SplineCouplings,
    Stacked,
)
from mfsbi.plugin.estimator import ManifoldEstimator
from mfsbi.plugin.ratio import GoldenRatio
from mfsbi.plugin.spec import Shape, Spec
from mfsbi.plugin.specs import AF, FOM, PAE, PIE, MeFlow, MFlow
from mfsbi.ratio import RatioModel

__all__ = ["GROUP", "KINDS", "SPECS", "UNREADABLE", "Estimator", "Part", "Source", "describe", "require_parts"]

Config: TypeAlias = FlowConfig | ChartConfig
Description: TypeAlias = dict[str, Any]
Estimator: TypeAlias = ManifoldEstimator | GoldenRatio
Part: TypeAlias = type[FlowConfig] | type[ChartConfig]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
PartT = TypeVar("PartT")

SPECS: dict[str, type[Spec]] = {spec.__name__: spec for spec in (AF, FOM, PIE, MFlow, MeFlow, PAE)}
FLOWS = AffineCouplings, AutoregressiveMixtures, AutoregressiveSplines, SplineCouplings, Stacked
OURS: dict[str, Part] = {part.__name__: part for part in (*FLOWS, CutFlow, WithEncoder, Autoencoder, Ambient)}
GROUP = "mfsbi.parts"
"""Entry points of this group are parts of other packages, by the names of their classes."""

WARP = "net.chart.warp.rate"
"""A tensor that is there where features of x are bent or shifted before they reach the chart."""

SLACK, FEW = 2, 2**16
"""What a file describes may be so many times what it holds; whole numbers up to the second are never too large."""

UNREADABLE = LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError
"""What is raised where a description is not as `save` writes it."""


class Source(NamedTuple):
    """A file that was read, and what the caller brings along.

    Arguments:
        path: for messages
        weights: the tensors of the estimator
        description: what the file says
        spec: the caller's; needed for functions
        parts: the caller's, by name
    """

    path: Path
    weights: dict[str, Tensor]
    description: Description
    spec: Spec | None
    parts: dict[str, Part]


def describe(estimator: object) -> Description:
    """Return what builds an estimator: its kind and dimensions, and the spec of a likelihood or the size of a ratio.

    Raises:
        TypeError: if it is no estimator of ours, was not built by one of our specs, or a part cannot be read back
    """
    if isinstance(estimator, ManifoldEstimator):
        return _likelihood(estimator) | {"kind": "likelihood"}
    if isinstance(estimator, GoldenRatio):
        model = estimator.model
        dims = {"data_dim": len(model.x_mean), "parameter_dim": len(model.theta_mean)}
        return {"fields": {"width": model.width, "depth": model.depth}} | dims | {"kind": "ratio"}
    raise TypeError(f"Only estimators and trainers of mfsbi can be saved; got {type(estimator).__name__}.")


def _likelihood(estimator: ManifoldEstimator) -> Description:
    """Return the spec of an estimator, and what it is called with."""
    spec = estimator.spec
    if not isinstance(spec, Spec) or type(spec) not in SPECS.values():
        raise TypeError(f"The estimator should be built by one of {sorted(SPECS)}; it was by {type(spec).__name__}.")
    dims = {"data_dim": estimator.input_shape[0], "parameter_dim": estimator.condition_shape[0]}
    described = {"spec": type(spec).__name__, "fields": _fields(spec)} | dims
    own, weights = _own(spec), estimator.state_dict()
    if own:
        try:
            read = json.loads(json.dumps(described, default=files.plain))
            given = spec if isinstance(spec, FOM) else None
            again = _likelihood_of(Source(Path("It"), weights, read, given, require_parts(own)))
            if again.spec != spec:
                raise ValueError(f"{read['fields']} reads back otherwise")
            if _shapes(again.state_dict()) != _shapes(weights):
                raise ValueError("built again it has other tensors; `build` should fix their number and shapes")
        except UNREADABLE as error:
            raise TypeError(f"{spec!r} has a part that no file can hold (see `FlowConfig`): {error}") from error
    return described


def _shapes(weights: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in weights.items()}


def _likelihood_of(source: Source) -> ManifoldEstimator:
    """Return the estimator, with other weights, that the spec of a file or the one given builds."""
    path, description, spec = source.path, source.description, source.spec
    if description.get("spec") not in list(SPECS):
        raise ValueError(f"{path} names the spec {description.get('spec')!r}; this version knows {sorted(SPECS)}.")
    if spec is None and description["spec"] == FOM.__name__:
        raise ValueError(
            f"{path} holds a `FOM`, whose functions are not in the file: pass `spec=FOM(decode, encode, ...)`."
        )
    written = description["spec"], description.get("fields", {})
    if spec is not None and (type(spec).__name__, _fields(spec)) != written:
        raise ValueError(f"{path} was written by {written[0]}({written[1]}), not by {spec!r}.")
    parts = _known(source)
    try:
        require_kind("fields", written[1], dict, "an object")
        made = _made(SPECS[written[0]], written[1], parts) if spec is None else spec
        shape = _shape(source.weights, *_dims(description))
    except UNREADABLE as error:
        raise ValueError(f"{path} describes its spec in a way this version does not know: {error}.") from error
    return _built(source, "an estimator", lambda: ManifoldEstimator(made.suited(shape.features).outline(shape), made))


def _shape(weights: dict[str, Tensor], parameters: int, features: int) -> Shape:
    """Return the shape of the model whose weights these are."""
    warped = WARP in weights
    axes, n = weights.get("net.chart.chart.axes" if warped else "net.chart.axes"), len(weights["net.latent.u_mean"])
    return Shape(parameters, features, n, None if axes is None else axes.shape[1], warped)


def _ratio_of(source: Source) -> GoldenRatio:
    """Return an estimator, with other weights, that has a network of the size that a file says."""
    path, description = source.path, source.description
    if source.spec is not None:
        raise ValueError(
            f"{path} holds a ratio of `ALICES`, which no spec builds: leave `spec` out; got {source.spec!r}."
        )
    try:
        size, (parameters, features) = description["fields"], _dims(description)
        if set(size) != {"width", "depth"}:
            raise ValueError(f"its fields should be width and depth, not {size}")
        for name, value in size.items():
            require_kind(name, value, int, "a whole number")
            require_positive_integer(name, value)
    except UNREADABLE as error:
        raise ValueError(f"{path} describes its ratio in a way this version does not know: {error}.") from error

    def make() -> GoldenRatio:
        x_scale, theta_scale = ((torch.zeros(number), torch.ones(number)) for number in (features, parameters))
        return GoldenRatio(RatioModel(*x_scale, *theta_scale, **size))

    return _built(source, "a ratio", make)


KINDS: dict[str, Callable[[Source], Estimator]] = {"likelihood": _likelihood_of, "ratio": _ratio_of}
"""What makes an estimator with other weights from a file, by the word for its kind there; raises ValueError if the file
describes nothing that can be built, or if the caller's spec is not the file's."""


def _built(source: Source, what: str, make: Callable[[], ModuleT]) -> ModuleT:
    """Return what is made, or raise ValueError before much is allocated if it is larger than the file."""
    held = len(source.weights), sum(value.numel() for value in source.weights.values())
    for number in _inside([source.description.get(name) for name in ("data_dim", "parameter_dim", "fields")], OURS):
        if isinstance(number, int) and number > max(held[1], FEW):
            raise ValueError(
                f"{source.path} describes {what} with a size of {min(number, 10**15):,}; it holds {held[1]:,} numbers. "
                "Is it damaged? Take it from its source again."
            )
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn, then replaced
            with torch.device("meta"), _at_most(*(SLACK * number for number in held)):
                make()
            return make()
    except Exception as error:  # a part of one's own may fail in any way
        raise ValueError(f"{source.path} describes {what} that cannot be built: {error}. Is it damaged?") from error


@contextmanager
def _at_most(tensors: int, numbers: int) -> Iterator[None]:
    """Raise ValueError as soon as modules that this thread makes have more tensors, or more numbers in them."""
    thread, seen = threading.get_ident(), [0, 0]

    def count(_module: nn.Module, _name: str, value: Tensor | None) -> None:
        if value is not None and threading.get_ident() == thread:
            seen[0], seen[1] = seen[0] + 1, seen[1] + value.numel()
            if seen[0] > tensors or seen[1] > numbers:
                raise ValueError(
                    f"it has more than {tensors:,} tensors or {numbers:,} numbers, {SLACK} times the file's"
                )

    parameters = module.register_module_parameter_registration_hook(count)
    with parameters, module.register_module_buffer_registration_hook(count):
        yield


def _inside(value: object, kinds: Iterable[str] | None = None) -> Iterator[object]:
    """Yield everything in what JSON holds, however deep; if kinds are given, nothing in parts of other kinds."""
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, dict) and (kinds is None or each.get("kind", None) in (None, *kinds)):
            left.extend(each.values())
        left.extend(each if isinstance(each, list) else ())
        yield each


def _dims(description: Description) -> tuple[int, int]:
    """Return the numbers of parameters and of features."""
    parameters, features = description["parameter_dim"], description["data_dim"]
    for number in (parameters, features):
        require_kind("the dimensions", number, int, "whole numbers")
    require_whole("parameter_dim", parameters)
    require_positive_integer("data_dim", features)
    return parameters, features


def _known(source: Source) -> dict[str, Part]:
    """Return the parts that a file may name, by name: ours, the caller's, and installed ones that it does name.

    Raises:
        ValueError: if it names others
    """
    known = OURS | require_parts(_own(source.spec)) | source.parts
    for each in _inside(source.description.get("fields")):
        name = each.get("kind") if isinstance(each, dict) else None
        if isinstance(name, str) and name not in known:
            entries = list(entry_points(group=GROUP, name=name))
            if not entries:
                raise ValueError(
                    f"{source.path} names the part {name!r}, which is not known here. If it is yours, pass "
                    f"`parts=[{name}]`; if a package has it, install one that registers it in the group {GROUP!r}."
                )
            try:
                known |= require_parts([entries[0].load()])
            except Exception as error:  # the code of another package
                raise ValueError(
                    f"{source.path} names the part {name!r}, which {entries[0].value!r} should be; that failed: {error}"
                ) from error
    return known


def require_parts(parts: Iterable[object]) -> dict[str, Part]:
    """Return kinds of flows and charts by name.

    Raises:
        TypeError: if one is no dataclass that is a `FlowConfig` or a `ChartConfig`
        ValueError: if one has the name of ours
    """
    named: dict[str, Part] = {}
    for part in parts:
        if not (isinstance(part, type) and issubclass(part, Config) and is_dataclass(part)):
            raise TypeError(f"`parts` should be dataclasses, each a `FlowConfig` or a `ChartConfig`; got {part!r}.")
        if OURS.get(part.__name__, part) is not part:
            raise ValueError(f"`parts` should have names of their own; there is another {part.__name__} in mfsbi.")
        named[part.__name__] = part
    return named


def _own(value: object) -> set[Part]:
    """Return the kinds of the parts of a spec, a part or a tuple that are not ours."""
    inside = value if isinstance(value, tuple) else ()
    if isinstance(value, Spec | Config):
        inside = tuple(getattr(value, each.name) for each in fields(value))  # type: ignore[arg-type]  # dataclasses
    own = {type(value)} if isinstance(value, Config) and type(value) not in OURS.values() else set()
    return own.union(*map(_own, inside))


def _made(kind: type[PartT], described: Description, parts: dict[str, Part]) -> PartT:
    """Return a spec or a part of this kind from its description; raise TypeError unless it fits the kind's fields."""
    values = {name: _value(value, parts) for name, value in described.items()}
    made = kind(**values)
    for each in fields(made):  # type: ignore[arg-type]  # a dataclass
        if each.type is bool:
            require_kind(each.name, getattr(made, each.name), bool, "true or false")
    return made


def _value(value: object, parts: dict[str, Part]) -> object:
    """Return a field from JSON: a part from an object, a tuple from a list."""
    if isinstance(value, list):
        return tuple(_value(each, parts) for each in value)
    if not isinstance(value, dict):
        return value
    return _made(parts[value["kind"]], {name: each for name, each in value.items() if name != "kind"}, parts)


def _fields(spec: Spec) -> dict[str, Any]:
    """Return what a spec holds besides functions, as JSON has it."""
    held = vars(spec).items()
    return {name: _plain(each) for name, each in held if isinstance(each, Config) or not callable(each)}


def _plain(value: object) -> object:
    """Return a field as JSON has it: a part by name and fields, a tuple as a list, all others as they are."""
    if isinstance(value, Config):
        own = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}  # type: ignore[arg-type]
        return {"kind": type(value).__name__, **own}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
