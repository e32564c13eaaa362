"""The figures of a node, gathered when somebody asks: of its process, log, mailboxes, requests, broker and components.

Nothing is kept for them that is not there anyhow, but for the counts of events and commits.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aetherscale import __version__
from aetherscale.kernel.measures import Measure, counter, gauge
from aetherscale.kernel.messages import Recorded

if TYPE_CHECKING:
    from aetherscale.bus.admission import Admission
    from aetherscale.bus.beats import Beat
    from aetherscale.bus.bus import Bus
    from aetherscale.bus.services import Services
    from aetherscale.eventstore.log import EventLog
    from aetherscale.runtime.node import Node

log = logging.getLogger(__name__)

PATIENCE_S: Final = 3.0
"""How long one component may take for its figures; then those of this once are left out."""
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class LogCounts:
    """What was written to a log since this process began."""

    def __init__(self, event_log: EventLog) -> None:
        self.commits = 0
        self.events: Counter[str] = Counter()
        event_log.on_commit(self._committed)

    def _committed(self, recorded: Sequence[Recorded]) -> None:
        self.commits += 1
        self.events.update(type(each.event).__name__ for each in recorded)


class Measures:
    """Asks everything in a node for its figures."""

    def __init__(
        self, node: Node, event_log: EventLog, admission: Admission, services: Services, bus: Bus, began_s: float
    ) -> None:
        self._node, self._admission, self._services, self._bus = node, admission, services, bus
        self._began_s = began_s
        self._counts = LogCounts(event_log)

    async def all(self, beat: Beat) -> list[Measure]:
        """All of them; `beat` is the node's report at this moment."""
        found = [*_of_process(self._began_s), *_of_beat(beat), *self._of_log(beat), *self._of_work()]
        for part in await asyncio.gather(*map(self._of_component, self._node.actors)):
            found += part
        return found

    def _of_log(self, beat: Beat) -> Iterator[Measure]:
        yield gauge("log_position", "The position of the last event in the log.", beat.seq)
        yield gauge("log_published_position", "Up to where the copy on JetStream is whole.", beat.stored_seq)
        yield counter("log_commits_total", "Commits since the start of the node.", self._counts.commits)
        events = sorted(self._counts.events.items())
        about = "Events that were appended since the start of the node, by type."
        yield counter("log_events_total", about, (({"type": name}, count) for name, count in events))

    def _of_work(self) -> Iterator[Measure]:
        connected = self._bus.disconnected_since_us is None
        yield gauge("bus_connected", "Whether the node is connected to its NATS server.", float(connected))
        yield gauge("requests_open", "Requests that are being answered.", self._admission.open_calls)
        figures = list(self._services.figures())
        yield counter(
            "requests_total",
            "Requests that were answered since the start of the node.",
            (
                ({"component": component, "task": task, "outcome": outcome}, count)
                for component, task, answered, failed, _ in figures
                for outcome, count in (("ok", answered - failed), ("error", failed))
            ),
        )
        yield counter(
            "request_seconds_total",
            "Seconds between a request and the end of its answer, added up.",
            (({"component": component, "task": task}, seconds) for component, task, _, _, seconds in figures),
        )
        yield gauge(
            "mailboxes_busy",
            "Objects for which something is being decided or waits to be.",
            (({"kind": kind}, actor.mailboxes.busy) for kind, actor in self._node.actors.items()),
        )
        yield gauge(
            "mailbox_messages_waiting",
            "Messages that wait in the mailboxes of objects.",
            (({"kind": kind}, actor.mailboxes.waiting) for kind, actor in self._node.actors.items()),
        )
        yield gauge(
            "objects",
            "Objects that are not deleted, by kind and phase.",
            (({"kind": kind, "phase": phase}, count) for (kind, phase), count in sorted(self._node.phases().items())),
        )

    async def _of_component(self, kind: str) -> Sequence[Measure]:
        actor = self._node.actors[kind]
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await actor.component.measures(actor.registry, actor.driver)
        except TimeoutError:
            log.warning("the figures of %s took more than %g s, and are left out", actor.component.name, PATIENCE_S)
            return ()


def _of_process(began_s: float) -> Iterator[Measure]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield gauge("start_time_seconds", "When the node was started, in seconds since 1970 UTC.", round(began_s, 3))
    yield counter("process_cpu_seconds_total", "The node's own CPU time.", used.ru_utime + used.ru_stime)
    yield gauge("process_memory_resident_bytes", "The node's own memory that is resident.", pages * _PAGE_BYTES)
    yield gauge("process_open_files", "File descriptors that the node has open.", len(os.listdir("/proc/self/fd")))


def _of_beat(beat: Beat) -> Iterator[Measure]:
    labels = {"node": beat.node, "epoch": beat.epoch, "version": __version__}
    yield gauge("node_info", "The node, its log and its version; always 1.", [(labels, 1)])
    yield gauge("node_troubles", "Problems that a human has to solve.", len(beat.troubles))
    yield gauge("host_cpus", "CPUs that the node may use.", beat.cpus)
    yield gauge("host_memory_bytes", "Memory that the node and its VMs may use.", beat.memory_mib << 20)
    yield gauge("host_memory_available_bytes", "The part of it that is free.", beat.memory_available_mib << 20)
