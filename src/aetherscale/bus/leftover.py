"""Which nats-server a node has started, on record beside its store, so that one that has outlived its node is found.

Two servers on one store damage it. What is on record may be old, or a copy: only exactly that process is ended, and
only if the node that started it is gone. A node that lives still has had its state directory moved away under it.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

import msgspec

from aetherscale.bus import processes
from aetherscale.bus.processes import Identity
from aetherscale.statedir import write_file

log = logging.getLogger(__name__)

NODE_PATIENCE_S: Final = 5.0
"""For a node whose directory was moved, and who sees that and ends."""


class Server(Identity, frozen=True, rename="kebab"):
    """A nats-server, and the node whose child it is; version 0.1 did not write that down."""

    node: Identity | None = None


class StillInUse(Exception):
    """The server that is on record cannot be ended, or must not be; says why and what to do."""


def record(path: Path, pid: int) -> None:
    """Write down a child of this process. Raises OSError."""
    server, node = processes.identify(pid), processes.identify(os.getpid())
    if server is not None:
        write_file(path, msgspec.json.encode(Server(**msgspec.structs.asdict(server), node=node)))


def forget(path: Path, pid: int) -> None:
    """Take the record of a child away; another node's stays."""
    known = _read(path)
    if known is None or known.pid == pid:
        path.unlink(missing_ok=True)


async def end(path: Path, *, grace_s: float) -> None:
    """End the server that is on record, if it has outlived its node. Raises `StillInUse`."""
    server = _read(path)
    if server is None:
        return
    node = server.node
    if node is not None and node.pid != os.getpid() and await processes.lives_on(node, patience_s=NODE_PATIENCE_S):
        raise StillInUse(
            f"nats-server: the node that runs as pid {node.pid} uses {path.parent} too, as if its state directory had "
            f"been moved or copied while it ran; end it (kill {node.pid}), then start this one again"
        )
    try:
        if await processes.end(Identity(server.pid, server.start_ticks, server.boot_id, server.exe), grace_s=grace_s):
            log.warning("ended a nats-server (pid %d) that had outlived its node", server.pid)
    except (TimeoutError, PermissionError) as failure:
        raise StillInUse(
            f"nats-server: pid {server.pid} of an earlier node has the store {path.parent} and does not end "
            f"({failure!r}); end it, then start the node again"
        ) from None


def _read(path: Path) -> Server | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Server)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError as broken:
        log.warning("%s is damaged (%s); no leftover nats-server can be looked for", path, broken)
        return None
