"""What callers may say to compute: the options of its tasks as they are on the wire, and the commands they become.

Options are what a stranger sends; a command is what is left after names have become ids and defaults have been filled
in, so that deciding it needs nothing but the state of the VM.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from aetherscale.actors.compute.model.effects import NO_RULES as NO_RULES
from aetherscale.actors.compute.model.effects import BorneGroup as BorneGroup
from aetherscale.actors.compute.model.effects import Forward as Forward
from aetherscale.actors.compute.model.effects import PortSpec as PortSpec
from aetherscale.actors.compute.model.effects import PublishedPort, ReadyChannel
from aetherscale.actors.compute.model.effects import VmRules as VmRules
from aetherscale.actors.compute.model.firstboot import FirstBoot, GuestUser, InitScript
from aetherscale.actors.compute.model.sshkeys import SshKeys
from aetherscale.actors.compute.model.switches import NetworkReference, SwitchPort
from aetherscale.actors.compute.model.userdata import UserData
from aetherscale.kernel.names import Cpus, DiskGib, ImageReference, Labels, MemoryMib, Name, Reference
from aetherscale.kernel.wire import Message

RestartPolicy = Literal["always", "on-failure", "never"]

DEFAULT_CPUS = 1
DEFAULT_MEMORY_MIB = 512
DEFAULT_DISK_GIB = 10
DEFAULT_GRACE_S = 30.0
UNREADY_GRACE_S: Final = 5.0
"""The same for a deletion of one that has not said that it is ready."""

GraceS = Annotated[float, Meta(ge=0, le=3600, description="seconds that the guest has to shut down")]
TailBytes = Annotated[int, Meta(ge=0, le=4 * 1024 * 1024, description="bytes")]
MAX_PORTS: Final = 8
"""Ports that one VM can have."""
MAX_ALLOWED: Final = 16
"""Prefixes that a VM may send from besides its own addresses."""
MAX_PUBLISHED: Final = 64
"""Ports of the host that can lead to one VM."""
MAX_GROUPS: Final = 16
"""Groups that one VM can bear."""


NetworkNames = Annotated[
    list[NetworkReference], Meta(max_length=MAX_PORTS, description=f"at most {MAX_PORTS} networks")
]
AllowedAddresses = Annotated[
    list[Annotated[str, Meta(max_length=64)]], Meta(max_length=MAX_ALLOWED, description=f"at most {MAX_ALLOWED}")
]
ChosenAddresses = Annotated[
    list[Annotated[str, Meta(max_length=64)]], Meta(max_length=2, description="at most one of IPv4 and one of IPv6")
]
Published = Annotated[
    list[Annotated[str, Meta(max_length=64)]], Meta(max_length=MAX_PUBLISHED, description=f"at most {MAX_PUBLISHED}")
]
GroupNames = Annotated[list[Reference], Meta(max_length=MAX_GROUPS, description=f"at most {MAX_GROUPS} groups")]


class CreateVmOptions(Message, frozen=True):
    """Options of `create-vm`. `vpn` belongs to a later version."""

    image: ImageReference
    """The image that the VM boots from."""
    name: Name | None = None
    """The name of the VM; null for one that is made from its id."""
    cpus: Cpus = DEFAULT_CPUS
    """How many virtual CPUs the VM has."""
    memory_mib: MemoryMib = DEFAULT_MEMORY_MIB
    """How much memory the guest has, in MiB."""
    disk_gib: DiskGib | None = None
    """The size of the disk, in GiB; null for the size of the image, but at least 10 GiB. Less than the image needs is
    refused.
    """
    node: Name | None = None
    """The node that is to own the VM: one of another name refuses (404). null for the node that takes the request."""
    restart: RestartPolicy = "on-failure"
    """When the VM is started again after a run has ended without a request: `always`; `on-failure`, after a panic, a
    crash or an end for unknown reasons; or `never`.
    """
    autostart: bool = True
    """Whether the VM is started again after a reboot of the host."""
    labels: Labels = field(default_factory=dict)
    """Labels of the VM, at most 64: text of one line, at most 256 characters, by key."""
    virtual_network: NetworkReference | NetworkNames | None = None
    """The networks that the VM has ports in: one, or a list, in the order of the guest's network cards, each of them
    once. null or an empty list for user-mode networking: the guest reaches the world, but not the host's loopback, and
    nothing reaches it but by `publish`. `vde:/run/lab.ctl` is a port on the VDE switch of the host whose directory that
    is; its card comes after those in networks. What passes there is not filtered.
    """
    allow_addresses: AllowedAddresses = field(default_factory=list)
    """Addresses and prefixes that the VM may send from besides its own, in all of its ports, as a router or a host of
    containers does: `10.0.0.0/24`, `fd00::/64`.
    """
    publish: Published = field(default_factory=list)
    """Ports of the host that lead to ports of a guest with user-mode networking: `8080:80` leads from the host's port
    8080 to the guest's port 80. `0.0.0.0:8080:80` names the IPv4 address of the host that the port is open on, or
    `0.0.0.0` for all; it is `127.0.0.1`, for the host alone, where none is named. `0.0.0.0:5353:53/udp` is a port of
    UDP. No two VMs of a node have one port of the host.
    """
    host_loopback: bool = False
    """Whether a guest with user-mode networking reaches the services on the host's loopback, at 10.0.2.2."""
    groups: GroupNames = field(default_factory=list)
    """The groups of the firewall that the VM bears, each once; only with a network. None: it takes anything from its
    own networks, and nothing from outside.
    """
    vpn: Any = None
    """A part of a later version: refused (501) unless it is left out or empty."""
    public_ip: bool = False
    """Whether the VM has a port on the public bridge of the node, as its last one. It takes only what its groups allow,
    has its addresses by DHCP and from router advertisements, and sends from no other.
    """
    addresses: ChosenAddresses = field(default_factory=list)
    """With `public-ip`, the addresses of the port instead, which the guest or the DHCP server there is set to: at most
    one of IPv4 and one of IPv6. A family that has none here is as without.
    """
    init_script: InitScript | None = None
    """A script that the guest runs once, as root, when it has booted: `#!` and an interpreter in its first line, lines
    that end with LF, no NUL. Only with an image whose guests take one. No event, view or log has it, but its SHA-256,
    its exit status and the end of its output; the host keeps it until the guest has told its end. null for none.
    """
    wait_for: Literal["ready", "init"] = "ready"
    """When the task is done: `ready`, as soon as the guest is ready; `init`, once the init script has ended too, and
    with an error where that has not ended well. The VM is there and goes on all the same.
    """
    ssh_keys: SshKeys = field(default_factory=list)
    """Public keys, each a line as in a file `authorized_keys` without options: who has the private one may log in as
    root by SSH, or as `user` where one is named. Only with an image whose guests take them at their first boot.
    """
    user: GuestUser | None = None
    """A user whom the guest makes at its first boot: without a password, with `sudo`, with a home, and with the public
    keys, which root then has not. Only with an image whose guests can. null for none.
    """
    cloud_init: UserData | None = None
    """User-data for cloud-init, as it is: a `#cloud-config`, a script, or a MIME message of several. Only with an image
    whose `first-boot` is `cloud-init`. It is treated as a secret: no event, view or log has it, but its SHA-256; the
    host keeps it until the VM is deleted, since cloud-init reads it at each boot. null for none.
    """


