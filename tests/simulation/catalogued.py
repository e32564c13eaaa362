"""Images of the catalogue, and keys of guests, in one run of two, by draws of their own; and what holds of them.

An image is fetched by its name, alone or on the way to a VM, and updated, while its distribution publishes new files.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aetherscale.actors.compute.model.effects import BootVm
from aetherscale.eventstore.store import StoredEvent
from tests.simulation.violation import Violation, Wrong

if TYPE_CHECKING:
    from tests.simulation.clients import Asked
    from tests.simulation.world import World

NAME: Final = "debian-13"
TASKS: Final = (
    "fetch-image", "fetch-image", "update-image", "update-image", "update-image", "create-vm", "create-vm", "create-vm",
    "delete-image", "search-images", "update-other",
)  # fmt: skip
KEYS: Final = tuple(f"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI{letter * 43}" for letter in "ABC")
ATTEMPTS: Final = 3
STORED: Final = ("importing", "building", "updating")

Data = dict[str, Any]


class Draws:
    """What is drawn of the catalogue and of keys in a run."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(f"catalogue {seed}")  # noqa: S311 - a run has to be repeatable
        self.is_used = self._chance.random() < 1 / 2
        self.keys_are_given = self._chance.random() < 2 / 3

    def request(self, world: World) -> tuple[str, str, Data] | None:
        """A component, a task and its options; None for one that has nothing to do with the catalogue."""
        if not self.is_used or self._chance.random() > 0.4:
            return None
        if self._chance.random() < 0.5:
            world.images.edition += 1
        match self._chance.choice(TASKS):
            case "create-vm":
                options = {"name": self._chance.choice(["web", "db", "ci"]), "image": NAME, "memory-mib": 64}
                return "compute", "create-vm", options | self.keys()
            case "fetch-image":
                return "images", "fetch-image", {"name": NAME}
            case "search-images":
                return "images", "search-images", {"word": "debian"}
            case "update-other":
                return "images", "update-image", {"image": self._chance.choice(["tiny", "other"])}
            case task:
                return "images", task, {"image": NAME}

    def keys(self) -> Data:
        """Of a request for a VM: keys with blanks and comments around them, now and then one twice."""
        if not self.keys_are_given or self._chance.random() < 0.3:
            return {}
        given = self._chance.choices(KEYS, k=self._chance.choice([1, 1, 2]))
        return {"ssh-keys": [self._chance.choice(["{}", "  {} joe", "{}  joe@host "]).format(key) for key in given]}


def on_the_way(task: str, chunk: Data) -> str:
    """The stream of what is made on the way to a VM, where a status is of that alone; "" for all others.

    Of the VM nothing is promised by it.
    """
    if task != "create-vm" or "vm-id" in chunk:
        return ""
    return next((f"{kind}-{chunk[f'{kind}-id']}" for kind in ("image", "network") if f"{kind}-id" in chunk), "")


def check_given(world: World, effect: Any) -> None:
    """Each boot hands over the keys that the log has of the VM, and no others. Raises `Violation`."""
    vm = world.vm(effect.vm_id) if isinstance(effect, BootVm) else None
    if vm is not None and (list(effect.ssh_keys), effect.user) != (list(vm.spec.ssh_keys), vm.spec.user):
        raise Violation(f"{vm.id} is given the keys {effect.ssh_keys} of {effect.user}, and has {vm.spec.ssh_keys}")


def check_keys_asked_for(events: Iterable[StoredEvent], asked: Iterable[Asked]) -> None:
    """The log has the keys that the caller sent, each once, in its order. Raises `Wrong`."""
    sent: dict[tuple[str, str], list[list[str]]] = {}
    for each in asked:  # a key may come again with another body, which is refused
        if each.task == "create-vm":
            keys = [" ".join(key.split()) for key in msgspec.json.decode(each.body).get("ssh-keys", [])]
            sent.setdefault((each.tenant, each.key), []).append(keys)
    for event in events:
        if event.type == "VmRequested" and (given := sent.get((event.tenant, event.command_id))) is not None:
            kept = msgspec.msgpack.decode(event.data)["spec"].get("ssh-keys", [])
            if kept not in given or len({key.split()[1] for key in kept}) != len(kept):
                raise Wrong(f"event {event.seq}: the caller gave the keys {given}, the log has {kept}")


