"""The parts of the recipe `tiny` that Debian's packages give: boot loader, kernel, modules and programs, made into four
files.

The files are kept for as long as the archive's packages stay the same, so that a second image takes a moment. Every
program of the packages that has to run here runs with the packages' own loader and libraries, whatever the host has.
"""

from __future__ import annotations

import hashlib
import lzma
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from msgspec import Struct

from aetherscale.actors.images.building import bootdisk, initramfs, kernelmodules
from aetherscale.actors.images.building.debian import Archive, Package
from aetherscale.actors.images.building.initramfs import Node
from aetherscale.actors.images.building.programs import Say, run
from aetherscale.actors.images.building.unpacked import (
    LIBRARIES,
    LOADER,
    REPORT,
    find_in,
    libraries_of,
    run_in,
    with_libraries,
)
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.threads import to_the_end

KERNEL_PACKAGE = "linux-image-cloud-amd64"
"""Has no files, and depends on the current kernel."""

_ROOTS = ("busybox-static", "grub-pc-bin", "grub-common", "qemu-guest-agent", "e2fsprogs", "bsdutils", "rdnssd")

# `quiet` leaves errors and panics on the console. The cryptographic self-tests would take a sixth of the boot.
_KERNEL_COMMAND_LINE = "console=ttyS0 quiet cryptomgr.notests"

_MODULES = (
    *("virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"),
    *("button", "evdev", "pvpanic_pci", "pvpanic_mmio", "qemu_fw_cfg"),
)

# Programs that are linked dynamically: where their packages have them, and so the guest.
_PROGRAMS = ("usr/sbin/qemu-ga", "sbin/mke2fs", "usr/bin/script", "sbin/rdnssd")


class Parts(Struct, frozen=True):
    """Where the parts are, each of which is read anew when it is asked for, and the packages that they are made of."""

    directory: Path
    packages: tuple[Package, ...]

    @property
    def boot_image(self) -> bytes:
        """GRUB's boot sector."""
        return (self.directory / "boot_image").read_bytes()

    @property
    def core_image(self) -> bytes:
        """GRUB with the modules and the commands that the disk needs."""
        return (self.directory / "core_image").read_bytes()

    @property
    def kernel(self) -> bytes:
        """The kernel, as a `bzImage`."""
        return (self.directory / "kernel").read_bytes()

    @property
    def programs(self) -> bytes:
        """The kernel's modules and the guest's programs, as a cpio archive."""
        return (self.directory / "programs").read_bytes()


async def current(archive: Archive, cache_dir: Path, say: Say) -> Parts:
    """The parts, made of the packages that are current in `archive`, or made of the same before.

    Raises Fault when the archive does not have them, or they are not what they should be.
    """
    names = _needed(await archive.dependencies([KERNEL_PACKAGE, *_ROOTS]))
    packages = await archive.candidates(names)
    kept = cache_dir / "parts" / _key(packages)
    if not kept.is_dir():
        files = await archive.fetch({package.file_name.partition("_")[0]: package for package in packages}, say)
        say("unpacking the packages")
        with tempfile.TemporaryDirectory(dir=cache_dir) as work:
            tree, made = Path(work) / "tree", Path(work) / "made"
            await archive.unpack(files.values(), tree)
            await _make(tree, made)
            shutil.rmtree(kept.parent, ignore_errors=True)
            kept.parent.mkdir()
            made.rename(kept)
    return Parts(kept, packages)


