"""Whether what the node decided is right: reasons, times, counts and numbers of attempts, event by event.

The oracle folds events and takes them as they are. This one asks of each whether it may follow what came before it, by
rules of its own, and what the host knows to be true: how each process really ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from aetherscale.eventstore.store import StoredEvent
from tests.simulation import hotports, inits
from tests.simulation.groups import check_reasons_of_groups
from tests.simulation.reasons_of_networks import check_reasons_of_networks
from tests.simulation.violation import Wrong

ATTEMPTS: Final = 3
RESTARTS: Final = 5
QUIET_US: Final = 60_000_000
LONGEST_PAUSE_S: Final = 32
"""Between two attempts at what is never given up."""
FAILURES: Final = ("panic", "crash", "unknown")
ABOUT_RULES: Final = ("GroupsSet", "ForwardAdded", "ForwardRemoved", "RulesApplied")

Data = dict[str, Any]
Deaths = Mapping[tuple[str, int], tuple[int | None, int | None]]
"""How the process of a VM's run really ended: exit code and signal."""


class Life:
    """What is known of one VM so far."""

    def __init__(self, vm_id: str, deaths: Deaths) -> None:
        self.vm_id, self.deaths = vm_id, deaths
        self.spec: Data = {}
        self.run = 0
        self.booted_us = 0
        self.boot_id = ""
        self.up = self.open = False
        """Whether a process of the run is on record that may be there; whether the run has begun and not ended."""
        self.wanted = "running"
        self.again = self.has_disk = False
        self.asked = False
        """Whether somebody asked for the end of this run before it came of itself."""
        self.ended: Data | None = None
        self.restarts = 0
        self.tries = 1
        self.grace_s = 30.0
        self.groups: set[str] = set()
        self.forwards: set[str] = set()
        self.changes = self.applied = 0
        """Of its groups and forwards: how many there were, and how many of them the kernel has."""
        self.rule_tries = 1
        self.ports = hotports.PortsOfLife()
        self.init = inits.InitOfLife()
        self.has_begun = False
        """Whether the run has begun and is to go on, so that what is attached goes into a slot."""
        self.last: tuple[str, Data, int] = ("", {}, 0)
        self.owes = ""
        """What the last event has to be followed by in the same decision."""

    def take(self, event: StoredEvent) -> None:
        """One more event. Raises `Wrong`."""
        data = msgspec.msgpack.decode(event.data)
        self.where = f"event {event.seq} {event.type} {data}"
        if self.owes:
            self.require(event.type == self.owes and event.time_us == self.last[2], f"expected {self.owes}")
            self.owes = ""
        if "run" in data and event.type != "VmStepFailed":
            self.require(data["run"] == self.run, f"the run is {self.run}")
        goes_on = self._goes_on(event.type)
        if event.type in hotports.EVENTS:
            self.require(self.wanted != "deleted" or event.type != "PortAdded", "it is going away")
            wrong = self.ports.take(event.type, data, has_begun=self.has_begun)
            self.require(not wrong, wrong)
        if event.type in inits.EVENTS:
            wrong = self.init.take(event.type, data)
            self.require(not wrong, wrong)
        if (check := getattr(self, f"on_{event.type}", None)) is not None:
            check(data, event.time_us)
        if not goes_on:
            self.tries = 1
        self.last = (event.type, data, event.time_us)

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Wrong(f"VM {self.vm_id}, {self.where}: {otherwise}; after {self.last}")

    def _goes_on(self, event_type: str) -> bool:
        """Whether the step that is pending is the same after an event, with the attempts that it has had."""
        if event_type in (*ABOUT_RULES, *hotports.EVENTS, *inits.EVENTS):
            return True  # has attempts of its own
        if event_type == "VmStopRequested":
            return not self.has_disk  # a disk that is half made is finished
        if event_type == "VmStartRequested":
            return self.open  # a stop that is under way is finished
        return event_type in ("VmStepFailed", "VmReady", "VmAdopted")

    def begin_run(self) -> None:
        self.run += 1
        self.ports.begin_run()
        self.has_begun = True
        self.asked = self.again = self.up = False
        self.open = True
        self.ended = None

    # --- what was asked for ------------------------------------------------------------------------------------------

    def on_VmRequested(self, data: Data, at_us: int) -> None:  # noqa: N802 - named after the event
        self.spec = data["spec"]
        self.ports.begin(self.spec)
        self.init.is_given = bool(self.spec.get("init-sha256"))
        self.groups = {each["group-id"] for each in self.spec.get("groups", [])}

    def on_DiskProvisioned(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.has_disk = True
        self.require(data["disk-mib"] >= self.spec["disk-mib"], "the disk is smaller than it was asked to be")
        if self.wanted == "running":
            self.begin_run()

    def on_VmStopRequested(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.wanted, self.again, self.grace_s = "stopped", False, data["grace-s"]
        self.has_begun = False
        self.asked = self.asked or self.ended is None

    def on_VmDeleteRequested(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.on_VmStopRequested(data, at_us)
        self.wanted = "deleted"

    def on_VmRestartRequested(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.wanted, self.again, self.restarts, self.grace_s = "running", True, 0, data["grace-s"]
        self.has_begun = False
        self.asked = self.asked or self.ended is None

    def on_VmStartRequested(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.wanted, self.restarts = "running", 0
        if self.open:
            self.again = True
        elif self.has_disk:
            self.begin_run()

    # --- what happened -----------------------------------------------------------------------------------------------

    def on_VmBooted(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.up, self.booted_us, self.boot_id = True, at_us, data["boot-id"]

    def on_VmStopForced(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(data["waited-s"] == self.grace_s, f"it had {self.grace_s} s")

    def on_VmEnded(self, data: Data, at_us: int) -> None:  # noqa: N802
        # One that is to stop before its boot was answered may run, and end.
        self.require((self.up or (self.asked and self.open)) and self.ended is None, "nothing runs that could end")
        self.ended = data
        self.has_begun = False

    def on_VmExited(self, data: Data, at_us: int) -> None:  # noqa: N802
        reason, seen = data["reason"], (data["exit-code"], data["signal"])
        if self.asked and reason != "host-reboot":
            self.require(reason == "user", "it had been asked to end")
        elif self.ended is not None:
            expected = "panic" if self.ended["reason"] == "panic" else "guest"
            self.require(reason == expected, f"the guest ended by itself: {expected}")
        else:
            self.require(
                reason in ("crash", "unknown", "host-reboot"), "nobody asked for it, and the guest did not end"
            )
        if reason == "host-reboot":
            self.require(self.wanted == "running" and self.ended is None, "it was on its way down without the reboot")
        if reason in ("unknown", "host-reboot"):
            self.require(seen == (None, None), "nobody saw how it ended")
        really = self.deaths.get((self.vm_id, self.run))
        if seen != (None, None) and really is not None:
            self.require(seen == really, f"the process ended as {really}")
        self.up = self.open = self.has_begun = False
        self.ports.tries = 1
        self._follow_policy(reason, at_us)

    def _follow_policy(self, reason: str, at_us: int) -> None:
        """What has to come next: the restart policy, counted from the boot of the run that ended."""
        if self.again:
            self.begin_run()
            return
        if self.wanted != "running":
            return
        if reason == "host-reboot":
            self.owes = "VmRestartScheduled" if self.spec["autostart"] else ""
            self.next = (0, at_us)
        else:
            policy = self.spec["restart"]
            if policy == "never" or (policy == "on-failure" and reason not in FAILURES):
                self.wanted = "running" if reason in FAILURES else "stopped"
                return
            count = 1 if at_us - self.booted_us >= QUIET_US else self.restarts + 1
            self.owes = "VmRestartScheduled" if count <= RESTARTS else "VmGaveUp" if reason in FAILURES else ""
            self.next = (count, at_us + 2 ** (count - 1) * 1_000_000)
        if not self.owes and reason not in FAILURES:
            self.wanted = "stopped"

    def on_VmRestartScheduled(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require((data["attempt"], _us(data["not-before"])) == self.next, f"expected {self.next}")
        self.restarts = data["attempt"]
        self.begin_run()

    def on_VmGaveUp(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(data["restarts"] == self.restarts == RESTARTS, f"there were {self.restarts}")

    # --- its groups and forwards -------------------------------------------------------------------------------------

    def on_GroupsSet(self, data: Data, at_us: int) -> None:  # noqa: N802
        borne = [each["group-id"] for each in data["groups"]]
        self.require(len(set(borne)) == len(borne) and set(borne) != self.groups, f"it bears {self.groups}")
        self.groups = set(borne)
        self.change_rules()

    def on_ForwardAdded(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(data["forward"]["id"] not in self.forwards, "it is there already")
        self.forwards.add(data["forward"]["id"])
        self.change_rules()

    def on_ForwardRemoved(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(data["forward-id"] in self.forwards, "it is not there")
        self.forwards.discard(data["forward-id"])
        self.change_rules()

    def change_rules(self) -> None:
        self.require(self.wanted != "deleted", "it is going away")
        self.changes, self.rule_tries = self.changes + 1, 1

    def on_RulesApplied(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(data["revision"] == self.changes > self.applied, f"{self.changes} changes, {self.applied} applied")
        self.applied, self.rule_tries = self.changes, 1

    def rules_failed(self, data: Data, at_us: int) -> None:
        self.require(self.changes > self.applied, "nothing was to be applied")
        self.require(data["attempt"] == self.rule_tries, f"it is attempt {self.rule_tries}")
        pause_s = min(2 ** (self.rule_tries - 1), LONGEST_PAUSE_S)
        self.require(_us(data["retry-at"]) == at_us + pause_s * 1_000_000, f"expected a pause of {pause_s} s")
        self.rule_tries += 1

    def on_VmStepFailed(self, data: Data, at_us: int) -> None:  # noqa: N802
        if data["step"] == "applying-rules":
            self.rules_failed(data, at_us)
            return
        if data["step"] == "removing-script":
            wrong = self.init.failed(data, (_us(data["retry-at"]) - at_us) / 1_000_000)
            self.require(not wrong, wrong)
            return
        if data["step"] in ("plugging", "unplugging"):
            pause_s = None if data["retry-at"] is None else (_us(data["retry-at"]) - at_us) / 1_000_000
            wrong = self.ports.failed(data, pause_s)
            self.require(not wrong, wrong)
            self.owes = "PortRemoved" if pause_s is None else ""
            return
        if data["retry-at"] is None:
            self.has_begun = False
        self.require(data["attempt"] == self.tries, f"it is attempt {self.tries}")
        if data["retry-at"] is None:
            self.tries = 1
            self.again = False
            self.open = self.up
        else:
            self.require(self.tries < ATTEMPTS, "it was the last attempt")
            self.require(_us(data["retry-at"]) == at_us + 2 ** (self.tries - 1) * 1_000_000, "after another time")
            self.tries += 1

    def on_VmUndone(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(self.booted_us == 0, "it ran once")
        self.wanted = "deleted"


def _us(text: str) -> int:
    at = datetime.fromisoformat(text).astimezone(UTC)
    return int(at.timestamp()) * 1_000_000 + at.microsecond


def check_reasons(events: Sequence[StoredEvent], deaths: Deaths) -> None:
    """Every event of every VM, network and group. Raises `Wrong`."""
    lives: dict[str, Life] = {}
    check_reasons_of_networks(events)
    check_reasons_of_groups(events)
    for event in events:
        if event.stream.startswith("vm-"):
            vm_id = event.stream.removeprefix("vm-")
            life = lives.setdefault(vm_id, Life(vm_id, deaths))
            life.take(event)
