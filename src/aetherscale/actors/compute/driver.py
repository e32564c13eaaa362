"""The port through which compute touches the host. `qemu/` is the real one, `simulated.py` its twin.

One contract suite runs on both. A driver keeps no truth of its own: whatever it knows it can find again on the host.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from aetherscale.actors.compute.effects import ComputeEffect, ComputeObservation, ComputeOutcome, ReadyChannel

Observe = Callable[[ComputeObservation], None]
Progress = Callable[[str], None]
"""Called with a phase's name and detail while an effect works, for the caller's progress line; never for facts."""


class Process(Struct, frozen=True):
    """The identity of a VM's process as the log has it (`VmBooted`)."""

    vm_id: str
    run: int
    pid: int
    start_ticks: int
    boot_id: str
    ready_channel: ReadyChannel


class Found(Struct, frozen=True):
    """What a host has of a VM."""

    vm_id: str
    has_process: bool
    has_directory: bool


class ExecResult(Struct, frozen=True):
    """How a program in the guest ended, and what it printed, at most a few MiB of it."""

    exit_code: int | None
    signal: int | None
    stdout: bytes
    stderr: bytes
    truncated: bool


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


class ComputeDriver(Protocol):
    """Ensure effects, report observations, read what guests say."""

    async def start(self, observe: Observe) -> None:
        """Begin to observe; called once, before anything else."""
        ...

    async def perform(self, effect: ComputeEffect, progress: Progress) -> ComputeOutcome:
        """Make the effect true and answer; what the host refuses comes back as `EffectFailed`, never as an exception.

        Cancelling the call stops the work at the next safe point; the next effect of the VM mends what is half done.
        """
        ...

    async def adopt(self, process: Process) -> bool:
        """Find the running process again after a restart of the node and observe it from now on.

        True: it is alive and ours, and what happened meanwhile (ready, ended, held) arrives as observations, in order.
        False: it is gone; nothing is observed.
        """
        ...

    def watches(self, vm_id: str, run: int) -> bool:
        """Whether the process of this run is observed now, so that its end will be told."""
        ...

    async def inventory(self) -> Sequence[Found]:
        """All VMs of which this host has anything, by their ids."""
        ...

    async def console(self, vm_id: str) -> Console:
        """Attach to the serial line. Raises `Refused` (409) where the VM has no process."""
        ...

    def logs(self, vm_id: str, *, follow: bool, tail_bytes: int, lines: int | None = None) -> AsyncIterator[bytes]:
        """The serial log of the VM, oldest byte first; `follow` goes on until the VM's process ends.

        It begins `tail_bytes` before the end, or with `lines` so many lines before it.
        """
        ...

    async def execute(self, vm_id: str, argv: Sequence[str], timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a program in the guest through its agent; `stdin` is all of its input. Raises `Refused` without agent."""
        ...

    async def close(self) -> None:
        """Stop observing. Guests run on."""
        ...
