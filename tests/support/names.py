"""What names of hosts are known here: a bare root has no /etc/hosts."""

from __future__ import annotations

import socket
from typing import Final


def resolves(host: str) -> bool:
    """Whether the host's own resolver has an address for a name."""
    try:
        socket.getaddrinfo(host, 1)
    except OSError:
        return False
    return True


KNOWS_LOCALHOST: Final = resolves("localhost")
