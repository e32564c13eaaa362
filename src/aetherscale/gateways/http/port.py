"""What this gateway needs of the node that it is in. The node hands in something of this shape and knows no HTTP."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from aetherscale.bus.admission import Admitted
from aetherscale.bus.beats import Beat
from aetherscale.kernel.calls import Call
from aetherscale.kernel.measures import Measure
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.operations import Operation
from aetherscale.kernel.registry import Aggregate


class Inside(Protocol):
    """One node."""

    node: str
    epoch: str
    version: str
    """Of the program."""

    def now_us(self) -> int:
        """The time now, in microseconds since 1970 UTC."""
        ...

    def new_id(self) -> str:
        """A new, unique id."""
        ...

    def admit(self, call: Call) -> Admitted:
        """Let a call in, as calls from NATS are. Raises `Refused`."""
        ...

    def head(self) -> int:
        """The position of the last event that is durable."""
        ...

    def standing(self) -> tuple[int, Mapping[str, Mapping[str, Aggregate[Any]]]]:
        """The position of the log's head, and all objects as of it, by kind and id; not to be changed."""
        ...

    def events(self, after: int) -> AsyncGenerator[Sequence[Recorded], None]:
        """All events after a position, in pages, then what comes; ends with the log."""
        ...

    async def operation(self, tenant: str, command_id: str) -> Operation:
        """The operation of a command. Raises `Refused` (not found)."""
        ...

    def unready(self) -> str:
        """Why the node takes no commands; "" where it does."""
        ...

    async def measures(self) -> Sequence[Measure]:
        """The figures of the node at this moment."""
        ...

    async def report(self) -> Beat:
        """The node's report about itself."""
        ...
