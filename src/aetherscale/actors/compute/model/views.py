"""A VM as callers see it: the same object on NATS, in the command line and in a replay."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from aetherscale.actors.compute.model.effects import BorneGroup, Forward, ProcessUser, PublishedPort, ReadyChannel
from aetherscale.actors.compute.model.firstboot import FirstBoot
from aetherscale.actors.compute.model.switches import SwitchPort
from aetherscale.kernel.failures import Failure

Phase = Literal[
    "requested",
    "provisioning",
    "booting",
    "running",
    "ready",
    "paused",
    "stopping",
    "stopped",
    "failed",
    "deleted",
]
Requested = Literal["running", "stopped", "deleted"]
Observed = Literal["absent", "running", "paused", "exited"]
CardPhase = Literal["plugged", "plugging", "unplugged", "unplugging"]
InitState = Literal["awaited", "succeeded", "failed", "interrupted", "not-run", "lost"]


class AddressView(Struct, frozen=True, rename="kebab"):
    """An address of a port."""

    ip: str
    """The address."""
    source: Literal["lease", "slaac"] = field(name="from")
    """How the guest comes by it: `lease`, by DHCP, or where it was chosen for the public bridge, by what the guest is
    set to; `slaac`, it forms it from the network's prefix and its MAC.
    """


class PortView(Struct, frozen=True, rename="kebab"):
    """A port of a VM."""

    network: str
    """The name of the network."""
    network_id: str
    """The id of the network."""
    mac: str
    """The MAC address of the guest's network card."""
    tap: str
    """The name of the port's device on the host."""
    addresses: list[AddressView]
    """The addresses that are the guest's while the VM has the port, before it has booted too. Those that others give
    out are not among them.
    """
    allowed: list[str]
    """Prefixes that the guest may send from besides."""
    card: CardPhase
    """Whether the guest has its card: `plugged`, it has; `plugging`, it is being given it; `unplugged`, it gets it with
    the next boot; `unplugging`, the VM was detached, and what there is of the port on the host is being removed.
    """


class ExitView(Struct, frozen=True, rename="kebab"):
    """How a run of a VM has ended."""

    reason: str
    """The cause of the end, as in the event `VmExited`."""
    exit_code: int | None
    """The exit status of QEMU; null where a signal ended it or the status is not known."""
    signal: int | None
    """The number of the signal that ended QEMU; null where none did or none is known."""
    detail: str
    """Details of the end, in one line; "" for none."""


class InitView(Struct, frozen=True, rename="kebab"):
    """The init script of a VM, and how it has ended."""

    sha256: str
    """The SHA-256 of the script, 64 hex digits. No view has the script itself."""
    state: InitState
    """Where it is: `awaited`, its end has not been reported; `succeeded`, it ended with exit status 0; `failed`, with
    another one; `interrupted`, `not-run` or `lost`, as in the event `VmInitEnded`.
    """
    exit_status: int | None
    """Its exit status, as in the event `VmInitEnded`; null where it has not ended."""
    output: str
    """The guest's word for the end of what it printed, at most 4 KiB, as in the event `VmInitEnded`."""


