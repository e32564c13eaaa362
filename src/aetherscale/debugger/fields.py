"""The shape of a Struct on the wire: its fields with types, ranges, defaults and meanings.

The meaning of a field is the docstring below it in the class, and is read from the source.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import msgspec
from msgspec import NODEFAULT, Struct
from msgspec import inspect as shapes


class Field(Struct, frozen=True):
    """A field: its name on the wire, its type in words, what it stands for when it is absent."""

    name: str
    type: str
    required: bool
    default: Any
    about: str
    """What it means, and what text it takes where not any text will do; "" where it is not documented."""


def fields_of(struct: type[Struct]) -> list[Field]:
    """The fields of a Struct, in the order in which they are declared."""
    described = shapes.type_info(struct)
    assert isinstance(described, shapes.StructType)
    meanings = meanings_of(struct)
    return [_field(field, meanings.get(field.name, "")) for field in described.fields]


def parts_of(struct: type[Struct]) -> Iterator[type[Struct]]:
    """The Structs that the fields of a Struct consist of, in the order of the fields."""
    described = shapes.type_info(struct)
    assert isinstance(described, shapes.StructType)
    for field in described.fields:
        yield from _structs_in(field.type)


def meanings_of(struct: type[Struct]) -> dict[str, str]:
    """The docstring below each field that has one, by the field's name in the class, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(struct.__mro__):
        if issubclass(each, Struct) and each is not Struct:
            found |= _documented(each.__module__).get(each.__qualname__, {})
    return {name: found[name] for name in struct.__struct_fields__ if name in found}


@cache
def _documented(module: str) -> Mapping[str, Mapping[str, str]]:
    """The docstrings of fields by class. A program that comes without its source has none."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except OSError:
        return {}
    return {each.name: dict(_docstrings(each)) for each in tree.body if isinstance(each, ast.ClassDef)}


def _docstrings(of_class: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for field, below in zip(of_class.body, of_class.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())
            case _:
                pass


def _structs_in(shape: shapes.Type) -> Iterator[type[Struct]]:
    match shape:
        case shapes.Metadata(type=inner) | shapes.ListType(item_type=inner) | shapes.VarTupleType(item_type=inner):
            yield from _structs_in(inner)
        case shapes.DictType(value_type=inner):
            yield from _structs_in(inner)
        case shapes.UnionType(types=members):
            for member in members:
                yield from _structs_in(member)
        case shapes.StructType(cls=cls):
            yield cls
            yield from parts_of(cls)
        case _:
            pass


def _field(field: shapes.Field, meaning: str) -> Field:
    default: Any = None
    if field.default is not NODEFAULT:
        default = field.default
    elif field.default_factory is not NODEFAULT:
        default = field.default_factory()
    shape, rule = _unwrapped(field.type)
    about = f"{meaning} Expected: {rule}." if meaning and rule and _is_text(shape) else meaning or rule
    return Field(field.encode_name, _words(shape), field.required, msgspec.to_builtins(default), about)


def _is_text(shape: shapes.Type) -> bool:
    members = shape.types if isinstance(shape, shapes.UnionType) else (shape,)
    return any(isinstance(_unwrapped(member)[0], shapes.StrType) for member in members)


def _unwrapped(shape: shapes.Type) -> tuple[shapes.Type, str]:
    """A type without the description that it may carry, and that description."""
    if isinstance(shape, shapes.Metadata):
        inner, about = _unwrapped(shape.type)
        return inner, (shape.extra_json_schema or {}).get("description", about)
    if isinstance(shape, shapes.UnionType):
        for member in shape.types:
            about = _unwrapped(member)[1]
            if about:
                return shape, about
    return shape, ""


def _words(shape: shapes.Type) -> str:  # noqa: C901 - one short case for each type
    match _unwrapped(shape)[0]:
        case shapes.BoolType():
            return "true or false"
        case shapes.IntType(ge=least, le=most):
            return f"integer{_range(least, most)}"
        case shapes.FloatType(gt=above, ge=least, le=most):
            over = f" over {_number(above)}" if above is not None else ""
            return f"number{over}{_range(least, most)}"
        case shapes.StrType(max_length=most):
            return f"text, at most {most} characters" if most is not None else "text"
        case shapes.BytesType():
            return "bytes in base64"
        case shapes.NoneType():
            return "null"
        case shapes.LiteralType(values=values):
            return " | ".join(f"`{value}`" for value in values)
        case shapes.ListType(item_type=item) | shapes.VarTupleType(item_type=item):
            return f"list of {_words(item)}"
        case shapes.DictType(value_type=value):
            return f"object of {_words(value)}"
        case shapes.UnionType(types=members):
            return " or ".join(_words(member) for member in members)
        case shapes.StructType(cls=cls):
            return f"`{cls.__name__}`"
        case shapes.AnyType():
            return "anything"
        case other:
            return type(other).__name__.removesuffix("Type").lower()


def _range(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f", {_number(least)} to {_number(most)}"
    if most is not None:
        return f", at most {_number(most)}"
    return f", at least {_number(least)}" if least is not None else ""


def _number(limit: float) -> str:
    return str(int(limit)) if limit == int(limit) else str(limit)
