"""The way in: a Unix socket for local users, the loopback for whoever has the node's token.

What is in its way keeps no node from running: a port that another program has, say, is told in words, and the Unix
socket is open all the same.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

from aetherscale import statedir
from aetherscale.bus.tasks import Tasks
from aetherscale.gateways.http import callers, problems
from aetherscale.gateways.http.connection import READ_BYTES, Connection, linger
from aetherscale.gateways.http.dispatch import authority_of, is_open
from aetherscale.gateways.http.handlers import Handlers
from aetherscale.gateways.http.historian import Historian
from aetherscale.gateways.http.messages import Caller
from aetherscale.gateways.http.port import Inside
from aetherscale.gateways.http.questions import Asked
from aetherscale.httpaddress import HttpAddress
from aetherscale.settings import Settings

log = logging.getLogger(__name__)

SOCKET: Final = "http.sock"
MAX_CONNECTIONS: Final = 1024
"""Connections at one time; one more is told so (503) and closed."""
MAX_TURNED_AWAY: Final = 64
"""Of those, how many are told so at one time; further ones are closed without a word."""
BACKLOG: Final = 128
SEND_BUFFER_BYTES: Final = 64 * 1024
"""What the kernel keeps for a caller that takes nothing."""
SOCKET_MODE: Final = 0o600
SHARED_SOCKET_MODE: Final = 0o660
_FULL: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: %d\r\n\r\n%s"
)

Admit = Callable[[dict[str, str], str], Caller]


class HttpDoor:
    """The HTTP of one node, as `runtime.doors.Door` has it."""

    def __init__(self, asked: Callable[[Path, str], Asked] = Historian) -> None:
        """`asked` makes whoever answers about the past, of a state directory and a tenant."""
        self._asked = asked
        self._connections: set[Connection] = set()
        self._tasks = Tasks("http")
        self._turned_away: set[asyncio.StreamWriter] = set()
        self._servers: list[asyncio.Server] = []
        self._trouble = ""
        self._path: Path | None = None
        self.address: tuple[str, int] | None = None
        """Where it listens on TCP; None where it does not."""

    @property
    def trouble(self) -> str:
        """Why it does not listen where it should; "" where it does."""
        return self._trouble

    async def open(self, inside: Inside, settings: Settings, stack: AsyncExitStack) -> Mapping[str, str]:
        """Listen, until the stack is closed. Where, in words."""
        assert settings.http is not None
        historian = self._asked(settings.state_dir, settings.tenant)
        stack.push_async_callback(historian.close)
        site = Handlers(inside, settings.tenant, historian)
        stack.push_async_callback(self.close)
        ways = [await self._open_tcp(settings.http, settings, site), await self._open_socket(settings, site)]
        return {"http": "; ".join(ways)}

    async def _open_tcp(self, at: HttpAddress, settings: Settings, site: Handlers) -> str:
        path = settings.state_dir / callers.TOKEN_FILE
        try:
            token = callers.token_of(settings.state_dir)
        except OSError as error:
            return self._lacks(f"HTTP is not open at {at}: {path} cannot be used: {error.strerror}")
        listening = _listen(at)
        if isinstance(listening, str):
            return self._lacks(listening)
        self.address = listening.getsockname()[:2]
        assert self.address is not None
        hosts = names_of(*self.address)
        self._servers.append(await self._serve(listening, site, partial(_over_tcp, hosts, token)))
        return f"http://{HttpAddress(*self.address)}, token in {path}"

    async def _open_socket(self, settings: Settings, site: Handlers) -> str:
        path = (settings.run_dir or settings.state_dir) / SOCKET
        mode = SHARED_SOCKET_MODE if settings.run_dir is not None else SOCKET_MODE
        try:
            listening = bind(path, mode)
        except OSError as error:
            return self._lacks(f"the Unix socket {path} cannot be open: {error.strerror}")
        self._servers.append(await self._serve(listening, site, _over_unix))
        self._path = path
        return f"for local users {path}"

    def _lacks(self, what: str) -> str:
        """Something is not open; the node runs all the same."""
        self._trouble = f"{self._trouble}; {what}" if self._trouble else what
        log.warning("%s", what)
        return what

    async def _serve(self, listening: socket.socket, site: Handlers, of: Callable[[socket.socket], Admit]) -> Any:
        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(self._connections) >= MAX_CONNECTIONS:
                self._turn_away(reader, writer)
                return
            connection = Connection(reader, writer, site, of(writer.get_extra_info("socket")))
            self._connections.add(connection)
            self._tasks.spawn(self._run(connection), "connection")

        start = asyncio.start_unix_server if listening.family == socket.AF_UNIX else asyncio.start_server
        return await start(connected, sock=listening, limit=READ_BYTES, backlog=BACKLOG)

    def _turn_away(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Say that there are too many, to as many as can be told at one time."""
        if len(self._turned_away) >= MAX_TURNED_AWAY:
            writer.transport.abort()
            return
        body = problems.problem(problems.FULL).body
        writer.write(_FULL % (len(body), body))
        telling = self._tasks.spawn(linger(reader, writer), "turn away")
        self._turned_away.add(writer)

        def told(_: asyncio.Task[None]) -> None:
            self._turned_away.discard(writer)
            writer.close()

        telling.add_done_callback(told)

    async def _run(self, connection: Connection) -> None:
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    async def close(self) -> None:
        """Take no more, and say so to whoever waits. What was accepted goes on."""
        for server in self._servers:
            server.close()
        if self._path is not None:
            with suppress(OSError):  # the directory may be gone
                self._path.unlink()
            self._path = None
        open_still = list(self._connections)
        for connection in open_still:
            connection.is_stopping = True
        # A task that is cancelled before its first step says nothing, not even that it was cancelled.
        await asyncio.sleep(0)
        await self._tasks.close()
        await asyncio.sleep(0)
        for connection in open_still:
            connection.let_go()


