"""Secrets that are kept in files, as the programs of NATS keep them: a .creds file, the seed of an nkey, a token.

    .creds      a JWT between `-----BEGIN NATS USER JWT-----` and `-----END`, then a seed between the like
    nkey        the seed of a user alone, `SU…`
    token       the token alone

A file is read anew for each connection, so that what was renewed is used. No error says what a file has in it.
"""

from __future__ import annotations

import binascii
import re
from typing import Any, Final

from aetherscale.textfile import MARK, Unreadable, read_text

MAX_FILE_BYTES: Final = 64 * 1024
"""A JWT has some KiB; a device, or a disk image, is none."""

_JWT = re.compile(r"-{3,}BEGIN NATS USER JWT-{3,}\s+(\S+)\s+-{3,}END NATS USER JWT-{3,}")
_SEED = re.compile(r"-{3,}BEGIN USER NKEY SEED-{3,}\s+(\S+)\s+-{3,}END USER NKEY SEED-{3,}")
_USER_SEED = re.compile(r"SU[A-Z2-7]{56}")
_BLANK = re.compile(r"[\x00-\x20\x7f]")


def read_token(path: str) -> str:
    """The token in a file. Raises ValueError that names the file, and never what is in it."""
    token = _read(path, "token").strip()
    if not token or _BLANK.search(token):
        raise _broken(path, "one line with a token")
    return token


def check(creds: str, nkey: str) -> None:
    """Raises ValueError, as connecting with these would."""
    if creds:
        _of_creds(creds)
    elif nkey:
        _of_nkey(nkey)


def answer(creds: str, nkey: str, nonce: str) -> dict[str, Any]:
    """The fields of CONNECT that prove who we are to a server that said `nonce` in its INFO.

    Without a nonce the server wants no such proof, and gets none. Raises ValueError for a file that cannot be used.
    """
    jwt, pair = _of_creds(creds) if creds else _of_nkey(nkey)
    if not nonce:
        return {}
    signature = binascii.b2a_base64(pair.sign(nonce.encode()), newline=False).decode()
    return {"sig": signature, **({"jwt": jwt} if jwt else {"nkey": pair.public_key.decode()})}


def _of_creds(path: str) -> tuple[str, Any]:
    text = _read(path, "credentials")
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise _broken(path, "a .creds file with a user's JWT and the seed of an nkey, as `nsc generate creds` writes")
    return jwt[1], _pair(path, seed[1])


def _of_nkey(path: str) -> tuple[str, Any]:
    return "", _pair(path, _read(path, "nkey").strip())


def _pair(path: str, seed: str) -> Any:
    import nkeys  # type: ignore[import-untyped]  # here, since few need it, and it takes time

    try:
        if not _USER_SEED.fullmatch(seed):
            raise ValueError
        return nkeys.from_seed(bytearray(seed.encode()))
    except (nkeys.NkeysError, binascii.Error, ValueError):
        raise _broken(path, "the seed of a user's nkey, which begins with SU") from None


def _read(path: str, what: str) -> str:
    try:
        # It is read again with each connection, so nothing may be waited for.
        return read_text(path, MAX_FILE_BYTES, regular=True).removeprefix(MARK)
    except Unreadable as wrong:
        raise ValueError(f"NATS {what}: {path} {wrong}") from None


def _broken(path: str, expected: str) -> ValueError:
    return ValueError(f"NATS credentials: {path}: expected {expected}")
