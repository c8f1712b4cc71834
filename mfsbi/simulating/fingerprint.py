"""Whether a simulator, or a function of the user's, is still what it was: a hash of its source and of what it holds.

**What it sees.** The source text of functions, and of classes with their bases, comments included. The public
attributes of objects: numbers, words, arrays, tensors and networks, also within lists, tuples, sets, dictionaries and
other objects. What a method is bound to, what a `partial` passes on, and the variables of a closure. Code of the
user's own, neither installed nor part of Python, is followed to the functions and classes of the user's that it names,
and to variables of its modules: numbers, words, arrays, networks, and whatever has a NAME in capitals. Of such code it
also sees the defaults that functions compute, as in `noise=SIGMA`, the attributes of classes, wherever they were set,
and private attributes that constructors and setters alone assign (`mfsbi.simulating.assignments`). The hash is the same
in every process, in every version of Python, and whatever the simulator did before.

**What it does not see.** Attributes of classes and private attributes that other methods assign or change, variables
that a function assigns by `global`, and what is called a cache: they may change as the simulator works. Private
functions, files, locks and generators of random numbers. What installed libraries call, and the source of Python, torch
and numpy. Code without source, such as what was typed at Python's prompt or compiled. What a lambda names if it stands
within a longer expression. Files, environment variables, and whatever is looked up by a name made at run time. An
attribute `version` says what the hash cannot see: with another `version` a simulator counts as another one.
"""

import functools
import hashlib
import inspect
import json
import logging
import re
import symtable
import sys
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from textwrap import dedent
from types import MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.utils import lazy_property

from mfsbi.simulating.assignments import Assignments

__all__ = ["agree", "comparable", "fingerprint"]

SCHEME = "source-2:"
"""How hashes by these rules begin. Those of earlier rules have another scheme, or none before their 16 digits."""

HASH = re.compile(r"\b(source-\d+:)?[0-9a-f]{16}\b")

DEPTH = 5
"""How deep objects within objects are looked into."""

PLAIN = bool | int | float | complex | str | bytes | None
LASTING = PLAIN | tuple | np.ndarray | Tensor | nn.Module | functools.partial
STATE = LASTING | list | dict | set | frozenset | Distribution
"""What attributes of classes and private attributes may be that say what a simulator is."""

LAZY = functools.cached_property | lazy_property
"""Attributes that are filled when they are first used."""

LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
NOT_FOLLOWED = LIBRARIES | {"mfsbi", "simulators"}
"""The last two should be the same in a folder of their own and among installed libraries."""


def fingerprint(thing: object) -> str:
    """Return a hash of the source of a function, or of an object's class, and of what it holds."""
    reading = _Reading()
    told = "\n".join([reading.text(thing), *reading.followed()])
    return SCHEME + hashlib.sha256(told.encode()).hexdigest()[:16]


def comparable(one: str, other: str) -> bool:
    """Return whether two texts hold fingerprints by the same rules; otherwise it says nothing that they differ."""
    return one.count(SCHEME) == other.count(SCHEME)


def agree(one: object, other: object) -> bool | None:
    """Return whether two values, as JSON has them, are the same; None if fingerprints by other rules hide that."""
    texts = [json.dumps(value, sort_keys=True) for value in (one, other)]
    if comparable(*texts):
        return one == other
    rest, others = (HASH.sub("", text) for text in texts)
    return None if rest == others else False


class _Reading:
    """What is found on the way from one object to all that it holds and names."""

    def __init__(self) -> None:
        self.met: dict[int, object] = {}
        self.sources: dict[int, str] = {}
        self.variables: dict[tuple[str, int], object] = {}
        self.assigned: set[str] = set()
        self.assignments = Assignments()

    def text(self, thing: object, depth: int = DEPTH) -> str:
        """Return what an object is and holds, or the name alone of one that was met before."""
        if isinstance(thing, PLAIN):
            return repr(thing)
        if isinstance(thing, Tensor) or (isinstance(thing, np.ndarray) and not thing.dtype.hasobject):
            return _numbers(thing)
        if depth == 0 or id(thing) in self.met or isinstance(thing, ModuleType | logging.Logger):
            return _name(thing)
        self.met[id(thing)] = thing
        self.read(thing)
        own = _is_own(type(thing)) and not isinstance(thing, Enum)
        private = self.assignments.settled if own else set()
        held = [f"{self.text(key, depth - 1)}: {self.text(value, depth - 1)}" for key, value in _held(thing, private)]
        told = held or (own and object.__getstate__(thing))
        alone = "" if told else re.sub(r" at 0x\w+", "", repr(thing))
        return f"{_name(thing)}({alone}{', '.join(sorted(held))})"

    def read(self, thing: object) -> None:
        """Take the source of a function, or of a class and its bases, and what it names."""
        kind = thing if isinstance(thing, type) else type(thing)
        codes = [thing] if inspect.isroutine(thing) else kind.__mro__
        new = [code for code in codes if id(code) not in self.sources and _package(code) not in LIBRARIES]
        sources = [_source(code) for code in new]
        for code, source in zip(new, sources, strict=True):
            self.sources[id(code)] = f"{_name(code)}\n{source}"
            self.assignments.read(source, getattr(code, "__name__", ""))
        for code, source in zip(new, sources, strict=True):
            if _is_own(code):
                self.follow(code, source)
                self.hold(code)

    def follow(self, code: object, source: str) -> None:
        """Take what the user's own source names in its module."""
        try:
            symbols = list(_symbols(symtable.symtable(source, "source", "exec")))
        except SyntaxError:  # a lambda within an expression
            return
        module, closure = _module(code), getattr(getattr(code, "__code__", None), "co_freevars", ())
        self.assigned |= {f"{module}.{s.get_name()}" for s in symbols if s.is_declared_global() and s.is_assigned()}
        for name in sorted({s.get_name() for s in symbols if s.is_global() and s.is_referenced()} - {*closure}):
            self.name(sys.modules[module], name, source)

    def hold(self, code: object) -> None:
        """Take the defaults that the user's own functions compute, and the attributes of the user's own classes."""
        settled, changed = self.assignments.settled, self.assignments.changed
        for name, member in vars(code).items() if isinstance(code, type) else [("", code)]:
            function, public = _function(member), not name.startswith("_")
            if inspect.isfunction(function):
                for argument, value in self.computed_defaults(function):
                    self.variables[f"{_name(function)}({argument})", id(function)] = value
            elif (name in settled or (public and name not in changed)) and _is_lasting(name) and _is_state(member):
                self.variables[f"{_name(code)}.{name}", id(code)] = member

    def computed_defaults(self, function: Callable) -> Iterator[tuple[str, object]]:
        """Yield the arguments of a function whose defaults its source does not tell, with these."""
        for each in inspect.signature(function).parameters.values():
            known = (function.__name__, each.name) not in self.assignments.computed and function.__name__ != "<lambda>"
            if each.default is not each.empty and not known:
                yield each.name, each.default

    def name(self, module: ModuleType, name: str, source: str) -> None:
        """Take what a module has by a name, if it is the user's; of a further module, what the source says after it."""
        value = getattr(module, name, ...)
        if isinstance(value, type | ModuleType) or inspect.isroutine(value):
            if _is_own(value) and isinstance(value, ModuleType):
                for attribute in sorted(set(re.findall(rf"\b{name}\.(\w+)", source))):
                    self.name(value, attribute, source)
            elif _is_own(value):
                self.read(value)
        elif _is_lasting(name) and (isinstance(value, LASTING) or name.isupper()):
            self.variables[f"{module.__name__}.{name}", 0] = value

    def followed(self) -> list[str]:
        """Return the sources, and the values of variables, whose own code may name more of them."""
        told: dict[tuple[str, int], str] = {}
        while waiting := sorted(key for key in self.variables.keys() - told.keys() if key[0] not in self.assigned):
            told |= {key: f"{key[0]} = {self.text(self.variables[key])}" for key in waiting}
        return sorted([*self.sources.values(), *(text for key, text in told.items() if key[0] not in self.assigned)])