def names_of(host: str, port: int) -> frozenset[str]:
    """How a request names one of our addresses on the loopback: as an address, or as `localhost`."""
    names = {str(HttpAddress(host, port)), f"localhost:{port}"}
    return frozenset(names | ({name.rpartition(":")[0] for name in names} if port == 80 else set()))


def bind(path: Path, mode: int) -> socket.socket:
    """A socket of ours at a path of any length, in place of one that is left there. Raises OSError."""
    with statedir.opened(path.parent) as directory:
        with suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path.name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise FileExistsError(errno.EEXIST, "it is there and is no socket", str(path))
            os.unlink(path.name, dir_fd=directory)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            # By way of the descriptor: a path in sockaddr_un has 108 bytes, see unix(7).
            made.bind(f"/proc/self/fd/{directory}/{path.name}")
            os.chmod(path.name, mode, dir_fd=directory)
            made.setblocking(False)
        except BaseException:
            made.close()
            raise
    return made


def _listen(at: HttpAddress) -> socket.socket | str:
    """A socket that is bound to an address; or why there is none, in words."""
    made = socket.socket(
        socket.AF_INET6 if ":" in at.host else socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC
    )
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        made.bind((at.host, at.port))
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            return f"another program listens at {at}, so HTTP is not open there: give another --http HOST:PORT"
        return f"HTTP cannot be open at {at}: {os.strerror(error.errno or 0)}"
    return made


def _over_unix(connection: socket.socket) -> Admit:
    peer = callers.peer_of(connection)

    def admit(headers: dict[str, str], target: str) -> Caller:
        callers.require_origin(headers, ("localhost",))
        return callers.local(peer)

    return admit


def _over_tcp(hosts: frozenset[str], token: str, connection: socket.socket) -> Admit:
    known: list[Caller] = []

    def admit(headers: dict[str, str], target: str) -> Caller:
        authority = authority_of(target)
        callers.require_host({**headers, "host": authority} if authority else headers, hosts)
        callers.require_origin(headers, hosts)
        if not is_open(target):
            callers.require_token(headers, token)
        if not known:
            known.append(callers.of_this_host(connection))
        return known[0]

    return admit
