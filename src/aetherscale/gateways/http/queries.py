"""The query of a target: read strictly, and made into the options of a task, by the types that these have.

What a value has to be in the end is said by the task itself, which reads the options that come of this as it reads
those of a message: here text only becomes a number, a truth or a list, where that is what the field is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import inspect as shapes

from aetherscale.gateways.http.problems import HttpError

Pairs = Sequence[tuple[str, str]]

_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}
_WHOLE = re.compile(r"-?[0-9]{1,18}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(?:\.[0-9]{1,18})?")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def unquoted(text: str, where: str) -> str:
    """Percent-encoded text. Raises `HttpError` (400) for what is no text: half an escape, not UTF-8, a NUL."""
    if _ESCAPE.search(text):
        raise HttpError("bad-request", f"{where}: got {text[:80]!r}, in which a % has no two hex digits", field=where)
    try:
        found = unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise HttpError("bad-request", f"{where}: got {text[:80]!r}, expected UTF-8", field=where) from None
    if "\0" in found:
        raise HttpError("bad-request", f"{where}: got a NUL in {found[:80]!r}", field=where)
    return found


def read(query: str) -> Pairs:
    """The names and values of a query, in order. Raises `HttpError` (400)."""
    pairs = []
    for part in query.split("&"):
        if part:
            name, _, value = part.replace("+", " ").partition("=")
            pairs.append((unquoted(name, "query"), unquoted(value, "query")))
    return pairs


def split(pairs: Pairs, known: Iterable[str]) -> tuple[dict[str, str], Pairs]:
    """The parameters of these names, each of which may be there once, and the rest. Raises `HttpError` (400)."""
    names = tuple(known)
    taken: dict[str, str] = {}
    for name, value in pairs:
        if name in names:
            if name in taken:
                raise twice(name)
            taken[name] = value
    return taken, [pair for pair in pairs if pair[0] not in names]


def twice(name: str) -> HttpError:
    """A parameter that may be there once is there again."""
    return HttpError("bad-request", f"query: the parameter {name[:64]!r} occurs twice", field=name[:64])


def unknown(name: str, known: Iterable[str]) -> HttpError:
    """A parameter that means nothing here."""
    names = ", ".join(sorted(known)) or "none"
    return HttpError("bad-request", f"query: unknown parameter {name[:64]!r}", field=name[:64], hint=f"known: {names}")


def require_none(pairs: Pairs, known: Iterable[str] = ()) -> None:
    """Raises `HttpError` (400) where parameters are left over."""
    if pairs:
        raise unknown(pairs[0][0], known)


def options(pairs: Pairs, of: type[msgspec.Struct], besides: Iterable[str]) -> dict[str, Any]:
    """The options that a query gives, by the types of their fields; `besides` are parameters that it could also have.

    Raises `HttpError` (400).
    """
    fields, found = fields_of(of), dict[str, Any]()
    for name, value in pairs:
        if name not in fields:
            raise unknown(name, (*fields, *besides))
        match fields[name]:
            case shapes.DictType():
                key, _, text = value.partition("=")
                found.setdefault(name, {})[key] = text
            case shapes.ListType(item_type=item):
                found.setdefault(name, []).append(_value(name, value, item))
            case shape if name in found:
                raise twice(name)
            case shape:
                found[name] = _value(name, value, shape)
    return found


@cache
def fields_of(of: type[msgspec.Struct]) -> Mapping[str, shapes.Type]:
    """The fields of options by their names on the wire; of a choice the first that is not null."""
    shape = shapes.type_info(of)
    assert isinstance(shape, shapes.StructType)
    return {field.encode_name: _of_choice(field.type) for field in shape.fields}


def _of_choice(shape: shapes.Type) -> shapes.Type:
    if isinstance(shape, shapes.Metadata):
        return _of_choice(shape.type)
    if isinstance(shape, shapes.UnionType):
        return next(_of_choice(each) for each in shape.types if not isinstance(each, shapes.NoneType))
    return shape


def _value(name: str, text: str, shape: shapes.Type) -> Any:
    match _of_choice(shape):
        case shapes.BoolType():
            if text not in _TRUTH:
                raise _wrong(name, text, "true or false")
            return _TRUTH[text]
        case shapes.IntType():
            if not _WHOLE.fullmatch(text):
                raise _wrong(name, text, "a whole number")
            return int(text)
        case shapes.FloatType():
            if not _NUMBER.fullmatch(text):
                raise _wrong(name, text, "a number")
            return float(text)
        case _:
            return text


def _wrong(name: str, text: str, expected: str) -> HttpError:
    return HttpError("bad-request", f"query: {name}: got {text[:80]!r}, expected {expected}", field=name)


def truth(given: Mapping[str, str], name: str) -> bool:
    """A parameter that is true or false. Raises `HttpError` (400)."""
    return bool(_value(name, given[name], shapes.BoolType())) if name in given else False


def whole(given: Mapping[str, str], name: str, default: int, least: int, most: int) -> int:
    """A parameter that is a whole number within bounds. Raises `HttpError` (400)."""
    if name not in given:
        return default
    text = given[name]
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise _wrong(name, text, f"a whole number from {least} to {most}")
    return int(text)
