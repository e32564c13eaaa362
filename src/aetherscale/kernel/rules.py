"""The rules for values of messages, in words instead of patterns. They are taken from the message's own types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from aetherscale.kernel.names import ID_PATTERN, IMAGE_NAME_PATTERN, NAME_PATTERN, begins_id, name_like

MOST_SHOWN: Final = 80
"""How many characters of a wrong value are shown to its sender."""
_MEMBER: Final = re.compile(r"\[\d+\]\Z")


class Broken(Struct, frozen=True):
    """A value that is not what it has to be: `rule` is what it has to be, `instead` one like it that would do."""

    value: Any
    rule: str
    instead: str = ""

    def __str__(self) -> str:
        return f"got {shown(self.value)}, expected {self.rule}"


def broken(shape: inspect.Type, value: Any, about: str = "") -> Broken | None:
    """The first part of a value that breaks the rule of its type; None where none does that this module knows."""
    match shape:
        case inspect.Metadata(type=inner):
            return broken(inner, value, (shape.extra_json_schema or {}).get("description", "") or about)
        case inspect.UnionType(types=members):
            found = [broken(member, value, about) for member in members]
            if None in found:
                return None
            # Of a list it is the member that is wrong, rather than that it is a list.
            worded = [each for each in found if each is not None and each.rule]
            return min(worded, key=lambda each: each.value is value, default=None)
        case inspect.NoneType():
            return None if value is None else Broken(value, "")
        case inspect.StrType():
            return None if _is_text(shape, value) else _wrong_text(shape, value, about)
        case inspect.IntType() | inspect.FloatType():
            return None if _is_number(shape, value) else Broken(value, _numbers(shape, about))
        case inspect.BoolType():
            return None if isinstance(value, bool) else Broken(value, "true or false")
        case inspect.LiteralType(values=values):
            return None if value in values else Broken(value, f"one of {', '.join(map(str, values))}")
        case inspect.ListType() | inspect.VarTupleType() | inspect.DictType():
            return _broken_member(shape, value, about)
        case _:
            return None


_described = cache(inspect.type_info)
"""Takes a millisecond: a flood of bad messages would hold up the node for as long as each."""


def broken_field(kind: Any, field: str, body: Mapping[str, Any]) -> Broken | None:
    """The broken part of one field of a message, which is there; of a list (`field[0]`), its first broken member."""
    described, name = _described(kind), _MEMBER.sub("", field)
    for known in described.fields if isinstance(described, inspect.StructType) else ():
        if known.encode_name == name:
            return broken(known.type, body.get(name))
    return None


def shown(value: Any) -> str:
    """A value as it is shown to its sender. A text that may hold a password is not repeated."""
    match value:
        case str() if "://" in value and not value.startswith("file://"):
            return "an address"
        case str():
            return repr(value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}…")
        case bool() | None:
            return msgspec.json.encode(value).decode()
        case int() | float():
            return str(value)[:MOST_SHOWN]
        case list():
            return f"a list of {len(value)}" if value else "an empty list"
        case _:
            return "an object"


def _broken_member(
    shape: inspect.ListType | inspect.VarTupleType | inspect.DictType, value: Any, about: str
) -> Broken | None:
    what, kind = ("an object", dict) if isinstance(shape, inspect.DictType) else ("a list", list)
    least, most = shape.min_length or 0, shape.max_length
    if type(value) is not kind or len(value) < least or (most is not None and len(value) > most):
        size = f" of {least} to {most} members" if most is not None else ""
        return Broken(value, f"{what}{size}")
    if not isinstance(shape, inspect.DictType):
        return next(filter(None, (broken(shape.item_type, member, about) for member in value)), None)
    for key, member in dict(value).items():
        if found := broken(shape.key_type, key) or broken(shape.value_type, member):
            return found
    return None


def _is_text(shape: inspect.StrType, value: Any) -> bool:
    return (
        isinstance(value, str)
        and (shape.min_length or 0) <= len(value)
        and (shape.max_length is None or len(value) <= shape.max_length)
        and (shape.pattern is None or re.search(shape.pattern, value) is not None)
    )


def _wrong_text(shape: inspect.StrType, value: Any, about: str) -> Broken:
    least = f"{shape.min_length} to" if shape.min_length else "at most"
    most = f" of {least} {shape.max_length} characters" if shape.max_length is not None else ""
    instead = ""
    if isinstance(value, str) and shape.pattern is not None:
        if ID_PATTERN in shape.pattern and begins_id(value):
            instead = ""  # a part of an id, of which no part of a name can be made
        elif IMAGE_NAME_PATTERN in shape.pattern:
            instead = name_like(value, image=True)
        elif NAME_PATTERN in shape.pattern:
            instead = name_like(value)
    if isinstance(value, str) and shape.max_length is not None and len(value) > shape.max_length:
        return Broken(f"{len(value)} characters", about or f"a text{most}", instead)
    # A pattern without a description is shown itself, which says more than "a text".
    return Broken(value, about or ("" if shape.pattern is not None and not most else f"a text{most}"), instead)


def _is_number(shape: inspect.IntType | inspect.FloatType, value: Any) -> bool:
    is_kind = isinstance(value, int) or (isinstance(shape, inspect.FloatType) and isinstance(value, float))
    return (
        is_kind
        and not isinstance(value, bool)
        and (shape.ge is None or value >= shape.ge)
        and (shape.gt is None or value > shape.gt)
        and (shape.le is None or value <= shape.le)
        and (shape.lt is None or value < shape.lt)
    )


def _numbers(shape: inspect.IntType | inspect.FloatType, about: str) -> str:
    number = "a whole number" if isinstance(shape, inspect.IntType) else "a number"
    bounds = [
        f"{word} {int(bound) if bound == int(bound) else bound}"
        for word, bound in (("from", shape.ge), ("above", shape.gt), ("to", shape.le), ("below", shape.lt))
        if bound is not None
    ]
    return " ".join((number, *bounds)) + (f" ({about})" if about else "")
