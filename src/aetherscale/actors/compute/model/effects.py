"""What compute may ask of the host, and every answer that the host may give.

An effect is always an *ensure*: performing one twice, or half and then again, ends in the same world. Its `key` says
which effect it is; one in flight whose key is no longer pending is cancelled. Outcomes answer an effect; observations
come unasked. Both become messages to the decider. Pure data: nothing here knows QEMU.

The actor waits until `not_before_us` before it hands an effect to the driver, and gives up on it after `deadline_s`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.actors.compute.model.firstboot import InitEnded as InitEnded
from aetherscale.actors.compute.model.portspecs import NO_RULES as NO_RULES
from aetherscale.actors.compute.model.portspecs import BorneGroup as BorneGroup
from aetherscale.actors.compute.model.portspecs import Forward as Forward
from aetherscale.actors.compute.model.portspecs import PortSpec as PortSpec
from aetherscale.actors.compute.model.portspecs import PublishedPort as PublishedPort
from aetherscale.actors.compute.model.portspecs import VmRules as VmRules
from aetherscale.actors.compute.model.switches import SwitchPort
from aetherscale.kernel.failures import EffectFailed

ReadyChannel = Literal["agent", "channel", "none"]
"""How the guest of an image says that it is ready: the QEMU guest agent, our own virtio port, or not at all."""

ProcessUser = Literal["own", "node", "root"]
"""Whose process a QEMU is: a user's that nothing else has, that of the node's user, or root's."""

PauseReason = Literal["disk", "internal-error", "io-error", "user"]


class ProvisionDisk(Struct, frozen=True):
    """Ensure that the VM has its directory, a link to its base image and an overlay of `disk_mib` on it."""

    key: str
    vm_id: str
    image_id: str
    image_format: Literal["qcow2", "raw"]
    disk_mib: int
    image_size_bytes: int | None = None
    """The size that the image's file has to have, where it is known."""
    deadline_s: float = 60.0
    not_before_us: int = 0
    image_sha256: str | None = None


class BootVm(Struct, frozen=True):
    """Ensure that run `run` of the VM is running, which QMP says; a process of that run that lives is adopted."""

    key: str
    vm_id: str
    run: int
    cpus: int
    memory_mib: int
    ready_channel: ReadyChannel
    image_format: Literal["qcow2", "raw"] = "qcow2"
    ports: tuple[PortSpec, ...] = ()
    """The guest's network cards, in order; without any, and without `switches`, one with user-mode networking."""
    switches: tuple[SwitchPort, ...] = ()
    """Its cards on VDE switches of the host, after those."""
    publish: tuple[PublishedPort, ...] = ()
    """The ports of the host that lead to the guest."""
    host_loopback: bool = False
    """Whether the guest reaches what listens on the host's loopback, by user-mode networking."""
    rules: VmRules = NO_RULES
    """The groups that it bears, and the ports of the host that lead to it."""
    ssh_keys: tuple[str, ...] = ()  # those that its root, or `user`, is to have, as a credential of systemd
    user: str | None = None  # whom the guest is to make
    hostname: str | None = None  # how it is to be called; None where it takes no name
    gives_script: bool = False
    """Whether the guest is given the init script that the host keeps of the VM; where it has none, that is told."""
    by_seed: bool = False
    """Whether cloud-init is to find all this on a disk of its own, instead of systemd as credentials."""
    gives_user_data: bool = False
    """Whether the user-data that the host keeps of the VM is on that disk."""
    deadline_s: float = 60.0
    not_before_us: int = 0


class ShutDownVm(Struct, frozen=True):
    """Ask the guest to power down (ACPI) and wait for at most `grace_s`.

    Its end arrives as an observation, `GuestEnded` or `VmGone`; the outcome is that it did not come.
    """

    key: str
    vm_id: str
    run: int
    grace_s: float
    deadline_s: float = 3600.0
    not_before_us: int = 0


class EndVm(Struct, frozen=True):
    """Ensure that no process of the VM is left: QMP `quit`, then SIGKILL through a pidfd; returns when it is gone."""

    key: str
    vm_id: str
    run: int
    deadline_s: float = 30.0
    not_before_us: int = 0


class RemoveVm(Struct, frozen=True):
    """Ensure that nothing of the VM is left on the host: no process, no port, no directory."""

    key: str
    vm_id: str
    run: int
    ports: tuple[PortSpec, ...] = ()
    deadline_s: float = 60.0
    not_before_us: int = 0


class QuarantineVm(Struct, frozen=True):
    """Ensure that no process of the VM is left, and that its directory is kept out of the way, as `quarantine_as`."""

    key: str
    vm_id: str
    quarantine_as: str
    deadline_s: float = 60.0
    not_before_us: int = 0


