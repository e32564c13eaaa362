"""The composition root: the real ports, chosen and wired here and nowhere else."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from aetherscale import __version__
from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.projection import VM_KIND
from aetherscale.actors.compute.qemu.driver import QemuDriver
from aetherscale.actors.compute.simulated import SimulatedDriver
from aetherscale.actors.compute.simulated_host import SimulatedHost
from aetherscale.actors.images.header import write_overlay
from aetherscale.actors.images.host import HostImages
from aetherscale.actors.images.projection import IMAGE_KIND
from aetherscale.actors.publisher import Publisher
from aetherscale.audit import audit
from aetherscale.bus.bus import Bus
from aetherscale.bus.embedded import EmbeddedServer
from aetherscale.bus.endpoint import Endpoint, parse_endpoint, write_endpoint
from aetherscale.bus.heartbeat import Heartbeat
from aetherscale.bus.ingress import Ingress
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.services import Service, Services
from aetherscale.bus.tasks import Tasks
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.integrity import is_large, prove
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.projections import Snapshots, load
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.sqlite.opening import owner_of
from aetherscale.eventstore.sqlite.views import SqliteViews
from aetherscale.eventstore.store import StoreError
from aetherscale.identifiers import boot_id, new_epoch, new_id, now_us
from aetherscale.kernel.messages import Event, Recorded
from aetherscale.kernel.registry import event_types
from aetherscale.node import KINDS, OWNERS, Node, Ports, Registries, projection
from aetherscale.settings import Settings

log = logging.getLogger(__name__)

LOG_NAME: Final = "events.db"
CONNECT_S: Final = 5.0
"""How long the start waits for an outside NATS server before it goes on without."""
EVENT_TYPES: Final[tuple[type[Event], ...]] = event_types(KINDS)
DESCRIPTIONS: Final = {
    "compute": "virtual machines: create, start, stop, delete, list, console",
    "images": "base images: import, build, list, delete",
}


class Ready(Struct, frozen=True):
    """What a node tells when it is ready."""

    node: str
    state_dir: Path
    nats_url: str
    connected: bool
    vms: int
    head: int


async def run_node(settings: Settings, on_ready: Callable[[Ready], None]) -> None:
    """Run a node until SIGTERM or SIGINT. Guests run on.

    Raises `StoreError` where the log cannot be opened or can no longer be trusted, `EmbeddedServerError` where the
    nats-server of our own does not start, and OSError for a state directory that cannot be used.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as (node, ready):
        on_ready(ready)
        notify("READY=1")
        node.broken.add_done_callback(lambda _: stop.set())
        await stop.wait()
        notify("STOPPING=1")
    if node.broken.done():
        raise node.broken.result()


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Node, Ready]]:
    """A node with everything around it, for as long as the block lasts."""
    async with AsyncExitStack() as stack:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings = _named(settings)
        event_log = await _open_log(settings)
        stack.push_async_callback(event_log.close)
        registries, snapshots = await _load(settings, event_log, stack)
        endpoint = await _broker(settings, stack)
        bus = NatsBus(endpoint, name=f"aetherscale {settings.node}", clock=now_us)
        stack.push_async_callback(bus.close)
        node = Node(_ports(settings, event_log), registries)
        stack.push_async_callback(node.close)
        event_log.on_commit(snapshots.committed)
        await node.start()
        await bus.start(CONNECT_S)
        await _open_doors(settings, node, bus, event_log, stack)
        _audit_if_large(settings.state_dir, node, stack)
        connected = bus.disconnected_since_us is None
        vms = sum(1 for kind, _, _ in node.objects() if kind == "vm")
        yield node, Ready(settings.node, settings.state_dir, endpoint().url, connected, vms, await event_log.head())


def _named(settings: Settings) -> Settings:
    """Where nobody gave the node a name, it has that of its log: hosts are renamed."""
    if settings.is_named:
        return settings
    with contextlib.suppress(StoreError):  # what is wrong with the log is said when it is opened
        return replace(settings, node=owner_of(settings.state_dir / LOG_NAME) or settings.node)
    return settings


