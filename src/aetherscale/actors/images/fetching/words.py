"""Why a connection to a server failed, in words for people, and what they can do. Pure.

The library's own words are for programmers (`[Errno 111]`, `IncompleteRead(0 bytes read)`), and name no server.
"""

from __future__ import annotations

import errno
import http.client
import socket
import ssl
from typing import Final

from msgspec import Struct

_UNREACHABLE: Final = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL}
_BROKEN_OFF: Final = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_LOOK: Final = "look at the address"
_ROUTES: Final = "look at this host's routes and firewall: ip route get ADDRESS"
_RESOLVER: Final = "look at the address, and at this host's resolver: getent hosts NAME"


class Trouble(Struct, frozen=True):
    """What happened, and what to do; "" where trying again is all."""

    what: str
    remedy: str = ""


def to_connect(error: OSError, host: str, port: int, waited_s: float) -> Trouble:
    """Why there is no connection to a server, a proxy perhaps, that was waited for so long."""
    where = f"{host[:200]}, port {port}"
    match error:
        case socket.gaierror(errno=socket.EAI_AGAIN):
            return Trouble(f"no name server answered for the name {host[:200]!r}", _RESOLVER)
        case socket.gaierror():
            return Trouble(f"there is no address for the name {host[:200]!r}", _RESOLVER)
        case ConnectionRefusedError():
            return Trouble(f"nothing listens at {where}", "is the address right, and does its server run?")
        case TimeoutError():
            return Trouble(f"{where}, took no connection within {waited_s:g} s", _ROUTES)
        case OSError(errno=number) if number in _UNREACHABLE:
            return Trouble(f"this host has no way to {where}", _ROUTES)
        case _:
            return talking(error, waited_s)


def talking(error: OSError | http.client.HTTPException, waited_s: float) -> Trouble:
    """Why a connection that was made is of no use; the server was waited for so long."""
    match error:
        case TimeoutError():
            return Trouble(f"the server said nothing for {waited_s:g} s")
        case http.client.RemoteDisconnected():
            return Trouble("the server closed it without an answer")
        case http.client.IncompleteRead():
            return Trouble("the server ended it too early")
        case http.client.HTTPException():
            return Trouble("what the server says is no HTTP", f"{_LOOK}: perhaps another program listens at that port")
        case OSError() if isinstance(error, _BROKEN_OFF):
            return Trouble("the server broke it off")
        case ssl.SSLError():
            why = str(getattr(error, "reason", None) or "").replace("_", " ").lower()  # OpenSSL gives one, as a rule
            return Trouble(
                f"the server does not speak TLS as it should{f': {why}' if why else ''}",
                f"{_LOOK}: is it http instead of https?",
            )
        case _:
            return Trouble(error.strerror or "the host refused it, and did not say why")
