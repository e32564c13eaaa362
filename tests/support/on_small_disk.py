"""A guest that fills the host's disk, on a disk that is small and then is not: run in a mount namespace of its own.

    unshare --mount python -m tests.support.on_small_disk MOUNT_POINT TINY_IMAGE

It prints one line of JSON for each observation, and ends with status 0 when the guest has gone on.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

from aetherscale.actors.compute.driver import Found
from aetherscale.actors.compute.model.effects import Ended, EndVm, GuestPaused, GuestReady, GuestResumed
from aetherscale.actors.compute.qemu.disk import MIB
from aetherscale.kernel.failures import EffectFailed
from tests.support import reaper
from tests.support.compute_worlds import (
    OTHER_VM,
    TINY,
    VM,
    QemuWorld,
    booted,
    ensure,
    identity,
    node,
    provision,
    read_until,
)


def mount(place: Path, size_mib: int, *options: str) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join([*options, f"size={size_mib}M"]), "tmpfs", str(place)], check=True
    )


def used_mib(place: Path) -> int:
    usage = os.statvfs(place)
    return (usage.f_blocks - usage.f_bfree) * usage.f_frsize // MIB


async def main(place: Path, tiny_image: Path) -> None:
    mount(place, 160)
    image = place / "tiny.img"
    shutil.copyfile(tiny_image, image)
    world = QemuWorld(place / "state")
    world.store(image)
    first = world.driver()
    async with node(first) as watcher:
        started = await booted(first, TINY)
        await watcher.until(GuestReady)
        console = await first.console(VM)
        output = console.output()
        await read_until(output, b"# ")
        mount(place, used_mib(place) + 10, "remount")
        await console.send(b"dd if=/dev/urandom of=/dev/vda bs=1M seek=30 count=30 conv=fsync; echo wri''tten $?\n")
        assert (await watcher.until(GuestPaused)).reason == "disk"
        # A VM that is asked for now is refused, and nothing of it is left.
        failed = await ensure(first, provision(TINY, vm_id=OTHER_VM), EffectFailed)
        assert "MiB are free" in failed.reason, failed
        assert await first.inventory() == [Found(VM, has_process=True, has_directory=True)]
    second = world.driver()
    async with node(second) as watcher:
        # The next node finds it held as well, and lets it go on when there is room.
        assert await second.adopt(identity(started))
        assert (await watcher.until(GuestPaused)).reason == "disk"
        console = await second.console(VM)
        mount(place, used_mib(place) + 200, "remount")
        await watcher.until(GuestResumed)
        await read_until(console.output(), b"written 0")
        await ensure(second, EndVm("end", VM, 1), Ended)


if __name__ == "__main__":
    watchman = reaper.start(Path(sys.argv[1]))
    try:
        asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))
    finally:
        watchman.communicate()
