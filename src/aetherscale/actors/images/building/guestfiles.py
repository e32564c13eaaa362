"""What is put into a Debian over its packages' files: see docs/images.md."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aetherscale import guestscripts

DIRECTORY: Final = Path(__file__).with_name("debian_guest")
"""Its files lie as they will in the guest."""

BOOT_CONFIGURATION: Final = "boot/boot.cfg"
KERNEL_ARGUMENTS: Final = "ro console=tty0 console=ttyS0 quiet cryptomgr.notests"

SERVICES: Final = (
    *("systemd-networkd.service", "systemd-resolved.service", "ssh-host-keys.service", "ssh.service"),
    *("aetherscale-init.service", "aetherscale-init-report.service"),
    *("aetherscale-hostname.service", "aetherscale-user.service"),
)
"""What is enabled in the guest."""

# Before the kernel: the swap of this host is none of the guest's.
EARLY: Final[Mapping[str, bytes]] = {"etc/initramfs-tools/conf.d/no-resume": b"RESUME=none\n"}

# The kernel's package keeps the two links at the newest kernel. `linux` copies byte by byte what `linux16` does not:
# seconds on an emulated processor.
_BOOT: Final = """\
# Read by GRUB at each boot. The links lead to the newest kernel that is installed.
set arguments="root=UUID={root_uuid} {arguments}"
if [ "$grub_platform" = efi ]; then
    linux /vmlinuz $arguments
    initrd /initrd.img
else
    linux16 /vmlinuz $arguments
    initrd16 /initrd.img
fi
boot
"""


def files(sources: tuple[str, ...], root_uuid: str) -> dict[str, bytes]:
    """The regular files, by their paths below `/`."""
    found = {str(path.relative_to(DIRECTORY)): path.read_bytes() for path in DIRECTORY.rglob("*") if path.is_file()}
    ours = {f"{guestscripts.IN_GUEST}/{name}": guestscripts.script(name) for name in guestscripts.SCRIPTS}
    return (
        found
        | ours
        | {
            BOOT_CONFIGURATION: _BOOT.format(root_uuid=root_uuid, arguments=KERNEL_ARGUMENTS).encode(),
            "etc/fstab": f"UUID={root_uuid} / ext4 errors=remount-ro,x-systemd.growfs 0 1\n".encode(),
            "etc/machine-id": b"",
            # Without one mmdebstrap has written its own.
            **({"etc/apt/sources.list": "".join(f"{line}\n" for line in sources).encode()} if sources else {}),
        }
    )


def links() -> dict[str, str]:
    """The symbolic links, by their paths below `/`."""
    return {
        "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
        "var/lib/dbus/machine-id": "/etc/machine-id",
    }


def packed(contents: Mapping[str, bytes], targets: Mapping[str, str] | None = None) -> bytes:
    """A tar archive of files and links that belong to root."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path, data in sorted(contents.items()):
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for path, target in sorted((targets or {}).items()):
            member = tarfile.TarInfo(path)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return archive.getvalue()
