"""Public keys of SSH, as callers write them: what a guest gets at its first boot, for its root. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.rules import MOST_SHOWN, shown

FIELD: Final = "ssh-keys"
MAX_KEYS: Final = 32
"""Public keys that one VM can be given."""
MAX_KEY_CHARACTERS: Final = 4096
"""The longest line of a public key, its comment included: one of RSA with 16,384 bits has 2,753."""

SshKeys = Annotated[
    list[Annotated[str, Meta(max_length=MAX_KEY_CHARACTERS)]],
    Meta(
        max_length=MAX_KEYS,
        description=f"at most {MAX_KEYS} public keys of SSH, each of {MAX_KEY_CHARACTERS} characters",
    ),
]

_TYPES: Final = (
    "ssh-ed25519",
    "ssh-rsa",
    *(f"ecdsa-sha2-nistp{size}" for size in (256, 384, 521)),
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
"""The types of keys that OpenSSH has without options of its own; DSA is none of them any more."""
_LINE: Final = re.compile(r"(\S+) ([A-Za-z0-9+/]+={0,2})(?: (.*))?")


def parse_keys(lines: Sequence[str]) -> list[str]:
    """The keys in the form that is written down: type, key, comment, one space between them.

    Raises `Refused` (bad request) for what is no public key of a type of OpenSSH (sshd(8), AUTHORIZED_KEYS), for
    options before one, and for one that is given twice. What was given instead is not repeated: it may be a secret.
    """
    keys = [_key(line) for line in lines]
    for index, key in enumerate(keys):
        if key.split(" ")[1] in (before.split(" ")[1] for before in keys[:index]):
            raise _refused(f"got the key {key[:MOST_SHOWN]!r} twice", "give each key once")
    return keys


def authorized_keys(keys: Sequence[str]) -> bytes:
    """The content of a file `authorized_keys`."""
    return "".join(f"{key}\n" for key in keys).encode()


def _key(line: str) -> str:
    text = line.strip()
    if "PRIVATE KEY" in text:
        raise _refused("got a private key", "the public key of a pair is in the file that ends with .pub")
    match = _LINE.fullmatch(text)
    if match is None or not text.isprintable():
        raise _refused(
            "got what is no public key of SSH", "give the line of ~/.ssh/id_ed25519.pub or the like, without options"
        )
    kind, body, comment = match.groups()
    if kind not in _TYPES:
        raise _refused(f"got a key of the type {shown(kind)}", f"expected one of {', '.join(_TYPES)}")
    try:
        blob = base64.b64decode(body, validate=True)
    except binascii.Error:
        blob = b""
    # The key says its own type first (RFC 4253, 6.6).
    if not blob.startswith(len(kind).to_bytes(4, "big") + kind.encode()) or len(blob) <= 4 + len(kind):
        raise _refused(f"got a key of the type {kind} that is damaged", "copy the line whole, from the file of the key")
    return " ".join(filter(None, (kind, body, (comment or "").strip())))


def _refused(message: str, remedy: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, message, field=FIELD, remedy=remedy)
