"""What has happened to a VM. Every one of these is kept for ever: change a shape only with a new schema version."""

from __future__ import annotations

from typing import ClassVar, Literal

from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.actors.compute.model.effects import PauseReason, ProcessUser, ReadyChannel
from aetherscale.actors.compute.model.firstboot import InitOutcome
from aetherscale.actors.compute.model.ruleevents import ForwardAdded as ForwardAdded
from aetherscale.actors.compute.model.ruleevents import ForwardRemoved as ForwardRemoved
from aetherscale.actors.compute.model.ruleevents import GroupsSet as GroupsSet
from aetherscale.actors.compute.model.ruleevents import PortAdded as PortAdded
from aetherscale.actors.compute.model.ruleevents import PortEvent as PortEvent
from aetherscale.actors.compute.model.ruleevents import PortPlugged as PortPlugged
from aetherscale.actors.compute.model.ruleevents import PortRemoved as PortRemoved
from aetherscale.actors.compute.model.ruleevents import PortUnplugged as PortUnplugged
from aetherscale.actors.compute.model.ruleevents import RuleEvent as RuleEvent
from aetherscale.actors.compute.model.ruleevents import RulesApplied as RulesApplied
from aetherscale.kernel.messages import Event

KIND = "vm"
"""The kind of a VM's stream."""

Step = Literal[
    "provisioning", "booting", "stopping", "removing", "applying-rules", "plugging", "unplugging", "removing-script",
]  # fmt: skip
ExitReason = Literal["user", "guest", "panic", "crash", "unknown", "host-reboot"]
"""The cause of a run's end: a request; a shutdown from inside; a kernel panic; a crash of QEMU; unknown; a reboot."""


class VmRequested(Event, frozen=True):
    """A caller requested a VM."""

    SCHEMA: ClassVar[int] = 8
    ONLY_ADDED: ClassVar[bool] = True

    vm_id: str
    """The id of the new VM, 16 hex digits."""
    spec: VmSpec
    """The specification of the VM."""


class DiskProvisioned(Event, frozen=True):
    """The VM has its disk, an overlay on the image."""

    disk_mib: int
    """The size of the disk that the guest sees, in MiB: as it was requested, but never less than the image's."""


class VmStartRequested(Event, frozen=True):
    """A caller requested a start."""


class VmBooted(Event, frozen=True):
    """QEMU reported that the VM runs. Boot id, pid and start ticks together identify its process."""

    SCHEMA: ClassVar[int] = 2
    ONLY_ADDED: ClassVar[bool] = True

    run: int
    """The number of this run of the VM: 1, 2, 3 …. Each start and each restart is a run of its own."""
    pid: int
    """The process id of QEMU on the host."""
    start_ticks: int
    """When that process started, in clock ticks since the boot of the host (proc(5), field 22 of `stat`)."""
    boot_id: str
    """The id of the host's boot (`/proc/sys/kernel/random/boot_id`)."""
    accelerator: Literal["kvm", "tcg"]
    """How the virtual CPUs run: `kvm` on those of the host, `tcg` emulated."""
    process_user: ProcessUser | None = None
    """The user that QEMU runs as: `own`, which no other process has; `node`, that of the node; or `root`. null where
    that is not known: in schema 1, or where the VM is simulated.
    """


class VmReady(Event, frozen=True):
    """The guest reported that it is ready."""

    run: int
    """The number of the run, as in `VmBooted`."""
    channel: ReadyChannel
    """How the guest reported it: `agent`, the QEMU guest agent answered; `channel`, the guest wrote `ready` to the
    virtio port `org.aetherscale.ready.0`. `none` does not occur.
    """


class VmInitEnded(Event, frozen=True):
    """The guest reported how its init script has ended. Once for each VM."""

    run: int
    """The number of the run, as in `VmBooted`."""
    outcome: InitOutcome
    """How it has ended: `ended`, with an exit status; `interrupted`, the guest went down or was rebooted while it ran,
    and does not run it again; `not-run`, the guest could not make sure that it runs once, as `output` says; `lost`, the
    node no longer had the script when it booted the guest.
    """
    exit_status: int | None
    """The exit status of the script as a shell has it, 0 to 255: 128 and the number of the signal that ended it; null
    where it has not ended.
    """
    output: str
    """The guest's word for the end of what the script printed, at most 4 KiB: a byte that is not UTF-8, and a character
    that a terminal would obey, is U+FFFD.
    """


class VmInitScriptRemoved(Event, frozen=True):
    """The host has the VM's init script no longer."""


class VmPaused(Event, frozen=True):
    """QEMU has stopped the virtual CPUs."""

    run: int
    """The number of the run, as in `VmBooted`."""
    reason: PauseReason
    """Why: `disk`, the host has no room for the VM's disk; `io-error`, the disk could not be read or written;
    `internal-error`, the accelerator failed; `user`, another program paused the VM through QMP.
    """
    detail: str
    """Details of the reason, in one line; "" for none."""


class VmResumed(Event, frozen=True):
    """The virtual CPUs run again."""

    run: int
    """The number of the run, as in `VmBooted`."""


class VmStopRequested(Event, frozen=True):
    """A caller requested a stop."""

    kill: bool
    """Whether QEMU is ended at once, without asking the guest to shut down."""
    grace_s: float
    """How many seconds the guest has to shut down before QEMU is ended; without effect where `kill` is true."""


