"""A real node that is killed at its N-th call of a port: `python -m tests.support.mortal_node N FILE`.

Everything is real: SQLite, nats-server, QEMU. The ports are wrapped from outside, and so are the steps within the start
of a QEMU; what they are called is written into FILE, one a line. With N of 0 it does not die.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

from aetherscale.actors.compute.qemu import launch
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.bus.bus import Bus
from aetherscale.components import components
from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.store import Append
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
        self._calls = 0

    def step(self, name: str) -> None:
        """One more: it may be the last."""
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


class MortalHost(Host):
    """This host, but for the ends of processes."""

    def __init__(self, fate: Fate) -> None:
        self._fate = fate

    async def open_store(self, settings: Settings) -> LogStore:
        store = await super().open_store(settings)
        assert isinstance(store, LogStore)
        commit = store._backend.commit

        async def mortal(appends: Sequence[Append]) -> Sequence[Outcome]:
            return await self._fate.around("commit", commit(appends))

        store._backend.commit = mortal  # type: ignore[method-assign]
        return store

    async def connect(self, broker: Broker, settings: Settings, stack: AsyncExitStack) -> Bus:
        bus = await super().connect(broker, settings, stack)
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
            return await self._fate.around(type(effect).__name__, perform(effect, progress))

        driver.perform = mortal  # type: ignore[method-assign]
        return driver


def main(fatal: int, told: Path) -> None:
    """Serve until the fatal call, or SIGTERM."""
    fate = Fate(fatal, told)
    fate.wrap(launch, "spawn")
    fate.wrap(VmDirectory, "write_record")
    fate.wrap(VmDirectory, "remove")

    def ready(told: Ready) -> None:
        print(f"ready: node {told.node}", flush=True)

    asyncio.run(run_node(components(), load_settings({}, os.environ), ready, MortalHost(fate)))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
