"""What a process does to the files of a directory, step by step, as the kernel sees it.

The process asks the kernel to stop it at each system call that changes files and to tell us first (seccomp(2),
`SECCOMP_RET_USER_NOTIF`); we note it and let it go on. So the whole of the real program is under test, the SQLite of
its Python, its threads and the files beside the database, with nothing replaced and no hook in it. A call is noted
before it is made: what a sync is to make durable is on our list before, and what the process says of it after.

What the process writes to its standard output is what it has said. The shared memory of a write-ahead log (`-shm`) is
not followed: no power cut leaves it, and SQLite makes it anew.
"""

from __future__ import annotations

import array
import ctypes
import errno
import itertools
import os
import platform
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Final, NamedTuple

from tests.powercuts.disk import Disk, Names, Resize, Said, Step, Sync, SyncDirectory, Write

PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 8
SECCOMP_RET_USER_NOTIF: Final = 0x7FC00000
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_IOCTL_NOTIF_RECV: Final = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND: Final = 0xC0182101
SECCOMP_USER_NOTIF_FLAG_CONTINUE: Final = 1
BPF_LOAD_NUMBER: Final = 0x20
BPF_JUMP_IF_EQUAL: Final = 0x15
BPF_RETURN: Final = 0x06

SECCOMP: Final = {"x86_64": 317, "aarch64": 277}
CALLS: Final = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "truncate": 76, "ftruncate": 77, "fallocate": 285,
        "fsync": 74, "fdatasync": 75, "open": 2, "creat": 85, "openat": 257, "rename": 82, "renameat": 264,
        "renameat2": 316, "link": 86, "linkat": 265, "unlink": 87, "unlinkat": 263,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "truncate": 45, "ftruncate": 46, "fallocate": 47,
        "fsync": 82, "fdatasync": 83, "openat": 56, "renameat": 38, "renameat2": 276, "linkat": 37, "unlinkat": 35,
    },
}  # fmt: skip

NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
ANSWER: Final = struct.Struct("=QqiI")
SOCKET: Final = "AETHERSCALE_TESTS_RECORDER"
MOST_PATH_BYTES: Final = 4096
AT_FDCWD: Final = -100


class Recording(NamedTuple):
    """What was there before, which counts as durable, and what was done to it."""

    before: dict[str, bytes]
    steps: list[Step]
    began: list[int]
    """At which steps a process began."""

    def disk(self) -> Disk:
        """After all of it."""
        disk = Disk(self.before)
        for step in self.steps:
            disk.do(step)
        return disk


