"""The configuration of a nats-server of our own, which is also where its port and its passwords are kept.

Two accounts: one for clients, with an operator's rights, and the system account, into which only the node itself gets.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
USER: Final = "operator"
ACCOUNT: Final = "AETHER"
SYSTEM_ACCOUNT: Final = "SYS"
SYSTEM_USER: Final = "node"


class Limits(Struct, frozen=True):
    """The resources that the server may use."""

    max_file_store_bytes: int = 10 * 1024**3
    max_memory_store_bytes: int = 64 * 1024**2
    max_payload_bytes: int = 1024**2


class Chosen(Struct, frozen=True):
    """The values that are chosen once for a state directory; 0 and "" where they are not chosen yet."""

    port: int = 0
    password: str = ""
    system_password: str = ""


class _User(Struct):
    password: str


class _Account(Struct):
    users: list[_User]


class _Kept(Struct):
    port: int
    accounts: dict[str, _Account]


def read(path: Path) -> Chosen:
    """As chosen before, as far as it can be read."""
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=_Kept)
        # That of version 0.1 had no system account of ours.
        system = kept.accounts[SYSTEM_ACCOUNT].users[0].password if SYSTEM_ACCOUNT in kept.accounts else ""
        return Chosen(kept.port, kept.accounts[ACCOUNT].users[0].password, system)
    except FileNotFoundError:
        return Chosen()
    except (msgspec.DecodeError, KeyError, IndexError) as broken:
        log.warning("the configuration of the embedded NATS is damaged (%r); making it anew", broken)
        return Chosen()


def encode(node: str, chosen: Chosen, limits: Limits, store: Path | None) -> bytes:
    """The file for a server that keeps JetStream in `store`, or has none. NATS configuration files may be JSON.

    A tenant would be one more account here.
    """
    of_account = {"jetstream": "enabled"} if store is not None else {}
    config: dict[str, Any] = {
        "server_name": f"aether-{node}",
        "host": HOST,
        "port": chosen.port,
        "max_payload": limits.max_payload_bytes,
        "system_account": SYSTEM_ACCOUNT,
        "accounts": {
            ACCOUNT: {**of_account, "users": [{"user": USER, "password": chosen.password}]},
            SYSTEM_ACCOUNT: {"users": [{"user": SYSTEM_USER, "password": chosen.system_password}]},
        },
    }
    if store is not None:
        config["jetstream"] = {
            "store_dir": str(store),
            "max_file_store": limits.max_file_store_bytes,
            "max_memory_store": limits.max_memory_store_bytes,
            "sync_interval": "10s",
        }
    return msgspec.json.format(msgspec.json.encode(config))
