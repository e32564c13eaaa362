"""What can be wrong with a line of code: every small change of a module's functions, one at a time.

Only what runs when a function is called is changed. Constants of a module and defaults of a class are not: they are
read when the module is imported, and the pages in `docs/` that are made from them have checks of their own.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Final

from msgspec import Struct

COMPARISONS: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
WORD: Final = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")
"""A string that a program reads (a phase, a key), not a sentence for a person."""

Change = Callable[[ast.AST], None]


class Mutant(Struct, frozen=True):
    """One changed line."""

    path: Path
    line: int
    function: str
    what: str
    """The change in words: `< -> <=`."""
    source: str
    """The expression or the statement as it was."""
    code: CodeType
    """The whole module with the change in it."""

    @property
    def name(self) -> str:
        """What the mutant is called for as long as its function says the same, wherever it stands."""
        return f"{self.path.stem}.{self.function}: {self.what}: {' '.join(self.source.split())[:100]}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its lines."""
    tree = ast.parse(path.read_text(), str(path))
    for number, (node, function) in enumerate(_nodes(tree, "")):
        for what, change in _changes(node):
            mutated = copy.deepcopy(tree)
            target = next(each for index, (each, _) in enumerate(_nodes(mutated, "")) if index == number)
            change(target)
            ast.fix_missing_locations(mutated)
            code = compile(mutated, str(path), "exec", dont_inherit=True)
            line = getattr(node, "lineno", 0) or node.pattern.lineno  # type: ignore[attr-defined]
            yield Mutant(path, line, function, what, ast.unparse(node), code)


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[ast.AST, str]]:
    """All that runs within functions, with the names of these; neither annotations nor docstrings nor assertions."""
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in field if isinstance(field, list) else [field]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Assert) or _is_docstring(child):
                continue
            inside = function
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inside = f"{function}.{child.name}" if function else child.name
            in_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or getattr(
                node, "in_function", False
            )
            child.in_function = in_function and name != "args"  # type: ignore[attr-defined]
            if child.in_function:  # type: ignore[attr-defined]
                yield child, function
            yield from _nodes(child, inside)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _changes(node: ast.AST) -> Iterator[tuple[str, Change]]:  # noqa: C901  # a table, one case for each kind of node
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                other = COMPARISONS[type(operator)]
                yield f"{type(operator).__name__} -> {other.__name__}", _setter("ops", other(), index)
        case ast.BoolOp():
            other_way = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            yield f"{type(node.op).__name__} -> {type(other_way).__name__}", _setter("op", other_way)
        case ast.BinOp() if type(node.op) in OPERATORS and not _is_text(node):
            operator_ = OPERATORS[type(node.op)]
            yield f"{type(node.op).__name__} -> {operator_.__name__}", _setter("op", operator_())
        case ast.UnaryOp(op=ast.Not()):
            yield "not x -> not not x", _setter("operand", ast.UnaryOp(ast.Not(), node.operand))
        case ast.If() | ast.IfExp() | ast.While():
            yield "the condition negated", _setter("test", ast.UnaryOp(ast.Not(), node.test))
        case ast.match_case() if node.guard is not None:
            yield "the guard dropped", _setter("guard", None)
        case ast.Constant(value=bool() as flag):
            yield f"{flag} -> {not flag}", _setter("value", not flag)
        case ast.Constant(value=int() | float() as number):
            yield f"{number} -> {number + 1}", _setter("value", number + 1)
        case ast.Constant(value=str() as text) if WORD.fullmatch(text):
            yield f"{text!r} -> another word", _setter("value", f"x{text}")
        case ast.Return() if node.value is not None and not _is_falsy(node.value):
            yield "returns None", _setter("value", ast.Constant(None))
        case ast.Call(func=ast.Name(id="replace")):
            for index, keyword in enumerate(node.keywords):
                yield f"{keyword.arg}= dropped", _dropper("keywords", index)
        case ast.Expr(value=ast.Call() | ast.Await()):
            yield "the call dropped", _setter("value", ast.Constant(None))
        case ast.AugAssign():
            yield "the assignment dropped", _setter("value", ast.Constant(0))
        case _:
            # A `raise` or a `break` cannot become another statement; the condition around it is negated instead.
            return


def _setter(field: str, value: object, index: int | None = None) -> Change:
    def change(node: ast.AST) -> None:
        fresh = copy.deepcopy(value)
        if index is None:
            setattr(node, field, fresh)
        else:
            getattr(node, field)[index] = fresh

    return change


def _dropper(field: str, index: int) -> Change:
    def change(node: ast.AST) -> None:
        del getattr(node, field)[index]

    return change


def _is_falsy(node: ast.expr) -> bool:
    """Whether None in its place says the same to whoever asks for its truth; `False -> True` is made anyway."""
    return isinstance(node, ast.Constant) and (node.value is None or node.value is False)


def _is_text(node: ast.BinOp) -> bool:
    """Whether two texts are joined: without the sign it is no other program but a type error."""
    return any(
        isinstance(side, ast.JoinedStr) or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in (node.left, node.right)
    )
