"""Callers: they ask for things, again and again under the same key until they have an answer, and keep account."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from aetherscale.actors.compute.model.state import Vm
from aetherscale.bus.bus import BusUnavailable, NoResponders
from tests.simulation.catalogued import on_the_way
from tests.simulation.violation import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World

SILENCE_S: Final = 45.0
"""Longer than the time between two signs of life."""
MOST_TRIES: Final = 40
NAMES: Final = ("web", "db", "ci")
TENANTS: Final = ("default", "other")
"""Of ports and networks; the rest is the first one's."""
ADDRESSES: Final = ("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4")
IMAGES: Final = (*("tiny",) * 7, "other")
TASKS: Final = ("create-vm",) * 3 + (
    "start-vm", "stop-vm", "kill-vm", "restart-vm", "delete-vm", "delete-vm", "list-vms", "vm-info",
    "import-image", "delete-image", "make-port", "move-port", "delete-port",
    "create-network", "create-network", "create-network", "delete-network", "network-info",
    "create-group", "create-group", "set-rules", "set-rules", "delete-group", "group-info", "list-forwards",
)  # fmt: skip

NETWORKS: Final = ("lab", "lab", "dmz", "dmz", "public")
CHOSEN: Final = ("203.0.113.7", "203.0.113.8", "2001:db8::7", "fe80::1")
PREFIXES: Final = (None, None, "none", "10.9.8.0/29", "10.9.8.0/28", "10.9.8.128/25", "10.9.9.0/29", "10.9.8.0/23")
"""Of most of them two have addresses in common."""
PLACES: Final = (None, None, *("lab",) * 5, "dmz", ["lab", "dmz"], ["lab", "lab"], ["dmz", "lab"], "nowhere")

GROUPS: Final = ("web", "db", "ops")
RULES: Final = (
    "in:tcp:80,443", "in:icmp", "in:tcp:22:from=10.0.0.0/8", "out:udp:53:to=fd00::/8", *(
        f"in:any:from=group/{name}" for name in ("web", "db", "db", "nowhere")
    ),
)  # fmt: skip
OF_RULES: Final = ("attach-group", "attach-group", "detach-group", "add-forward", "add-forward", "remove-forward")
"""What is asked for where there is a VM in a network."""