class ImageLife:
    """What is known of one image so far: its file, and which attempt at which step is on."""

    def __init__(self) -> None:
        self.phase = ""
        self.catalogued = False
        self.sha256: str | None = None
        self.published: str | None = None
        self.tries = 1
        self.owes = ""

    def take(self, event: StoredEvent, data: Data) -> str:
        """One more event; what is wrong with it, or ""."""
        if self.owes and event.type != self.owes:
            return f"expected {self.owes}"
        self.owes = ""
        match event.type:
            case "ImageImportRequested" | "ImageBuildRequested":
                self.catalogued = data.get("catalogued", False)
                return self._enter("importing" if event.type == "ImageImportRequested" else "building", "")
            case "ImageUpdateRequested":
                wrong = "" if self.catalogued else "it is not of the catalogue"
                return wrong or self._enter("updating", "ready")
            case "ImageStored":
                return self._stored(data)
            case "ImageUnchanged":
                return "" if self.published is None else self._enter("ready", "updating")
            case "ImageStepFailed":
                return self._failed(event, data)
            case "ImageUndone":
                return self._enter("deleting", "importing", "building")
            case "ImageDeleteRequested":
                return self._enter("deleting", "importing", "building", "ready", "updating", "deleting")
            case _:
                return self._enter("deleted", "deleting")

    def _enter(self, phase: str, *before: str) -> str:
        wrong = "" if self.phase in before else f"it was {self.phase or 'not there'}"
        self.phase, self.tries = phase, 1
        return wrong

    def _stored(self, data: Data) -> str:
        before, now = self.published, data.get("published")
        self.sha256, self.published = data["sha256"], now
        if self.phase == "updating" and before is not None and (now is None or before >= now):
            return f"the file of before was {before}, the newer one is {now}"
        return self._enter("ready", *STORED)

    def _failed(self, event: StoredEvent, data: Data) -> str:
        if data["step"] != self.phase or data["attempt"] != self.tries:
            return f"it is attempt {self.tries} at {self.phase}"
        if data["retry-at"] is not None:
            at = datetime.fromisoformat(data["retry-at"]).astimezone(UTC)
            pause_s, self.tries = 2 ** (self.tries - 1), self.tries + 1
            due_us = int(at.timestamp()) * 1_000_000 + at.microsecond
            return "" if self.tries <= ATTEMPTS and due_us == event.time_us + pause_s * 1_000_000 else "another pause"
        self.tries = 1
        if self.phase == "updating":
            self.phase = "ready"
        elif self.phase in STORED:
            self.owes = "ImageUndone"
        return ""


def check_reasons_of_images(events: Sequence[StoredEvent]) -> None:
    """Every event of every image, and of each VM the file that it is made of. Raises `Wrong`."""
    lives: dict[str, ImageLife] = {}
    for event in events:
        kind, _, object_id = event.stream.partition("-")
        if kind not in ("image", "vm"):
            continue
        data = msgspec.msgpack.decode(event.data)
        if kind == "image":
            if wrong := lives.setdefault(object_id, ImageLife()).take(event, data):
                raise Wrong(f"event {event.seq} {event.type} {data}: {wrong}")
        elif event.type == "VmRequested":
            image = lives[data["spec"]["image-id"]]
            if image.phase not in ("ready", "updating") or data["spec"].get("image-sha256") != image.sha256:
                raise Wrong(f"event {event.seq}: made of {data['spec']}, and the image has {image.sha256}")


def counted(events: Iterable[StoredEvent]) -> dict[str, int]:
    """How much of all this there was in a run."""
    found = dict.fromkeys(("fetched", "updated", "unchanged", "made of it", "with keys"), 0)
    updating: set[str] = set()
    for event in events:
        data = msgspec.msgpack.decode(event.data)
        match event.type:
            case "ImageImportRequested":
                found["fetched"] += data.get("catalogued", False)
            case "ImageUpdateRequested":
                updating.add(event.stream)
            case "ImageStored":
                found["updated"] += event.stream in updating
                updating.discard(event.stream)
            case "ImageUnchanged":
                found["unchanged"] += 1
                updating.discard(event.stream)
            case "VmRequested":
                found["made of it"] += data["spec"]["image"] == NAME
                found["with keys"] += bool(data["spec"].get("ssh-keys"))
            case _:
                pass
    return found
