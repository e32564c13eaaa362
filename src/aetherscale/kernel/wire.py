"""JSON from strangers: decoded once, strictly, into typed messages, or refused with the field that is wrong.

Refused: not UTF-8 or not JSON, NaN and infinities, more than `MAX_BODY_BYTES`, deeper than `MAX_DEPTH`, a key that
occurs twice, an unknown field, a wrong type, a value out of its range or pattern.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from aetherscale.kernel.errors import Reason, Refused

MAX_BODY_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 16

if TYPE_CHECKING:
    from aetherscale.kernel.rules import Broken

T = TypeVar("T")

_PATH = re.compile(r" - at `(?:key` in `)?\$(?P<path>[^`]*)`\Z")
_NAMED = re.compile(r"(?P<what>unknown|required) field `(?P<name>[^`]*)`")
_OTHER_BODY = re.compile(r"Expected `object`, got `(?P<got>[a-z]+)`")
_KINDS = {"array": "a list", "int": "a number", "float": "a number", "str": "a text", "bool": "true or false"}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)


class Message(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything that is decoded from outside: kebab-case, no unknown fields."""


def encode(value: Any) -> bytes:
    """The JSON of a message, chunk or view; keys are in the order in which they were declared."""
    return msgspec.json.encode(value)


def decode(body: bytes, kind: type[T], what: str) -> T:
    """The typed message in a body; an empty body stands for `{}`.

    Raises `Refused` (bad request or too large) that names `what` was read and the field that is wrong.
    """
    import json  # late: the command line reads heartbeats by this module, and few of its commands do

    if len(body) > MAX_BODY_BYTES:
        raise Refused(Reason.TOO_LARGE, f"{what}: got {len(body)} bytes, expected at most {MAX_BODY_BYTES}")
    check_depth(body, what)
    try:
        message = msgspec.json.decode(body or b"{}", type=kind)
        json.loads(body or b"{}", object_pairs_hook=_check_unique)
    except msgspec.ValidationError as invalid:
        raise _refused(str(invalid), what, kind, body) from None
    except _TwiceError as twice:
        field = str(twice)
        raise Refused(Reason.BAD_REQUEST, f"{what}: the field {field!r} occurs twice", field=field[:64]) from None
    except (ValueError, RecursionError) as broken:
        if field := _half_a_pair(body):
            raise Refused(
                Reason.BAD_REQUEST,
                f"{what}: field {field[:64]!r}: got half of a surrogate pair, like \\ud800 alone, "
                "expected whole characters",
                field=field[:64],
            ) from None
        raise Refused(
            Reason.BAD_REQUEST, f"{what}: the body is not JSON: {str(broken)[:200]}", remedy="send one JSON object"
        ) from None
    return message


def _half_a_pair(body: bytes) -> str:
    """The field of a text that no UTF-8 can say, though JSON can write it; "" where that is not what is wrong."""
    import json

    try:
        pairs = [("", json.loads(body))]
    except (ValueError, RecursionError):
        return ""
    while pairs:
        field, value = pairs.pop()
        match value:
            case str() if _SURROGATE.search(value):
                return field or "$"
            case dict():
                inside = f"{field}." if field else ""
                pairs += [(f"{inside}{name}", member) for name, member in value.items()]
                pairs += [(_SURROGATE.sub("\ufffd", f"{inside}{name}"), name) for name in value]
            case list():
                pairs += [(field, member) for member in value]
            case _:
                pass
    return ""


class _TwiceError(ValueError):
    """A key that occurs twice in one object."""


def _check_unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise _TwiceError(key)
        seen.add(key)


def check_depth(body: bytes, what: str) -> None:
    """Raises `Refused` (bad request) for JSON that nests more deeply than `MAX_DEPTH`."""
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return  # It opens too few for that; so do all answers but large ones, of which a list is a thousand.
    depth = 0
    for token in _NESTING.finditer(body):
        first = token.group()[0]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Refused(Reason.BAD_REQUEST, f"{what}: nested deeper than {MAX_DEPTH} levels")
        elif first in b"]}":
            depth -= 1


def _refused(invalid: str, what: str, kind: Any, body: bytes) -> Refused:
    path = _PATH.search(invalid)
    named = _NAMED.search(invalid)
    field = path.group("path").lstrip(".").replace("[...]", "") if path else ""
    if named:
        field = f"{field}.{named.group('name')}" if field else named.group("name")
    text, hint = _printable(_PATH.sub("", invalid)[:300]), ""
    if named:
        text = "there is no such field" if named.group("what") == "unknown" else "it is missing, and has to be there"
    elif not field and (other := _OTHER_BODY.fullmatch(text)):
        text = f"got {_KINDS.get(other.group('got'), 'something else')}, expected one JSON object"
    elif (found := _broken(kind, field, body)) is not None and found.rule:
        text, hint = str(found), f"perhaps {found.instead}" if found.instead else ""
    at = f"field {field[:64]!r}: " if field else ""
    return Refused(Reason.BAD_REQUEST, f"{what}: {at}{text}", field=field[:64], remedy=hint)


def _printable(text: str) -> str:
    """A text of one line: the names of unknown fields are in it, which may be anything."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _broken(kind: Any, field: str, body: bytes) -> Broken | None:
    from aetherscale.kernel.rules import broken_field

    try:
        sent = msgspec.json.decode(body)
    except msgspec.DecodeError:  # a number that is none of Python's
        return None
    return broken_field(kind, field, sent) if isinstance(sent, dict) else None
