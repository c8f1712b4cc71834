"""What source assigns: values that are set once, values that change as methods work, and defaults that it computes.

An attribute that only constructors and setters assign says what an object is. One that other functions assign, or
change by an index or by a call for its effect, says what it has done: that of `self._grid = ...`, of
`self._memo[seed] = ...` and of `self._seen.append(...)`.
"""

import ast
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeAlias

__all__ = ["Assignments"]

CONSTRUCTORS = {"__init__", "__new__", "__post_init__", "__attrs_post_init__", "__setstate__"}
EMPTY = {"[]", "{}", "dict()", "list()", "set()"}
"""Containers that wait to be filled."""

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Assignments:
    """Names that source read so far assigns.

    Attributes:
        made: attributes that constructors, setters and class bodies assign
        changed: attributes that other functions assign or change
        computed: (function, argument) whose default is more than a literal
    """

    made: set[str] = field(default_factory=set)
    changed: set[str] = field(default_factory=set)
    computed: set[tuple[str, str]] = field(default_factory=set)

    @property
    def settled(self) -> set[str]:
        """Attributes that say what an object is."""
        return self.made - self.changed

    def read(self, source: str, owner: str) -> None:
        """Add what source assigns, if it can be parsed by itself.

        Arguments:
            source: of a class or a function
            owner: the name of the class, which is part of names with two leading underscores
        """
        try:
            tree = ast.parse(source)
        except SyntaxError:  # a lambda within an expression
            return
        self._visit(tree, owner, self.made)

    def _visit(self, node: ast.AST, owner: str, names: set[str]) -> None:
        """Add what a node assigns to these names, and what functions within it assign to theirs."""
        in_class = isinstance(node, ast.ClassDef | ast.Module)  # a module may hold the members of a class alone
        for child in chain.from_iterable(map(_one_by_one, ast.iter_child_nodes(node))):
            inner = names
            if isinstance(child, Function):
                inner = self.made if _sets(child) else self.changed
                self.computed |= {(child.name, argument) for argument in _computed(child)}
            elif isinstance(child, ast.ClassDef):
                inner = self.made
            elif names is self.made and not in_class and _is_empty(child):
                continue
            variables = _variables(child) if in_class else []
            names |= {_full(name, owner) for name in [*variables, *_assigned(child)]}
            self._visit(child, owner, inner)


def _full(name: str, owner: str) -> str:
    """Return the name by which an object has an attribute: Python adds that of the class to two underscores."""
    return f"_{owner.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name


def _sets(function: Function) -> bool:
    """Return whether a function says what an object is: a constructor or a setter."""
    decorators = {each.attr for each in function.decorator_list if isinstance(each, ast.Attribute)}
    return function.name in CONSTRUCTORS or function.name.startswith("set_") or "setter" in decorators


def _computed(function: Function) -> list[str]:
    """Return the arguments whose default is more than a literal."""
    given = function.args
    ordered = [*given.posonlyargs, *given.args]
    pairs = [*zip(ordered[len(ordered) - len(given.defaults) :], given.defaults, strict=True)]
    pairs += [(each, value) for each, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value]
    return [each.arg for each, value in pairs if not _is_literal(value)]


def _is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def _is_set(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store | ast.Del)


def _one_by_one(node: ast.AST) -> list[ast.AST]:
    """Return `a = 1` and `b = 2` for `a, b = 1, 2`; any other node as it is."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            return [ast.Assign([target], value) for target, value in zip(targets, values, strict=True)]
    return [node]


def _is_empty(node: ast.AST) -> bool:
    """Return whether a statement makes a container that waits to be filled."""
    match node:
        case ast.Assign(value=value) | ast.Expr(value=ast.Call(args=[_, ast.Constant(), value])):
            return ast.unparse(value) in EMPTY
        case ast.AnnAssign(value=ast.expr() as value):
            return ast.unparse(value) in EMPTY
    return False


def _variables(node: ast.AST) -> list[str]:
    """Return the plain names that a statement assigns."""
    return [each.id for each in ast.iter_child_nodes(node) if isinstance(each, ast.Name) and _is_set(each)]


def _assigned(node: ast.AST) -> list[str]:
    """Return the attributes that a node assigns, or changes by an index or by a call for its effect."""
    match node:
        case ast.Attribute() | ast.Subscript() if _is_set(node):
            return _path(node)
        case ast.Expr(value=ast.Call(func=called, args=[_, ast.Constant(value=str(name)), _])) if (
            ast.unparse(called).strip("_").endswith("setattr")
        ):
            return [name]
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=value))):
            return _path(value)
    return []


def _path(node: ast.expr) -> list[str]:
    """Return the attributes on the way to what a node stands for: b and a of `self.a.b[0]`."""
    match node:
        case ast.Attribute(value=value, attr=name):
            return [name, *_path(value)]
        case ast.Subscript(value=value):
            return _path(value)
    return []