class ApplyRules(Struct, frozen=True):
    """Ensure that the kernel has these groups and forwards of the VM, whether it runs or not."""

    key: str
    vm_id: str
    revision: int
    """How many changes of them there have been."""
    rules: VmRules
    keep_established: bool = False
    """Whether flows go on that they no longer allow."""
    deadline_s: float = 30.0
    not_before_us: int = 0


class PlugPort(Struct, frozen=True):
    """Ensure that the running guest has the card of this port: its rules, its tap, the card, in this order."""

    key: str
    vm_id: str
    port: PortSpec
    slot: int
    """Which of the free slots of its boot the card goes into, from 0."""
    deadline_s: float = 30.0
    not_before_us: int = 0


class UnplugPort(Struct, frozen=True):
    """Ensure that nothing of a port is left, whether the VM runs or not: its card, its tap, its rules, in this order.

    A guest that keeps its card for `patience_s` loses the cable of it instead.
    """

    key: str
    vm_id: str
    port: PortSpec
    patience_s: float = 10.0
    deadline_s: float = 40.0
    not_before_us: int = 0


class RemoveScript(Struct, frozen=True):
    """Ensure that the host has no init script of the VM any more."""

    key: str
    vm_id: str
    deadline_s: float = 30.0
    not_before_us: int = 0


ComputeEffect = (
    ProvisionDisk | BootVm | ShutDownVm | EndVm | RemoveVm | QuarantineVm | ApplyRules | PlugPort | UnplugPort
) | RemoveScript


class DiskProvisioned(Struct, frozen=True):
    """The disk is there, as large as it was asked to be or as the image is."""

    key: str
    disk_mib: int
    """The size that the guest sees: never smaller than the image."""


class Booted(Struct, frozen=True):
    """QMP said `running`. (boot id, pid, start ticks) name the process for as long as this host is up."""

    key: str
    vm_id: str
    run: int
    pid: int
    start_ticks: int
    boot_id: str
    accelerator: Literal["kvm", "tcg"]
    adopted: bool = False
    process_user: ProcessUser | None = None
    """As the kernel has it; None where it is not known, as of a simulated process."""


class ShutdownIgnored(Struct, frozen=True):
    """The guest had its time and runs on."""

    key: str
    waited_s: float


class Ended(Struct, frozen=True):
    """No process of the VM is left. Exit code and signal are known only of our own children."""

    key: str
    exit_code: int | None = None
    signal: int | None = None
    log_tail: str = ""


class Removed(Struct, frozen=True):
    """Nothing of the VM is left."""

    key: str


class Quarantined(Struct, frozen=True):
    """No process of the VM is left; its directory, where it had one, is kept in `kept_in`."""

    key: str
    kept_in: str


class RulesApplied(Struct, frozen=True):
    """The kernel has the groups and forwards of the VM as of this revision."""

    key: str
    revision: int


class PortPlugged(Struct, frozen=True):
    """The guest has the card of the port."""

    key: str


class PortUnplugged(Struct, frozen=True):
    """Nothing of the port is left on the host."""

    key: str
    card_left: bool = False
    """Whether the guest has the card still, without a cable."""


class ScriptRemoved(Struct, frozen=True):
    """The host has no init script of the VM."""

    key: str


ComputeOutcome = (
    EffectFailed | DiskProvisioned | Booted | ShutdownIgnored | Ended | Removed | Quarantined | RulesApplied
) | (PortPlugged | PortUnplugged | ScriptRemoved)


class GuestReady(Struct, frozen=True):
    """The guest said that it is ready."""

    vm_id: str
    run: int
    channel: ReadyChannel


class GuestEnded(Struct, frozen=True):
    """The guest has ended and QEMU holds it paused (`-action shutdown=pause,panic=pause`) until it is let go."""

    vm_id: str
    run: int
    reason: Literal["shutdown", "panic"]
    detail: str = ""


class VmGone(Struct, frozen=True):
    """The VM's process is no longer there, without a request to end it."""

    vm_id: str
    run: int
    exit_code: int | None = None
    signal: int | None = None
    detail: str = ""
    log_tail: str = ""


class GuestPaused(Struct, frozen=True):
    """QEMU has stopped the virtual CPUs: no room on the disk, an I/O error, an internal error of the accelerator."""

    vm_id: str
    run: int
    reason: PauseReason
    detail: str = ""


class GuestResumed(Struct, frozen=True):
    """The virtual CPUs run again."""

    vm_id: str
    run: int


ComputeObservation = GuestReady | GuestEnded | VmGone | GuestPaused | GuestResumed | InitEnded
