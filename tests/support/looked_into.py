"""Images with a small operating system in them, made of files here: partitions, an ext4, and nothing that runs."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
FIRST_BYTES: Final = MIB
RELEASE: Final = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"\n'
CLOUD: Final = """\
# The top level settings are used as module.
users:
   - default
system_info:
   distro: debian
   default_user:
     name: debian
     lock_passwd: True
   paths:
      cloud_dir: /var/lib/cloud/
"""
SYSTEM: Final = {
    "usr/lib/os-release": RELEASE,
    "usr/lib/systemd/systemd": "",
    "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": "",
    "usr/sbin/qemu-ga": "",
    "usr/bin/cloud-init": "",
    "etc/cloud/cloud.cfg": CLOUD,
    "etc/shadow": "root:$6$secret$:19000::::::\n",
}


def tree(directory: Path, files: dict[str, str]) -> Path:
    """The files below a directory, with /lib and /etc/os-release as links, as a merged /usr has them."""
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (directory / "etc").mkdir(exist_ok=True)
    (directory / "lib").symlink_to("usr/lib")
    if "usr/lib/os-release" in files:
        (directory / "etc/os-release").symlink_to("../usr/lib/os-release")
    return directory


def disk(place: Path, files: dict[str, str], *, kind: str = "ext4", options: tuple[str, ...] = ()) -> Path:
    """A raw disk of 64 MiB with an MBR and one partition that holds the files."""
    place.mkdir(parents=True, exist_ok=True)
    image = place / "disk.raw"
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    mbr = bytearray(512)
    mbr[446:462] = struct.pack("<8BII", 0x80, 0, 0, 0, 0x83, 0, 0, 0, 2048, 63 * 2048)
    mbr[510:] = b"\x55\xaa"
    root = tree(place / "tree", files)
    _run("mke2fs", "-q", "-F", "-t", kind, *options, "-d", str(root), "-E", f"offset={FIRST_BYTES}", str(image), "60M")
    with image.open("r+b") as file:
        file.write(mbr)
    return image


def as_qcow2(image: Path, *options: str) -> Path:
    """The same disk as qcow2."""
    made = image.with_suffix(".qcow2")
    _run("qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", *options, str(image), str(made))
    return made


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)
