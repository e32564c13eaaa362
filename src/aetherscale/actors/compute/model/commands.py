"""What callers may say to compute: the options of its tasks as they are on the wire, and the commands they become.

Options are what a stranger sends; a command is what is left after names have become ids and defaults have been filled
in, so that deciding it needs nothing but the state of the VM.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

from aetherscale.actors.compute.model.effects import ReadyChannel
from aetherscale.kernel.names import Channel, Cpus, DiskGib, ImageReference, Labels, MemoryMib, Name, Reference
from aetherscale.kernel.wire import Message

RestartPolicy = Literal["always", "on-failure", "never"]

DEFAULT_CPUS = 1
DEFAULT_MEMORY_MIB = 512
DEFAULT_DISK_GIB = 10
DEFAULT_GRACE_S = 30.0

GraceS = Annotated[float, Meta(ge=0, le=3600, description="seconds that the guest has to shut down")]
TailBytes = Annotated[int, Meta(ge=0, le=4 * 1024 * 1024, description="bytes")]
Side = Annotated[int, Meta(ge=1, le=65535, description="characters")]
ExecArgument = Annotated[str, Meta(max_length=32 * 1024)]
EXEC_INPUT_BYTES: Final = 128 * 1024
"""What a program in a guest can be given as its stdin, which fits into one message beside the command."""
ExecCommand = Annotated[list[ExecArgument], Meta(min_length=1, max_length=256)]


class CreateVmOptions(Message, frozen=True):
    """Options of `create-vm`. Those after `labels` belong to components that this version does not have yet."""

    image: ImageReference
    name: Name | None = None
    cpus: Cpus = DEFAULT_CPUS
    memory_mib: MemoryMib = DEFAULT_MEMORY_MIB
    disk_gib: DiskGib | None = None
    node: Name | None = None
    restart: RestartPolicy = "on-failure"
    autostart: bool = True
    labels: Labels = field(default_factory=dict)
    virtual_network: Any = None
    vpn: Any = None
    public_ip: bool = False
    init_script: Any = None
    ssh_keys: Any = None
    groups: Any = None


class VmOptions(Message, frozen=True):
    """Options of `start-vm`, `restart-vm` and `vm-info`."""

    vm_id: Reference = ""


class StopVmOptions(Message, frozen=True):
    """Options of `stop-vm` and `delete-vm`: `kill` does not ask the guest; `grace-s` is how long it may take."""

    vm_id: Reference = ""
    kill: bool = False
    grace_s: GraceS = DEFAULT_GRACE_S


class ListVmsOptions(Message, frozen=True):
    """Options of `list-vms`: with `all` also the deleted ones; `labels` must all match."""

    all: bool = False
    labels: Labels = field(default_factory=dict)


class LogsOptions(Message, frozen=True):
    """Options of `vm-logs`: the serial line's log, its last `tail-bytes`, and with `follow` what comes after.

    With `lines` so many of the last lines instead. With `since` (RFC 3339), or `since-s` (so many seconds ago by the
    node's own clock), everything from that moment on, or so many of its last lines; a status `since` comes first and
    tells what is not known of it. Each item has the `text`, in which what is not UTF-8 is U+FFFD; with `raw` it has the
    bytes instead, as `data` in base64.
    """

    vm_id: Reference = ""
    follow: bool = False
    tail_bytes: TailBytes = 64 * 1024
    lines: Annotated[int, Meta(ge=0, le=1_000_000, description="lines")] | None = None
    raw: bool = False
    since: Annotated[str, Meta(max_length=64, description="a time, RFC 3339")] | None = None
    since_s: Annotated[float, Meta(ge=0, le=100 * 366 * 86400, description="seconds ago")] | None = None


class ConsoleOptions(Message, frozen=True):
    """Options of `vm-console`: attach to the serial line under a session name that the caller draws at random.

    The status `attached` tells how many bytes of the output are `history-bytes`, of the time before. With
    `window-bytes` no more is sent beyond what the caller has told it has seen. The result's `reason` is `ended`,
    `detached` or `silence`.
    """

    session: Channel
    vm_id: Reference = ""
    window_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] | None = None


class ConsoleInputOptions(Message, frozen=True):
    """Options of `console-input`: type `data` (base64), or leave; nothing at all says "still here".

    `seen-bytes` is how much of the output the caller has taken so far, for one that has given `window-bytes`. `rows`
    and `columns` together are the size that the caller's window has from now on, for a session of `vm-terminal`.
    """

    session: Channel
    data: bytes = b""
    detach: bool = False
    seen_bytes: Annotated[int, Meta(ge=0)] | None = None
    rows: Side | None = None
    columns: Side | None = None


class TerminalOptions(Message, frozen=True):
    """Options of `vm-terminal`: run `command` in the guest on a terminal of its own, of the size and kind (`term`).

    The session is one as of `vm-console`: status `attached`, items with `data`, and `console-input` to type. Of the
    output nothing is left out. The result's `reason` is `ended`, `detached` or `silence`; its `exit-code` is null where
    the program's end is not known, as where the VM ended first. Whoever leaves hangs up on the program.
    """

    session: Channel
    command: ExecCommand
    vm_id: Reference = ""
    window_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] | None = None
    rows: Side = 24
    columns: Side = 80
    term: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9+._-]{0,63}\Z", description="a value of TERM")] = "xterm"


class ExecOptions(Message, frozen=True):
    """Options of `exec-vm`: run `command` in the guest through its agent, with `stdin` (base64) as all of its input."""

    command: ExecCommand
    stdin: Annotated[bytes, Meta(max_length=EXEC_INPUT_BYTES)] = b""
    vm_id: Reference = ""
    timeout_s: Annotated[float, Meta(gt=0, le=3600, description="seconds that it may take")] = 30.0


class VmSpec(Struct, frozen=True, rename="kebab"):
    """What a VM is to be, all defaults filled in. Part of `VmRequested`, and so of the log."""

    name: str
    image_id: str
    image: str
    image_format: Literal["qcow2", "raw"]
    image_size_bytes: int
    """The size of the image's file, by which a damaged one is noticed before anything is made of it."""
    ready_channel: ReadyChannel
    cpus: int
    memory_mib: int
    disk_mib: int
    restart: RestartPolicy
    autostart: bool
    labels: dict[str, str]


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
    grace_s: float


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


class VmStray(Struct, frozen=True):
    """The host has something of a VM that the log does not know, has deleted, or has at rest."""

    vm_id: str
    has_process: bool
    has_directory: bool


ComputeFinding = VmAdopted | VmLost | VmStray
