"""The guest of the recipe `tiny`, booted from its disk by BIOS as any image is, in a QEMU of the test's own."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from aetherscale.actors.images.building import tiny
from aetherscale.actors.images.building.built import BuiltImage
from tests.support.qemu_guest import PATIENCE_S, Guest, boot
from tests.support.tiny_image import build_tiny, package_cache

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def tiny_image(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> BuiltImage:
    return build_tiny(tmp_path_factory.mktemp("tiny") / "tiny.img", pytestconfig)


# The channel is in a blocking system call, so it does not spin, and says nothing unasked: write is 1, poll is 7.
WAITS_FOR_A_HOST, WAITS_FOR_A_QUESTION = (
    f'until [ "$(cut -d " " -f 1 /proc/$(pidof ready-channel)/syscall)" = {call} ]; do sleep 0.1; done'
    for call in (1, 7)
)


def overlay(image: BuiltImage, path: Path, size: str = "") -> Path:
    """A disk of its own for a guest."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", image.format, "-b", str(image.path), str(path)]
    subprocess.run([*command, size] if size else command, check=True)
    return path


async def port_is_open_in_the_guest(guest: Guest, name: str) -> bool:
    """Whether something in the guest has opened the virtio port."""
    chardevs = await guest.qmp.execute("query-chardev")
    assert isinstance(chardevs, list)
    return next(bool(chardev["frontend-open"]) for chardev in chardevs if chardev["label"] == name)


async def test_the_guest_says_that_it_is_ready_and_gives_a_root_shell_and_an_address(
    tiny_image: BuiltImage, tmp_path: Path
) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
        await guest.ready()
        await guest.prompt()
        assert await guest.run("id -u; pwd; echo $((6 * 7))") == "0\n/root\n42\n"
        # QEMU's user network gives the first guest this address.
        await guest.run("until ip -4 addr show eth0 | grep -q 10.0.2.15; do sleep 0.1; done")
        assert "default via 10.0.2.2" in await guest.run("ip route")
        assert "nameserver 10.0.2.3" in await guest.run("cat /etc/resolv.conf")
        assert await guest.run("hostname") == "tiny\n", "no lease has said how it is called"
        assert "/data" not in await guest.run("cat /proc/mounts")


async def test_a_host_is_told_that_the_guest_is_ready_unasked_and_whenever_it_asks_and_comes_back(
    tiny_image: BuiltImage, tmp_path: Path
) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
        reader, writer = await guest.connect("ready")
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readline() == b"ready\n"
            for _ in range(3):
                writer.write(b"?\n")
                assert await reader.readline() == b"ready\n"
        await guest.prompt()
        await guest.run(WAITS_FOR_A_QUESTION)
        await guest.hang_up()
        # So soon that the guest may not have seen the host go, and then after it has.
        for _ in range(3):
            await guest.ready()
        await guest.run(WAITS_FOR_A_HOST)
        reader, _ = await guest.connect("ready")
        async with asyncio.timeout(PATIENCE_S):
            assert await reader.readline() == b"ready\n"


async def test_the_power_button_ends_the_guest_cleanly(tiny_image: BuiltImage, tmp_path: Path) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
        await guest.ready()
        await guest.qmp.execute("system_powerdown")
        assert await guest.event("SHUTDOWN") == {"guest": True, "reason": "guest-shutdown"}


async def test_power_off_and_reboot_in_the_shell_are_real(tiny_image: BuiltImage, tmp_path: Path) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2", ports=()) as guest:
        await guest.prompt()
        await guest.type("reboot")
        assert (await guest.event("RESET"))["reason"] == "guest-reset"
        await guest.prompt()
        await guest.type("poweroff")
        assert (await guest.event("SHUTDOWN"))["reason"] == "guest-shutdown"


async def test_a_panic_is_reported_and_shown_and_the_guest_does_not_reboot(
    tiny_image: BuiltImage, tmp_path: Path
) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
        await guest.prompt()
        await guest.type("echo c > /proc/sysrq-trigger")
        await guest.expect("Kernel panic - not syncing")
        assert (await guest.event("GUEST_PANICKED"))["action"] == "pause"


async def test_the_guest_agent_answers_and_runs_commands(tiny_image: BuiltImage, tmp_path: Path) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
        await guest.ready()
        assert await guest.agent("guest-ping") == {}
        started = await guest.agent("guest-exec", path="/bin/touch", arg=["/root/by-agent"])
        assert started["pid"] > 0
        await guest.prompt()
        await guest.run("until [ -e /root/by-agent ]; do sleep 0.1; done")
        # The agent says nothing in reply to a shutdown that works.
        await guest.send_to_agent("guest-shutdown")
        assert (await guest.event("SHUTDOWN"))["reason"] == "guest-shutdown"


async def test_files_in_data_outlive_a_guest_that_is_killed(tiny_image: BuiltImage, tmp_path: Path) -> None:
    disk = overlay(tiny_image, tmp_path / "disk", "10G")
    async with boot(disk, tmp_path / "first", image_format="qcow2") as guest:
        await guest.prompt()
        assert int(await guest.run("df -k /data | awk 'NR == 2 { print $2 }'")) > 9 << 20
        await guest.run("echo kept > /data/file; sync; echo lost > /root/file")
        guest.process.kill()
        await guest.process.wait()
    async with boot(disk, tmp_path / "second", image_format="qcow2") as guest:
        await guest.prompt()
        assert await guest.run("cat /data/file; ls /root") == "kept\n"


async def test_a_data_partition_that_is_damaged_is_left_alone(tiny_image: BuiltImage, tmp_path: Path) -> None:
    disk = overlay(tiny_image, tmp_path / "disk", "1G")
    async with boot(disk, tmp_path / "first", image_format="qcow2") as guest:
        await guest.prompt()
        # Far too many blocks, in a superblock that is one all the same.
        await guest.run("umount /data; echo ffffffff | xxd -r -p | dd of=/dev/vda2 bs=1 seek=1028 conv=notrunc; sync")
        damaged = await guest.run("dd if=/dev/vda2 bs=1M count=8 2> /dev/null | sha256sum")
        await guest.type("poweroff")
        await guest.event("SHUTDOWN")
    async with boot(disk, tmp_path / "second", image_format="qcow2") as guest:
        await guest.expect("tiny: /dev/vda cannot be used for /data")
        await guest.prompt()
        assert await guest.run("dd if=/dev/vda2 bs=1M count=8 2> /dev/null | sha256sum") == damaged


async def test_a_guest_whose_init_hangs_never_opens_the_ready_channel(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    hang = b"#!/bin/sh\necho hanging\nexec sleep 2147483647\n"
    image = await tiny.build(
        tmp_path / "hanging.img", package_cache(pytestconfig), print, extra_files={"etc/rc.local": hang}
    )
    async with boot(image.path, tmp_path / "run") as guest:
        await guest.expect("hanging")
        assert not await port_is_open_in_the_guest(guest, "ready")


async def test_a_guest_without_a_host_waits_without_work_and_keeps_the_channel_open(
    tiny_image: BuiltImage, tmp_path: Path
) -> None:
    disk = overlay(tiny_image, tmp_path / "disk")
    async with boot(disk, tmp_path / "run", image_format="qcow2") as guest:
        await guest.prompt()
        await guest.run(WAITS_FOR_A_HOST)
        assert await port_is_open_in_the_guest(guest, "ready")
        await guest.ready()