class VmOptions(Message, frozen=True):
    """Options of `start-vm`, `restart-vm` and `vm-info`."""

    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""


class StopVmOptions(Message, frozen=True):
    """Options of `stop-vm`."""

    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    kill: bool = False
    """Whether QEMU is ended at once, without asking the guest to shut down."""
    grace_s: GraceS = DEFAULT_GRACE_S
    """How many seconds the guest has to shut down before QEMU is ended; without effect with `kill`."""


class DeleteVmOptions(Message, frozen=True):
    """Options of `delete-vm`."""

    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    kill: bool = False
    """Whether QEMU is ended at once, without asking the guest to shut down."""
    grace_s: GraceS | None = None
    """How many seconds the guest has to shut down before QEMU is ended; without effect with `kill`. null is 30, or 5
    where the guest has not said that it is ready, though its image does.
    """


class ListVmsOptions(Message, frozen=True):
    """Options of `list-vms`."""

    all: bool = False
    """Whether deleted VMs are listed too."""
    labels: Labels = field(default_factory=dict)
    """Only VMs that have all of these labels."""


class LogsOptions(Message, frozen=True):
    """Options of `vm-logs`: the output of the VM's serial line.

    With `since` or `since-s`, a status `since` comes first: where its `clock-went-back` or `has-no-times` is true,
    output of before may be shown too. Each item has a `text`, in which each byte that is not UTF-8 is U+FFFD; with
    `raw` it has `data` in base64 instead.
    """

    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    follow: bool = False
    """Whether the answer goes on with new output until the VM ends."""
    tail_bytes: TailBytes = 64 * 1024
    """Where neither `lines` nor `since` nor `since-s` is given: only the last bytes, so many of them."""
    lines: Annotated[int, Meta(ge=0, le=1_000_000, description="lines")] | None = None
    """Only the last lines, so many of them; null for no such limit."""
    raw: bool = False
    """Whether items have the bytes of the output, as `data` in base64, instead of `text`."""
    since: Annotated[str, Meta(max_length=64, description="a time, RFC 3339")] | None = None
    """Only what came at this time or later; null for no such limit."""
    since_s: Annotated[float, Meta(ge=0, le=100 * 366 * 86400, description="seconds ago")] | None = None
    """Only what came in the last seconds, so many of them by the node's clock; null for no such limit."""


