"""A node in memory with its HTTP open on real sockets, and clients for it: httpx, and one that sends plain bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families as families

from aetherscale.bus.admission import Admission
from aetherscale.bus.beats import Beat
from aetherscale.bus.memory import MemoryBroker
from aetherscale.bus.services import Service, Services
from aetherscale.components import components, kinds
from aetherscale.debugger.past import PastLog
from aetherscale.gateways.http import metrics
from aetherscale.gateways.http.answers import Answers
from aetherscale.gateways.http.callers import TOKEN_FILE
from aetherscale.gateways.http.door import SOCKET, HttpDoor
from aetherscale.httpaddress import HttpAddress
from aetherscale.kernel.times import to_rfc3339
from aetherscale.runtime.asked import tasks_under
from aetherscale.runtime.doors import Inside
from aetherscale.runtime.measures import Measures
from aetherscale.settings import Settings
from tests.support.eventually import asked_until
from tests.support.memory_node import MemoryNode

PATIENCE_S = 30.0


class HttpNode:
    """One node, its door, and what clients need to know of it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.memory = MemoryNode()
        self.door = HttpDoor()
        self.counted: list[tuple[str, str, str]] = []
        self._stack = AsyncExitStack()
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        await self.memory.start()
        await self.open()

    async def open(self) -> None:
        """Open the door, as the last thing that a node does."""
        node, log = self.memory.node, self.memory.log
        assert node is not None
        assert log is not None
        bus = MemoryBroker().connect(self.memory.clock)
        described = [Service(each.name, "", tuple(tasks_under(each.name, components()))) for each in components()]
        services = Services(bus, described, node=log.node, instance="1", version="0", started_us=0)

        def count(component: str, task: str, seconds: float, error: str) -> None:
            self.counted.append((component, task, error))
            services.count(component, task, seconds, error)

        admission = Admission(node.serve, count)
        measures = Measures(node, log, admission, services, bus, self.memory.clock() / 1e6)
        inside = Inside(
            components(),
            admission,
            log,
            node.registries,
            self.report,
            self.memory.clock,
            self.memory.new_id,
            measures.all,
        )
        settings = Settings(state_dir=self.state_dir, node=log.node, http=HttpAddress("127.0.0.1", 0))
        # The log is in memory, where no other process finds it: what the historian runs is asked in this one.
        past = PastLog(log, kinds(), is_proved=True)
        self.admission, self.door = admission, HttpDoor(lambda _, tenant: Answers(past, tenant))
        self.said = await self.door.open(inside, settings, self._stack)

    async def report(self) -> Beat:
        assert self.memory.log is not None
        return Beat("host1", "epoch1", await self.memory.log.head(), "0.1.0", to_rfc3339(self.memory.clock()))

    async def close_door(self) -> None:
        await self._stack.aclose()

    async def restart(self) -> None:
        """The process dies, and another one comes."""
        await self.close_door()
        await self.memory.close()
        await self.start()

    async def close(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        await self.close_door()
        await self.memory.close()

    @property
    def port(self) -> int:
        assert self.door.address is not None
        return self.door.address[1]

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def token(self) -> str:
        return (self.state_dir / TOKEN_FILE).read_text().strip()

    @property
    def socket(self) -> Path:
        return self.state_dir / SOCKET

    def tcp(self, **headers: str) -> httpx.AsyncClient:
        """A client that has the token, unless `Authorization` is given."""
        given = {
            "Authorization": f"Bearer {self.token}",
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        return httpx.AsyncClient(base_url=f"http://{self.host}", headers=given, timeout=PATIENCE_S, trust_env=False)

    def unix(self, **headers: str) -> httpx.AsyncClient:
        """A client on the Unix socket."""
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket))
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.AsyncClient(base_url="http://localhost", transport=transport, headers=named, timeout=PATIENCE_S)

    async def raw(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the Unix socket that has sent these bytes."""
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        self._writers.append(writer)
        writer.write(data)
        return reader, writer

    async def said_to(self, data: bytes) -> bytes:
        """All that comes on a connection that has sent these bytes, up to its end."""
        reader, writer = await self.raw(data)
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await reader.read()
        finally:
            writer.close()

    async def image(self, name: str = "tiny") -> None:
        """Have an image that VMs can be made of."""
        final = await self.memory.final("images", "build-image", {"recipe": "tiny", "name": name})
        assert final["type"] == "result", final


async def until(holds: Callable[[], bool]) -> None:
    """Wait for what nothing tells of by itself."""

    async def ask() -> bool:
        return holds()

    await asked_until(ask, PATIENCE_S)


@asynccontextmanager
async def http_node(state_dir: Path) -> AsyncIterator[HttpNode]:
    """One that is open for as long as the block lasts."""
    state_dir.mkdir(mode=0o700, exist_ok=True)
    node = HttpNode(state_dir)
    await node.start()
    try:
        yield node
    finally:
        await node.close()


async def vm(client: httpx.AsyncClient, name: str = "web") -> dict[str, str]:
    made = await client.post("/v1/vms", params={"wait": "ready"}, json={"image": "tiny", "name": name})
    assert made.status_code == 201, made.text
    view: dict[str, str] = made.json()
    return view


async def read_response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """One response with a Content-Length off a connection: status, headers, body."""
    async with asyncio.timeout(PATIENCE_S):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return int(first.split()[1]), headers, body


class Events:
    """Server-sent events off a response, as they come."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> dict[str, str]:
        """The fields of the next event; of a comment the field "" alone."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(PATIENCE_S):
            async for line in self._lines:
                if not line:
                    if fields:
                        return fields
                    continue
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
        raise EOFError

    async def named(self, name: str) -> dict[str, str]:
        """The next event of a name."""
        while True:
            event = await self.next()
            if event.get("event") == name:
                return event

    async def ended(self) -> bool:
        """Whether the stream ends, once everything has been read."""
        with contextlib.suppress(EOFError, httpx.RemoteProtocolError, httpx.ReadError):
            while True:
                await self.next()
        return True


@asynccontextmanager
async def event_stream(client: httpx.AsyncClient, path: str, **headers: str) -> AsyncIterator[Events]:
    """An open stream of events."""
    named: Any = {name.replace("_", "-"): value for name, value in headers.items()}
    async with client.stream("GET", path, headers=named) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream"
        events = Events(response.aiter_lines())
        assert await events.next() == {"retry": "1000"}
        yield events


Values = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Values:
    """Every sample by its name and its labels, as Prometheus reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families(text)
        for sample in family.samples
    }


async def scrape(client: httpx.AsyncClient) -> Values:
    answer = await client.get("/metrics")
    assert (answer.status_code, answer.headers["content-type"]) == (200, metrics.MEDIA_TYPE)
    return samples(answer.text)
