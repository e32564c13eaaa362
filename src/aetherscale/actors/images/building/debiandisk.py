"""A tree of files made into a disk that BIOS and UEFI boot, without a mount or a loop device.

GRUB, sfdisk and mtools are of Debian packages that are unpacked and not installed, as for `tiny`. mke2fs and qemu-img
are the host's.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Final

from aetherscale.actors.images.building import gptdisk, privilege
from aetherscale.actors.images.building.debian import Archive
from aetherscale.actors.images.building.gptdisk import MIB
from aetherscale.actors.images.building.programs import Say, run
from aetherscale.actors.images.building.unpacked import REPORT, run_in, with_libraries
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

ROOTS: Final = ("grub-pc-bin", "grub-efi-amd64-bin", "grub-common", "mtools", "fdisk")
JOURNAL_MIB: Final = 64
ROOM_MIB: Final = 256
"""So much is free in the root file system before it grows, beside a tenth of what is in it."""

# Both were on by default in some versions of mke2fs, and GRUB of Debian 12 reads no file system that has the first.
_FEATURES = "^metadata_csum_seed,^orphan_file"


async def require_tools(archive: Archive, say: Say) -> None:
    """Raises Fault where GRUB and the other programs are not to be had, or are of another architecture."""
    await archive.choose_lists(ROOTS[0], say)
    await archive.require_amd64()


async def tools(archive: Archive, directory: Path, say: Say) -> Path:
    """GRUB and the other programs, unpacked in the new directory `directory`. Raises Fault."""
    try:
        files = await _fetched(archive, say)
    except Fault as failure:
        if not failure.retryable:
            raise
        # Lists that are older than the archive name packages that are no longer in it.
        await archive.refresh(say)
        files = await _fetched(archive, say)
    await archive.unpack(files.values(), directory)
    return directory


async def _fetched(archive: Archive, say: Say) -> dict[str, Path]:
    packages = await archive.candidates(with_libraries(ROOTS, await archive.dependencies(ROOTS)))
    return await archive.fetch({package.file_name.partition("_")[0]: package for package in packages}, say)


async def make(tree: Path, programs: Path, work: Path, key: str, root_uuid: str, say: Say) -> Path:
    """The disk, as a qcow2 file in `work`. Raises Fault."""
    say("putting the disk together")
    raw, disk = work / "disk.raw", work / "disk.qcow2"
    root_mib = root_mib_for(await _count(tree, "--block-size=1M"))
    inode_ratio = inode_ratio_for(await _count(tree, "--inodes"), root_mib)
    await to_the_end(_make_sparse, raw, gptdisk.disk_bytes(root_mib * MIB))
    table = gptdisk.partitions(key, root_mib * MIB)
    await run_in(programs, "sbin/sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", str(raw), given=table)
    with tempfile.TemporaryDirectory(dir=work) as place:
        await _write_loaders(programs, Path(place), raw, key, root_uuid)
    await run(
        *(*privilege.prefix(), "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-U", root_uuid, "-m", "1"),
        *("-O", _FEATURES, "-J", f"size={JOURNAL_MIB}", "-i", str(inode_ratio)),
        *("-E", f"offset={gptdisk.ROOT_OFFSET}", "-d", str(tree), str(raw), f"{root_mib}M"),
    )
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(disk))
    await to_the_end(raw.unlink)
    return disk


async def _count(tree: Path, of: str) -> int:
    counted = await run(*privilege.prefix(), "du", "--summarize", "--one-file-system", of, str(tree))
    return int(counted.split()[0])


def root_mib_for(used_mib: int) -> int:
    """How large a root file system is that has `used_mib` in it."""
    wanted = used_mib + used_mib // 10 + JOURNAL_MIB + ROOM_MIB
    return -(-wanted // 64) * 64


def inode_ratio_for(inodes: int, root_mib: int) -> int:
    """For how many bytes there is an inode: as usual, or more where packages have very many small files."""
    usual = 16384
    return usual if inodes * 3 // 2 < root_mib * MIB // usual else 4096


def _make_sparse(path: Path, size_bytes: int) -> None:
    with path.open("xb") as file:
        file.truncate(size_bytes)


async def _write_loaders(programs: Path, place: Path, raw: Path, key: str, root_uuid: str) -> None:
    """Write GRUB for either firmware to its place on the disk."""
    core, uefi = place / "core.img", place / "BOOTX64.EFI"
    await _make_image(programs, "i386-pc", core, gptdisk.BIOS_MODULES, gptdisk.loader_commands(root_uuid, bios=True))
    await _make_image(
        programs, "x86_64-efi", uefi, gptdisk.UEFI_MODULES, gptdisk.loader_commands(root_uuid, bios=False)
    )
    try:
        await to_the_end(_write_bios_loader, raw, programs / "usr/lib/grub/i386-pc/boot.img", core)
    except ValueError as error:
        raise Fault(f"the boot loader is not as expected: {error}", REPORT, retryable=False) from error
    esp = ("-i", f"{raw}@@{gptdisk.ESP_OFFSET}")
    sectors = gptdisk.ESP_BYTES // gptdisk.SECTOR_BYTES
    serial = gptdisk.identity(key, "esp")[:8]
    shape = ("-F", "-c", "1", "-h", "64", "-s", "32", "-T", str(sectors), "-v", "ESP", "-N", serial)
    await run_in(programs, "usr/bin/mformat", *esp, *shape, "::")
    await run_in(programs, "usr/bin/mmd", *esp, "::/EFI", "::/EFI/BOOT")
    await run_in(programs, "usr/bin/mcopy", *esp, str(uefi), "::/EFI/BOOT/BOOTX64.EFI")


async def _make_image(programs: Path, platform: str, image: Path, modules: tuple[str, ...], commands: str) -> None:
    script = image.with_suffix(".cfg")
    await to_the_end(script.write_text, commands)
    await run_in(
        programs,
        "usr/bin/grub-mkimage",
        *(f"--format={platform}", f"--directory={programs / 'usr/lib/grub' / platform}", f"--output={image}"),
        *("--prefix=/boot", f"--config={script}", *modules),
    )


def _write_bios_loader(raw: Path, boot_image: Path, core_image: Path) -> None:
    sector, core = gptdisk.with_loader(boot_image.read_bytes(), core_image.read_bytes())
    with raw.open("r+b") as disk:
        disk.write(sector)
        disk.seek(gptdisk.BIOS_BOOT_OFFSET)
        disk.write(core)
