"""The port through which compute touches the host. `qemu/` is the real one, `simulated.py` its fake.

One contract suite runs on both. A driver keeps no truth of its own: whatever it knows it can find again on the host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from msgspec import Struct

from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.effects import ComputeObservation, ReadyChannel
from aetherscale.actors.compute.model.figures import Figures
from aetherscale.actors.compute.model.guestfacts import GuestFacts
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.ports import InitScripts
from aetherscale.actors.compute.readers import RECENT_BYTES
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.runtime.component import Driver

Observe = Callable[[ComputeObservation], object]
"""Takes what happened to a VM."""

HOST_LIMITS: Final = "host-limits"
"""The name of `HostLimits`."""


class HostLimits(Protocol):
    """What a decision about a VM has to know of the host."""

    def require(self, memory_mib: int, disk_mib: int) -> None:
        """Raises `Refused`, which names the field: bad request for more memory or a larger disk than a VM can have on
        this host, unavailable for more memory than is free now.
        """
        ...

    def require_switch(self, path: str) -> None:
        """Raises `Refused` (conflict) where the host has no VDE switch at this path, or one that this node may not use,
        with what to type.
        """
        ...


def beyond_host(memory_mib: int, most_mib: int, why: str) -> Refused:
    """The refusal of more memory than a guest can have on this host."""
    what = f"got {memory_mib}, expected at most {most_mib} MiB of memory for a guest: {why}"
    return Refused(Reason.BAD_REQUEST, what, field="memory-mib")


class Process(Struct, frozen=True):
    """The identity of a VM's process as the log has it (`VmBooted`)."""

    vm_id: str
    run: int
    pid: int
    start_ticks: int
    boot_id: str
    ready_channel: ReadyChannel


class Found(Struct, frozen=True):
    """The process and the directory of a VM on the host."""

    vm_id: str
    has_process: bool
    has_directory: bool


EXIT_STATUS: Final = "exit-status"
"""The detail of a refusal to run a program: the exit status that a shell has for it."""
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127


class ExecResult(Struct, frozen=True):
    """How a program in the guest ended, and what it printed, at most a few MiB of it."""

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


@dataclass(slots=True)
class LogRange:
    """A range of a serial log: all since a moment, else the last bytes; of these only so many of the last lines.

    Who answers says in it what is not known.
    """

    tail_bytes: int = 0
    lines: int | None = None
    since_us: int | None = None
    ago_s: float | None = None
    """The same by the clock of the host: so long ago."""
    went_back: bool = False
    """Some of the answer may be older than `since_us`: the clock of the host was set back while it was written."""
    has_no_times: bool = False
    """Of some of the answer it is not known when it came."""

    def doubt(self, *, went_back: bool, has_no_times: bool) -> None:
        """Say what is not known, before the first byte of the answer."""
        self.went_back, self.has_no_times = went_back, has_no_times

    def moment_us(self, now_us: int) -> int | None:
        """Since when, where that was asked for; `now_us` is the clock of the host."""
        return self.since_us if self.ago_s is None else now_us - round(self.ago_s * 1_000_000)

    def so_long_ago_s(self, now_us: int) -> float | None:
        """The same as how long ago."""
        moment_us = self.moment_us(now_us)
        return None if moment_us is None else (now_us - moment_us) / 1_000_000


class OnHost(Struct, frozen=True, rename="kebab", omit_defaults=True):
    """The present state of a VM on its host. Absent parts are left out."""

    directory: str | None = None
    disk: str | None = None
    console_log: str | None = None
    pid: int | None = None
    """The process of QEMU, as the host counts them."""
    uptime_s: int | None = None
    """For how long that process has been there."""
    dropped: Mapping[str, Mapping[str, int]] = {}
    """The packets of its ports that the firewall dropped, by the tap and by the kind."""
    leased: Mapping[str, Sequence[str]] = {}
    """The addresses that were leased to its ports in public networks, by the tap."""
    cut: Sequence[str] = ()
    """The taps of its ports that lead nowhere, since another program removed them or the bridges that they were in: the
    guest is cut off these networks.
    """


class Console(Protocol):
    """One reader of a VM's serial line. The line itself is shared: every reader sees everything, anyone may type."""

    @property
    def past_bytes(self) -> int:
        """How much of the output, from its beginning, was there when the reader came."""
        ...

    def output(self) -> AsyncIterator[bytes]:
        """Bytes from the guest, first the recent past; ends when the VM's process does."""
        ...

    async def send(self, data: bytes) -> None:
        """Type into the serial line."""
        ...

    async def close(self) -> None:
        """Stop to read; the line goes on."""
        ...


TERMINAL_LIMIT: Final = 16
"""Terminals in one guest at a time. A virtio controller has 31 ports, and two are taken."""


class Window(Struct, frozen=True):
    """The size of a terminal, in characters."""

    rows: int
    columns: int