async def _open_log(settings: Settings) -> EventLog:
    path = settings.state_dir / LOG_NAME
    if path.exists() and not is_large(path):
        # Nothing is written to a damaged log. A large one is proved while the node runs: see `audit.py`.
        await asyncio.to_thread(prove, path)
    store = await open_store(path, node=settings.node, epoch=new_epoch(), now_us=now_us(), program=__version__)
    return EventLog(store, Codec(EVENT_TYPES))


def _audit_if_large(state_dir: Path, node: Node, stack: AsyncExitStack) -> None:
    """Prove the log now, where it was too large to be proved before."""
    if not is_large(state_dir / LOG_NAME):
        return

    async def proof() -> None:
        if damage := await audit(state_dir):
            node.distrust(damage)

    auditing = Tasks("audit")
    stack.push_async_callback(auditing.close)
    auditing.spawn(proof(), "prove")


async def _load(settings: Settings, event_log: EventLog, stack: AsyncExitStack) -> tuple[Registries, Snapshots]:
    """The projections as of the log's head, from snapshots where there are good ones; they are saved from now on."""
    views = await SqliteViews.open(settings.state_dir / "views.db")
    stack.push_async_callback(views.close)
    of_vms, of_images = projection(VM_KIND), projection(IMAGE_KIND)
    vms, position = await load(of_vms, event_log, views)
    images, _ = await load(of_images, event_log, views)
    snapshots = Snapshots(views, event_log.epoch, position)
    snapshots.watch(of_vms, lambda: vms)
    snapshots.watch(of_images, lambda: images)
    saving = Tasks("snapshots")
    stack.push_async_callback(snapshots.save)
    stack.push_async_callback(saving.close)
    saving.spawn(snapshots.run(), "save")
    return Registries(vms, images), snapshots


async def _broker(settings: Settings, stack: AsyncExitStack) -> Callable[[], Endpoint]:
    """Where the broker is: a nats-server of our own, or the one that the settings name."""
    if settings.nats_url is not None:
        outside = parse_endpoint(settings.nats_url)
        write_endpoint(settings.state_dir, outside)
        return lambda: outside
    server = EmbeddedServer(settings.state_dir, settings.node)
    stack.push_async_callback(server.close)
    await server.start()
    return lambda: server.endpoint


def _ports(settings: Settings, event_log: EventLog) -> Ports:
    images_dir = settings.state_dir / "images"
    images = HostImages(images_dir, settings.cache_dir)
    return Ports(event_log, _driver(settings, images_dir), images.perform, now_us, new_id, boot_id())


def _driver(settings: Settings, images_dir: Path) -> ComputeDriver:
    if settings.simulated:
        return SimulatedDriver(SimulatedHost())
    return QemuDriver(
        settings.state_dir,
        image_path=lambda image_id, image_format: images_dir / f"{image_id}.{image_format}",
        write_overlay=write_overlay,
        accelerator=settings.accelerator,
    )


async def _open_doors(settings: Settings, node: Node, bus: Bus, event_log: EventLog, stack: AsyncExitStack) -> None:
    """Everything through which others reach the node, or hear of it."""
    described = [Service(name, DESCRIPTIONS[name], tasks) for name, tasks in node.tasks.items()]
    services = Services(bus, described, node=settings.node, instance=new_id(), version=__version__, started_us=now_us())
    ingress = Ingress(
        bus, node.serve, node=settings.node, owners=OWNERS, clock=now_us, new_id=new_id, count=services.count
    )
    publisher = Publisher(event_log, bus, alarm=log.error, max_bytes=settings.stream_max_bytes)
    heartbeat = Heartbeat(
        bus, node=settings.node, epoch=event_log.epoch, head=event_log.head, version=__version__, clock=now_us
    )
    for door in (heartbeat, publisher, services, ingress):
        stack.push_async_callback(door.close)
    Ownership(node, ingress).begin(event_log)
    await ingress.start()
    await ingress.settled()
    await services.start()
    publisher.start()
    heartbeat.start()


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
    """Tell the service manager; see sd_notify(3). Without one, nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
