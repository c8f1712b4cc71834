"""Whether a simulator is still what it was: a hash of its code and of what it holds, the same in every process.

Code is followed as far as it is the user's own: from an object to its classes, from a method or function to the
functions, classes and constants of modules that it names. Constants are numbers, words, tuples of them, arrays and
networks that no function assigns, and whatever else has a NAME in capitals. Of an object it is the public attributes,
and private ones that are numbers or words; others, and what is called a cache, may be filled as it works. Installed
libraries are not followed: of them it is the source of classes and functions that are met, of Python's own, torch and
numpy their names. What is read from files or called by a name made at run time is not seen: a simulator can say by an
attribute `version` that it has changed.
"""

import dis
import functools
import hashlib
import inspect
import logging
import sys
from collections.abc import Iterator
from types import CodeType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["fingerprint"]

DEPTH = 5
"""How deep objects within objects are looked into."""

PLAIN = bool | int | float | complex | str | bytes | None
CONTAINERS = list | tuple | set | frozenset | dict | np.ndarray | functools.partial
LAZY = functools.cached_property
LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
NOT_FOLLOWED = {"mfsbi", "simulators"}
"""They may lie in a folder of their own or among installed libraries, and should be the same in either place."""


def fingerprint(thing: Any) -> str:  # noqa: ANN401
    """Return a hash of the code and the attributes of an object, or of a function and what it uses.

    Of a function it is also what it holds: the object of a method, the arguments of a `partial`, the variables of a
    closure, the defaults of its arguments.
    """
    return _Fingerprint().of(thing)


