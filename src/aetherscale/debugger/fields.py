"""What a Struct looks like on the wire: its fields with types, ranges, defaults and meanings, to be listed."""

from __future__ import annotations

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


def fields_of(struct: type[Struct]) -> list[Field]:
    """The fields of a Struct, in the order in which they are declared."""
    described = shapes.type_info(struct)
    assert isinstance(described, shapes.StructType)
    return [_field(field) for field in described.fields]


def _field(field: shapes.Field) -> Field:
    default: Any = None
    if field.default is not NODEFAULT:
        default = field.default
    elif field.default_factory is not NODEFAULT:
        default = field.default_factory()
    shape, about = _unwrapped(field.type)
    return Field(field.encode_name, _words(shape), field.required, msgspec.to_builtins(default), about)


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
