"""What a gateway that runs inside a node gets of it. The program hands gateways in; the node knows none of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Protocol

from aetherscale import __version__
from aetherscale.bus.admission import Admission, Admitted
from aetherscale.bus.beats import Beat
from aetherscale.eventstore.log import EventLog
from aetherscale.kernel.calls import Call
from aetherscale.kernel.measures import Measure
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.operations import Operation
from aetherscale.kernel.registry import Aggregate, Registry
from aetherscale.runtime import operations
from aetherscale.runtime.component import Component
from aetherscale.settings import Settings


class Inside:
    """One node, as a gateway sees it."""

    def __init__(
        self,
        components: Sequence[Component[Any, Any]],
        admission: Admission,
        event_log: EventLog,
        registries: Mapping[str, Registry[Any]],
        report: Callable[[], Awaitable[Beat]],
        now_us: Callable[[], int],
        new_id: Callable[[], str],
        measures: Callable[[Beat], Awaitable[Sequence[Measure]]],
    ) -> None:
        self._components = {component.kind.name: component for component in components}
        self._admission, self._log = admission, event_log
        self.node, self.epoch, self.version = event_log.node, event_log.epoch, __version__
        self._registries, self._report = registries, report
        self.now_us, self.new_id = now_us, new_id
        self._measures = measures

    def admit(self, call: Call) -> Admitted:
        """As in `Admission`: calls of all gateways share its bounds."""
        return self._admission.admit(call)

    async def report(self) -> Beat:
        """The node's report about itself."""
        return await self._report()

    def unready(self) -> str:
        """Why the node takes no commands; "" where it does."""
        return self._log.trouble

    async def measures(self) -> Sequence[Measure]:
        """The figures of the node at this moment."""
        return await self._measures(await self._report())

    def head(self) -> int:
        """The position of the last event that is durable."""
        return self._log.durable_head()[0]

    def standing(self) -> tuple[int, Mapping[str, Mapping[str, Aggregate[Any]]]]:
        """The position of the log's head, and all objects as of it, by kind and id; not to be changed."""
        return self.head(), {kind: registry.aggregates for kind, registry in self._registries.items()}

    def events(self, after: int) -> AsyncGenerator[Sequence[Recorded], None]:
        """All events after a position, in pages, then what comes."""
        return self._log.subscribe(after)

    async def operation(self, tenant: str, command_id: str) -> Operation:
        """The operation of a command. Raises `Refused` (not found)."""
        return await operations.find(self._log, self._components, tenant, command_id)


class Door(Protocol):
    """A gateway that is opened when the node takes calls, and closed before it takes no more."""

    def prepare(self) -> None:
        """Load what it needs; called in a thread of its own, while the node waits for others."""
        ...

    async def open(self, inside: Inside, settings: Settings, stack: AsyncExitStack) -> Mapping[str, str]:
        """Take calls, until the stack is closed. Where, in words, for who starts the node.

        What is in its way keeps no node from running: it is said in those words.
        """
        ...

    @property
    def trouble(self) -> str:
        """What a human has to solve; "" for nothing."""
        ...
