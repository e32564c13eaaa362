"""What a request needs and is not there, made on the way. What has a name only the first version's message has made so.

The request is decided again after what is missing was made, or another caller has made it. So of requests that race for
one name, one makes it and the others wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol

from msgspec.structs import replace

from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.wire import encode
from aetherscale.runtime.component import Component


class Maker(Protocol):
    """The part of an actor that is needed of it here."""

    @property
    def component(self) -> Component[Any, Any]:
        """The component that it runs."""
        ...

    def named(self, tenant: str, name: str) -> Aggregate[Any] | None:
        """The aggregate that has the name now."""
        ...

    def serve(self, call: Call) -> AsyncIterator[Chunk]:
        """As in `kernel.calls.Serve`."""
        ...

    def join(self, aggregate: Aggregate[Any], call: Call) -> AsyncIterator[Chunk]:
        """What follows in an aggregate, up to the end of the call's task, as if the call had been for it."""
        ...


class OnTheWay:
    """Makes what is missing. `makers` are by the kinds of their aggregates."""

    def __init__(self, makers: Mapping[str, Maker], new_id: Callable[[], str]) -> None:
        self._makers = makers
        self._new_id = new_id

    async def make(self, refused: Refused, call: Call, tell: Callable[[Chunk], None]) -> None:
        """Have done what a call was refused for the want of, by whoever is first; `tell` gets the status of it.

        Raises `Refused`: the same, where nothing can be made or the call does not ask for it; and why it was not made.
        """
        if refused.made_by is None or not (call.legacy or refused.made_for_all):
            raise refused
        kind, verb, name = refused.made_by.kind, refused.made_by.verb, refused.made_by.of
        maker = self._makers[kind]
        making = replace(
            call,
            component=maker.component.name,
            task=f"{verb}-{kind}",
            body=encode({"name": name, **refused.made_by.options}),
            command_id=self._new_id(),
            keyed=False,
            causation_id=call.command_id,
            # Whether its caller still waits is seen when the call itself is answered, which then goes on.
            deadline_us=None,
            object_id="",
            legacy=False,
        )
        there = maker.named(call.tenant, name)
        try:
            async for chunk in maker.serve(making) if there is None else maker.join(there, making):
                if chunk["type"] == "status" and refused.made_for_all:
                    tell(chunk)
        except Refused as failed:
            if there is None and failed.reason is Reason.CONFLICT and maker.named(call.tenant, name) is not None:
                return
            failed.field = refused.field
            raise


class Aside:
    """What a caller is told of what is made on the way to its own request, while that is not decided yet."""

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._told = asyncio.Event()

    def tell(self, chunk: Chunk) -> None:
        """Tell it. A step that follows on another one of the same word takes its place where nobody has read it yet."""
        if self._chunks and self._chunks[-1].get("status") == chunk.get("status") == "progress":
            self._chunks[-1] = chunk
        else:
            self._chunks.append(chunk)
        self._told.set()

    async def until(self, job: asyncio.Future[Any]) -> AsyncIterator[Chunk]:
        """What is told, until the job has ended, well or not."""
        job.add_done_callback(lambda _: self._told.set())
        while True:
            await self._told.wait()
            self._told.clear()
            chunks, self._chunks = self._chunks, []
            for chunk in chunks:
                yield chunk
            if job.done() and not self._chunks:
                return