class VmSpec(Struct, frozen=True, rename="kebab"):
    """The specification of a VM, with all defaults filled in. A part of the event `VmRequested`."""

    name: str
    """The name of the VM."""
    image_id: str
    """The id of the image that the disk is an overlay on."""
    image: str
    """The name of that image when the VM was requested."""
    image_format: Literal["qcow2", "raw"]
    """The format of the image's file."""
    image_size_bytes: int
    """The size of the image's file, in bytes. A file of another size is damaged, and no disk is made from it."""
    ready_channel: ReadyChannel
    """How the guest reports that it is ready, as in the event `ImageImportRequested`."""
    cpus: int
    """The number of virtual CPUs."""
    memory_mib: int
    """The memory of the guest, in MiB."""
    disk_mib: int
    """The requested size of the disk, in MiB."""
    restart: RestartPolicy
    """When the VM is started again after a run has ended without a request."""
    autostart: bool
    """Whether the VM is started again after a reboot of the host."""
    labels: dict[str, str]
    """The labels of the VM: text by key."""
    ports: list[PortSpec] = []
    """The ports of the VM, in the order of its network cards; none for user-mode networking. Not in schema 1."""
    publish: list[PublishedPort] = []
    """The ports of the host that lead to the guest, by user-mode networking. Not in schemas 1 and 2."""
    host_loopback: bool = False
    """Whether the guest reaches the host's loopback, by user-mode networking. Not in schemas 1 and 2, whose guests
    reached it until they were started by a version that has this field.
    """
    groups: list[BorneGroup] = []
    """The groups that the VM bears from the beginning. Not in schemas 1 to 3."""
    switches: list[SwitchPort] = []
    """The ports of the VM on VDE switches, whose cards come after those of `ports`. Not in schemas 1 to 4."""
    ssh_keys: list[str] = []
    """The public keys whose owners may log in as root. Not in schemas 1 to 5."""
    image_sha256: str | None = None
    """The SHA-256 of the image's file, 64 hex digits: an update of the image changes nothing for the VM. Not in schemas
    1 to 6.
    """
    first_boot: FirstBoot | None = None
    """How the guest takes what is its own at its first boot, as in the event `ImageImportRequested`; null in schemas 1
    to 6, which do not tell.
    """
    init_sha256: str | None = None
    """The SHA-256 of the init script, 64 hex digits; null for none. Not in schemas 1 to 6."""
    user: str | None = None
    """The user whom the guest makes at its first boot, who has the public keys; null for none, so that root has them.
    Not in schemas 1 to 6.
    """
    cloud_init_sha256: str | None = None
    """The SHA-256 of the user-data for cloud-init, 64 hex digits; null for none. Not in schemas 1 to 7."""


class CreateVm(Struct, frozen=True):
    """Make a VM and start it."""

    vm_id: str
    spec: VmSpec


class StartVm(Struct, frozen=True):
    """Bring the VM up; after a stop that is under way, where there is one."""

    vm_id: str


class StopVm(Struct, frozen=True):
    """Bring the VM down: ask the guest and wait for at most `grace_s`, or with `kill` end it at once."""

    vm_id: str
    kill: bool
    grace_s: float


class RestartVm(Struct, frozen=True):
    """Bring the VM down as `StopVm` does, and up again."""

    vm_id: str


class DeleteVm(Struct, frozen=True):
    """Bring the VM down as `StopVm` does, and remove all that it has on the host."""

    vm_id: str
    kill: bool
    grace_s: float | None
    """None where the caller has not said it."""


ComputeCommand = CreateVm | StartVm | StopVm | RestartVm | DeleteVm


class VmAdopted(Struct, frozen=True):
    """The node has come back and found the VM's process alive and its own."""

    vm_id: str
    run: int


class VmLost(Struct, frozen=True):
    """The node has come back and the VM's process is not there; `boot_id` is the host's present one."""

    vm_id: str
    run: int
    boot_id: str


class VmOrphan(Struct, frozen=True):
    """The host has something of a VM that the log does not know, has deleted, or has at rest."""

    vm_id: str
    has_process: bool
    has_directory: bool


ComputeFinding = VmAdopted | VmLost | VmOrphan