def _held(thing: object, private: set[str]) -> Iterable[tuple[object, object]]:
    """Return what an object holds, each by its place or its name: members, weights, attributes.

    Private attributes are among them if they have one of the given names.
    """
    match thing:
        case dict():
            return thing.items()
        case list() | tuple() | np.ndarray():
            return enumerate(thing)
        case set() | frozenset():
            return [(each, None) for each in thing]
        case functools.partial():
            return enumerate([thing.func, thing.args, thing.keywords])
        case MethodType():
            return enumerate([thing.__func__, thing.__self__])
    state: Any = None if isinstance(thing, type) else object.__getstate__(thing)
    parts = state if isinstance(state, tuple) else [state]  # two where there are slots
    every = {name: value for part in parts if part for name, value in part.items()}
    held = {name: value for name, value in every.items() if name[0] != "_" or (name in private and _is_state(value))}
    held |= inspect.getclosurevars(thing).nonlocals if inspect.isfunction(thing) else {}
    held |= {**dict(thing.named_children()), **thing.state_dict()} if isinstance(thing, nn.Module) else {}
    kind = type(thing)
    return [
        each for each in held.items() if _is_lasting(each[0]) and not isinstance(getattr(kind, each[0], None), LAZY)
    ]


def _numbers(thing: Tensor | NDArray) -> str:
    """Return type, shape and a hash of the numbers of an array."""
    if isinstance(thing, Tensor):
        dense = thing.detach().cpu().to_dense().resolve_conj()
        thing = (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    return f"{thing.dtype} {thing.shape} {hashlib.sha256(np.ascontiguousarray(thing).tobytes()).hexdigest()}"


def _source(code: object) -> str:
    """Return the source of a function or class, of a class of a notebook that of its members, or nothing."""
    try:
        return dedent(inspect.getsource(code))  # type: ignore[arg-type]
    except (OSError, TypeError):
        members = vars(code).items() if isinstance(code, type) else ()
        parts = ((name, _function(each)) for name, each in members)
        return "".join(f"{name} = {part!r}\n" if isinstance(part, PLAIN) else _source(part) for name, part in parts)


def _function(member: object) -> object:
    """Return the function behind a property, a method of the class or a decorator; anything else as it is."""
    wrapped = (getattr(member, name, None) for name in ("fget", "func", "__func__"))
    return inspect.unwrap(next((each for each in wrapped if callable(each)), cast(Callable, member)))


def _symbols(table: symtable.SymbolTable) -> Iterator[symtable.Symbol]:
    """Yield the symbols of source and of all functions in it."""
    yield from table.get_symbols()
    for inner in table.get_children():
        yield from _symbols(inner)


def _is_lasting(name: str) -> bool:
    return "cache" not in name.lower()


def _is_state(value: object) -> bool:
    return isinstance(value, STATE) or _is_own(type(value))


def _package(thing: object) -> str:
    return _module(thing).partition(".")[0]


def _module(thing: object) -> str:
    return thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None) or "builtins"


def _is_own(thing: object) -> bool:
    """Return whether something is of a module of the user's, neither installed nor part of Python."""
    name = _module(thing)
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    ours = file.endswith(".py") and "site-packages" not in file and "dist-packages" not in file
    return name == "__main__" or (ours and name.partition(".")[0] not in NOT_FOLLOWED)


def _name(thing: object) -> str:
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{_module(thing)}.{getattr(kind, '__qualname__', '')}"
