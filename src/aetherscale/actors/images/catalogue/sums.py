"""Files of checksums as distributions publish them: which one is that of a file. Pure.

Three forms are read. GNU's (`HASH  NAME` or `HASH *NAME`) is that of Debian and Ubuntu; BSD's (`SHA256 (NAME) = HASH`)
that of Fedora and Rocky, with a signature around it; a hash alone on the only line is that of a file beside the image,
as Alpine has it. A signature is not checked: what vouches for the file is the TLS of the server that it is from.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MOST_BYTES: Final = 1 << 20
"""Debian's files have a few KiB."""

_DIGITS: Final = {64: "sha256", 96: "sha384", 128: "sha512"}
_HASH: Final = r"(?P<hash>[0-9A-Fa-f]{64}|[0-9A-Fa-f]{96}|[0-9A-Fa-f]{128})"
_GNU: Final = re.compile(rf"{_HASH} [ *](?P<name>.+)")
_BSD: Final = re.compile(rf"SHA(?P<bits>256|384|512) \((?P<name>.+)\) ?= ?{_HASH}")
_ALONE: Final = re.compile(_HASH)


class Digest(NamedTuple):
    """A checksum: the algorithm as `hashlib` names it, and lower-case hex digits."""

    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


class NoDigest(Exception):
    """The file of checksums has none, or more than one, for the file."""


def digest_in(raw: bytes, name: str) -> Digest:
    """The checksum of the file `name` (a last part of a path) in a file of checksums. Raises `NoDigest`."""
    lines = [line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
    found = {digest for line in lines if (digest := _of(line, name)) is not None}
    if not found and len(lines) == 1 and (alone := _ALONE.fullmatch(lines[0])):
        found = {_digest(alone["hash"])}
    if not found:
        raise NoDigest(f"it has no SHA-256, SHA-384 or SHA-512 of {name!r}")
    best = max(found, key=lambda digest: len(digest.digits))
    if any(each.algorithm == best.algorithm and each != best for each in found):
        raise NoDigest(f"it has two different checksums of {name!r}")
    return best


def _of(line: str, name: str) -> Digest | None:
    match = _BSD.fullmatch(line) or _GNU.fullmatch(line)
    if match is None or match["name"].strip().removeprefix("./") != name:
        return None
    digest = _digest(match["hash"])
    bits = match.groupdict().get("bits")
    return digest if bits is None or digest.algorithm == f"sha{bits}" else None


def _digest(digits: str) -> Digest:
    return Digest(_DIGITS[len(digits)], digits.lower())
