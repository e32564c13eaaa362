"""Where a VM's things are: `<state-dir>/vms/<vm-id>/`. Knows names, sockets and the run's record; not QEMU.

    base.img      hard link to the image: the directory is whole by itself, deleting the image does not hurt it
    disk.qcow2    what the guest has written, an overlay on base.img
    console.log   what the guest wrote to its serial line, bounded; console.log.1 is what was before it
    console.moments, console.moments.1   when what is in these came
    console.pipe  leads from QEMU to whoever writes these (`seriallog.py`)
    qemu.log      what QEMU says on stderr in its present run
    run.json      which process the present run is
    *.sock        QMP, guest agent, ready channel, the end of an init script

The directory is 0700 and all in it is the node's: QEMU, under a uid of its own, gets its files and sockets as open
descriptors and could not open one of them by name. Sockets are reached through `/proc/self/fd/<directory>`, so that a
state directory deeper than the 107 bytes of a socket address works too.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from aetherscale.kernel.names import ID_PATTERN

log = logging.getLogger(__name__)

BASE: Final = "base.img"
DISK: Final = "disk.qcow2"
CONSOLE_LOG: Final = "console.log"
CONSOLE_LOG_BEFORE: Final = "console.log.1"
CONSOLE_PIPE: Final = "console.pipe"
MOMENTS: Final = "console.moments"
MOMENTS_BEFORE: Final = "console.moments.1"
QEMU_LOG: Final = "qemu.log"
RECORD: Final = "run.json"
QMP: Final = "qmp.sock"
SERIAL: Final = "serial.sock"
"""Of a QEMU that version 0.1 has started."""
AGENT: Final = "agent.sock"
READY: Final = "ready.sock"
INIT: Final = "init.sock"
SOCKETS: Final = (QMP, SERIAL, AGENT, READY, INIT)

QUARANTINE: Final = ".collected"
"""Beside the directories of VMs: those that are none of the log's, each under a name of its own."""

RECORD_LIMIT_BYTES: Final = 64 * 1024
_BACKLOG: Final = 4
_CREDENTIALS: Final = struct.Struct("3i")


class RunRecord(Struct, frozen=True, rename="kebab"):
    """Which process the present run is. Written before exec without a pid, and once more when it is known.

    Since nothing is started while an older process lives, whatever holds the sockets is the process of this run.
    """

    run: int
    boot_id: str
    accelerator: Literal["kvm", "tcg"]
    ready_channel: Literal["agent", "channel", "none"]
    pid: int | None = None
    start_ticks: int | None = None
    taps: dict[str, int] = {}
    """The descriptors that QEMU has for the ports that were plugged in since, by their taps."""
    gives_script: bool = False
    """Whether the guest was given an init script, and so has a port to tell its end."""


