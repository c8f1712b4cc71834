"""Whether a simulator is still what it was: a hash of its code and of what it holds, the same in every process.

Code is followed as far as it is the user's own: from an object to its classes, from a method or function to the
functions, classes and constants of modules that it names. Constants are numbers, words, tuples, arrays, networks, and
whatever has a NAME in capitals; other variables of a module may be caches. Of an installed library it is the source of
classes and functions that are met, and of Python's own, torch and numpy their names. What is read from files or called
by a name made at run time is not seen: a simulator can say by an attribute `version` that it has changed.
"""

import hashlib
import inspect
import sys
from collections.abc import Iterator
from functools import partial
from types import CodeType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["fingerprint"]

DEPTH = 4
"""How deep objects within objects are looked into."""

PLAIN = bool | int | float | complex | str | bytes | None
CONSTANT = bool | int | float | complex | str | bytes | tuple | frozenset | Tensor | np.ndarray | nn.Module | None
LIBRARIES = {"torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
NOT_FOLLOWED = {"mfsbi", "simulators"}
"""They may lie in a folder of their own or among installed libraries, and should be the same in either place."""


def fingerprint(thing: Any) -> str:  # noqa: ANN401
    """Return a hash of the code and the attributes of an object, or of a function and what it uses.

    Attributes whose name begins with `__` or has "cache" in it are left out. Of a function it is also what it holds:
    the object of a method, the arguments of a `partial`, the variables of a closure.
    """
    digest = hashlib.sha256("\n".join(_parts(thing, DEPTH, {})).encode())
    return digest.hexdigest()[:16]


def _parts(thing: Any, depth: int, met: dict[int, Any]) -> Iterator[str]:  # noqa: ANN401
    """Yield texts that together tell what an object does; `met` are the functions and classes that were told."""
    if isinstance(thing, PLAIN):
        yield repr(thing)
        return
    if isinstance(thing, Tensor | np.ndarray):
        array = np.ascontiguousarray(thing.detach().cpu().numpy() if isinstance(thing, Tensor) else thing)
        yield from (str(array.dtype), str(array.shape), hashlib.sha256(array.tobytes()).hexdigest())
        return
    if inspect.isroutine(thing) or isinstance(thing, type):
        yield from _code(thing, depth, met)
    else:
        for kind in type(thing).__mro__[:-1]:
            yield from _code(kind, depth, met)
        if " at 0x" not in repr(thing) and not _holds_set(thing, depth):
            yield repr(thing)
    for name, value in (_inside(thing) if depth > 0 else {}).items():
        yield name
        yield from _parts(value, depth - 1, met)


def _code(thing: Any, depth: int, met: dict[int, Any]) -> Iterator[str]:  # noqa: ANN401
    """Yield the source of a class or function, and what is told of all that it names."""
    yield _source(thing)
    if id(thing) in met:
        return
    met[id(thing)] = thing
    functions = vars(thing).values() if isinstance(thing, type) else [thing]
    for function in functions:
        for name, value in _named(function):
            yield name
            yield from _parts(value, depth, met)


def _named(thing: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401
    """Yield what a function of the user's names, of its own module and of others of the user's, in a fixed order."""
    for accessor in (thing.fget, thing.fset) if isinstance(thing, property) else (thing,):
        held: Any = getattr(accessor, "__func__", accessor)
        function = inspect.unwrap(held)
        if not inspect.isfunction(function) or not _is_own(function.__module__):
            continue
        names, scope = sorted(_names(function.__code__)), function.__globals__
        found = {name: scope[name] for name in names if name in scope}
        for word, module in list(found.items()):
            if isinstance(module, ModuleType) and _is_own(module.__name__):
                found |= {f"{word}.{name}": getattr(module, name) for name in names if hasattr(module, name)}
        yield from ((name, value) for name, value in sorted(found.items()) if _tells(name, value))


def _names(code: CodeType) -> set[str]:
    """Return the names that code, and code within it, refers to."""
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _tells(name: str, value: Any) -> bool:  # noqa: ANN401
    """Whether a variable of a module is part of what its functions do."""
    if isinstance(value, ModuleType):
        return False
    if inspect.isroutine(value) or isinstance(value, type):
        return _is_own(value.__module__ or "")
    return isinstance(value, CONSTANT) or name.rpartition(".")[2].isupper()


def _is_own(module: str) -> bool:
    """Whether a module is the user's, not an installed library."""
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    installed = "site-packages" in file or "dist-packages" in file
    return not installed and module.partition(".")[0] not in LIBRARIES | NOT_FOLLOWED


def _inside(thing: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return what an object holds, by names in a fixed order."""
    if isinstance(thing, set | frozenset):
        thing = sorted(thing, key=repr)
    if isinstance(thing, list | tuple):
        return {str(i): value for i, value in enumerate(thing)}
    if isinstance(thing, partial):
        return {"function": thing.func, "arguments": thing.args, "keywords": thing.keywords}
    if inspect.ismethod(thing):
        return {"object": thing.__self__}
    if inspect.isfunction(thing):
        closed = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
        return {name: cell.cell_contents for name, cell in closed if name != "__class__"}
    held = {} if isinstance(thing, type) else thing if isinstance(thing, dict) else _attributes(thing)
    weights = thing.state_dict() if isinstance(thing, nn.Module) else {}
    return dict(sorted((str(name), value) for name, value in {**held, **weights}.items()))


def _attributes(thing: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the attributes of an object but for caches, and for those that torch keeps for itself."""
    hidden = (
        ("_",) if type(thing).__module__.partition(".")[0] in LIBRARIES or isinstance(thing, nn.Module) else ("__",)
    )
    held = getattr(thing, "__dict__", {})
    return {name: value for name, value in held.items() if not name.startswith(hidden) and "cache" not in name.lower()}


def _holds_set(thing: Any, depth: int) -> bool:  # noqa: ANN401
    """Whether there is a set in it, whose order, and so its repr, is another one in each process."""
    if isinstance(thing, set | frozenset):
        return True
    return depth > 0 and any(_holds_set(value, depth - 1) for value in _inside(thing).values())


def _source(thing: Any) -> str:  # noqa: ANN401
    """Return the source of a class or function written for this, or its name where there is none."""
    name = f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', repr(type(thing)))}"
    if name.partition(".")[0] in LIBRARIES:
        return name
    try:
        return name + inspect.getsource(thing)
    except (OSError, TypeError):
        return name