def record(arguments: Sequence[str], directory: Path, recording: Recording, kill_at: int | None = None) -> None:
    """Run `python -m …`, which has to call `be_recorded`, and add what it does to the files of a directory.

    It is run to its end, or killed when it is about to sync for the first time after its step `kill_at`: what it has
    written is then there for the next process, and not durable. Raises where the program fails, and where what was
    noted does not lead to the files that are there.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=os.environ | {SOCKET: str(theirs.fileno())},
        )
        theirs.close()
        try:
            listener = _received(ours)
            watch = _Watch(directory, recording.disk())
            try:
                watch.until_the_end(listener, process, kill_at)
            finally:
                os.close(listener)
            status = process.wait()
        finally:
            process.kill()
            process.wait()
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(arguments)}: ended with {status}")
    found = files_of(directory)
    for missing in watch.possibly_not_made() if status else [()]:
        steps = [step for number, step in enumerate(watch.steps) if number not in missing]
        if Recording(recording.before, [*recording.steps, *steps], []).disk().as_it_is() == found:
            recording.began.append(len(recording.steps))
            recording.steps.extend(steps)
            return
    raise RuntimeError(f"{directory}: something was done to the files that was not noted")


def be_recorded() -> None:
    """From now on, in this thread and those that it starts; called by the process that is recorded."""
    machine = platform.machine()
    calls = sorted(CALLS[machine].values())
    instructions = [(BPF_LOAD_NUMBER, 0, 0, 0)]
    instructions += [(BPF_JUMP_IF_EQUAL, len(calls) - place, 0, call) for place, call in enumerate(calls)]
    instructions += [(BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW), (BPF_RETURN, 0, 0, SECCOMP_RET_USER_NOTIF)]
    program = b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    with socket.socket(fileno=int(os.environ.pop(SOCKET))) as recorder:
        listener = -1
        if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
            listener = libc.syscall(SECCOMP[machine], SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, header)
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp: the kernel lets nobody listen")
        recorder.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
        os.close(listener)


def files_of(directory: Path) -> dict[str, bytes]:
    """What is in a directory, but for shared memory."""
    entries = sorted(directory.iterdir())
    return {entry.name: entry.read_bytes() for entry in entries if not entry.name.endswith("-shm")}


def _received(recorder: socket.socket) -> int:
    _, descriptors, _, _ = socket.recv_fds(recorder, 1, 1)
    if not descriptors:
        raise RuntimeError("the process has ended before it could be recorded")
    return descriptors[0]


class _Call(NamedTuple):
    thread: int
    name: str
    arguments: tuple[int, ...]


class _Watch:
    """Turns system calls into steps."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.disk = disk
        self.steps: list[Step] = []
        self._directory = directory.resolve()
        self._next_file = disk.next_file
        self._calls = {number: name for name, number in CALLS[platform.machine()].items()}
        self._memory = -1
        self._last: dict[int, int] = {}

    def until_the_end(self, listener: int, process: subprocess.Popen[bytes], kill_at: int | None) -> None:
        """Note every call until the process has ended."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        try:
            while not any(event & select.POLLHUP for _, event in poll.poll()):
                notification = bytearray(NOTIFICATION.size)
                try:
                    ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, notification)
                except OSError as gone:
                    if gone.errno != errno.ENOENT:
                        raise
                    continue
                number, thread, _, call, _, _, *arguments = NOTIFICATION.unpack(notification)
                if kill_at is not None and len(self.steps) >= kill_at and self._calls[call] in ("fsync", "fdatasync"):
                    process.kill()  # the call that waits is not made
                    continue
                if self._memory < 0:
                    self._memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
                before = len(self.steps)
                self._note(_Call(thread, self._calls[call], tuple(arguments)))
                if len(self.steps) > before:
                    self._last[thread] = before
                else:
                    self._last.pop(thread, None)
                with suppress(FileNotFoundError):  # it was killed meanwhile
                    ioctl(
                        listener, SECCOMP_IOCTL_NOTIF_SEND, ANSWER.pack(number, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)
                    )
        finally:
            if self._memory >= 0:
                os.close(self._memory)

    def possibly_not_made(self) -> Iterator[tuple[int, ...]]:
        """Which steps a process that was killed may not have made: of each thread the last, or not even that."""
        last = self._last.values()
        for count in range(len(last) + 1):
            yield from itertools.combinations(last, count)

    def _note(self, call: _Call) -> None:
        """Note one call, if it is about our directory."""
        first, second, third, fourth, *_ = call.arguments
        match call.name:
            case "write" if _descriptor(first) == 1:
                self._do(Said(self._bytes(second, third).decode()))
            case "open":
                self._opened(self._name(call, first), second)
            case "openat":
                self._opened(self._name(call, second, first), third)
            case "unlink":
                self._named([(self._name(call, first), None)])
            case "unlinkat":
                self._named([(self._name(call, second, first), None)])
            case "rename":
                self._renamed(self._name(call, first), self._name(call, second))
            case "renameat" | "renameat2":
                self._renamed(self._name(call, second, first), self._name(call, fourth, third))
            case "linkat":
                assert self._name(call, second, first) is None, "linkat is not followed"
            case "creat" | "truncate" | "link":
                assert self._name(call, first) is None, f"{call.name} is not followed"
            case _:
                self._note_descriptor(call)

    def _note_descriptor(self, call: _Call) -> None:
        """Note a call about something that is open, if that is our directory or in it."""
        _, second, third, fourth, *_ = call.arguments
        path = Path(self._path_of(call))
        file = self.disk.names.get(path.name) if path.parent == self._directory else None
        if path == self._directory:
            self._do(SyncDirectory())
        if file is None:
            return
        match call.name:
            case "write":
                self._do(Write(file, self._position(call, file), self._bytes(second, third)))
            case "pwrite64":
                self._do(Write(file, fourth, self._bytes(second, third)))
            case "ftruncate":
                self._do(Resize(file, second))
            case "fallocate":
                self._do(Resize(file, max(self.disk.size(file), third + fourth)))
            case "fsync" | "fdatasync":
                self._do(Sync(file))
            case _:
                raise AssertionError(f"{call.name} is not followed")

    def _do(self, step: Step) -> None:
        self.steps.append(step)
        self.disk.do(step)

    def _opened(self, name: str | None, flags: int) -> None:
        if name is None:
            return
        if name not in self.disk.names and flags & os.O_CREAT:
            self._named([(name, self._next_file)])
            self._next_file += 1
        elif name in self.disk.names and flags & os.O_TRUNC:
            self._do(Resize(self.disk.names[name], 0))

    def _renamed(self, old: str | None, new: str | None) -> None:
        assert (old is None) == (new is None), "nothing is moved into the directory or out of it"
        if old is not None and new is not None and old in self.disk.names:
            self._named([(old, None), (new, self.disk.names[old])])

    def _named(self, given: list[tuple[str | None, int | None]]) -> None:
        ours = tuple((name, file) for name, file in given if name is not None)
        if any(file is not None or name in self.disk.names for name, file in ours):
            self._do(Names(ours))

    def _path_of(self, call: _Call) -> str:
        """Where the file of the first argument is now."""
        return self._path_of_descriptor(call, call.arguments[0])

    def _path_of_descriptor(self, call: _Call, argument: int) -> str:
        try:
            return str(Path(f"/proc/{call.thread}/fd/{_descriptor(argument)}").readlink())
        except FileNotFoundError:
            return ""

    def _position(self, call: _Call, file: int) -> int:
        """Where a plain write goes to; proc(5)."""
        text = Path(f"/proc/{call.thread}/fdinfo/{_descriptor(call.arguments[0])}").read_text()
        info = dict(line.split(":", 1) for line in text.splitlines())
        return self.disk.size(file) if int(info["flags"], 8) & os.O_APPEND else int(info["pos"])

    def _name(self, call: _Call, address: int, below: int = AT_FDCWD) -> str | None:
        """A path in the memory of the process, as a name in our directory; None for others and for shared memory.

        `below` is the descriptor of the directory that a relative path begins at, as of openat(2).
        """
        raw = b""
        while b"\0" not in raw and len(raw) < MOST_PATH_BYTES:
            raw += self._bytes(address + len(raw), 256 - (address + len(raw)) % 256)
        path = Path(os.fsdecode(raw.partition(b"\0")[0]))
        if not path.is_absolute() and _descriptor(below) != _descriptor(AT_FDCWD):
            path = Path(self._path_of_descriptor(call, below), path)
        return path.name if path.parent == self._directory and not path.name.endswith("-shm") else None

    def _bytes(self, address: int, count: int) -> bytes:
        return os.pread(self._memory, count, address)


def _descriptor(argument: int) -> int:
    """A descriptor is an int, whatever the rest of the register holds."""
    return argument & 0xFFFFFFFF
