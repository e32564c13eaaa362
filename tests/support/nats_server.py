"""A real nats-server for tests: started, killed and started again on the same port and store."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from aetherscale.bus.endpoint import Endpoint

BINARY = Path(sys.prefix) / "bin" / "nats-server"


class NatsServer:
    """Listens on one loopback port from `start` to `kill`; dies with the test process."""

    def __init__(self, store: Path, **options: object) -> None:
        self._store = store
        self._options = options
        self.port = free_port()
        self.within: tuple[str, ...] = ()
        """A program that becomes the server's."""
        self._process: Process | None = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(f"nats://127.0.0.1:{self.port}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        config = {
            "host": "127.0.0.1",
            "port": self.port,
            "jetstream": {"store_dir": str(self._store), "max_file_store": 8 << 30, "max_memory_store": 1 << 26},
            **self._options,
        }
        path = self._store.with_suffix(".conf")
        path.write_bytes(msgspec.json.encode(config))
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", *self.within, str(BINARY), "-c", str(path)),
            stdout=DEVNULL,
            stderr=PIPE,
        )
        assert self._process.stderr is not None
        said = b""
        while b"Server is ready" not in said:
            line = await self._process.stderr.readline()
            assert line, said.decode()
            said += line

    async def kill(self) -> None:
        """SIGKILL, as the worst that happens."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """A tidy end, after which the store is as the server wants it on disk."""
        await self._end(signal.SIGTERM)

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.send_signal(how)
            await process.communicate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def taken_port() -> Iterator[int]:
    """A port of TCP on the host's loopback that another program has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]
