"""A VM's disk: its image as the base (`base.py`), and an overlay on it for what the guest writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from aetherscale.actors.compute.qemu import base
from aetherscale.actors.compute.qemu.layout import BASE, DISK, VmDirectory
from aetherscale.kernel.fault import Fault

MIB: Final = 1024 * 1024
ROOM_FOR_DISK_BYTES: Final = 64 * MIB
"""The room that has to be free before anything is made; an overlay begins with less than 1 MiB."""

_FRESH_DISK: Final = f".{DISK}"
_QCOW2_MAGIC: Final = b"QFI\xfb"
_QCOW2_SIZE: Final = slice(24, 32)

ImagePath = Callable[[str, Literal["qcow2", "raw"], str | None], Path]
"""Where the file of an image is, from its id, its format and its SHA-256, where that is known."""

WriteOverlay = Callable[[Path, str, int, str], None]
"""Write an empty qcow2 overlay: path, format of the base, virtual size in bytes, name of the base. Raises `OSError`."""


async def provision(
    directory: VmDirectory,
    image: Path,
    image_format: Literal["qcow2", "raw"],
    disk_mib: int,
    write_overlay: WriteOverlay,
    image_size_bytes: int | None = None,
) -> int:
    """Ensure the disk; returns its size in MiB, never smaller than the image's. Raises `Fault`, `OSError`.

    `image_size_bytes` is the size that the image's file has to have, where it is known.
    A disk that is there is left as it is. Where it fails nothing is left of the directory.
    """
    if (directory.path / DISK).is_file():
        if not (directory.path / BASE).exists():
            await base.ensure(image, directory.path / BASE)
        return disk_size_mib(directory)
    try:
        directory.make()
        _require_room(directory)
        virtual_bytes = _image_size_bytes(image, image_format, image_size_bytes)
        size_mib = max(disk_mib, -(-virtual_bytes // MIB))
        await base.ensure(image, directory.path / BASE)
        fresh = directory.path / _FRESH_DISK
        fresh.unlink(missing_ok=True)
        write_overlay(fresh, image_format, size_mib * MIB, BASE)
        fresh.chmod(0o600)
        fresh.rename(directory.path / DISK)
    except BaseException:
        directory.remove()
        raise
    return size_mib


def _require_whole(image: Path, size_bytes: int | None) -> None:
    if size_bytes is not None and (found_bytes := image.stat().st_size) != size_bytes:
        raise Fault(
            f"the image {image} is damaged: it has {found_bytes} bytes, and had {size_bytes} when it was stored",
            remedy="import or build it again under another name",
            retryable=False,
        )


def disk_size_mib(directory: VmDirectory) -> int:
    """The size of a VM's disk as the guest sees it. Raises `Fault` where it is no disk, and `OSError`."""
    try:
        return -(-virtual_size_bytes(directory.path / DISK, "qcow2") // MIB)
    except ValueError as error:
        raise Fault(
            f"the VM's disk {directory.path / DISK} is damaged: {error}",
            remedy="restore it, or delete the VM",
            retryable=False,
        ) from error


def virtual_size_bytes(path: Path, image_format: Literal["qcow2", "raw"]) -> int:
    """The size of the disk that an image stands for. Raises `ValueError` where it is no such image, and `OSError`."""
    if image_format == "raw":
        size = path.stat().st_size
    else:
        with path.open("rb") as file:
            header = file.read(32)
        if len(header) < 32 or not header.startswith(_QCOW2_MAGIC):
            raise ValueError("it has no qcow2 header")
        size = int.from_bytes(header[_QCOW2_SIZE], "big")
    if size <= 0:
        raise ValueError("it is empty")
    return size


def _image_size_bytes(image: Path, image_format: Literal["qcow2", "raw"], file_bytes: int | None) -> int:
    """The size of the image's disk, where its file is there and has `file_bytes`. Raises `Fault`."""
    try:
        _require_whole(image, file_bytes)
        return virtual_size_bytes(image, image_format)
    except FileNotFoundError:
        raise Fault(
            f"the image's file {image} is missing",
            remedy="import the image again",
            retryable=False,
        ) from None
    except ValueError as error:
        raise Fault(
            f"the image's file {image} is not the {image_format} image that was imported: {error}",
            remedy="delete the image and import it again",
            retryable=False,
        ) from error


def _require_room(directory: VmDirectory) -> None:
    free = directory.free_bytes()
    if free < ROOM_FOR_DISK_BYTES:
        raise Fault(
            f"no room for a disk in {directory.path.parent}: {free // MIB} MiB are free, "
            f"{ROOM_FOR_DISK_BYTES // MIB} MiB are needed",
            remedy="make room on the disk of the state directory: df -h",
            retryable=False,
        )