class VmView(Struct, frozen=True, rename="kebab"):
    """The view of a VM."""

    id: str
    """The id of the VM, 16 hex digits."""
    name: str
    """The name of the VM, unique in its tenant until the VM is deleted."""
    node: str
    """The name of the node that owns the VM."""
    phase: Phase
    """Where the VM is in its life: `provisioning`, its disk is being made; `booting`, QEMU is being started; `running`,
    QEMU runs, and the guest has not reported that it is ready; `ready`, it has; `paused`, the virtual CPUs stand still;
    `stopping`, the run is being ended; `stopped`; `failed`, as `failure` says; `deleted`. `requested` does not occur.
    """
    requested: Requested
    """The state that was requested last. A guest that shuts itself down and is not restarted makes it `stopped`."""
    observed: Observed
    """The state that the host reported: `absent`, no process yet, or nothing left; `running`; `paused`, a process whose
    virtual CPUs stand still; `exited`, no process any more.
    """
    since: str
    """When the VM entered its phase, RFC 3339 in UTC."""
    image: str
    """The name of the image that its disk is made from."""
    cpus: int
    """The number of virtual CPUs."""
    memory_mib: int
    """The memory of the guest, in MiB."""
    disk_gib: int
    """The size of the disk, in GiB, rounded up."""
    restart: str
    """When the VM is started again after a run has ended without a request: `always`, `on-failure` or `never`."""
    autostart: bool
    """Whether the VM is started again after a reboot of the host."""
    ports: list[PortView]
    """The ports of the VM in networks, in the order of the guest's network cards."""
    switches: list[SwitchPort]
    """The ports of the VM on VDE switches of the host, whose cards come after those. What passes there is not filtered,
    and no address of the guest there is known. Where both lists are empty, the guest has user-mode networking.
    """
    publish: list[PublishedPort]
    """The ports of the host that lead to the guest, with user-mode networking."""
    ssh_keys: list[str]
    """The public keys whose owners may log in by SSH, as `user` or else as root; for the guest's first boot."""
    user: str | None
    """The user whom the guest has made at its first boot, with `sudo`; null for none."""
    host_loopback: bool
    """Whether the guest reaches the services on the host's loopback, with user-mode networking."""
    groups: list[BorneGroup]
    """The groups of the firewall that the VM bears; none: it takes anything from its own networks, nothing from
    outside, where the public bridge is.
    """
    forwards: list[Forward]
    """The ports of the host that lead to the guest, with a network of the kind `nat`."""
    rules_revision: int
    """How many changes of its groups and forwards there have been since the VM was requested."""
    rules_applied: int
    """The revision of them that the kernel has: another one while a change is being applied."""
    failure: Failure | None
    """Why the VM has failed, or, with the phase `applying-rules`, why its groups and forwards could not be applied, so
    that those of before hold, while it goes on; with `plugging` or `unplugging`, why a port could not be attached or
    detached; null for none of these.
    """
    revision: int
    """The version of the VM's stream, which is the number of its events; it grows with each change."""
    labels: dict[str, str]
    """The labels of the VM: text by key."""
    accelerator: str | None
    """How the virtual CPUs run: `kvm` on those of the host, `tcg` emulated; null while no process runs."""
    isolation: Literal["kvm", "none"] | None
    """The boundary between guest and host: `kvm`, hardware virtualization and a user of its own. `none` under TCG, for
    which QEMU promises no isolation, and where QEMU runs as root or as the node's user, so that a guest that breaks out
    has all that the node has. null while no process runs.
    """
    process_user: ProcessUser | None
    """The user that QEMU runs as: `own`, which no other process has; `node`, that of the node; or `root`. null while no
    process runs, and where the event of the boot does not tell.
    """
    paused_reason: str | None
    """Why the VM is paused, as in the event `VmPaused`; null where it is not paused."""
    restarts: int
    """How many restarts by the policy in a row there have been. A start by request begins the count anew, and so does a
    restart after a run of at least 60 s.
    """
    exit: ExitView | None
    """How the last run ended; null where none has ended yet."""
    ready_by: ReadyChannel
    """How the guest reports that it is ready, as in the event `ImageImportRequested`. With `none` the VM goes no
    further than `running`.
    """
    requested_by: str | None
    """The actor whose command was carried out last (see `docs/nats.md`); null where there was none."""
    first_boot: FirstBoot | None
    """How the guest takes what is its own at its first boot, as in the event `ImageImportRequested`; null for a VM that
    an older version was asked for.
    """
    init_script: InitView | None
    """The script that the guest runs once; null for none."""
    cloud_init_sha256: str | None
    """The SHA-256 of the user-data that cloud-init has in the guest, 64 hex digits; null for none."""
