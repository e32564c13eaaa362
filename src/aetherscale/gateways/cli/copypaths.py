"""The two places of `vm copy`, and how paths are shown and typed."""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

from aetherscale.gateways.cli.failures import bad_usage


class Place(NamedTuple):
    """One side of a copy; `vm` is "" for a file here."""

    vm: str
    path: str


def place_of(text: str) -> Place:
    """`NAME:/path` is in a guest; what has something else before the colon than a name is here. Raises `Failure`."""
    found = re.fullmatch(r"([a-z0-9][a-z0-9-]*):(.*)", text, re.DOTALL)
    if found is None:
        return Place("", text)
    name, path = found[1], found[2]
    if not path.startswith("/") or "\0" in path:
        hint = f"{name}:/root/; a file here whose name has a colon: {quoted(f'./{text}')}"
        raise bad_usage(f"vm copy: got {shown(text)!r}, expected a path in the guest that begins with /", hint)
    return Place(name, path)


def shown(path: str) -> str:
    """A path in a message: one that has control characters as a shell takes it, like `$'a\\nb'`."""
    return path if path.isprintable() or _has_bytes(path) else quoted(path)


def quoted(path: str) -> str:
    """A path in a line that is to be typed."""
    if path.isprintable() or _has_bytes(path):
        return shlex.quote(path)
    return "$'" + "".join(map(_escaped, path)) + "'"


def _has_bytes(path: str) -> bool:
    """Whether all that cannot be printed are bytes that are no UTF-8, which output shows as such."""
    return all(each.isprintable() or "\udc80" <= each <= "\udcff" for each in path)


def _escaped(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return named.get(character, f"\\x{ord(character):02x}" if character < "\x80" else f"\\U{ord(character):08x}")
