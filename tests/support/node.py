"""A real node for tests: `aetherscale serve` as a child process, and a plain NATS client that is not ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError

from tests.support.nats_client import TidyClient

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0
"""A bound on every wait: far more than a loaded machine needs."""

TRACE = "Traceback (most recent call last)"
"""No client, no file and no state of the host makes a node or a command say this."""

Chunk = dict[str, Any]


class NobodyListens(Exception):
    """The broker says that nobody listens on a subject."""


class RunningNode:
    """One node on one state directory, from `start` to `stop` or `kill`, and again."""

    def __init__(self, state_dir: Path, cache_dir: Path, *arguments: str, name: str = "host1") -> None:
        self.state_dir = state_dir
        self.name = name
        self._cache_dir = cache_dir
        self._arguments = arguments
        self.within: tuple[str, ...] = ()
        """A program that becomes the node's."""
        self.program: tuple[str, ...] = ("-m", "aetherscale", "serve")
        self._process: Process | None = None
        self._client: TidyClient | None = None
        self._connecting = asyncio.Lock()
        self.output: list[str] = []
        self._reading: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AETHERSCALE_STATE_DIR": str(self.state_dir),
            "AETHERSCALE_CACHE_DIR": str(self._cache_dir),
            "AETHERSCALE_IMAGE_DIRS": str(self.state_dir.parent),
            "AETHERSCALE_IMAGE_NETWORKS": "127.0.0.0/8",
            "AETHERSCALE_NODE": self.name,
            # Any port that is free: many nodes are on this host at one time.
            "AETHERSCALE_HTTP": "127.0.0.1:0",
            "AETHERSCALE_ACCELERATOR": "tcg",
            # Whoever runs the tests may be no root; the guests are our own.
            "AETHERSCALE_ALLOW_UNISOLATED": "1",
        }

    async def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        self._process = await asyncio.create_subprocess_exec(
            *(*self.within, "setpriv", "--pdeathsig", "KILL", sys.executable, *self.program, *self._arguments),
            stdout=PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self.environment,
            cwd=ROOT,
        )
        ready = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read(self._process, ready))
        waiting = asyncio.ensure_future(ready.wait())
        await asyncio.wait({waiting, self._reading}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert ready.is_set(), "the node did not become ready:\n" + "\n".join(self.output)

    async def ended(self) -> None:
        """Wait until it has ended, by whatever."""
        assert self._process is not None
        await self._process.wait()

    async def client(self) -> Client:
        """A NATS client with an operator's rights, the same for all who ask at once."""
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self._drop_client()
                context = json.loads((self.state_dir / "nats.json").read_text())
                login = {"user": context.get("user"), "password": context.get("password")}
                self._client = await TidyClient.connected(context["url"], **login, max_reconnect_attempts=-1)
            return self._client

    async def stop(self) -> int:
        """A tidy end; answers with the exit status."""
        return await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """The worst that happens."""
        await self._end(signal.SIGKILL)

    async def close(self) -> None:
        """Kill what is left: the node, then every guest of the state directory. Nothing may have made a traceback."""
        if self._process is not None:
            await self.kill()
        for pid in guests(self.state_dir):
            os.kill(pid, signal.SIGKILL)
        assert TRACE not in (said := "\n".join(self.output)), said

    async def request(self, subject: str, options: Any, **headers: str) -> list[Chunk]:
        """All chunks of a streamed reply; `Nats_Msg_Id="…"` and the like become headers."""
        return [chunk async for chunk in self.stream(subject, options, **headers)]

    async def stream(self, subject: str, options: Any, **headers: str) -> AsyncIterator[Chunk]:
        """The chunks of a streamed reply as they come, up to the empty message."""
        client = await self.client()
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        body = options if isinstance(options, bytes) else json.dumps(options).encode()
        await client.publish(
            subject,
            body,
            reply=inbox,
            headers={name.replace("_", "-"): value for name, value in headers.items()} or None,
        )
        try:
            while True:
                message: Msg = await subscription.next_msg(PATIENCE_S)
                if (message.headers or {}).get("Status") == "503":
                    raise NobodyListens(subject)
                if not message.data:
                    assert not message.headers
                    return
                yield json.loads(message.data)
        finally:
            # A reader who walks away is ended when the loop comes to it, and its connection may be gone by then.
            with contextlib.suppress(ConnectionClosedError):
                await subscription.unsubscribe()

    async def insist(self, subject: str, options: Any, key: str) -> list[Chunk]:
        """As `request`, on a new connection and for as long as nobody listens, as after the broker has died."""
        await self._drop_client()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await self.request(subject, options, Nats_Msg_Id=key)
                except NobodyListens:
                    continue

    async def task(self, component: str, task: str, **options: Any) -> Chunk:
        """The final chunk of a task; `memory_mib=…` and the like become kebab-case."""
        body = {name.replace("_", "-"): value for name, value in options.items()}
        return (await self.request(f"aether.v1.default.cmd.{component}.{task}", body))[-1]

    async def vm(self, vm: str) -> Chunk:
        """The view of a VM."""
        answer = await self.task("compute", "vm-info", vm_id=vm)
        assert answer["type"] == "result", answer
        view: Chunk = answer["vm"]
        return view

    async def vms(self) -> list[Chunk]:
        """The views of all VMs."""
        return await self.items("compute.list-vms", "vm")

    async def items(self, task: str, kind: str) -> list[Chunk]:
        """The views of a list."""
        chunks = await self.request(f"aether.v1.default.cmd.{task}", {})
        return [chunk[kind] for chunk in chunks if chunk["type"] == "item"]

    async def until_vm(self, vm: str, **wanted: Any) -> Chunk:
        """The view of a VM as soon as it has these fields; told by its events, not by asking again and again."""
        client = await self.client()
        subscription = await client.subscribe("aether.v1.*.evt.>")
        await client.flush()
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    view = await self.vm(vm)
                    if all(view[name.replace("_", "-")] == value for name, value in wanted.items()):
                        return view
                    await subscription.next_msg(PATIENCE_S)
        finally:
            await subscription.unsubscribe()

    async def cli(self, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        """Run the command line: exit status, standard output, standard error."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aetherscale", *arguments),
            stdin=None if stdin is None else PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=self.environment,
            cwd=ROOT,
        )
        given = None if stdin is None else stdin.encode()
        out, err = await asyncio.wait_for(process.communicate(given), PATIENCE_S)
        assert process.returncode is not None
        assert TRACE not in err.decode(), err.decode()
        return process.returncode, out.decode(), err.decode()

    async def _drop_client(self) -> None:
        """Close it: one that is left alone goes on connecting."""
        client, self._client = self._client, None
        if client is not None:
            await client.end()

    async def _end(self, how: signal.Signals) -> int:
        assert self._process is not None
        process, self._process = self._process, None
        await self._drop_client()
        # Not by `send_signal`: where it has ended by itself that may reap it before asyncio does, and its status is
        # lost.
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                os.kill(process.pid, how)
        status = await asyncio.wait_for(process.wait(), PATIENCE_S)
        if self._reading is not None:
            await self._reading
        return status

    async def _read(self, process: Process, ready: asyncio.Event) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self.output.append(line.decode().rstrip())
            if line.startswith(b"ready"):
                ready.set()


def guests(state_dir: Path) -> dict[int, str]:
    """The QEMU processes whose working directory is below a state directory: pid and VM id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            cwd = Path(os.readlink(entry / "cwd"))
            alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            continue
        if alive and cwd.parent == state_dir / "vms" and cwd.parent != cwd:
            found[int(entry.name)] = cwd.name
    return found
