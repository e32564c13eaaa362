"""Where the resolver of a network has its things: `<state-dir>/networks/<network-id>/`.

    aetherscale-<network-id>-….conf   its configuration
    names, leases                     what it reads again: names of VMs, addresses by MAC
    upstreams, elsewhere              … whom to ask of names outside; what to refuse, since other networks know it
    devices                           what its network devices are to be, for `ip -batch`
    dnsmasq.log                       what it says on stderr, in its present run
    run.json                          which process it is

dnsmasq, under a uid of its own, may not walk to the directory, since all above it is the node's alone; it is started in
it, and sees it as `/tmp` in its own mount namespace.

Each file is written whole: whoever reads it has it as it was or as it is to be. No file has to outlive a power cut,
since all are written anew from the state, and the process is gone.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from aetherscale import statedir

SEEN_AT: Final = "/tmp"  # noqa: S108 - in a mount namespace of its own
"""Where the process sees its directory: the one place that every host has."""
DEVICES: Final = "devices"
LOG: Final = "dnsmasq.log"
RECORD: Final = "run.json"
RECORD_LIMIT_BYTES: Final = 64 * 1024
LOG_TAIL_BYTES: Final = 2048


class Record(Struct, frozen=True, rename="kebab"):
    """The process that was started last."""

    boot_id: str
    pid: int
    start_ticks: int
    fingerprint: str
    """Of all that it was started with."""


class Directory:
    """The directory of one network, in the one for all, which is there."""

    def __init__(self, root: Path, network_id: str) -> None:
        self.network_id = network_id
        self.path = root / network_id
        place = root.stat()
        # A copy of the state directory has the same networks: its node has to leave these processes alone.
        self.configuration_name = f"aetherscale-{network_id}-{place.st_dev:x}-{place.st_ino:x}.conf"
        """The name of its configuration, which `ps` shows."""

    @property
    def word(self) -> str:
        """The word of a command line that says whose the process is, before and after it becomes dnsmasq."""
        return f"--conf-file={SEEN_AT}/{self.configuration_name}"

    def make(self) -> None:
        """Ensure that it is there, and that whoever is started in it can read it. Raises `OSError`."""
        statedir.make(self.path)
        self.path.chmod(0o755)

    def read(self, name: str) -> str:
        """A file as it was written last; "" where it is not there. Raises `OSError`."""
        try:
            return (self.path / name).read_text()
        except FileNotFoundError:
            return ""

    def write(self, name: str, text: str) -> bool:
        """Ensure that a file is this; whether it was not. Raises `OSError`."""
        path, content = self.path / name, text.encode()
        try:
            if path.read_bytes() == content:
                return False
        except FileNotFoundError:
            pass
        _write(path, content, 0o644)
        return True

    def open_log(self) -> int:
        """A descriptor of the log, which begins anew. Raises `OSError`."""
        return statedir.open_file(self.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)

    def log(self) -> str:
        """What it has said; "" where that cannot be read."""
        try:
            return (self.path / LOG).read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        except OSError:
            return ""

    def write_record(self, record: Record) -> None:
        """Put down which process it is. Raises `OSError`."""
        _write(self.path / RECORD, msgspec.json.encode(record), 0o600)

    def record(self) -> Record | None:
        """Which process was started last; None where that cannot be read."""
        try:
            return msgspec.json.decode(statedir.read_file(self.path / RECORD, RECORD_LIMIT_BYTES), type=Record)
        except (OSError, msgspec.MsgspecError):
            return None

    def remove(self) -> None:
        """Ensure that it is gone. Raises `OSError`."""
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            return


def _write(path: Path, content: bytes, mode: int) -> None:
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, mode)
        file.write(content)
    fresh.rename(path)
