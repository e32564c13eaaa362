"""The state of one VM: what its events have added up to.

`Vm.phase` says alone what is pending on the host (`pending.py`), and changes by the table of `transitions.py` alone;
`docs/states.md` draws it. There are more phases than users are shown: see `SHOWN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import DEFAULT_GRACE_S, VmSpec
from aetherscale.actors.compute.model.effects import BorneGroup, Forward, PauseReason, PortSpec, ProcessUser, VmRules
from aetherscale.actors.compute.model.events import ExitReason, VmEnded, VmExited
from aetherscale.actors.compute.model.firstboot import NO_INIT, Init
from aetherscale.actors.compute.model.views import Observed, Phase, Requested
from aetherscale.kernel.attempts import FIRST, Attempt
from aetherscale.kernel.failures import Failure

VmPhase = Literal[
    "provisioning",
    "booting",
    "running",
    "ready",
    "paused",
    "shutting-down",
    "ending",
    "stopped",
    "failed",
    "clearing",
    "failing",
    "removing",
    "rolling-back",
    "quarantining",
    "deleted",
]

SHOWN: Final[Mapping[VmPhase, Phase]] = {
    "provisioning": "provisioning",
    "booting": "booting",
    "running": "running",
    "ready": "ready",
    "paused": "paused",
    "shutting-down": "stopping",
    "ending": "stopping",
    "stopped": "stopped",
    "failed": "failed",
    "clearing": "stopped",
    "failing": "failed",
    "removing": "stopped",
    "rolling-back": "failed",
    "quarantining": "stopped",
    "deleted": "deleted",
}
"""The word that views, callers and tables have for each phase."""

UP: Final[frozenset[VmPhase]] = frozenset({"running", "ready", "paused"})
STOPPING: Final[frozenset[VmPhase]] = frozenset({"shutting-down", "ending"})
FAILED_EXITS: Final[frozenset[ExitReason]] = frozenset({"panic", "crash", "unknown"})


class ProcessIdentity(Struct, frozen=True, gc=False):
    """What names the process of the present run for as long as the host is up."""

    pid: int
    start_ticks: int
    boot_id: str
    accelerator: Literal["kvm", "tcg"]
    process_user: ProcessUser | None = None


HOT_SLOTS: Final = 4
"""Cards that a guest can be given while it runs, at one time."""
FREE: Final = ""


class Run(Struct, frozen=True, gc=False):
    """One boot of a VM. It is replaced whole by the next one and when it ends, so that nothing of it is left behind."""

    number: int = 0
    """Runs are numbered from 1; 0 before the first."""
    process: ProcessIdentity | None = None
    """Set from the boot to the exit."""
    since_us: int = 0
    """When QEMU said that it runs."""
    is_ready: bool = False
    """Whether its guest has said so, which may be before QEMU has answered the boot."""
    paused_reason: PauseReason | None = None
    ended: VmEnded | None = None
    """How the guest itself ended it, while QEMU still has it paused."""
    asked_down: bool = False
    """Whether a request for its end came before the guest ended by itself."""
    start_next: bool = False
    """Whether another run follows on its end."""
    ports: tuple[PortSpec, ...] = ()
    """Those that its boot has."""
    cards: tuple[str, ...] = ()
    """The ids of the ports that the guest has the card of, once it was booted."""
    slots: tuple[str, ...] = (FREE,) * HOT_SLOTS
    """The id of the port that each slot for cards beside those of the boot is taken by, or `FREE`."""

    def next(self, ports: tuple[PortSpec, ...]) -> Run:
        """The run that is booted after this one, with these ports."""
        return Run(self.number + 1, ports=ports)


NEVER_RUN: Final = Run()


class Rules(Struct, frozen=True, gc=False):
    """What the firewall is to let to the VM: its groups and forwards, and whether the kernel has them.

    Work on them has attempts of its own: a VM of which they cannot be applied goes on with those of before.
    """

    groups: tuple[BorneGroup, ...] = ()
    """In the order in which it was given them."""
    forwards: tuple[Forward, ...] = ()
    revision: int = 0
    """How many changes of them there have been since the VM was requested."""
    applied: int = 0
    """The revision that the kernel has, at least: a boot makes it have the present ones too."""
    keep_established: bool = False
    """Whether each change since that one keeps the flows that it no longer allows."""
    in_force: tuple[str, ...] | None = None
    """The ids of the groups that the kernel has, where such flows are to be kept; None where they are the present ones
    or need not be known.
    """
    attempt: Attempt = FIRST
    failure: Failure | None = None
    """Why the last attempt has failed; None once one has succeeded."""

    @property
    def is_applied(self) -> bool:
        """Whether the kernel has them."""
        return self.applied == self.revision

    def for_kernel(self) -> VmRules:
        """What the kernel is to know of them."""
        return VmRules(tuple(sorted(group.group_id for group in self.groups)), self.forwards)

    @property
    def standing(self) -> VmRules:
        """What a kernel is given at a start: the rules that were set last, but for ones with which flows are to be
        kept. A start keeps none, and the step that does is to find them.
        """
        present = self.for_kernel()
        return present if self.in_force is None else replace(present, groups=self.in_force)


NOTHING_LET_IN: Final = Rules()


class Port(Struct, frozen=True, gc=False):
    """A port of the VM, from the decision that it is to have it until nothing of it is left on the host."""

    spec: PortSpec
    is_leaving: bool = False
    """Whether the VM is to have it no more."""

    @property
    def id(self) -> str:
        """The name of its tap, which no other port ever has."""
        return self.spec.tap


class Ports(Struct, frozen=True, gc=False):
    """The ports of the VM. Work on those that come and go has attempts of its own, as that on its rules."""

    every: tuple[Port, ...] = ()
    """In the order of the guest's cards."""
    made: int = 0
    """How many there have been since the VM was requested, which is the number of the next one."""
    attempt: Attempt = FIRST
    failure: Failure | None = None
    """Why the last attempt has failed; None once one has succeeded, or another thing was asked for."""

    def staying(self) -> tuple[PortSpec, ...]:
        """Those that the VM is to have."""
        return tuple(port.spec for port in self.every if not port.is_leaving)

    def specs(self) -> tuple[PortSpec, ...]:
        """All that the host may have anything of."""
        return tuple(port.spec for port in self.every)


