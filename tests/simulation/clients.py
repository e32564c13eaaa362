"""Callers: they ask for things, again and again under the same key until they have an answer, and keep account."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus.bus import BusUnavailable, NoResponders
from tests.simulation.world import Violation, World

SILENCE_S: Final = 45.0
"""Longer than the time between two signs of life."""
MOST_TRIES: Final = 40
NAMES: Final = ("web", "db", "ci")
TENANTS: Final = ("default", "other")
"""Of ports; the rest is the first one's."""
ADDRESSES: Final = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
IMAGES: Final = (*("tiny",) * 7, "other")
TASKS: Final = ("create-vm",) * 3 + (
    "start-vm", "stop-vm", "kill-vm", "restart-vm", "delete-vm", "delete-vm", "list-vms", "vm-info",
    "import-image", "delete-image", "make-port", "move-port", "delete-port",
)  # fmt: skip

QUERIES: Final = ("list-vms", "vm-info")

Chunk = dict[str, Any]


class Asked(Struct):
    """One request, and what was heard of it."""

    key: str
    component: str
    task: str
    body: bytes
    tenant: str = "default"
    acknowledged: bool = False
    answer: Chunk | None = None


class Client:
    """One caller."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._bus = world.broker.connect(world.now_us)
        self._images_asked = 0
        self.asked: list[Asked] = []

    async def work(self, requests: int) -> None:
        """Ask for so many things, one after the other."""
        chance = self._world.chance
        for number in range(requests):
            if self.asked and chance.random() < 0.25:
                await self.insist(chance.choice(self.asked))
            else:
                asked = self._draw(f"key-{self._number}-{number}")
                self.asked.append(asked)
                await self.insist(asked)
            await asyncio.sleep(chance.choice([0.0, 0.01, 1.0, 10.0]))

    def import_of(self, name: str) -> Asked:
        """A request for an image."""
        return self._about_image("import-image", {"source": f"/{name}.raw", "name": name})

    def removal_of(self, name: str) -> Asked:
        """A request to delete an image."""
        return self._about_image("delete-image", {"image": name})

    def _about_image(self, task: str, options: dict[str, Any]) -> Asked:
        self._images_asked += 1
        key = f"image-{self._number}-{self._images_asked}"
        asked = Asked(key, "images", task, msgspec.json.encode(options))
        self.asked.append(asked)
        return asked

    async def list_all(self) -> list[Chunk]:
        """The views of all VMs, the deleted ones too."""
        return [chunk["vm"] for chunk in await self._list("compute.list-vms")]

    async def list_images(self) -> list[Chunk]:
        """The views of all images, the deleted ones too."""
        return [chunk["image"] for chunk in await self._list("images.list-images")]

    async def _list(self, task: str) -> list[Chunk]:
        body = msgspec.json.encode({"all": True})
        listed = self._bus.request(f"aether.v1.default.cmd.{task}", body, timeout_s=SILENCE_S)
        return [chunk for chunk in [msgspec.json.decode(raw) async for raw in listed] if chunk["type"] == "item"]

    async def insist(self, asked: Asked) -> Chunk | None:
        """Ask, and ask again where there was no answer; in the end it may be given up."""
        for _ in range(MOST_TRIES):
            try:
                answer = await self._ask(asked)
            except (BusUnavailable, NoResponders, TimeoutError):
                await asyncio.sleep(self._world.chance.choice([0.05, 1.0, 7.0]))
                continue
            if answer is None or (answer["type"] == "error" and answer["retryable"]):
                await asyncio.sleep(self._world.chance.choice([0.05, 1.0, 7.0]))
                continue
            self._remember(asked, answer)
            return answer
        return None

    async def _ask(self, asked: Asked) -> Chunk | None:
        last: Chunk | None = None
        subject = f"aether.v1.{asked.tenant}.cmd.{asked.component}.{asked.task}"
        async for raw in self._bus.request(subject, asked.body, {"Nats-Msg-Id": asked.key}, timeout_s=SILENCE_S):
            last = msgspec.json.decode(raw)
            assert last is not None
            if last["type"] == "status" and last["status"] != "working" and not asked.acknowledged:
                self._acknowledged(asked, last)
        return last

    def _acknowledged(self, asked: Asked, chunk: Chunk) -> None:
        """Somebody has said that it will be done: it has to be durable by now."""
        asked.acknowledged = True
        if (asked.tenant, asked.key) not in self._world.log.commands:
            raise Violation(f"{asked.key} {asked.task} was acknowledged and is not in the log: {chunk}")

    def _remember(self, asked: Asked, answer: Chunk) -> None:
        told = _of(answer)
        accepted = (asked.tenant, asked.key) in self._world.log.commands
        if answer["type"] == "result" and asked.task not in QUERIES and not accepted:
            raise Violation(f"{asked.key} {asked.task} has a result and is not in the log: {told}")
        if accepted and asked.task not in QUERIES and answer.get("code") != 504:
            if asked.answer is not None and asked.answer != told:
                raise Violation(f"{asked.key} {asked.task} had two answers: {asked.answer} and {told}")
            asked.answer = told

    def _draw(self, key: str) -> Asked:
        chance = self._world.chance
        task = chance.choice(TASKS)
        component = {"image": "images", "port": "ports"}.get(task.rpartition("-")[2], "compute")
        tenant = chance.choice(TENANTS) if component == "ports" else TENANTS[0]
        options: dict[str, Any] = {}
        match task:
            case "create-vm":
                options = {"name": chance.choice(NAMES), "image": chance.choice(IMAGES), "memory-mib": 64}
                options["restart"] = chance.choice(["always", "on-failure", "never"])
                options["autostart"] = chance.random() < 0.8
            case "import-image":
                options = {"source": "/tiny.raw", "name": chance.choice(["tiny", "tiny", "other"])}
            case "delete-image":
                options = {"image": chance.choice(["other", "other", "other", "tiny"])}
            case "make-port":
                options = {"name": chance.choice(NAMES), "addresses": chance.sample(ADDRESSES, chance.randint(0, 3))}
            case "move-port":
                options = {"port": chance.choice(NAMES), "addresses": chance.sample(ADDRESSES, chance.randint(0, 3))}
            case "delete-port":
                options = {"port": chance.choice(NAMES)}
            case "list-vms":
                pass
            case "kill-vm":
                task, options = "stop-vm", {"vm-id": chance.choice(NAMES), "kill": True}
            case "stop-vm" | "delete-vm":
                options = {"vm-id": chance.choice(NAMES), "grace-s": chance.choice([1, 30])}
            case _:
                options = {"vm-id": chance.choice(NAMES)}
        return Asked(key, component, task, msgspec.json.encode(options), tenant)


def _of(answer: Chunk) -> Chunk:
    """What has to be the same in every answer to one request."""
    if answer["type"] == "error":
        return {"type": "error", "code": answer["code"], "message": answer["message"]}
    return answer
