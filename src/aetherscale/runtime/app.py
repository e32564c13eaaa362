"""A node with everything around it: its log, broker and drivers, and the doors to it. The real ports are in `host.py`.

Which components there are is said by the caller: `aetherscale.components` lists those of this program.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec import Struct

from aetherscale import __version__, service
from aetherscale.bus import beats
from aetherscale.bus.admission import Admission
from aetherscale.bus.beats import Beat
from aetherscale.bus.bus import Bus
from aetherscale.bus.callers import Callers
from aetherscale.bus.heartbeat import Heartbeat
from aetherscale.bus.ingress import Ingress
from aetherscale.bus.services import Service, Services
from aetherscale.bus.tasks import Tasks
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.projections import Snapshots, SnapshotStore, load
from aetherscale.eventstore.store import StoreError
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import Registry
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from aetherscale.runtime.asked import tasks_under
from aetherscale.runtime.component import Component
from aetherscale.runtime.doors import Door, Inside
from aetherscale.runtime.drivers import Drivers
from aetherscale.runtime.host import Broker, Host, Platform
from aetherscale.runtime.measures import Measures
from aetherscale.runtime.node import Node, Ports, event_types, projection
from aetherscale.runtime.publisher import Publisher
from aetherscale.runtime.world import Registries
from aetherscale.settings import Settings

log = logging.getLogger(__name__)

HOST: Final = Host()
Components = Sequence[Component[Any, Any]]


class Ready(Struct, frozen=True):
    """The report of a node that is ready."""

    node: str
    state_dir: Path
    nats_url: str
    connected: bool
    trouble: str
    """Why that server cannot be used, where it cannot."""
    counts: Mapping[str, int]
    """The counts in a heartbeat."""
    head: int
    notes: Mapping[str, str]
    """Notices for the operator, from the components."""
    doors: Mapping[str, str] = {}
    """Where else the node takes calls, from the gateways inside it."""


async def run_node(
    components: Components,
    settings: Settings,
    on_ready: Callable[[Ready], None],
    platform: Platform = HOST,
    doors: Sequence[Door] = (),
) -> None:
    """Run a node until SIGTERM, SIGINT or SIGHUP. Guests run on.

    One that is ignored stays so: SIGHUP under nohup(1), SIGINT in a shell script that does not wait for its jobs.

    Raises `StoreError` where the log cannot be opened or can no longer be trusted, `EmbeddedServerError` where the
    nats-server of our own does not start, and OSError for a state directory that cannot be used.
    """
    stop = asyncio.Event()
    build = service.build() if os.environ.get("NOTIFY_SOCKET") else ""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop.set)
    async with running(components, settings, platform, doors) as (node, ready):
        on_ready(ready)
        notify(f"READY=1\nSTATUS={build}")
        node.broken.add_done_callback(lambda _: stop.set())
        await stop.wait()
        notify("STOPPING=1")
    if node.broken.done():
        raise node.broken.result()


@asynccontextmanager
async def running(
    components: Components, settings: Settings, platform: Platform = HOST, doors: Sequence[Door] = ()
) -> AsyncIterator[tuple[Node, Ready]]:
    """A node with everything around it, for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        settings = platform.prepare(settings)
        event_log = EventLog(await platform.open_store(settings), Codec(event_types(components)))
        stack.push_async_callback(event_log.close)
        registries, snapshots = await _load(components, await platform.open_snapshots(settings), event_log, stack)
        loading = asyncio.get_running_loop().run_in_executor(None, _prepare, doors) if doors else None
        broker = await platform.find_broker(settings, stack)
        drivers = Drivers(components, settings, platform.boot_id(), platform.open_driver)
        ports = Ports(event_log, drivers.all(), platform.now_us, platform.new_id)
        node = Node(components, ports, registries)
        stack.push_async_callback(node.close)
        _watch("guard", platform.guard(settings), node, stack)
        event_log.on_commit(snapshots.committed)
        await node.start()
        bus = await platform.connect(broker, settings, stack)
        callers = await platform.callers(broker, bus, settings, stack)
        inside = await _open_bus(components, settings, platform, node, broker, bus, callers, event_log, doors, stack)
        if loading is not None:
            await loading
        opened = [await door.open(inside, settings, stack) for door in doors]
        _watch("audit", platform.audit(settings), node, stack)
        connected = bus.disconnected_since_us is None
        head = await event_log.head()
        notes = {name: text for component in components for name, text in component.notes(settings).items()}
        url, trouble = broker.endpoint().url, bus.trouble
        where = {name: text for each in opened for name, text in each.items()}
        ready = Ready(settings.node, settings.state_dir, url, connected, trouble, node.counts(), head, notes, where)
        yield node, ready


