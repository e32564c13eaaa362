"""The recipes of a whole Debian, without installing one: their disk boots, and what goes wrong leaves nothing.

`just debian-image` builds real ones and boots them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from aetherscale.actors.images.building import debiandisk, debianimage, gptdisk, guestfiles, privilege
from aetherscale.actors.images.building.alone import alone
from aetherscale.actors.images.building.debian import Archive
from aetherscale.actors.images.building.debiantree import Plan
from aetherscale.actors.images.building.mirrors import sources
from aetherscale.actors.images.building.programs import run, search_path
from aetherscale.actors.images.building.tiny import scripts
from aetherscale.actors.images.building.unpacked import run_in
from aetherscale.actors.images.driver import HostImages
from aetherscale.actors.images.model.effects import BuildImage, ImageStored
from aetherscale.identifiers import now_us
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from tests.support.qemu_guest import boot
from tests.support.tiny_image import build_tiny, package_cache

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes trees that belong to root"),
]
needs_mke2fs = pytest.mark.skipif(
    None in (shutil.which(each, path=search_path()) for each in ("mke2fs", "qemu-img")),
    reason="e2fsprogs or qemu-utils is not installed",
)
needs_mmdebstrap = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")

ROOT_UUID = gptdisk.identity("test", "root")
MIRROR = "http://127.0.0.1:9/debian"
NO_DATA = {"usr/sbin/data-disk": b"#!/bin/sh\n"}
"""The guest of `tiny` makes no file system in the second partition."""
HANDS_OVER = """
import asyncio, sys
from aetherscale.actors.images.building import privilege
from aetherscale.actors.images.building.programs import run
asyncio.run(run(*privilege.prefix(), "sh", "-c", sys.argv[1]))
"""


def quiet(step: str, **fields: object) -> None:
    """A progress that nobody follows."""


@needs_mke2fs
class TestDisk:
    async def test_it_boots_what_the_links_lead_to_after_the_kernel_was_changed(
        self, tmp_path: Path, pytestconfig: pytest.Config
    ) -> None:
        """The kernel and the guest of `tiny`, in a root file system as a Debian has it."""
        disk = await self.disk(tmp_path, pytestconfig, "vmlinuz-2")
        async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
            await guest.prompt()
            assert f"root=UUID={ROOT_UUID}" in await guest.run("cat /proc/cmdline")

    async def test_it_boots_by_uefi(self, tmp_path: Path, pytestconfig: pytest.Config) -> None:
        disk = await self.disk(tmp_path, pytestconfig, "vmlinuz-1")
        async with alone(package_cache(pytestconfig) / "ovmf", print):
            archive = Archive(package_cache(pytestconfig) / "ovmf")
            await archive.choose_lists("ovmf", print)
            (package,) = await archive.candidates(["ovmf"])
            await archive.unpack((await archive.fetch({"ovmf": package}, print)).values(), tmp_path / "ovmf")
        firmware = tmp_path / "ovmf/usr/share/ovmf/OVMF.fd"
        async with boot(disk, tmp_path / "run", image_format="qcow2", firmware=firmware, memory_mib=256) as guest:
            await guest.prompt()
            assert f"root=UUID={ROOT_UUID}" in await guest.run("cat /proc/cmdline")

    async def test_its_tables_and_file_systems_are_sound(self, tmp_path: Path, pytestconfig: pytest.Config) -> None:
        disk = await self.disk(tmp_path, pytestconfig, "vmlinuz-1")
        raw = tmp_path / "raw"
        await run("qemu-img", "convert", "-O", "raw", str(disk), str(raw))
        programs = tmp_path / "programs"
        found = await run_in(programs, "sbin/sfdisk", "--verify", str(raw))
        assert "No errors detected" in found
        size = raw.stat().st_size - gptdisk.ROOT_OFFSET - gptdisk.BACKUP_BYTES
        root = tmp_path / "root"
        with raw.open("rb") as source, root.open("wb") as target:
            source.seek(gptdisk.ROOT_OFFSET)
            target.write(source.read(size))
        await run("e2fsck", "-f", "-n", str(root))
        esp = ("-i", f"{raw}@@{gptdisk.ESP_OFFSET}")
        loader = tmp_path / "loader"
        await run_in(programs, "usr/bin/mcopy", *esp, "::/EFI/BOOT/BOOTX64.EFI", str(loader))
        assert loader.read_bytes()[:2] == b"MZ"

    @staticmethod
    async def disk(place: Path, pytestconfig: pytest.Config, kernel: str) -> Path:
        cache = package_cache(pytestconfig)
        await asyncio.to_thread(build_tiny, place / "tiny.img", pytestconfig)
        (parts,) = (cache / "parts").iterdir()
        tree, work = place / "tree", place / "work"
        (tree / "boot").mkdir(parents=True)
        work.mkdir()
        shutil.copy(parts / "kernel", tree / "boot" / kernel)
        (tree / "boot/initrd.img-2").write_bytes((parts / "programs").read_bytes() + scripts(NO_DATA))
        (tree / "vmlinuz").symlink_to(f"boot/{kernel}")
        (tree / "initrd.img").symlink_to("boot/initrd.img-2")
        files = guestfiles.files(await sources("bookworm", None), ROOT_UUID)
        (tree / guestfiles.BOOT_CONFIGURATION).write_bytes(files[guestfiles.BOOT_CONFIGURATION])
        async with alone(cache / "debian", print):
            archive = Archive(cache / "debian")
            await debiandisk.require_tools(archive, print)
            programs = await debiandisk.tools(archive, place / "programs", print)
        return await debiandisk.make(tree, programs, work, "test", ROOT_UUID, print)


@pytest.fixture
async def images(tmp_path: Path) -> HostImages:
    (tmp_path / "state").mkdir(mode=0o700)
    return HostImages(tmp_path / "state", tmp_path / "cache")


def left(directory: Path) -> list[str]:
    return [path.name for path in directory.glob("state/images/*") if path.name != "content"] + [
        path.name for path in directory.glob("cache/debian/w*")
    ]


class TestKept:
    """A disk that was made before, here an empty one."""

    @pytest.fixture
    async def effect(self, tmp_path: Path) -> BuildImage:
        plan = Plan("bookworm", await sources("bookworm", MIRROR), ())
        kept = tmp_path / "cache/debian/disks" / debianimage.key_of(plan)
        kept.mkdir(parents=True)
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(kept / "disk.qcow2"), "1100M")
        return BuildImage("build-1", "i" * 16, "debian-12", (), MIRROR)

    async def test_it_is_copied_as_large_as_it_needs_to_be(
        self, images: HostImages, effect: BuildImage, tmp_path: Path
    ) -> None:
        stored = await images.perform(effect, quiet)
        assert isinstance(stored, ImageStored), stored
        assert (stored.format, stored.virtual_size_bytes) == ("qcow2", 2 << 30)
        assert left(tmp_path) == [f"{'i' * 16}.qcow2"]

    async def test_it_is_as_large_as_it_was_asked_for_or_refused(
        self, images: HostImages, effect: BuildImage, tmp_path: Path
    ) -> None:
        small = BuildImage("build-1", "i" * 16, "debian-12", (), MIRROR, 1)
        refused = await images.perform(small, quiet)
        assert isinstance(refused, EffectFailed)
        assert refused.reason == "the image needs a disk of 2 GiB, and 1 GiB were asked for"
        assert not refused.retryable
        assert left(tmp_path) == []
        large = await images.perform(BuildImage("build-2", "i" * 16, "debian-12", (), MIRROR, 1024), quiet)
        assert isinstance(large, ImageStored)
        assert large.virtual_size_bytes == 1 << 40


@needs_mmdebstrap
class TestFailure:
    async def test_an_archive_that_cannot_be_reached_is_told_with_what_apt_says_and_nothing_is_left(
        self, images: HostImages, tmp_path: Path
    ) -> None:
        killed = tmp_path / "cache/debian/work/tree"
        killed.mkdir(parents=True)  # by a node that was killed
        failed = await images.perform(BuildImage("build-1", "i" * 16, "debian-12", (), MIRROR), quiet)
        assert isinstance(failed, EffectFailed)
        assert failed.retryable
        assert "127.0.0.1" in failed.log_tail
        assert left(tmp_path) == []

    @pytest.mark.timeout(300)
    async def test_one_that_answers_nothing_is_given_up(self, tmp_path: Path) -> None:
        async with silent_archive() as mirror:
            effect = BuildImage("build-1", "i" * 16, "debian-13", (), mirror)
            with pytest.raises(Fault) as failed:
                await debianimage.build(
                    tmp_path / "image", tmp_path / "cache", print, effect, now_s=now_us() / 1e6, archive_timeout_s=1
                )
        assert failed.value.retryable
        assert "Connection failed" in failed.value.log_tail
        assert left(tmp_path) == []

    async def test_a_build_that_is_cancelled_leaves_nothing(self, images: HostImages, tmp_path: Path) -> None:
        async with silent_archive() as mirror:
            said = asyncio.Event()
            effect = BuildImage("build-1", "i" * 16, "debian-13", (), mirror)
            work = asyncio.create_task(images.perform(effect, lambda step, **_: said.set()))
            await said.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work
        assert left(tmp_path) == []


@asynccontextmanager
async def silent_archive() -> AsyncIterator[str]:
    """An archive that takes connections, and never answers."""
    over = asyncio.Event()

    async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await over.wait()
        writer.close()

    server = await asyncio.start_server(taken, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/debian"
        over.set()


async def test_a_node_that_is_killed_ends_all_that_its_build_has_started(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "alive")
    script = f"exec 3> {tmp_path}/alive; setsid sleep 60 & echo >&3; wait"
    node = await asyncio.create_subprocess_exec(sys.executable, "-c", HANDS_OVER, script)
    with await asyncio.to_thread((tmp_path / "alive").open) as alive:
        assert await asyncio.to_thread(alive.readline) == "\n"
        node.kill()
        await node.wait()
        # The end of the file comes when no process is left that has it open.
        assert await asyncio.to_thread(alive.read) == ""


async def test_a_host_without_mmdebstrap_says_what_to_type(
    images: HostImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privilege, "PROGRAMS", {"mmdebstrap-of-nobody": "mmdebstrap"})
    failed = await images.perform(BuildImage("build-1", "i" * 16, "debian-12", (), MIRROR), quiet)
    assert isinstance(failed, EffectFailed)
    assert (failed.reason, failed.retryable) == ("this host has no mmdebstrap", False)
    assert failed.hint == "apt-get install --no-install-recommends mmdebstrap"
    assert left(tmp_path) == []