def _needed(depends: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The packages to download: the kernel, the roots, and the shared libraries that those need, and theirs."""
    kernels = [name for name in depends[KERNEL_PACKAGE] if name.startswith("linux-image-")]
    return sorted({*kernels, *with_libraries(_ROOTS, depends)})


def _key(packages: tuple[Package, ...]) -> str:
    """The inputs of the parts: the packages' bytes, and the code that makes parts of them."""
    digest = hashlib.sha256()
    for package in packages:
        digest.update(package.sha256.encode())
    for module in (__file__, bootdisk.__file__, initramfs.__file__, kernelmodules.__file__):
        digest.update(Path(module).read_bytes())
    return digest.hexdigest()[:32]


async def _make(tree: Path, made: Path) -> None:
    """Make the files of `Parts` in the new directory `made`, of the packages unpacked in `tree`."""
    names = (await run(str(find_in(tree, "bin/busybox")), "--list-full")).split()
    libraries = {program: await libraries_of(tree, program) for program in _PROGRAMS}
    try:
        await to_the_end(_write_files, tree, made, names, libraries)
    except (KeyError, lzma.LZMAError) as error:
        raise Fault(f"the kernel's modules are not as expected: {error!r}", REPORT, retryable=False) from error
    modules = ("--prefix=/", f"--config={made / 'commands'}", *bootdisk.GRUB_MODULES)
    grub = tree / "usr/lib/grub/i386-pc"
    core_image = f"--output={made / 'core_image'}"
    await run_in(tree, "usr/bin/grub-mkimage", "--format=i386-pc", f"--directory={grub}", core_image, *modules)


def _write_files(tree: Path, made: Path, names: list[str], libraries: Mapping[str, Mapping[str, Path]]) -> None:
    """Write all of the parts but the core image, for which it writes the commands."""
    made.mkdir()
    (made / "commands").write_text(bootdisk.boot_commands(_KERNEL_COMMAND_LINE))
    shutil.copyfile(tree / "usr/lib/grub/i386-pc/boot.img", made / "boot_image")
    kernels = list((tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise Fault(f"the kernel package has {len(kernels)} kernels", REPORT, retryable=False)
    shutil.copyfile(kernels[0], made / "kernel")
    nodes = [*_skeleton(), *_busybox(tree, names), *_modules(tree), *_dynamic_programs(tree, libraries)]
    (made / "programs").write_bytes(initramfs.archive(nodes))


def _skeleton() -> list[Node]:
    """The directories and devices that must be there before anything runs, and who root is."""
    empty = ("proc", "sys", "dev", "run", "root", "data", "mnt", "var/log", "var/lib")
    return [
        *(initramfs.directory(path) for path in empty),
        initramfs.directory("tmp", 0o1777),
        initramfs.character_device("dev/console", 5, 1),
        initramfs.regular("etc/passwd", b"root::0:0:root:/root:/bin/sh\n"),
        initramfs.regular("etc/group", b"root:x:0:\n"),
    ]


def _busybox(tree: Path, names: list[str]) -> list[Node]:
    """busybox under all of its names, and as the first process."""
    return [
        *(initramfs.symlink(name, "/bin/busybox") for name in names),
        initramfs.regular("bin/busybox", find_in(tree, "bin/busybox").read_bytes(), executable=True),
        initramfs.symlink("init", "/bin/busybox"),
    ]


def _modules(tree: Path) -> list[Node]:
    """The kernel's modules that the guest loads, and the list that says in which order."""
    modules = kernelmodules.in_load_order(_MODULES, kernelmodules.find(tree))
    order = "".join(f"{name}.ko\n" for name in modules)
    return [
        initramfs.regular("etc/modules", order.encode()),
        *(initramfs.regular(f"lib/modules/{name}.ko", data) for name, data in modules.items()),
    ]


def _dynamic_programs(tree: Path, libraries: Mapping[str, Mapping[str, Path]]) -> list[Node]:
    """The programs that need shared libraries, these libraries, and the loader that brings them together."""
    loader = find_in(tree, f"{LIBRARIES}/{LOADER}")
    files = {f"{LIBRARIES}/{LOADER}": loader}
    for program, needed in libraries.items():
        files[program] = find_in(tree, program)
        files |= {f"{LIBRARIES}/{name}": path for name, path in needed.items()}
    return [
        initramfs.symlink(f"lib64/{LOADER}", f"/{LIBRARIES}/{LOADER}"),
        *(initramfs.regular(path, source.read_bytes(), executable=True) for path, source in files.items()),
    ]
