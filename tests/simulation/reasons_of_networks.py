"""Whether what the node decided of networks is right, event by event, by rules of its own: see `reasons.py`."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from aetherscale.eventstore.store import StoredEvent
from tests.simulation.violation import Wrong

ATTEMPTS: Final = 3
LONGEST_PAUSE_S: Final = 32

Data = dict[str, Any]


class Course:
    """What is known of one network so far."""

    def __init__(self, network_id: str) -> None:
        self.network_id = network_id
        self.phase = ""
        self.down = ""
        self.tries = 1
        self.has_given_up = False
        """Whether the host has refused what is to be done, for good."""
        self.was_ready = False
        self.owes = ""
        """What the last event has to be followed by in the same decision."""
        self.last: tuple[str, Data, int] = ("", {}, 0)

    def take(self, event: StoredEvent) -> None:
        """One more event. Raises `Wrong`."""
        data = msgspec.msgpack.decode(event.data)
        self.where = f"event {event.seq} {event.type} {data}"
        self.require(not self.owes or (event.type, event.time_us) == (self.owes, self.last[2]), f"expected {self.owes}")
        self.require((event.type == "NetworkUndone") == bool(self.owes), "it is undone where it could not be made")
        self.owes = ""
        getattr(self, f"on_{event.type}")(data, event.time_us)
        self.last = (event.type, data, event.time_us)

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Wrong(f"network {self.network_id}, {self.where}: it is {self.phase}; {otherwise}; after {self.last}")

    def begin(self, phase: str, *before: str) -> None:
        """Another step, with attempts of its own."""
        self.require(self.phase in before, f"expected {before}")
        self.phase, self.tries, self.has_given_up = phase, 1, False

    def on_NetworkRequested(self, data: Data, at_us: int) -> None:  # noqa: N802 - named after the event
        self.begin("creating", "")

    def on_NetworkUp(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.begin("ready", "creating", "restoring")
        self.require(bool(data["boot-id"]), "of which boot of the host?")
        self.was_ready, self.down = True, ""

    def on_NetworkDown(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(self.down != data["what"] and bool(data["what"]), "it was told already")
        self.begin("restoring", "ready", "restoring")
        self.down = data["what"]

    def on_NetworkStepFailed(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(self.phase in ("creating", "restoring", "deleting"), "nothing was to be done")
        self.require(not self.has_given_up, "it was not to be tried again")
        self.require((data["step"], data["attempt"]) == (self.phase, self.tries), f"it is attempt {self.tries}")
        if data["retry-at"] is None:
            self.require(not (self.was_ready and self.phase == "restoring"), "VMs need it: it is never given up")
            self.has_given_up = True
            self.owes = "NetworkUndone" if self.phase == "creating" else ""
            return
        self.require(self.phase == "restoring" or self.tries < ATTEMPTS, "it was the last attempt")
        pause_s = min(2 ** (self.tries - 1), LONGEST_PAUSE_S)
        self.require(_us(data["retry-at"]) == at_us + pause_s * 1_000_000, f"expected a pause of {pause_s} s")
        self.tries += 1

    def on_NetworkUndone(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.begin("deleting", "creating")

    def on_NetworkDeleteRequested(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(self.phase != "deleting" or self.has_given_up, "it is being deleted")
        self.begin("deleting", "creating", "ready", "restoring", "deleting")

    def on_NetworkDeleted(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(not self.has_given_up, "it could not be removed")
        self.begin("deleted", "deleting")


def _us(text: str) -> int:
    at = datetime.fromisoformat(text).astimezone(UTC)
    return int(at.timestamp()) * 1_000_000 + at.microsecond


def check_reasons_of_networks(events: Iterable[StoredEvent]) -> None:
    """Every event of every network. Raises `Wrong`."""
    courses: dict[str, Course] = {}
    for event in events:
        if event.stream.startswith("network-"):
            network_id = event.stream.removeprefix("network-")
            courses.setdefault(network_id, Course(network_id)).take(event)
