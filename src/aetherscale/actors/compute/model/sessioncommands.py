"""What is said to a guest while it runs: on its console, on a terminal of its own, by a program in it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from aetherscale.kernel.names import Channel, Reference
from aetherscale.kernel.wire import Message

Side = Annotated[int, Meta(ge=1, le=65535, description="characters")]
ExecArgument = Annotated[str, Meta(max_length=32 * 1024)]
ExecCommand = Annotated[list[ExecArgument], Meta(min_length=1, max_length=256)]
EXEC_INPUT_BYTES: Final = 128 * 1024
"""What a program in a guest can be given as its stdin, which fits into one message beside the command."""


HISTORY_BYTES: Final = 1024 * 1024
"""The most that a console is sent of what was written before."""
SignalName = Literal["HUP", "INT", "KILL", "QUIT", "TERM", "USR1", "USR2"]


class ConsoleOptions(Message, frozen=True):
    """Options of `vm-console`: attach to the VM's serial line.

    The status `attached` says how many bytes of output are history (`history-bytes`). Each item has `data` in base64.
    The result's `reason` is `ended` (the VM did), `detached` (the caller left) or `silence` (the caller sent no
    `console-input` for 30 s).
    """

    session: Channel
    """The name of the session, which the caller draws at random."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    window_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] | None = None
    """How many bytes of output may be on their way beyond those that the caller has reported as seen; null for no such
    limit.
    """
    tail_bytes: Annotated[int, Meta(ge=0, le=HISTORY_BYTES)] = 64 * 1024
    """How many bytes of what this run of the guest wrote before are sent first, at most 1 MiB."""


class ConsoleInputOptions(Message, frozen=True):
    """Options of `console-input`: type into a session, or leave it. Without any, it says only that the caller is still
    there.
    """

    session: Channel
    """The name of the session."""
    data: bytes = b""
    """The input; "" for none."""
    detach: bool = False
    """Whether the caller leaves, which ends the session."""
    seen_bytes: Annotated[int, Meta(ge=0)] | None = None
    """How many bytes of output the caller has taken since the session began, for a session with `window-bytes`; null
    for no report.
    """
    rows: Side | None = None
    """The new height of the caller's window in characters, for a session of `vm-terminal`; null for no change. It is
    given together with `columns`.
    """
    columns: Side | None = None
    """The new width of the caller's window in characters; null for no change. It is given together with `rows`."""
    end: bool = False
    """Whether the input ends with this, for a session of `vm-program`."""
    signal: SignalName | None = None
    """A signal for the program of a session of `vm-program`; null for none."""


class TerminalOptions(Message, frozen=True):
    """Options of `vm-terminal`: run a program in the guest, on a terminal of its own.

    The session is like one of `vm-console`: a status `attached`, items with `data`, `console-input` to type. No output
    is left out. The result has the same `reason`, and an `exit-code`, which is null where the end of the program is not
    known, as where the VM ended first. The program is hung up (SIGHUP) when the caller leaves.
    """

    session: Channel
    """The name of the session, which the caller draws at random."""
    command: ExecCommand
    """The program and its arguments, 1 to 256."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    window_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] | None = None
    """How many bytes of output may be on their way beyond those that the caller has reported as seen; null for no such
    limit.
    """
    rows: Side = 24
    """The height of the terminal, in characters."""
    columns: Side = 80
    """The width of the terminal, in characters."""
    term: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9+._-]{0,63}\Z", description="a value of TERM")] = "xterm"
    """The kind of the terminal, which the program finds as `TERM`."""


class ProgramOptions(Message, frozen=True):
    """Options of `vm-program`: run a program in the guest, with its stdin, stdout and stderr as streams.

    The session is like one of `vm-console`. The status `attached` says the program's `pid` in the guest. Each item has
    `data` (stdout) or `error-data` (stderr) in base64; none is left out. `console-input` gives input: its answer comes
    when the guest has taken it, which is what a caller waits for who has much. The result has the same `reason`, and an
    `exit-code`: the status, or 128 and the number of the signal that ended the program; null where its end is not
    known, as where the VM ended first. The program is hung up (SIGHUP) when the caller leaves; one that ignores it
    continues in the guest.
    """

    session: Channel
    """The name of the session, which the caller draws at random."""
    command: ExecCommand
    """The program and its arguments, 1 to 256."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    window_bytes: Annotated[int, Meta(ge=1024, le=1024 * 1024)] | None = None
    """How many bytes of output may be on their way beyond those that the caller has reported as seen; null for no such
    limit.
    """
    has_input: bool = False
    """Whether `console-input` gives the program its stdin, which is empty otherwise."""


class ExecOptions(Message, frozen=True):
    """Options of `exec-vm`: run a program in the guest, through its QEMU guest agent.

    Its output is in the result: the agent tells it when the program has ended, and not before.
    """

    command: ExecCommand
    """The program and its arguments, 1 to 256."""
    stdin: Annotated[bytes, Meta(max_length=EXEC_INPUT_BYTES)] = b""
    """All of the program's input, at most 128 KiB."""
    vm_id: Reference = ""
    """The VM; "" where the subject names it (`obj`)."""
    timeout_s: Annotated[float, Meta(gt=0, le=3600, description="seconds that it may take")] = 30.0
    """How many seconds the program may take. One that takes longer continues in the guest, and its output is lost."""
