"""Logs with a past that is hard to tell: names that come back, strays of deleted VMs, clocks that step back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

from msgspec.structs import replace

from aetherscale.actors.compute.model import events as vm
from aetherscale.actors.images.model import events as image
from aetherscale.components import kinds
from aetherscale.debugger.past import LOG_NAME, empty, fold
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.sqlite.connection import connect_read_only
from aetherscale.eventstore.sqlite.reading import LogReading
from aetherscale.kernel.messages import Envelope, Event, Recorded, stream_name
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.registry import Registry, event_types
from aetherscale.kernel.reservations import NameClaimed, NameReleased, UseBegan, UseEnded, name_stream, use_stream
from tests.support import vm_pasts

NODE = "host1"
EPOCH = "0" * 32
START_US = 1_767_225_600_000_000
TENANT = "default"
NAMES = ("web", "db", "app", "ci", "mail", "cache")
OURS = "aether:compute"
STRAY = "VmStrayFound"

Spoken = tuple[str, Sequence[tuple[str, Event]]]
"""One append: who, and each event with its stream."""


def chance(seed: int) -> Random:
    """Chance that is the same each time."""
    return Random(seed)  # noqa: S311 - not for secrets


class Story:
    """What happens to VMs and images at random, append by append; each append is one that a node could have made."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._count = 0
        self._named: dict[str, str] = {}
        """The VM of each name that is taken."""
        self._lives: dict[str, list[list[Event]]] = {}
        """What is still to happen to each VM, append by append."""
        self._leaving: set[str] = set()
        self._gone: list[str] = []
        self._stored: list[str] = []

    def next(self) -> Spoken:
        """What happens next."""
        choice = self._random.random()
        free = [name for name in NAMES if name not in self._named]
        if (choice < 0.2 or not self._named) and free:
            return self._created(self._random.choice(free))
        if choice < 0.25:
            return self._imported()
        if choice < 0.32 and self._gone:
            return self._stray(self._random.choice(self._gone))
        return self._continued(self._random.choice(sorted(self._named)))

    def _id(self) -> str:
        self._count += 1
        return derive_id("story", str(self._count), str(self._random.random()))

    def _created(self, name: str) -> Spoken:
        vm_id = self._id()
        spec = replace(vm_pasts.SPEC, name=name, image_id=self._stored[-1] if self._stored else "1" * 16)
        self._named[name] = vm_id
        self._lives[vm_id] = self._life()
        said: list[tuple[str, Event]] = [
            (name_stream(vm.KIND, TENANT, name), NameClaimed(vm.KIND, name, vm_id)),
            (stream_name(vm.KIND, vm_id), vm.VmRequested(vm_id, spec)),
        ]
        if self._stored:
            said.append((use_stream("image", spec.image_id), UseBegan("image", spec.image_id, vm.KIND, vm_id)))
        return "user:test", said

    def _life(self) -> list[list[Event]]:
        """Some runs, and whether they end well."""
        life: list[list[Event]] = [[vm.DiskProvisioned(1024)]]
        for run in range(1, self._random.randrange(2, 5)):
            if run > 1:
                life.append([vm.VmStartRequested()])
            if self._random.random() < 0.3:
                life.append([vm.VmStepFailed("booting", run, 1, "no room", "make some", "", "2026-01-31T12:00:00Z")])
            life += [[replace(vm_pasts.BOOTED, run=run)], [replace(vm_pasts.READY, run=run)]]
            if self._random.random() < 0.5:
                life += [[vm_pasts.STOPPING], [vm_pasts.exited("user", run)]]
            else:
                life.append([vm_pasts.exited("crash", run)])
        return life

    def _continued(self, name: str) -> Spoken:
        vm_id = self._named[name]
        stream, life = stream_name(vm.KIND, vm_id), self._lives[vm_id]
        if life:
            happened = life.pop(0)
            asked = isinstance(happened[0], vm.VmStartRequested | vm.VmStopRequested)
            return "user:test" if asked else OURS, [(stream, event) for event in happened]
        if vm_id not in self._leaving:
            self._leaving.add(vm_id)
            return "user:test", [(stream, vm.VmDeleteRequested(kill=False, grace_s=1.0))]
        del self._named[name]
        self._gone.append(vm_id)
        said: list[tuple[str, Event]] = [
            (stream, vm.VmDeleted()),
            (name_stream(vm.KIND, TENANT, name), NameReleased(vm.KIND, name, vm_id)),
        ]
        said += [(use_stream("image", one), UseEnded("image", one, vm.KIND, vm_id)) for one in self._stored[-1:]]
        return OURS, said

    def _stray(self, vm_id: str) -> Spoken:
        """A deleted VM gets events: it is found, and put aside at once or when it is found once more."""
        found: list[Event] = [vm.VmStrayFound(vm_id, True, False, "")]
        if self._random.random() < 0.7:
            found.append(vm.VmCollected("kept"))
        return OURS, [(stream_name(vm.KIND, vm_id), event) for event in found]

    def _imported(self) -> Spoken:
        image_id = self._id()
        stream = stream_name("image", image_id)
        said: list[tuple[str, Event]] = [
            (stream, image.ImageImportRequested(image_id, f"image-{self._count}", "/a", None, "channel")),
            (stream, image.ImageStored("raw", "0" * 64, 512, 512)),
        ]
        if self._random.random() < 0.3:
            said += [(stream, image.ImageDeleteRequested()), (stream, image.ImageDeleted())]
        else:
            self._stored.append(image_id)
        return "user:test", said


