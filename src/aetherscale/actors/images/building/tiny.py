"""The recipe `tiny`: a small Linux guest made in seconds, for demonstrations, tests and small jobs.

Debian's cloud kernel and its virtio modules, a static busybox, the QEMU guest agent with its libraries, and a handful
of scripts of ours (`guest/`), all in one initial RAM file system on a disk that a BIOS boots by GRUB, as any cloud
image does. Nothing is installed, mounted or run as root, and nothing but Debian's packages is needed.

What the guest does: it says `ready` on the virtio port `org.aetherscale.ready.0` (`guest/ready-channel` has the
protocol), gives a root shell on the serial console, asks for addresses by DHCP and takes IPv6 ones with the servers of
names that are advertised, is called as its VM in a network (`guest/host-name`), ends cleanly when the power button is
pressed, reports a panic through pvpanic and stays where it is, and keeps files below /data on whatever its disk has
beyond the image (`guest/data-disk`), and runs the init script of its VM once (`guest/init-script`). Everything else is
in memory and forgotten.

The same packages give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from aetherscale.actors.images.building import bootdisk, initramfs, tinyparts
from aetherscale.actors.images.building.alone import alone
from aetherscale.actors.images.building.built import BuiltImage
from aetherscale.actors.images.building.debian import Archive
from aetherscale.actors.images.building.programs import Say
from aetherscale.actors.images.building.tinyparts import Parts
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

_GUEST_FILES: Mapping[str, tuple[str, ...]] = {
    "inittab": ("etc/inittab",),
    "rc": ("etc/rc",),
    "profile": ("etc/profile",),
    "poweroff": tuple(f"sbin/{name}" for name in ("poweroff", "reboot", "halt", "shutdown")),
    "power-button": ("etc/acpi/PWRF/00000080",),
    "virtio-port": ("usr/sbin/virtio-port",),
    "ready-channel": ("usr/sbin/ready-channel",),
    "button-heard": ("usr/sbin/button-heard",),
    "guest-agent": ("usr/sbin/guest-agent",),
    "data-disk": ("usr/sbin/data-disk",),
    "network-card": ("usr/sbin/network-card",),
    "udhcpc.script": ("usr/share/udhcpc.script",),
    "resolv-conf": ("usr/sbin/resolv-conf",),
    "host-name": ("usr/sbin/host-name",),
    "init-script": ("usr/sbin/init-script",),
}


async def build(
    target: Path,
    cache_dir: Path,
    say: Say,
    *,
    extra_files: Mapping[str, bytes] | None = None,
    apt_configuration: str = "",
) -> BuiltImage:
    """Make the image at `target` (0600, synced); nothing is there unless it is whole.

    `cache_dir` is kept for the next time and is about 100 MiB; `say` is called with each phase in a few words.
    `extra_files` are put into the guest's root, over what is there (`etc/rc.local` runs before the guest is ready; a
    file that starts with `#!` is executable). `apt_configuration` is added to apt's. Raises Fault, and OSError
    where there is no room.
    """
    async with alone(cache_dir, say):
        archive = Archive(cache_dir, configuration=apt_configuration)
        await archive.choose_lists(tinyparts.KERNEL_PACKAGE, say)
        await archive.require_amd64()
        try:
            parts = await tinyparts.current(archive, cache_dir, say)
        except Fault as failure:
            if not failure.retryable:
                raise
            # Lists that are older than the archive name packages that are no longer in it.
            await archive.refresh(say)
            parts = await tinyparts.current(archive, cache_dir, say)
    say("putting the disk together")
    try:
        sha256, size_bytes = await to_the_end(_write_image, target, parts, extra_files or {})
    except ValueError as error:
        raise Fault(
            f"the boot loader is not as expected: {error}", "report this, with its version", retryable=False
        ) from error
    names = tuple(package.file_name.removesuffix(".deb") for package in parts.packages)
    return BuiltImage(target, "raw", sha256, size_bytes, size_bytes, names)


def scripts(extra_files: Mapping[str, bytes]) -> bytes:
    """A cpio archive of the guest's own files; the kernel unpacks it over the one with the programs."""
    sources = resources.files("aetherscale.actors.images.building") / "guest"
    files = {path: (sources / name).read_bytes() for name, paths in _GUEST_FILES.items() for path in paths}
    files |= extra_files
    return initramfs.archive(
        initramfs.regular(path, data, executable=data.startswith(b"#!")) for path, data in files.items()
    )


def _write_image(target: Path, parts: Parts, extra_files: Mapping[str, bytes]) -> tuple[str, int]:
    """Write the disk beside `target`, sync it, and move it there. Returns its SHA-256 in hex and its size in bytes."""
    disk = bootdisk.assemble(
        parts.boot_image, parts.core_image, parts.kernel, parts.programs + scripts(extra_files)
    )  # fmt: skip
    fresh = target.with_name(f"{target.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(disk)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(target)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return hashlib.sha256(disk).hexdigest(), len(disk)