class VmDirectory:
    """The directory of one VM, whether or not it is there yet."""

    def __init__(self, root: Path, vm_id: str) -> None:
        self.vm_id = vm_id
        self.path = root / vm_id

    def exists(self) -> bool:
        """Whether there is a directory; a symbolic link is none."""
        return self.path.is_dir() and not self.path.is_symlink()

    def places(self) -> tuple[str | None, str | None, str | None]:
        """The paths of the directory, the disk and the log, where there is a directory."""
        if not self.exists():
            return None, None, None
        root = self.path.resolve()
        return str(root), str(root / DISK), str(root / CONSOLE_LOG)

    def make(self) -> None:
        """Make it, where it is not there yet. Raises `OSError`."""
        self.path.parent.mkdir(mode=0o700, exist_ok=True)
        self.path.mkdir(mode=0o700, exist_ok=True)

    def remove(self) -> None:
        """Remove it with all that is in it. Raises `OSError`."""
        if self.exists():
            shutil.rmtree(self.path)

    def quarantine(self, name: str) -> Path | None:
        """Move it to where orphans are kept, under this name; where it is now, None for nowhere. Raises `OSError`."""
        kept = self.path.parent / QUARANTINE / name
        if self.exists():
            kept.parent.mkdir(mode=0o700, exist_ok=True)
            self.path.rename(kept)
        return kept if kept.exists() else None

    @contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the directory. Raises `OSError`, also for a symbolic link in its place."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def open_file(self, name: str, flags: int) -> int:
        """Open a file of the directory, never through a symbolic link; a new one is 0600. Raises `OSError`."""
        with self.opened() as directory:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)

    def tail(self, name: str, limit_bytes: int) -> bytes:
        """The end of a file, empty where there is no such file."""
        try:
            descriptor = self.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            return os.pread(file.fileno(), limit_bytes, max(0, size - limit_bytes))

    def head(self, name: str, limit_bytes: int) -> bytes:
        """The beginning of a file, empty where it cannot be read."""
        try:
            descriptor = self.open_file(name, os.O_RDONLY)
        except OSError:
            return b""
        try:
            return os.pread(descriptor, limit_bytes, 0)
        except OSError:
            return b""
        finally:
            os.close(descriptor)

    def free_bytes(self) -> int:
        """The files that QEMU, which is not root, can still write in the directory."""
        usage = os.statvfs(self.path)
        return usage.f_bavail * usage.f_frsize

    def listen(self, name: str) -> socket.socket:
        """A fresh listening socket for QEMU to inherit. Raises `OSError`."""
        with self.opened() as directory:
            _unlink(name, directory)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.bind(f"/proc/self/fd/{directory}/{name}")
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                raise
            return listener

    def connect(self, name: str) -> socket.socket:
        """A connection to what listens there; not yet accepted. Raises `OSError`.

        `ConnectionRefusedError` and `FileNotFoundError` mean that no process has the socket: QEMU holds it from before
        its exec to its very end, and no other process does.
        """
        with self.opened() as directory:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                connection.setblocking(False)
                connection.connect(f"/proc/self/fd/{directory}/{name}")
            except OSError:
                connection.close()
                raise
            return connection

    def is_held(self) -> bool:
        """Whether some process of this VM lives, judged by who holds the QMP socket."""
        try:
            self.connect(QMP).close()
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
            return False
        except BlockingIOError:
            return True
        return True

    def holder(self) -> int | None:
        """The pid of who listens on the QMP socket, as the kernel has it (SO_PEERCRED, unix(7)); None for none.

        QEMU is that from when it has taken its sockets; until then the node is whose child it is. Raises `OSError`.
        """
        try:
            with self.connect(QMP) as connection:
                raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError, BlockingIOError):
            return None
        pid, _, _ = _CREDENTIALS.unpack(raw)
        return int(pid) or None

    def record(self) -> RunRecord | None:
        """The record of the present run; None where there is none, or where it cannot be read."""
        raw = self.tail(RECORD, RECORD_LIMIT_BYTES) if self.exists() else b""
        if not raw:
            return None
        try:
            return msgspec.json.decode(raw, type=RunRecord)
        except msgspec.DecodeError as error:
            log.warning("%s: %s is not what the node wrote there: %s", self.vm_id, RECORD, error)
            return None

    def write_record(self, record: RunRecord) -> None:
        """Put the record in place, whole or not at all. Not synced: it means nothing after the host went down."""
        with self.opened() as directory:
            fresh = f".{RECORD}"
            descriptor = os.open(
                fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory
            )
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(record))
            os.rename(fresh, RECORD, src_dir_fd=directory, dst_dir_fd=directory)

    def note_tap(self, tap: str, descriptor: int) -> None:
        """Add to the record which descriptor a port has that was plugged in. Raises `OSError`."""
        record = self.record()
        if record is not None and record.taps.get(tap) != descriptor:
            self.write_record(replace(record, taps={**record.taps, tap: descriptor}))

    def forget_run(self) -> None:
        """Remove what belongs to a run that is over: its record and its sockets. Raises `OSError`."""
        if not self.exists():
            return
        with self.opened() as directory:
            for name in (*SOCKETS, RECORD):
                _unlink(name, directory)


def directories(root: Path) -> list[str]:
    """The ids of all VMs that have a directory; a file or a symbolic link of such a name is none."""
    if not root.is_dir():
        return []
    named = (VmDirectory(root, entry.name) for entry in root.iterdir() if re.fullmatch(ID_PATTERN, entry.name))
    return sorted(directory.vm_id for directory in named if directory.exists())


def _unlink(name: str, directory: int) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