class Terminal(Console, Protocol):
    """A program in the guest on a terminal of its own. Its output ends with it, or with the VM's process.

    Nothing of the output is lost: where it is not read, the program waits. `close` hangs up on a program that has not
    ended, as a telephone line does.
    """

    @property
    def exit_code(self) -> int | None:
        """How the program has ended, once its output has; None where that is not known."""
        ...

    def resize(self, window: Window) -> None:
        """The terminal has this size from now on; the program gets SIGWINCH."""
        ...


class KeptScripts(InitScripts, Protocol):
    """The init scripts that a host keeps, and the user-data for cloud-init."""

    def remove_unknown(self, expected: Mapping[str, Vm]) -> None:
        """Remove what is of no VM that needs it, but for what this process was given just now."""
        ...


Signal = Literal["HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2"]
"""The signals that a program in a guest can be sent."""


class Piece(Struct, frozen=True):
    """A piece of what a program has written, to stdout or to stderr."""

    data: bytes
    is_error: bool = False


class PipedProgram(Protocol):
    """A program in the guest whose stdin, stdout and stderr are streams. What is not read holds it up.

    It leads a session of its own. `close` hangs up (SIGHUP) on a program that has not ended, and so does the end of the
    node; one that ignores that continues in the guest, where `pid` names it.
    """

    @property
    def pid(self) -> int:
        """Its process, as the guest counts them."""
        ...

    @property
    def exit_code(self) -> int | None:
        """How the program has ended, once its output has: its status, or 128 and the number of the signal that ended
        it; None where that is not known, as where the VM ended first.
        """
        ...

    def output(self) -> AsyncIterator[Piece]:
        """All of both outputs, each in order, until the program has ended, the VM has, or `close` was called."""
        ...

    async def send(self, data: bytes) -> None:
        """Give it input; waits while it takes none. Raises `Refused` (conflict) where it has ended."""
        ...

    async def end_input(self) -> None:
        """There will be no more input."""
        ...

    async def signal(self, name: Signal) -> None:
        """Send a signal to it and to the processes of its group. Raises `Refused` (conflict) where it has ended."""
        ...

    async def close(self) -> None:
        """Hang up on it."""
        ...


class ComputeDriver(Driver[Vm, ComputeMessage], Protocol):
    """Ensure effects, report observations, read what guests say."""

    @property
    def scripts(self) -> KeptScripts:
        """The init scripts that this host keeps."""
        ...

    @property
    def limits(self) -> HostLimits:
        """How large a VM can be here."""
        ...

    async def adopt(self, process: Process) -> bool:
        """Find the running process again after a restart of the node and observe it from now on.

        True: it is alive and ours, and what happened meanwhile (ready, ended, paused) arrives as observations,
        in order. False: it is gone; nothing is observed.
        """
        ...

    def watches(self, vm_id: str, run: int) -> bool:
        """Whether the process of this run is observed now, so that its end will be reported."""
        ...

    async def inventory(self) -> Sequence[Found]:
        """All VMs of which this host has anything, by their ids."""
        ...

    async def console(self, vm_id: str, past_bytes: int = RECENT_BYTES) -> Console:
        """Attach to the serial line, with so much of the recent past.

        Raises `Refused` (conflict) where the VM has no process.
        """
        ...

    def on_host(self, vm_id: str) -> OnHost:
        """Where the VM's files are, and which process it is."""
        ...

    def logs(self, vm_id: str, wanted: LogRange, *, follow: bool) -> AsyncIterator[bytes]:
        """The wanted range of the VM's serial log, oldest byte first; `follow` goes on until the VM's process ends.

        Raises `Refused` (not found) where the VM has no log on this host.
        """
        ...

    async def figures(self) -> Mapping[str, Figures]:
        """The figures of every VM that has a process, by its id, soon, whatever QEMU does."""
        ...

    async def execute(self, vm_id: str, argv: Sequence[str], timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a program in the guest through its agent; `stdin` is all of its input. Raises `Refused` without agent."""
        ...

    async def terminal(self, vm_id: str, argv: Sequence[str], window: Window, term: str) -> Terminal:
        """Start a program in the guest on a terminal of its own, of the kind `term`.

        Raises `Refused`: conflict where the VM has no process or too many terminals, bad request where there is no such
        program, not implemented where the guest lacks what is needed, unavailable without agent, deadline where it does
        not begin in time.
        """
        ...

    async def facts(self, vm_id: str) -> GuestFacts:
        """What the guest says of itself, soon, however long its agent takes. Raises `Refused` (conflict) where the VM
        has no process.
        """
        ...

    async def program(self, vm_id: str, argv: Sequence[str], *, has_input: bool) -> PipedProgram:
        """Start a program in the guest with its input and outputs as streams; its input is empty unless it has one.

        Raises `Refused` as `terminal` does.
        """
        ...
