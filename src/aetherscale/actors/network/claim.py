"""One node for the networks of a host: the firewall's tables are one for all, and two nodes would undo each other's.

An abstract Unix socket is of a network namespace, as the rules are, and gone with its process, however that ends. A
second one says whose claim it is, for who only looks (/proc/net/unix).
"""

from __future__ import annotations

import errno
import hashlib
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from aetherscale.kernel.fault import Fault

ANOTHER: Final = "another node has the networks of this host"
STOP_IT: Final = "stop that node, or have the networks made there: ss -xlp | grep aetherscale/networks"

_ADDRESS: Final = "aetherscale/networks"
_LISTED: Final = Path("net/unix")
"""Below /proc: the sockets of a network namespace, of which the abstract ones begin with an @."""


class Claim:
    """The networks of a network namespace are ours, until it is closed."""

    def __init__(self, *held: socket.socket) -> None:
        self._held = held

    def close(self) -> None:
        """Give it back; idempotent."""
        for each in self._held:
            each.close()


def claim(state_dir: Path | None = None) -> Claim:
    """Take the networks of this network namespace, for the node of a state directory.

    Raises `Fault` where they are taken.
    """
    held = Claim(taking := _socket())
    try:
        taking.bind(f"\0{_ADDRESS}")
        if state_dir is None:
            return held
        named = _socket()
        held = Claim(taking, named)
        named.bind(f"\0{_address_of(state_dir)}")
    except OSError as error:
        held.close()
        if error.errno != errno.EADDRINUSE:
            raise
        raise Fault(ANOTHER, STOP_IT) from None
    return held


def taken() -> Fault | None:
    """What keeps this node from the claim; None for nothing."""
    try:
        claim().close()
    except Fault as by_another:
        return by_another
    return None


def is_another(state_dir: Path, proc: Path = Path("/proc")) -> bool:
    """Whether the claim is another node's than that of a state directory. Only looks; False where it cannot."""
    listed: set[str] = set()
    with suppress(OSError):
        listed = {line.split()[-1] for line in (proc / _LISTED).read_text(errors="replace").splitlines() if line}
    return f"@{_ADDRESS}" in listed and f"@{_address_of(state_dir)}" not in listed


def _address_of(state_dir: Path) -> str:
    return f"{_ADDRESS}/{hashlib.sha256(bytes(state_dir.resolve())).hexdigest()[:16]}"


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
