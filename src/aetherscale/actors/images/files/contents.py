"""What an image is, read from itself: never run, never mounted. What cannot be told is unknown, and never guessed."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.images.files import packed
from aetherscale.actors.images.files.disk import Disk, Unreadable
from aetherscale.actors.images.files.ext import Ext
from aetherscale.actors.images.files.header import ImageHeader, inspect
from aetherscale.actors.images.files.partitions import Partition, partitions
from aetherscale.actors.images.files.qcow2 import MAGIC
from aetherscale.actors.images.files.rejected import ImageRejected
from aetherscale.filecopy import open_file

Known = Literal["yes", "no", "unknown"]
UNKNOWN: Final = "unknown"

_MOST_TEXT: Final = 200
_BACKING_AT: Final = struct.Struct(">8xQI")
_SYSTEMD: Final = re.compile(r"libsystemd-(?:shared|core)-([0-9]{1,4})(?:[.-].*)?\.so")
_AGENTS: Final = ("/usr/sbin/qemu-ga", "/usr/bin/qemu-ga")
_REAL_CLOUD_INIT: Final = ("/usr/bin/cloud-init",)
_CLOUD_INIT: Final = (*_REAL_CLOUD_INIT, "/usr/sbin/tiny-cloud", "/usr/bin/tiny-cloud")
_CLOUD_INIT_OFF: Final = ("/etc/cloud/cloud-init.disabled",)
_LIBRARIES: Final = ("/usr/lib/systemd", "/usr/lib/x86_64-linux-gnu/systemd", "/usr/lib64/systemd")
_USER: Final = re.compile(r"name: *[\"']?([a-z_][a-z0-9_-]{0,31})[\"']? *(?:#.*)?")


class ImageContents(Struct, frozen=True, rename="kebab"):
    """What an image is, by what is in it."""

    format: str
    """`qcow2` or `raw`; for what cannot be imported what it seems to be, or `unknown`."""
    packing: str | None
    """How the file is compressed: `gzip`, `xz` or `zstd`, and then nothing is known of what is in it; null for not."""
    refused: str | None
    """Why it cannot be imported; null for an image that can."""
    virtual_size_bytes: int | None
    """The size of the disk that it stands for, in bytes; null where that cannot be told."""
    size_bytes: int
    """The length of the file, in bytes."""
    allocated_bytes: int
    """What the file takes on its disk, in bytes."""
    backing_file: str | None
    """The file that it is the difference to, as it names it; null for none."""
    file_systems: list[str]
    """What its partitions hold, in their order: `ext`, `xfs`, `vfat` …; `unknown` for what is not known."""
    os: str
    """The name that its operating system has for people, of os-release(5); `unknown` where that cannot be told."""
    os_id: str
    """The id of the system and of its version, like `debian 12`; `unknown` likewise."""
    systemd: str
    """The version of its systemd, `no` for none, or `unknown`."""
    cloud_init: Known
    """Whether cloud-init (or tiny-cloud) is installed."""
    agent: Known
    """Whether the QEMU guest agent is installed: then its guests can report by it that they are ready."""
    default_user: str
    """The account that cloud-init makes for people, of its configuration; `unknown` where that cannot be told."""
    first_boot: str
    """How its guests can take what is theirs: `cloud-init`, where it is installed and not switched off, and is not
    tiny-cloud; `credentials` of systemd from 252 on; `none`; or `unknown`.
    """
    unread: str | None = None
    """Why its operating system could not be told; null where it could."""


def look_into(path: Path) -> ImageContents:
    """What the file at `path` is. Follows no symbolic link to its last part. Raises OSError where it cannot be read."""
    file = open_file(path, flags=os.O_NOFOLLOW)
    try:
        status = os.fstat(file)
        head = os.pread(file, 4096, 0)
        packing = packed.packing_of(file)
        backing = _backing(file, head)
    finally:
        os.close(file)
    header, refused = _header(path)
    seems = "qcow2" if head.startswith(MAGIC) else UNKNOWN
    found = _Found() if header is None else _inside(path, header)
    if packing is not None:
        found.unread = f"it is compressed with {packing}"
    return ImageContents(
        format=header.format if header else seems,
        packing=packing,
        refused=None if packing else refused,
        virtual_size_bytes=header.virtual_size_bytes if header else None,
        size_bytes=status.st_size,
        allocated_bytes=status.st_blocks * 512,
        backing_file=backing,
        file_systems=found.file_systems,
        os=found.os,
        os_id=found.os_id,
        systemd=found.systemd,
        cloud_init=found.cloud_init,
        agent=found.agent,
        default_user=found.default_user,
        first_boot="cloud-init" if found.takes_seeds else _first_boot(found.systemd),
        unread=found.unread if found.os == UNKNOWN else None,
    )


class _Found:
    """What was found inside; unknown until then."""

    def __init__(self) -> None:
        self.file_systems: list[str] = []
        self.os = self.os_id = self.systemd = self.default_user = UNKNOWN
        self.cloud_init: Known = "unknown"
        self.agent: Known = "unknown"
        self.unread = "its format is none that is read"
        self.takes_seeds = False


def _header(path: Path) -> tuple[ImageHeader | None, str | None]:
    try:
        return inspect(path), None
    except ImageRejected as rejected:
        return None, rejected.reason


def _backing(file: int, head: bytes) -> str | None:
    if not head.startswith(MAGIC) or len(head) < _BACKING_AT.size:
        return None
    offset, length = _BACKING_AT.unpack_from(head)
    if not offset:
        return None
    raw = os.pread(file, min(length, _MOST_TEXT), offset) if offset < 1 << 63 else b""
    return _text(raw.decode("utf-8", "replace")) or UNKNOWN


def _inside(path: Path, header: ImageHeader) -> _Found:
    found = _Found()
    try:
        with Disk(path, header.format) as disk:
            parts = partitions(disk)
            found.file_systems = [part.holds or UNKNOWN for part in parts]
            found.unread = _none_of(found.file_systems)
            for part in parts:
                if part.holds == "ext" and _look_at(disk, part, found):
                    break
    except (Unreadable, struct.error):
        found.unread = "its partitions could not be read"
    return found


def _none_of(file_systems: list[str]) -> str:
    """Why file systems tell nothing of an operating system."""
    if "ext" in file_systems:
        return "no file system in it that is read has an operating system, with /etc/os-release"
    known = ", ".join(dict.fromkeys(each for each in file_systems if each != UNKNOWN)) or "none that is known"
    return f"its system is read from ext2, ext3 or ext4 alone, and what it has is: {known}"


def _look_at(disk: Disk, part: Partition, found: _Found) -> bool:
    """Whether a file system is that of an operating system, of which all that can be told is noted."""
    try:
        system = Ext(disk, part)
        release = system.text("/etc/os-release") or system.text("/usr/lib/os-release")
        if release is None:
            return False
        found.unread = "its /etc/os-release does not name it"
        values = dict(re.findall(r"^([A-Z_]+)=[\"']?(.*?)[\"']?$", release, re.M))
        found.os = _text(values.get("PRETTY_NAME", "")) or UNKNOWN
        found.os_id = _text(f"{values.get('ID', '')} {values.get('VERSION_ID', '')}").strip() or UNKNOWN
        found.agent = _any(system, _AGENTS)
        found.cloud_init = _any(system, _CLOUD_INIT)
        found.takes_seeds = _any(system, _REAL_CLOUD_INIT) == "yes" and _any(system, _CLOUD_INIT_OFF) == "no"
        found.systemd = _systemd(system)
        if found.cloud_init == "no":
            found.default_user = "none"
        elif (configured := system.text("/etc/cloud/cloud.cfg")) is not None:
            found.default_user = _default_user(configured)
    except (Unreadable, struct.error):
        found.unread = "a file system in it could not be read"
        return True  # what was noted so far holds
    return True


def _default_user(configured: str) -> str:
    """The name below `default_user:` in cloud-init's configuration, which is YAML: as far as its lines say it."""
    users: set[str] = set()
    within = -1
    for line in configured.split("\n"):
        text = line.lstrip(" ")
        if not text or text.startswith("#"):
            continue
        indent = len(line) - len(text)
        if within >= 0 and indent <= within:
            within = -1
        if within >= 0 and (match := _USER.fullmatch(text.rstrip())):
            users.add(match[1])
        elif text.startswith("default_user:"):
            within = indent
    return users.pop() if len(users) == 1 else UNKNOWN


def _any(system: Ext, paths: tuple[str, ...]) -> Known:
    return "yes" if any(system.exists(path) for path in paths) else "no"


def _systemd(system: Ext) -> str:
    if not system.exists("/usr/lib/systemd/systemd") and not system.exists("/lib/systemd/systemd"):
        return "no"
    names = [name for path in _LIBRARIES for name in system.names(path)]
    versions = {match[1] for name in names if (match := _SYSTEMD.fullmatch(name)) is not None}
    return versions.pop() if len(versions) == 1 else UNKNOWN


def _first_boot(systemd: str) -> str:
    if systemd == UNKNOWN:
        return UNKNOWN
    return "credentials" if systemd != "no" and int(systemd) >= 252 else "none"


def _text(text: str) -> str:
    return "".join(c for c in text if c.isprintable())[:_MOST_TEXT]
