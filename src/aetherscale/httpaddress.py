"""Where a node takes requests over HTTP: an address of the loopback, and of nothing else in this version."""

from __future__ import annotations

import re
from typing import Final

from msgspec import Struct

from aetherscale.kernel.errors import Reason, Refused

HTTP: Final = "127.0.0.1:8470"
"""If not told otherwise."""
NO_HTTP: Final = "none"

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})")
_LOOPBACK = re.compile(r"127(?:\.(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}|::1")


class HttpAddress(Struct, frozen=True):
    """An address of the loopback, IPv4 or IPv6, and a port; 0 for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def http_address(text: str, where: str) -> HttpAddress | None:
    """The address in a setting, which stands `where`; None for no HTTP.

    Raises `Refused`: bad request for what is no address, not implemented for one beyond the loopback.
    """
    if text == NO_HTTP:
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise Refused(
            Reason.BAD_REQUEST,
            f"settings: {where}: got {text[:80]!r}, expected HOST:PORT like {HTTP}, or {NO_HTTP!r} for no HTTP",
            field="http",
        )
    host = found["host"].strip("[]")
    host = "127.0.0.1" if host == "localhost" else host
    if not _LOOPBACK.fullmatch(host):
        raise Refused(
            Reason.NOT_IMPLEMENTED,
            f"settings: {where}: {host} is not an address of the loopback; HTTP for other hosts takes TLS and tokens "
            "of their users: not in this version",
            field="http",
            remedy="from another host, through SSH: ssh -L 8470:127.0.0.1:8470 HOST",
        )
    return HttpAddress(host, int(found["port"]))