async def written(state_dir: Path, events: int, seed: int, *, epoch: str = EPOCH, at_once: int = 8) -> None:
    """Write so many events or a few more to the log of a state directory, by a clock that may step back.

    As many appends wait together, and may be committed together.
    """
    state_dir.mkdir(mode=0o700, exist_ok=True)
    random = chance(seed)
    story, time_us = Story(random), START_US
    store = await open_store(state_dir / LOG_NAME, node=NODE, epoch=epoch, now_us=START_US, reserve_bytes=1)
    log = EventLog(store, Codec(event_types(kinds())))
    appends: list[Coroutine[Any, Any, object]] = []
    while events > 0:
        time_us += random.choice((0, 1, 1, 5, 300, -200 if random.random() < 0.1 else 2))
        actor, said = story.next()
        events -= len(said)
        parts: dict[str, list[Event]] = {}
        for stream, event in said:
            parts.setdefault(stream, []).append(event)
        writes = [Write(stream, None, tuple(happened)) for stream, happened in parts.items()]
        command = str(random.random())
        appends.append(log.append(writes, Envelope(None, TENANT, actor, command, command, None, time_us)))
        if len(appends) >= at_once or events <= 0:
            await asyncio.gather(*appends)
            appends.clear()
    await log.close()


def recorded(state_dir: Path) -> list[Recorded]:
    """Every event of a log."""
    path = state_dir / LOG_NAME
    with closing(connect_read_only(path)) as connection:
        codec = Codec(event_types(kinds()))
        return list(map(codec.decode, LogReading(connection, path).read_all()))


class Truth:
    """What the log says when it is folded from the first event on."""

    def __init__(self, state_dir: Path) -> None:
        self.events = recorded(state_dir)
        registries, self._known = empty(kinds()), [known(empty(kinds()))]
        for event in self.events:
            fold(kinds(), [event], registries)
            self._known.append(known(registries))

    def at(self, position: int) -> dict[str, Any]:
        """All that is to be known after an event."""
        return self._known[position]


def known(registries: dict[str, Registry[Any]], *, deleted: bool = True) -> dict[str, Any]:
    """What registries say: every aggregate, who holds which name, who uses what; in no order, to be compared."""
    return {
        name: (
            registry.position,
            {
                aggregate.id: aggregate
                for aggregate in registry.aggregates.values()
                if deleted or aggregate.state.phase != "deleted"
            },
            {key: holder.owner for key, holder in registry.holders.items() if holder.owner is not None},
            {key: dict(uses.users) for key, uses in registry.uses.items() if uses.users},
        )
        for name, registry in registries.items()
    }


def living(known_then: dict[str, Any]) -> dict[str, Any]:
    """The same without what is deleted."""
    return {
        name: (position, {one.id: one for one in aggregates.values() if one.state.phase != "deleted"}, *others)
        for name, (position, aggregates, *others) in known_then.items()
    }
