"""What has happened to a VM. Every one of these is kept for ever: change a shape only with a new schema version."""

from __future__ import annotations

from typing import ClassVar, Literal

from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.actors.compute.model.effects import PauseReason, ProcessUser, ReadyChannel
from aetherscale.kernel.messages import Event

KIND = "vm"
"""The kind of a VM's stream."""

Step = Literal["provisioning", "booting", "stopping", "removing"]
ExitReason = Literal["user", "guest", "panic", "crash", "unknown", "host-reboot"]
"""Who or what ended a run: the user; a shutdown from inside; a kernel panic; QEMU itself; nobody saw it."""


class VmRequested(Event, frozen=True):
    """Somebody asked for a VM."""

    vm_id: str
    spec: VmSpec


class DiskProvisioned(Event, frozen=True):
    """The VM has its disk, an overlay on the image."""

    disk_mib: int


class VmStartRequested(Event, frozen=True):
    """Somebody asked to start it."""


class VmBooted(Event, frozen=True):
    """QEMU said that the virtual machine runs. Boot id, pid and start ticks name the process.

    `process_user` is whose process it is; schema 1 does not say.
    """

    SCHEMA: ClassVar[int] = 2
    ONLY_ADDED: ClassVar[bool] = True

    run: int
    pid: int
    start_ticks: int
    boot_id: str
    accelerator: Literal["kvm", "tcg"]
    process_user: ProcessUser | None = None


class VmReady(Event, frozen=True):
    """The guest said that it is ready."""

    run: int
    channel: ReadyChannel


class VmPaused(Event, frozen=True):
    """QEMU has stopped the virtual CPUs."""

    run: int
    reason: PauseReason
    detail: str


class VmResumed(Event, frozen=True):
    """The virtual CPUs run again."""

    run: int


class VmStopRequested(Event, frozen=True):
    """Somebody asked to stop it."""

    kill: bool
    grace_s: float


class VmRestartRequested(Event, frozen=True):
    """Somebody asked to stop it and start it again."""

    grace_s: float


class VmStopForced(Event, frozen=True):
    """The guest did not shut down within the time that it had; it is ended now."""

    run: int
    waited_s: float


class VmEnded(Event, frozen=True):
    """The guest has ended, and QEMU is let go now that this is on record."""

    run: int
    reason: Literal["shutdown", "panic"]
    detail: str


class VmExited(Event, frozen=True):
    """No process of the VM is left."""

    run: int
    reason: ExitReason
    exit_code: int | None
    signal: int | None
    detail: str
    log_tail: str


class VmRestartScheduled(Event, frozen=True):
    """The restart policy starts it again, not before `not_before` (RFC 3339)."""

    attempt: int
    not_before: str


class VmGaveUp(Event, frozen=True):
    """The restart policy has reached its limit."""

    restarts: int


class VmAdopted(Event, frozen=True):
    """The node came back and found the VM's process alive."""

    run: int


class VmStepFailed(Event, frozen=True):
    """The host could not do what was owed. `retry_at` (RFC 3339) is absent where it is not tried again."""

    step: Step
    run: int
    attempt: int
    reason: str
    hint: str
    log_tail: str
    retry_at: str | None


class VmCleared(Event, frozen=True):
    """No process is left of a boot that had failed for good."""

    run: int


class VmStrayFound(Event, frozen=True):
    """The host has what it should not have of this VM: the log does not know it, has it deleted, or has it at rest."""

    vm_id: str
    has_process: bool
    has_directory: bool
    keep_as: str
    """What its directory is called once it is out of the way, where the VM is not one of ours."""


class VmCollected(Event, frozen=True):
    """No process of it is left, and its directory, if it had one, was put aside: in `kept_in`, or ""."""

    kept_in: str


class VmUndone(Event, frozen=True):
    """The VM never ran, and what was created of it is removed."""


class VmDeleteRequested(Event, frozen=True):
    """Somebody asked to delete it."""

    kill: bool
    grace_s: float


class VmDeleted(Event, frozen=True):
    """Nothing of it is left on the host."""


VmEvent = (
    VmRequested
    | DiskProvisioned
    | VmStartRequested
    | VmBooted
    | VmReady
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
    | VmDeleteRequested
    | VmDeleted
)
