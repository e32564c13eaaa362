"""Users of a real nats-server who prove who they are with a key: an nkey, or a JWT in a .creds file."""

from __future__ import annotations

import json
import secrets
from base64 import urlsafe_b64encode
from typing import Any

import nkeys  # type: ignore[import-untyped]
from msgspec import Struct

KINDS = {
    "operator": nkeys.PREFIX_BYTE_OPERATOR, "account": nkeys.PREFIX_BYTE_ACCOUNT, "user": nkeys.PREFIX_BYTE_USER,
}  # fmt: skip
UNLIMITED = {"subs": -1, "data": -1, "payload": -1}
OF_ACCOUNT = {**UNLIMITED, "imports": -1, "exports": -1, "wildcards": True, "conn": -1, "leaf": -1}
STORAGE = {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1}


class Key(Struct, frozen=True):
    seed: str
    public: str

    def sign(self, text: str) -> str:
        return encoded(nkeys.from_seed(bytearray(self.seed.encode())).sign(text.encode()))


def encoded(raw: bytes) -> str:
    return urlsafe_b64encode(raw).decode().rstrip("=")


def key(kind: str = "user") -> Key:
    """A new one."""
    seed = nkeys.encode_seed(secrets.token_bytes(32), KINDS[kind]).decode()
    return Key(seed, nkeys.from_seed(bytearray(seed.encode())).public_key.decode())


def jwt(issuer: Key, subject: Key, kind: str, **claims: Any) -> str:
    """What an issuer says of a subject."""
    header = encoded(json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode())
    said = {"iat": 1_700_000_000, "iss": issuer.public, "sub": subject.public, "name": kind, "jti": "x"}
    body = encoded(json.dumps({**said, "nats": {**claims, "type": kind, "version": 2}}).encode())
    return f"{header}.{body}.{issuer.sign(f'{header}.{body}')}"


def creds(user_jwt: str, seed: str) -> str:
    """As `nsc generate creds` writes it."""
    return (
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )


class Operator:
    """A server that trusts an operator, with one account for nodes; and .creds files for its users."""

    def __init__(self) -> None:
        operator, self._account, system = key("operator"), key("account"), key("account")
        of_node = {**OF_ACCOUNT, **STORAGE}
        self.options: dict[str, Any] = {
            "operator": jwt(operator, operator, "operator"),
            "system_account": system.public,
            "resolver": "MEMORY",
            "resolver_preload": {
                self._account.public: jwt(operator, self._account, "account", limits=of_node),
                system.public: jwt(operator, system, "account", limits=OF_ACCOUNT),
            },
        }

    def creds(self) -> tuple[str, str]:
        """A new user's file, and the secret in it."""
        user = key()
        return creds(jwt(self._account, user, "user", **UNLIMITED), user.seed), user.seed
