"""A real node that is killed at its N-th call of a port: `python -m tests.support.mortal_node N FILE [networks|init]`.

Everything is real: SQLite, nats-server, QEMU. The ports are wrapped from outside, and so are the steps within the start
of a QEMU; what they are called is written into FILE, one a line. With N of 0 it does not die. One that is started with
the FILE of another goes on counting.

With `init` the calls are those that keep and remove init scripts, and the appends.

With `networks` the calls are those of the driver of networks and of the ports of VMs, and each step on the host that
they consist of: a transaction of nft, a request of netlink, a process, a file.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from aetherscale.actors.compute.initfiles import InitFiles
from aetherscale.actors.compute.model.effects import RemoveScript
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.network.dnsmasq.directory import Directory
from aetherscale.actors.network.dnsmasq.process import Process, Starting
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.netlink.requests import Requests
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.bus.bus import Bus
from aetherscale.components import components
from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.store import Append
from aetherscale.processes import launch
from aetherscale.runtime.app import Ready, run_node
from aetherscale.runtime.component import Component, Driver
from aetherscale.runtime.component import Host as DriverHost
from aetherscale.runtime.host import Broker, Host
from aetherscale.settings import Settings, load_settings

T = TypeVar("T")


class Fate:
    """Counts calls, and ends the process at one."""

    def __init__(self, fatal: int, told: Path) -> None:
        self._fatal, self._told = fatal, told
        self._calls = len(told.read_text().splitlines()) if told.exists() else 0
        self._turn = threading.Lock()

    def step(self, name: str) -> None:
        """One more: it may be the last. Any thread may call."""
        with self._turn:
            self._calls += 1
            with self._told.open("a") as file:
                file.write(f"{name}\n")
            if self._calls == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    async def around(self, name: str, work: Awaitable[T]) -> T:
        """A call: the process may end before it or after it."""
        self.step(f"before {name}")
        result = await work
        self.step(f"after {name}")
        return result

    def wrap(self, owner: Any, name: str) -> None:
        """The same for a function of a module or a class."""
        plain: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            self.step(f"before {name}")
            result = plain(*arguments, **options)
            self.step(f"after {name}")
            return result

        setattr(owner, name, wrapped)

    def wrap_end(self, owner: Any, name: str, called: str) -> None:
        """The same for a step of which the beginning is the end of the step before it."""
        plain: Callable[..., Any] = getattr(owner, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            result = plain(*arguments, **options)
            self.step(f"after {called}")
            return result

        async def awaited(*arguments: Any, **options: Any) -> Any:
            result = await plain(*arguments, **options)
            self.step(f"after {called}")
            return result

        setattr(owner, name, awaited if inspect.iscoroutinefunction(plain) else wrapped)

    def wrap_call(self, owner: Any, name: str) -> None:
        """A method that is awaited: the process may end before it or after it."""
        plain: Callable[..., Awaitable[Any]] = getattr(owner, name)

        async def wrapped(*arguments: Any, **options: Any) -> Any:
            return await self.around(name, plain(*arguments, **options))

        setattr(owner, name, wrapped)


def wrap_networks(fate: Fate) -> None:
    """The calls of the ports of VMs and of groups, and the steps on the host that networks and ports are made of."""
    for name in ("open", "close_ports", "restore", "reconnect", "apply_group", "remove_group", "apply_rules"):
        fate.wrap_call(HostNetworking, name)
    steps: tuple[tuple[Any, str, str], ...] = (
        (Nftables, "run", "rules"),
        (taps, "attach", "tap made"),
        (taps, "keep", "tap kept"),
        (Requests, "make_link", "link made"),
        (Requests, "set_link", "link set"),
        (Requests, "add_static_entry", "static entry"),
        (Requests, "_remove", "links removed"),
        (Requests, "_change_address", "address"),
        (Directory, "write", "file of a resolver"),
        (Directory, "write_record", "record of a resolver"),
        (Directory, "remove", "directory of a resolver removed"),
        (Starting, "release", "resolver released"),
        (Process, "end", "resolver ended"),
    )
    for owner, name, called in steps:
        fate.wrap_end(owner, name, called)


class MortalHost(Host):
    """This host, but for the ends of processes."""

    def __init__(self, fate: Fate, *, only_networks: bool, only_scripts: bool) -> None:
        self._fate = fate
        self._only_networks = only_networks
        self._only_scripts = only_scripts

    async def open_store(self, settings: Settings) -> LogStore:
        store = await super().open_store(settings)
        assert isinstance(store, LogStore)
        if self._only_networks:
            return store
        commit = store._backend.commit

        async def mortal(appends: Sequence[Append]) -> Sequence[Outcome]:
            return await self._fate.around("commit", commit(appends))

        store._backend.commit = mortal  # type: ignore[method-assign]
        return store

    async def connect(self, broker: Broker, settings: Settings, stack: AsyncExitStack) -> Bus:
        bus = await super().connect(broker, settings, stack)
        if self._only_networks or self._only_scripts:
            return bus
        publish: Any = bus.publish

        async def mortal(subject: str, body: bytes, headers: Any = None, *, reply: str = "") -> None:
            if subject.startswith("_INBOX."):
                await self._fate.around("reply", publish(subject, body, headers, reply=reply))
            else:
                await publish(subject, body, headers, reply=reply)

        bus.publish = mortal  # type: ignore[method-assign]
        return bus

    def open_driver(self, component: Component[Any, Any], host: DriverHost) -> Driver[Any, Any]:
        driver = super().open_driver(component, host)
        perform: Any = driver.perform

        async def mortal(effect: Any, progress: Any) -> Any:
            if self._only_scripts and not isinstance(effect, RemoveScript):
                return await perform(effect, progress)
            return await self._fate.around(type(effect).__name__, perform(effect, progress))

        driver.perform = mortal  # type: ignore[method-assign]
        return driver


def main(fatal: int, told: Path, what: str = "") -> None:
    """Serve until the fatal call, or SIGTERM."""
    fate = Fate(fatal, told)
    if what == "networks":
        fate.wrap(launch, "spawn")
        wrap_networks(fate)
    elif what == "init":
        fate.wrap_call(InitFiles, "keep")
        fate.wrap(InitFiles, "_write")
        fate.wrap(InitFiles, "remove")
    else:
        fate.wrap(launch, "spawn")
        fate.wrap(VmDirectory, "write_record")
        fate.wrap(VmDirectory, "remove")

    host = MortalHost(fate, only_networks=what == "networks", only_scripts=what == "init")

    def ready(told: Ready) -> None:
        print(f"ready: node {told.node}", flush=True)

    asyncio.run(run_node(components(), load_settings({}, os.environ), ready, host))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
