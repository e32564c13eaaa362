"""The way in of a node, on a bus in memory, with one component behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from aetherscale.bus.admission import Admission
from aetherscale.bus.bus import Incoming
from aetherscale.bus.ingress import Ingress
from aetherscale.bus.memory import MemoryBroker
from aetherscale.kernel import replies
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk

WAIT_S = 10.0
VM = "0123456789abcdef"


def clock() -> int:
    return time.time_ns() // 1000


class Component:
    """Answers by task, and remembers the calls in their order."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.release = asyncio.Event()
        self.left = asyncio.Event()

    def __call__(self, call: Call) -> AsyncIterator[Chunk]:
        self.calls.append(call)
        if call.task == "refuse-at-once":
            raise Refused(Reason.CONFLICT, "no\r\nway", field="x", remedy="do this")
        if call.task == "fail-at-once":
            raise RuntimeError("deliberate, at once")
        return self._answer(call)

    async def _answer(self, call: Call) -> AsyncIterator[Chunk]:
        try:
            match call.task:
                case "create-vm":
                    yield replies.status("allocating", vm_id=VM)
                    yield replies.status("starting", vm_id=VM)
                    yield replies.result({"vm-id": VM})
                    yield replies.status("never seen", vm_id=VM)
                case "list-vms":
                    for name in ("a", "b"):
                        yield replies.item({"name": name})
                    yield replies.result({"count": 2})
                case "wait":
                    yield replies.status("waiting")
                    await self.release.wait()
                    yield replies.result({})
                case "refuse":
                    raise Refused(Reason.NOT_FOUND, "not here")
                case "fail":
                    raise RuntimeError("deliberate")
                case "end-early":
                    yield replies.status("bye")
                case "huge":
                    yield replies.item({"text": "x" * 2_000_000})
                    yield replies.result({})
                case _:
                    pass
        finally:
            self.left.set()


class Node:
    """One ingress, a caller, and ways to ask."""

    def __init__(self, **options: Any) -> None:
        self.broker = MemoryBroker()
        self.component = Component()
        self.counted: list[tuple[str, str, str]] = []
        self.caller = self.broker.connect(clock)
        self.bus = self.broker.connect(clock)
        ids = iter(range(1, 1000))
        bounds = {"max_open_streams": options.pop("max_open_streams")} if "max_open_streams" in options else {}
        admission = Admission(
            {"compute": self.component},
            lambda component, task, seconds, error: self.counted.append((component, task, error)),
            **bounds,
        )
        self.ingress = Ingress(
            self.bus,
            admission,
            node="n1",
            owners={"vm": "compute"},
            clock=clock,
            new_id=lambda: f"id-{next(ids)}",
            **options,
        )

    async def ask(self, subject: str, body: bytes = b"", **headers: str) -> list[dict[str, Any]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return [
            msgspec.json.decode(chunk) async for chunk in self.caller.request(subject, body, names, timeout_s=WAIT_S)
        ]

    async def hear(self, subject: str) -> Inbox:
        inbox = Inbox()
        await self.caller.listen(subject, "", inbox.messages.put_nowait)
        return inbox


class Inbox:
    def __init__(self) -> None:
        self.messages: asyncio.Queue[Incoming] = asyncio.Queue()

    async def next(self) -> Incoming:
        async with asyncio.timeout(WAIT_S):
            return await self.messages.get()

    async def until_end(self) -> list[dict[str, Any]]:
        chunks = []
        while not (incoming := await self.next()).ends_stream:
            chunks.append(msgspec.json.decode(incoming.body))
        return chunks


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = Node()
    await made.ingress.start()
    yield made
    await made.ingress.close()


def cmd(task: str) -> str:
    return f"aether.v1.default.cmd.compute.{task}"


CREATED = [
    {"type": "status", "status": "allocating", "vm-id": VM},
    {"type": "status", "status": "starting", "vm-id": VM},
    {"type": "result", "vm-id": VM},
]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not holds():  # noqa: ASYNC110 - a turn of the loop is all that is waited for
            await asyncio.sleep(0)