def _watch(
    name: str, doubt: Coroutine[None, None, StoreError | None] | None, node: Node, stack: AsyncExitStack
) -> None:
    """Let the node end where a doubt turns out to be true."""
    if doubt is None:
        return

    async def watch() -> None:
        if failure := await doubt:
            node.distrust(failure)

    watching = Tasks(name)
    stack.push_async_callback(watching.close)
    watching.spawn(watch(), "watch")


async def _load(
    components: Components, kept: SnapshotStore, event_log: EventLog, stack: AsyncExitStack
) -> tuple[Registries, Snapshots]:
    """The projections as of the log's head, from snapshots where there are good ones; they are saved from now on."""
    stack.push_async_callback(kept.close)
    projections = [projection(component.kind) for component in components]
    states, position = await load(projections, event_log, kept)
    registries: dict[str, Registry[Any]] = {each.name: state for each, state in zip(projections, states, strict=True)}
    snapshots = Snapshots(kept, event_log.epoch, position)
    for each in projections:
        snapshots.watch(each, partial(registries.__getitem__, each.name))
    saving = Tasks("snapshots")
    stack.push_async_callback(snapshots.save)
    stack.push_async_callback(saving.close)
    saving.spawn(snapshots.run(), "save")
    return registries, snapshots


def _prepare(doors: Sequence[Door]) -> None:
    for door in doors:
        door.prepare()


async def _open_bus(
    components: Components,
    settings: Settings,
    platform: Platform,
    node: Node,
    broker: Broker,
    bus: Bus,
    callers: Callers,
    event_log: EventLog,
    doors: Sequence[Door],
    stack: AsyncExitStack,
) -> Inside:
    """Everything on the bus through which others reach the node, or hear of it; and what other gateways get of it."""
    now_us, new_id = platform.now_us, platform.new_id
    instance = new_id()
    tasks = {each.name: tuple(tasks_under(each.name, components)) for each in components}
    described = [Service(each.name, each.identity.about, tasks[each.name]) for each in components]
    services = Services(bus, described, node=settings.node, instance=instance, version=__version__, started_us=now_us())
    admission = Admission(node.serve, services.count)
    ingress = Ingress(
        bus,
        admission,
        node=settings.node,
        owners={component.kind.name: component.name for component in components},
        clock=now_us,
        new_id=new_id,
        callers=callers,
        queries=node.queries,
    )

    async def report() -> Beat:
        return await _report(settings, platform, node, event_log, instance, publisher, heartbeat, doors)

    heartbeat = Heartbeat(bus, report, (settings.node, event_log.epoch, instance))
    publisher = Publisher(
        event_log, bus, max_bytes=settings.stream_max_bytes, rivalry=heartbeat.rivalry, lost=broker.lost
    )
    for door in (heartbeat, publisher, services, ingress):
        stack.push_async_callback(door.close)
    Ownership(node, ingress).begin(event_log)
    await ingress.start()
    await ingress.settled()
    await services.start()
    await heartbeat.start()
    publisher.start()
    measures = Measures(node, event_log, admission, services, bus, now_us() / SECOND_US)
    return Inside(components, admission, event_log, node.registries, report, now_us, new_id, measures.all)


async def _report(
    settings: Settings,
    platform: Platform,
    node: Node,
    event_log: EventLog,
    instance: str,
    publisher: Publisher,
    heartbeat: Heartbeat,
    doors: Sequence[Door],
) -> Beat:
    """The node's report about itself."""
    head_seq, head_hash = event_log.durable_head()
    counts = node.counts()
    capacity = platform.capacity()
    troubles = filter(None, (heartbeat.trouble, publisher.trouble, *(door.trouble for door in doors)))
    return Beat(
        node=settings.node,
        epoch=event_log.epoch,
        seq=await event_log.head(),
        version=__version__,
        time=to_rfc3339(platform.now_us()),
        instance=instance,
        head_seq=head_seq,
        head_hash=head_hash,
        cpus=capacity.cpus,
        memory_mib=capacity.memory_mib,
        memory_available_mib=capacity.memory_available_mib,
        vms=counts.get("vms", 0),
        vms_running=counts.get("vms-running", 0),
        stored_seq=publisher.stored_seq,
        troubles=tuple(beats.line(trouble) for trouble in troubles),
    )


class Ownership:
    """Listens for each object of the node while it exists."""

    def __init__(self, node: Node, ingress: Ingress) -> None:
        self._node = node
        self._ingress = ingress

    def begin(self, event_log: EventLog) -> None:
        """Listen for what there is, and from now on for what comes."""
        for kind, object_id, tenant in self._node.objects():
            self._ingress.owns(kind, object_id, tenant, owned=True)
        event_log.on_commit(self._committed)

    def _committed(self, recorded: Sequence[Recorded]) -> None:
        for each in recorded:
            if change := self._node.changed_hands(each):
                kind, object_id, tenant, owned = change
                self._ingress.owns(kind, object_id, tenant, owned=owned)


def notify(state: str) -> None:
    """Notify the service manager; see sd_notify(3). Without one, nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