class _Fingerprint:
    """A hash in the making; what was met is told once, and code that is met waits for its turn."""

    def __init__(self) -> None:
        self.met: dict[int, Any] = {}
        self.waiting: list[Any] = []
        self.assigned: dict[int, set[str]] = {}

    def of(self, thing: Any) -> str:  # noqa: ANN401
        digest = hashlib.sha256()
        parts = list(self.parts(thing, DEPTH))
        while self.waiting:
            parts += self.code(self.waiting.pop(0))
        for part in parts:
            digest.update(f"{len(part)} {part}".encode())
        return digest.hexdigest()[:16]

    def parts(self, thing: Any, depth: int) -> Iterator[str]:  # noqa: ANN401
        """Yield texts that together tell what an object does."""
        if isinstance(thing, PLAIN):
            yield repr(thing)
        elif isinstance(thing, ModuleType | logging.Logger):
            yield thing.__name__ if isinstance(thing, ModuleType) else "logger"
        elif isinstance(thing, Tensor) or (isinstance(thing, np.ndarray) and thing.dtype.kind != "O"):
            yield from _numbers(thing)
        elif id(thing) in self.met:
            yield "again"
        elif depth == 0:
            yield _name(type(thing))
        else:
            self.met[id(thing)] = thing
            yield from self.inside(thing, depth - 1)

    def inside(self, thing: Any, depth: int) -> Iterator[str]:  # noqa: ANN401
        """Yield what a container, a function or another object is, and holds."""
        if inspect.ismethod(thing):
            members: list[Any] = [thing.__func__, thing.__self__]
        elif inspect.isroutine(thing) or isinstance(thing, type):
            self.waiting.append(thing)
            members = [_name(thing), _held_by_function(thing)]
        elif isinstance(thing, CONTAINERS):
            members = _members(thing, depth)
        else:
            self.waiting += [kind for kind in type(thing).__mro__[:-1] if id(kind) not in self.met]
            self.met |= {id(kind): kind for kind in type(thing).__mro__}
            attributes, told = _attributes(thing), repr(thing)
            members = [_name(type(thing)), *_members(attributes, depth)]
            members += [] if attributes or " at 0x" in told else [told]
        yield f"{len(members)} of"
        for member in members:
            yield from self.parts(member, depth)

    def code(self, thing: Any) -> Iterator[str]:  # noqa: ANN401
        """Yield the source of a class or function of the user's, and what is told of all that it names."""
        yield _name(thing)
        if not _is_library(thing):
            yield _source(thing)
        if not _is_followed(thing):
            return
        functions = [thing]
        if isinstance(thing, type):
            functions = [value for _, value in sorted(vars(thing).items()) if not isinstance(value, type)]
            constants = {name: value for name, value in vars(thing).items() if not name.startswith("__")}
            yield from self.parts({name: value for name, value in constants.items() if _is_constant(value)}, DEPTH)
        for function in [each for value in functions for each in _plain_functions(value)]:
            if isinstance(thing, type):
                yield from self.parts(_held_by_function(function), DEPTH)
            for name, value in self.named(function):
                yield name
                yield from self.parts(value, DEPTH)

    def named(self, function: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
        """Yield what a function of the user's names, of its own module and of the user's others, in a fixed order."""
        if not _is_followed(function):
            return
        scope, attributes = function.__globals__, _names(function.__code__)
        names = _global_names(function.__code__) - self.assigned_in(scope)
        found = {name: scope[name] for name in names if name in scope}
        modules = [(name, value) for name, value in found.items() if isinstance(value, ModuleType)]
        while modules:
            word, module = modules.pop()
            if _is_own(module.__name__) and word.count(".") < DEPTH:
                inner = {f"{word}.{name}": getattr(module, name) for name in attributes if hasattr(module, name)}
                found |= inner
                modules += [(name, value) for name, value in inner.items() if isinstance(value, ModuleType)]
        for name, value in sorted(found.items(), key=lambda pair: pair[0]):
            if _tells(name, value):
                yield name, value

    def assigned_in(self, scope: dict[str, Any]) -> set[str]:
        """Return the variables of a module that its functions assign."""
        if id(scope) not in self.assigned:
            own = [value for value in scope.values() if _module_of(value) == scope.get("__name__")]
            members = [each for value in own for each in (vars(value).values() if isinstance(value, type) else [value])]
            functions = [function for member in members for function in _plain_functions(member)]
            self.assigned[id(scope)] = {name for function in functions for name in _assigned(function.__code__)}
        return self.assigned[id(scope)]


def _members(thing: Any, depth: int) -> list[Any]:  # noqa: ANN401
    """Return the members of a container in an order that is the same in every process."""
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, set | frozenset):
        return sorted(_text(each, depth) for each in thing)
    if isinstance(thing, dict):
        pairs = sorted(((_text(key, depth), value) for key, value in thing.items()), key=lambda pair: pair[0])
        return [each for pair in pairs for each in pair]
    return [type(thing).__name__, *thing]


def _text(thing: Any, depth: int) -> str:  # noqa: ANN401
    return " ".join(_Fingerprint().parts(thing, depth))