class VmRestartRequested(Event, frozen=True):
    """A caller requested a stop and a start after it."""

    grace_s: float
    """How many seconds the guest has to shut down before QEMU is ended."""


class VmStopForced(Event, frozen=True):
    """The guest did not shut down in time, and QEMU is ended now."""

    run: int
    """The number of the run, as in `VmBooted`."""
    waited_s: float
    """How many seconds the guest had."""


class VmEnded(Event, frozen=True):
    """The guest has ended. QEMU still holds it, and is ended once this event is durable."""

    run: int
    """The number of the run, as in `VmBooted`."""
    reason: Literal["shutdown", "panic"]
    """How the guest ended: `shutdown`, it powered itself off; `panic`, its kernel panicked."""
    detail: str
    """Details of the end, in one line; "" for none."""


class VmExited(Event, frozen=True):
    """No process of the VM is left."""

    run: int
    """The number of the run, as in `VmBooted`."""
    reason: ExitReason
    """The cause: `user`, a request; `guest`, a shutdown from inside the guest; `panic`, a panic of its kernel; `crash`,
    the end of QEMU itself; `host-reboot`, a reboot of the host; `unknown`, the process vanished while no node was
    watching it.
    """
    exit_code: int | None
    """The exit status of QEMU; null where a signal ended it or the status is not known."""
    signal: int | None
    """The number of the signal that ended QEMU; null where none did or none is known."""
    detail: str
    """Details of the end, in one line; "" for none."""
    log_tail: str
    """The end of what QEMU wrote to its stderr, at most 2 KiB; "" where it wrote nothing or no node was there to read
    it.
    """


class VmRestartScheduled(Event, frozen=True):
    """The restart policy starts the VM again."""

    attempt: int
    """Which restart by the policy in a row this is: 1, 2, 3 …; 0 for the start after a reboot of the host."""
    not_before: str
    """When the VM is started at the earliest, RFC 3339 in UTC."""


class VmGaveUp(Event, frozen=True):
    """The restart policy has reached its limit."""

    restarts: int
    """How many restarts by the policy in a row there were."""


class VmAdopted(Event, frozen=True):
    """The node came back and found the VM's process alive."""

    run: int
    """The number of the run, as in `VmBooted`."""


class VmStepFailed(Event, frozen=True):
    """The host could not carry out a step."""

    SCHEMA: ClassVar[int] = 3
    ONLY_ADDED: ClassVar[bool] = True

    step: Step
    """The step that failed: `provisioning`, making the disk; `booting`, starting QEMU; `stopping`, ending it;
    `removing`, removing all that the VM has on the host; `applying-rules`, making its groups and forwards those of
    the kernel, which is tried until it succeeds, while the VM goes on; `plugging`, giving the guest the card of a port
    that was attached; `unplugging`, removing a port that was detached, which is tried until it succeeds;
    `removing-script`, removing its init script from the host, which is tried until it succeeds.
    """
    run: int
    """The run in which it failed; 0 before the first."""
    attempt: int
    """Which attempt at the step this was: 1, 2, 3 …."""
    reason: str
    """The failure, in one sentence: the attempt, and the error."""
    hint: str
    """The remedy, for the user; "" for none."""
    log_tail: str
    """The end of the log that shows it, at most 2 KiB; "" for none."""
    retry_at: str | None
    """When the step is tried again at the earliest, RFC 3339 in UTC; null where it is not tried again."""


class VmCleared(Event, frozen=True):
    """No process is left of a boot that had failed for good."""

    run: int
    """The number of the run, as in `VmBooted`."""


class VmStrayFound(Event, frozen=True):
    """The host has an orphaned process or directory of this VM: the log does not know the VM, or has it as deleted or
    at rest.
    """

    vm_id: str
    """The id of the VM, 16 hex digits."""
    has_process: bool
    """Whether it has a process."""
    has_directory: bool
    """Whether it has a directory."""
    keep_as: str
    """The name under which the directory is to be kept in `vms/.collected`; "" where the VM keeps its directory and
    only the process is ended.
    """


class VmCollected(Event, frozen=True):
    """No process of it is left, and its directory, if it had one, was quarantined: in `kept_in`, or ""."""

    kept_in: str
    """The path on the host at which the directory is kept; "" where there was none."""


class VmUndone(Event, frozen=True):
    """The VM never ran, and what was created of it is removed."""


class VmDeleteRequested(Event, frozen=True):
    """A caller requested the deletion."""

    kill: bool
    """Whether QEMU is ended at once, without asking the guest to shut down."""
    grace_s: float
    """How many seconds the guest has to shut down before QEMU is ended; without effect where `kill` is true."""


class VmDeleted(Event, frozen=True):
    """Nothing of the VM is left on the host."""


VmEvent = (
    VmRequested
    | DiskProvisioned
    | VmStartRequested
    | VmBooted
    | VmReady
    | VmInitEnded
    | VmInitScriptRemoved
    | VmPaused
    | VmResumed
    | VmStopRequested
    | VmRestartRequested
    | VmStopForced
    | VmEnded
    | VmExited
    | VmRestartScheduled
    | VmGaveUp
    | VmAdopted
    | VmStepFailed
    | VmCleared
    | VmStrayFound
    | VmCollected
    | VmUndone
    | RuleEvent
    | PortEvent
    | VmDeleteRequested
    | VmDeleted
)