NO_PORTS: Final = Ports()


class Vm(Struct, frozen=True, gc=False):
    """One VM, as its events add up."""

    id: str
    spec: VmSpec
    phase: VmPhase
    phase_since_us: int
    """When it came to its phase as users are shown it."""
    requested: Requested = "running"
    observed: Observed = "absent"
    run: Run = NEVER_RUN
    """The present run, or the last one."""
    attempt: Attempt = FIRST
    """Which attempt at the step that is pending now."""
    has_disk: bool = False
    ever_ran: bool = False
    rolled_back: bool = False
    """Whether its creation failed for good, so that what was made of it is removed."""
    grace_s: float = DEFAULT_GRACE_S
    """How long the guest has to shut down, as the last one who asked has said."""
    restarts: int = 0
    """Restarts by policy since it last ran for a while."""
    quarantined_as: str = ""
    """What the directory of an orphan is called once it is out of the way; of a deleted VM, where that is."""
    failure: Failure | None = None
    exit: VmExited | None = None
    """How the last run ended."""
    rules: Rules = NOTHING_LET_IN
    ports: Ports = NO_PORTS
    init: Init = NO_INIT

    @property
    def name(self) -> str:
        """The name that it bears until it is deleted."""
        return self.spec.name

    @property
    def shown(self) -> Phase:
        """Its phase in the words of its view."""
        return SHOWN[self.phase]

    @property
    def is_orphan(self) -> bool:
        """Whether the host has it although the log has it deleted, or has never heard of it."""
        return self.quarantined_as != "" and self.phase != "deleted"

    @property
    def may_have_orphan(self) -> bool:
        """Whether it may have a process although it is at rest; that is ended first."""
        return self.phase in ("clearing", "failing")

    @property
    def has_begun(self) -> bool:
        """Whether its run has begun and is to go on: its boot knows nothing of a port that is attached now."""
        return self.phase == "booting" or self.phase in UP

    @property
    def is_down(self) -> bool:
        """Whether it is at rest with no process of its own."""
        return SHOWN[self.phase] in ("stopped", "failed") and self.observed in ("absent", "exited")


def unheard_of(vm_id: str, at_us: int) -> Vm:
    """A VM of which the log knows nothing but its id."""
    spec = VmSpec(
        # Views and claims of before have the name so: it is for ever.
        name=f"stray-{vm_id}",
        image_id="",
        image="",
        image_format="qcow2",
        image_size_bytes=0,
        ready_channel="none",
        cpus=0,
        memory_mib=0,
        disk_mib=0,
        restart="never",
        autostart=False,
        labels={},
    )
    return Vm(id=vm_id, spec=spec, phase="deleted", phase_since_us=at_us, requested="deleted")


_UNKNOWN: Final = "exit status unknown"


def exit_sentence(event: VmExited) -> str:
    """How a run ended, in words."""
    match event.reason:
        case "user":
            what = "stopped by request"
        case "guest":
            what = "the guest shut itself down"
        case "panic":
            what = "the guest's kernel panicked"
        case "host-reboot":
            what = "the host was rebooted"
        case "unknown":
            what = f"the process vanished while the node was away; {_UNKNOWN}"
        case _:
            if event.signal is not None:
                what = f"QEMU was ended by signal {event.signal}"
            elif event.exit_code is not None:
                what = f"QEMU exited with status {event.exit_code}"
            else:
                what = f"QEMU vanished; {_UNKNOWN}"
    # The detail in logs of before begins with what is said already.
    detail = event.detail.removeprefix(f"{_UNKNOWN}: ")
    return f"{what} ({detail})" if detail else what