COMPONENTS: Final = {
    "image": "images", "port": "ports", "network": "network", "group": "firewall", "rules": "firewall",
    "forward": "firewall", "forwards": "firewall",
}  # fmt: skip
QUERIES: Final = ("search-images", "list-vms", "vm-info", "network-info", "group-info", "list-forwards")

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
        return self._about_image("import-image", {"source": f"/{name}.raw", "name": name, "first-boot": "aetherscale"})

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

    async def list_networks(self) -> list[Chunk]:
        """The views of all networks, the deleted ones too."""
        return [chunk["network"] for chunk in await self._list("network.list-networks")]

    async def list_groups(self) -> list[Chunk]:
        """The views of all groups, the deleted ones too."""
        return [chunk["group"] for chunk in await self._list("firewall.list-groups")]

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
        if made := on_the_way(asked.task, chunk):
            if made not in self._world.log.streams:
                raise Violation(f"{asked.key} {asked.task} was told of what is not in the log: {chunk}")
            return
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
        if (drawn := self._world.catalogue.request(self._world)) is not None:
            return Asked(key, drawn[0], drawn[1], msgspec.json.encode(drawn[2]))
        chance = self._world.chance
        in_networks = [vm.name for vm_id in self._world.vm_ids() if (vm := self._world.vm(vm_id)) and has_ports(vm)]
        of_rules = in_networks and chance.random() < 0.35
        task = chance.choice(OF_RULES if of_rules else TASKS)
        component = COMPONENTS.get(task.removesuffix("-info").rpartition("-")[2], "compute")
        tenant = chance.choice(TENANTS) if component == "ports" or task == "create-network" else TENANTS[0]
        options: dict[str, Any] = {}
        match task:
            case _ if component != "compute":
                options = self._draw_of_rules(task, in_networks) if of_rules else self._draw_beside_vms(task)
            case "create-vm":
                options = {"name": chance.choice(NAMES), "image": chance.choice(IMAGES), "memory-mib": 64}
                options["restart"] = chance.choice(["always", "on-failure", "never"])
                options["autostart"] = chance.random() < 0.8
                options |= self._draw_ports() | self._world.inits.options() | self._world.catalogue.keys()
                if options.keys() & {"virtual-network", "public-ip"}:
                    if chance.random() < 0.4:
                        options["groups"] = chance.sample(GROUPS, chance.randint(0, 2))
                elif options["restart"] == "always":
                    options["publish"] = ["8080:80"]
            case "list-vms":
                pass
            case "kill-vm":
                task, options = "stop-vm", {"vm-id": chance.choice(NAMES), "kill": True}
            case "stop-vm" | "delete-vm":
                options = {"vm-id": chance.choice(NAMES), "grace-s": chance.choice([1, 30])}
            case _:
                options = {"vm-id": chance.choice(NAMES)}
        return Asked(key, component, task, msgspec.json.encode(options), tenant)

    def _draw_ports(self) -> dict[str, Any]:
        """The networks that a new VM is to be in."""
        chance, found = self._world.chance, dict[str, Any]()
        if (place := chance.choice(PLACES)) is not None:
            found["virtual-network"] = place
        if chance.random() < 0.15:
            found["public-ip"] = True
            found["addresses"] = chance.sample(CHOSEN, chance.choice([0, 0, 1, 1, 2]))
        return found

    def _draw_of_rules(self, task: str, names: list[str]) -> dict[str, Any]:
        """The options of a task of the firewall about one of these VMs."""
        chance = self._world.chance
        vm = {"vm-id": chance.choice(names)}
        match task:
            case "attach-group" | "detach-group":
                return {**vm, "group": chance.choice(GROUPS), "keep-established": chance.random() < 0.3}
            case "add-forward":
                ports = {"host-port": chance.choice([80, 8080]), "guest-port": chance.choice([80, 81])}
                return {**vm, "protocol": chance.choice(["tcp", "tcp", "udp"]), **ports}
            case _:
                port = chance.choice([80, 8080])
                return {**vm, "host-port": port, "keep-established": port == 80}

    def _draw_beside_vms(self, task: str) -> dict[str, Any]:
        """The options of a task of another component than compute."""
        chance = self._world.chance
        match task:
            case "create-network":
                prefix = chance.choice(PREFIXES)
                named = {"name": chance.choice(NETWORKS), "kind": chance.choice(["isolated", "nat"])}
                if named["name"] == "public" and chance.random() < 0.5:
                    return {**named, "kind": "public"}
                return named if prefix is None else {**named, "ipv4-prefix": prefix}
            case "import-image":
                name = chance.choice(["tiny", "tiny", "other"])
                return {"source": "/tiny.raw", "name": name, "first-boot": "aetherscale"}
            case "delete-image":
                return {"image": chance.choice(["other", "other", "other", "tiny"])}
            case "make-port":
                return {"name": chance.choice(NAMES), "addresses": chance.sample(ADDRESSES, chance.randint(0, 3))}
            case "move-port":
                return {"port": chance.choice(NAMES), "addresses": chance.sample(ADDRESSES, chance.randint(0, 3))}
            case "delete-port":
                return {"port": chance.choice(NAMES)}
            case "create-group":
                return {"name": chance.choice(GROUPS), "rules": chance.sample(RULES, chance.randint(0, 3))}
            case "set-rules":
                rules, seen = chance.sample(RULES, chance.randint(0, 3)), chance.choice([None, None, 1, 2, 3])
                return {"group": chance.choice(GROUPS), "rules": rules, "revision": seen}
            case "delete-group" | "group-info":
                return {"group": chance.choice(GROUPS)}
            case "list-forwards":
                return {}
            case _:
                return {"network": chance.choice(NETWORKS)}


def has_ports(vm: Vm) -> bool:
    """Whether a VM is there, in a network."""
    return vm.phase != "deleted" and bool(vm.ports.every)


def _of(answer: Chunk) -> Chunk:
    """What has to be the same in every answer to one request."""
    if answer["type"] == "error":
        return {"type": "error", "code": answer["code"], "message": answer["message"]}
    return answer