def _numbers(thing: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield type, shape and a hash of the numbers of an array."""
    if isinstance(thing, Tensor):
        dense = thing.detach().cpu().to_dense()
        thing = (dense.float() if dense.dtype == torch.bfloat16 else dense).resolve_conj().numpy()
    array = np.ascontiguousarray(thing)
    yield from (str(array.dtype), str(array.shape), hashlib.sha256(array.tobytes()).hexdigest())


def _held_by_function(thing: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the variables of a closure and the defaults of arguments."""
    if not inspect.isfunction(thing):
        return {}
    held: dict[str, Any] = {"defaults": thing.__defaults__, "keywords": thing.__kwdefaults__}
    for name, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
        try:
            held[name] = None if name == "__class__" else cell.cell_contents
        except ValueError:  # nothing is in it yet
            held[name] = None
    return held


def _attributes(thing: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what an object holds, by name, but for caches and what torch keeps for itself."""
    slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
    held = {name: getattr(thing, name) for name in slots if isinstance(name, str) and hasattr(thing, name)}
    held |= getattr(thing, "__dict__", {})
    lazy = {name for kind in type(thing).__mro__ for name, v in vars(kind).items() if isinstance(v, LAZY)}
    weights = thing.state_dict() if isinstance(thing, nn.Module) else {}
    children = dict(thing.named_children()) if isinstance(thing, nn.Module) else {}
    own = {name: value for name, value in held.items() if name not in lazy and _is_lasting(thing, name, value)}
    return {**own, **children, **weights}


def _is_lasting(thing: Any, name: str, value: Any) -> bool:  # noqa: ANN401
    """Whether an attribute is part of what an object does, and not filled as it works."""
    if "cache" in name.lower() or name.startswith("__"):
        return False
    private = name.startswith("_")
    return not private or (_is_constant(value) and value is not None and not _is_library(type(thing)))


def _is_constant(value: Any) -> bool:  # noqa: ANN401
    """Whether a value is a number or a word, or a tuple of them."""
    return isinstance(value, PLAIN) or (isinstance(value, tuple) and all(map(_is_constant, value)))


def _plain_functions(thing: Any) -> Iterator[Any]:  # noqa: ANN401
    """Yield the functions that a function, method, property or decorated function is made of."""
    parts = [getattr(thing, name, None) for name in ("__func__", "fget", "fset", "func", "__wrapped__")]
    if inspect.isfunction(thing):
        yield thing
    for part in parts:
        if part is not None and part is not thing and not isinstance(thing, type):
            yield from _plain_functions(part)


def _tells(name: str, value: Any) -> bool:  # noqa: ANN401
    """Whether a variable of a module is part of what its functions do."""
    name = name.rpartition(".")[2]
    if isinstance(value, functools.partial):
        return True
    if inspect.isroutine(value) or isinstance(value, type):
        return _is_followed(value)
    if "cache" in name.lower() or isinstance(value, ModuleType):
        return False
    array = isinstance(value, Tensor | nn.Module | np.ndarray)
    return _is_constant(value) or ((array or name.isupper()) and not name.startswith("_"))


def _codes(code: CodeType) -> Iterator[CodeType]:
    """Yield code and the code within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _names(code: CodeType) -> set[str]:
    return {name for each in _codes(code) for name in each.co_names}


def _global_names(code: CodeType) -> set[str]:
    """Return the names of variables of its module that code reads."""
    reads = ("LOAD_GLOBAL", "LOAD_NAME")
    return {str(step.argval) for each in _codes(code) for step in dis.get_instructions(each) if step.opname in reads}


def _assigned(code: CodeType) -> set[str]:
    """Return the variables of its module that code assigns."""
    return {str(s.argval) for each in _codes(code) for s in dis.get_instructions(each) if s.opname == "STORE_GLOBAL"}


def _module_of(thing: Any) -> str:  # noqa: ANN401
    return getattr(thing, "__module__", None) or ""


def _is_library(thing: Any) -> bool:  # noqa: ANN401
    return _module_of(thing).partition(".")[0] in LIBRARIES | {""}


def _is_followed(thing: Any) -> bool:  # noqa: ANN401
    return _is_own(_module_of(thing))


def _is_own(module: str) -> bool:
    """Whether a module is the user's, not an installed library."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    installed = "site-packages" in file or "dist-packages" in file
    known = module.partition(".")[0] in LIBRARIES | NOT_FOLLOWED
    return module == "__main__" or (file.endswith((".py", ".ipynb")) and not installed and not known)


def _name(thing: Any) -> str:  # noqa: ANN401
    return f"{_module_of(thing)}.{getattr(thing, '__qualname__', type(thing).__qualname__)}"


def _source(thing: Any) -> str:  # noqa: ANN401
    """Return the source of a class or function, the code of functions where there is none, or else nothing."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        values = vars(thing).values() if isinstance(thing, type) else [thing]
        functions = [each for value in values for each in _plain_functions(value)]
        return " ".join(_source_or_code(function) for function in functions)


def _source_or_code(function: Any) -> str:  # noqa: ANN401
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        codes = list(_codes(function.__code__))
        return " ".join(f"{c.co_code.hex()} {c.co_names} {[k for k in c.co_consts if _is_constant(k)]}" for c in codes)
