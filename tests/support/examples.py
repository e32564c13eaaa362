"""One example of any type that messages are made of, always the same: every field is filled."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from msgspec import inspect

TEXTS: Final = ("web-1", "0123456789abcdef")
"""Texts for fields that have to match a pattern; a field's own name is tried first."""


def example_of(kind: Any) -> Any:
    """An example of a type that msgspec knows. Raises AssertionError for a pattern that has none."""
    return msgspec.convert(_plain(inspect.type_info(kind), "text"), kind)


def _plain(kind: inspect.Type, name: str) -> Any:
    """The example as JSON has it, named after the field that it is for."""
    match kind:
        case inspect.Metadata():
            return _plain(kind.type, name)
        case inspect.BoolType():
            return True
        case inspect.IntType() | inspect.FloatType():
            fallback = 7 if isinstance(kind, inspect.IntType) else 0.5
            return fallback if kind.ge is None else kind.ge
        case inspect.StrType():
            return _text(kind, name)
        case inspect.BytesType():
            return b"\x00\xff"
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.ListType() | inspect.VarTupleType():
            return [_plain(kind.item_type, name)]
        case inspect.DictType():
            return {_plain(kind.key_type, "key"): _plain(kind.value_type, "value")}
        case inspect.UnionType():
            return _plain(next(one for one in kind.types if not isinstance(one, inspect.NoneType)), name)
        case inspect.StructType():
            fields = {field.encode_name: _plain(field.type, field.encode_name) for field in kind.fields}
            return fields if kind.tag_field is None else {kind.tag_field: kind.tag, **fields}
        case _:
            raise AssertionError(f"{name}: there is no example of {kind}")


def _text(kind: inspect.StrType, name: str) -> str:
    if kind.pattern is None:
        return name
    fitting = [text for text in (name, *TEXTS) if re.search(kind.pattern, text)]
    assert fitting, f"{name}: no example matches {kind.pattern}; add one to TEXTS"
    return fitting[0]
