"""The node as its clients see it: over NATS, by the command line, at its start; the VMs are simulated."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

import nats
from nats.aio.client import Client

from aetherscale.bus.embedded import EmbeddedServer
from aetherscale.bus.endpoint import read_endpoint
from aetherscale.bus.nats import NatsBus
from aetherscale.eventstore.log import EventLog
from aetherscale.identifiers import now_us
from aetherscale.runtime.publisher import Publisher
from benchmarks import libvirt
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.logs import NODE, TENANT, open_log, write_vms
from benchmarks.served import environment, memory_mib, node, published, start, stop, whole_process, wire
from benchmarks.wire import Wire

VMS: Final = 1000
STOPPED: Final = 6
"""Events of a VM up to its being stopped: nothing is owed, so that a node does nothing by itself."""
LIST: Final = f"aether.v1.{TENANT}.cmd.compute.list-vms"
INFO: Final = f"aether.v1.{TENANT}.cmd.compute.vm-info"
ONE: Final = b'{"vm-id":"vm-500"}'
READS: Final = 200
ITEM_BYTES: Final = 560
BACKLOG: Final = 20_000


async def known(directory: Path, vms: int) -> Path:
    """A state directory whose log has so many stopped VMs."""
    log = await open_log(directory)
    await write_vms(log, vms, STOPPED)
    await log.close()
    return directory


@asynccontextmanager
async def served(context: Context) -> AsyncIterator[tuple[Path, Wire, Client]]:
    """A node that knows 1,000 VMs, beside a bare responder on the same server; two clients."""
    directory = await known(context.directory / "state", VMS)
    async with node(directory):
        await published(directory, NODE, VMS * (STOPPED + 1))
        endpoint = read_endpoint(directory)
        login = (endpoint.url, endpoint.user or "", endpoint.password or "")
        responder = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "benchmarks.responder", *login, str(ITEM_BYTES)),
            stdout=PIPE,
        )
        assert responder.stdout is not None
        await responder.stdout.readline()
        client = await nats.connect(endpoint.url, user=endpoint.user or None, password=endpoint.password or None)
        plain = wire(directory)
        try:
            yield directory, plain, client
        finally:
            plain.close()
            await client.close()
            responder.kill()
            await responder.communicate()


@asynccontextmanager
async def lists(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """All VMs with all that they have, read by a client that only looks for the end."""
    async with served(context) as (_, plain, _), libvirt.beside("list_all", known=VMS, times=3) as peers:
        yield {
            OURS: partial(ask_turn, plain, LIST, b"{}", 10),
            "nats-py": partial(ask_turn, plain, "bench.list", b"{}", 10),
            **peers,
        }


@asynccontextmanager
async def reads(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """One VM, asked for with nats-py, beside a responder of nats-py that says as much."""
    async with served(context) as (_, _, client):
        yield {
            OURS: partial(request_turn, client, INFO, ONE),
            "nats-py": partial(request_turn, client, "bench.echo", ONE),
        }


async def ask_turn(plain: Wire, subject: str, body: bytes, times: int) -> Samples:
    """Milliseconds for each whole reply."""
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        plain.ask(subject, body)
        took.append((time.perf_counter() - begun) * 1000)
    return {"ms": took}


async def request_turn(client: Client, subject: str, body: bytes) -> Samples:
    """Milliseconds for each first message of a reply."""
    took = []
    for _ in range(READS):
        begun = time.perf_counter()
        await client.request(subject, body, timeout=10)
        took.append((time.perf_counter() - begun) * 1000)
    return {"ms": took}


@asynccontextmanager
async def command_line(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """`aetherscale vm list` from its start to its end, beside programs that do nothing."""
    async with served(context) as (directory, _, _):
        program = str(Path(sys.executable).with_name("aetherscale"))
        yield {
            OURS: partial(whole_process, [program, "vm", "list"], environment(directory)),
            "python": partial(whole_process, [sys.executable, "-c", "pass"]),
            "import asyncio": partial(whole_process, [sys.executable, "-c", "import asyncio"]),
        }


@asynccontextmanager
async def starts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A node from its start until it is ready, with its memory, on logs of 1,000 VMs and of none."""
    yield {
        OURS: partial(start_turn, await known(context.directory / "full", VMS)),
        "empty": partial(start_turn, await known(context.directory / "empty", 0)),
        "import asyncio": partial(whole_process, [sys.executable, "-c", "import asyncio"]),
    }


async def start_turn(directory: Path) -> Samples:
    """Milliseconds, and MiB of the node alone."""
    process, took_ms = await start(directory)
    try:
        return {"ms": [took_ms], "MiB": [memory_mib(process.pid)]}
    finally:
        await stop(process)


@asynccontextmanager
async def backlogs(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A log that no broker has seen is published to an empty one."""
    directory = context.directory / "state"
    log = await open_log(directory)
    await write_vms(log, BACKLOG // 50, 49)

    numbers = itertools.count(1)
    try:
        yield {OURS: lambda: backlog_turn(log, context.directory / f"broker{next(numbers)}")}
    finally:
        await log.close()


async def backlog_turn(log: EventLog, store: Path) -> Samples:
    """Events per second into a new stream of a new broker."""
    store.mkdir(mode=0o700)
    server = EmbeddedServer(store, NODE)
    await server.start()
    bus = NatsBus(lambda: server.endpoint, name="bench", clock=now_us)
    await bus.start(10)
    publisher = Publisher(log, bus)
    head = await log.head()
    begun = time.perf_counter()
    publisher.start()
    while publisher.stored_seq < head:  # noqa: ASYNC110 - the publisher tells nobody
        await asyncio.sleep(0.002)
    took_s = time.perf_counter() - begun
    await publisher.close()
    await bus.close()
    await server.close()
    return {"events/s": [head / took_s]}


NODE_ROWS: Final = (
    Row(
        "list",
        "list 1,000 VMs over NATS, full records",
        lists,
        (Target("ms", "<=", 3), Target("ms", "<=", 1, "nats-py"), Target("ms", "<=", 1, "libvirt")),
        note="`nats-py` is a responder that sends 1,000 messages of the same size, made beforehand; libvirt's `ms` is "
        "one call that tells the state of each (getAllDomainStats), `XML ms` all that it knows of each.",
        peers=("libvirt",),
    ),
    Row(
        "read",
        "read one VM over NATS: request and reply",
        reads,
        (Target("ms", "<=", 1.5, "nats-py"),),
        note="`nats-py` is its own bare round trip, with an answer of the same size.",
    ),
    Row("vm-list", "`aetherscale vm list` of 1,000, the whole process", command_line, (Target("ms", "<=", 60),)),
    Row(
        "start",
        "start of the node with 1,000 VMs in the log, until it is ready",
        starts,
        (Target("ms", "<=", 400), Target("MiB", "<=", 60)),
        rounds=5,
        note="With its own nats-server, whose memory is not counted. VMs are simulated; none runs.",
    ),
    Row("backlog", "a log of 20,000 events to JetStream", backlogs, (Target("events/s", ">=", 20_000),), rounds=5),
)
