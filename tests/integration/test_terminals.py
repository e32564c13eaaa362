"""Programs with a terminal in a real guest: no output is lost, and nothing is left of them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from aetherscale.actors.compute.driver import ComputeDriver, Window
from aetherscale.actors.compute.model.effects import GuestReady
from aetherscale.actors.compute.qemu.driver import QemuDriver
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.bus.refusals import hint
from aetherscale.kernel.errors import Reason, Refused
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    TINY,
    VM,
    QemuWorld,
    agent_answers,
    booted,
    identity,
    read_until,
    whole,
)
from tests.support.compute_worlds import (
    node as running,
)
from tests.support.eventually import asked_until
from tests.support.node import PATIENCE_S

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SIZE = Window(40, 120)


async def until_status(driver: ComputeDriver, argv: list[str], status: int) -> None:
    """Run a program in the guest again and again until it ends so."""

    async def ask() -> bool:
        return (await driver.execute(VM, argv, PATIENCE_S)).exit_code == status

    await asked_until(ask, PATIENCE_S)


async def ports(world: QemuWorld) -> list[str]:
    """The terminals that are plugged in, as QEMU says while no node is connected to it."""
    monitor = QMPClient()
    async with asyncio.timeout(PATIENCE_S):
        await monitor.connect(VmDirectory(world.state_dir / "vms", VM).connect("qmp.sock"))
        devices = await monitor.execute("query-chardev")
        await monitor.disconnect()
    assert isinstance(devices, list)
    return [device["label"] for device in devices if device["label"].startswith("terminal-")]


async def test_who_goes_away_hangs_up_and_the_port_is_taken_out(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with running(driver) as watcher:
        await booted(driver, TINY, ready="agent")
        await watcher.until(GuestReady)
        await agent_answers(driver)
        kept = await driver.terminal(VM, ["sh"], SIZE, "xterm")
        for _ in range(2):
            gone = await driver.terminal(VM, ["tail", "-f", "/dev/null"], SIZE, "xterm")
            await gone.close()
            await until_status(driver, ["pidof", "tail"], 1)
        await kept.send(b"echo still-''here\r")
        await read_until(kept.output(), b"still-here")
        await kept.close()
    assert await ports(qemu_world) == []


async def test_a_program_is_hung_up_also_where_the_agent_is_silent(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with running(driver):
        await ready(driver)
        kept, gone = [await driver.terminal(VM, argv, SIZE, "xterm") for argv in (["sh"], ["tail", "-f", "/dev/null"])]
        await kept.send(b"kill -STOP $(pidof qemu-ga); pidof tail && echo ru''ns\r")
        await read_until(kept.output(), b"runs")
        await gone.close()
        await kept.send(b"while pidof tail; do sleep 1; done; echo en''ded\r")
        await read_until(kept.output(), b"ended")
        await kept.send(b"exit 3\r")
        await whole(kept.output())
        assert kept.exit_code == 3
        async with asyncio.timeout(PATIENCE_S):
            await kept.close()
    assert await ports(qemu_world) == []


async def test_what_a_node_that_is_gone_has_left_is_hung_up_by_the_next(qemu_world: QemuWorld) -> None:
    first = qemu_world.driver()
    async with running(first) as watcher:
        process = await booted(first, TINY, ready="agent")
        await watcher.until(GuestReady)
        await agent_answers(first)
        await first.terminal(VM, ["tail", "-f", "/dev/null"], SIZE, "xterm")
        await until_status(first, ["pidof", "tail"], 0)
    assert len(await ports(qemu_world)) == 1
    second = qemu_world.driver()
    async with running(second) as watcher:
        assert await second.adopt(identity(process, "agent"))
        await agent_answers(second)
        await until_status(second, ["pidof", "tail"], 1)
        fresh = await second.terminal(VM, ["sh", "-c", "exit 5"], SIZE, "xterm")
        assert await whole(fresh.output()) == b""
        assert fresh.exit_code == 5
        await fresh.close()
    assert await ports(qemu_world) == []


async def ready(driver: QemuDriver) -> None:
    """A VM whose agent answers."""
    await booted(driver, TINY, ready="agent")
    await agent_answers(driver)


async def test_nothing_is_lost_of_what_a_program_writes_faster_than_it_is_read(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with running(driver):
        await ready(driver)
        count = await driver.terminal(VM, ["seq", "1", "40000"], SIZE, "xterm")
        said = b""
        async with asyncio.timeout(PATIENCE_S), aclosing(count.output()) as output:  # type: ignore[type-var]
            async for piece in output:
                said += piece
                if len(said) < 2_000:
                    # By then QEMU, the guest's kernel and `script` are full, and `seq` waits.
                    await until_status(driver, ["pidof", "seq"], 0)
        assert said == b"".join(b"%d\r\n" % number for number in range(1, 40_001))
        assert count.exit_code == 0
        await count.close()


async def test_a_guest_that_lacks_what_a_terminal_needs_is_refused_with_what_to_install(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with running(driver):
        await ready(driver)
        assert (await driver.execute(VM, ["mv", "/usr/bin/script", "/usr/bin/script.away"], 30)).exit_code == 0
        with pytest.raises(Refused, match="`script` of util-linux") as refused:
            await driver.terminal(VM, ["sh"], SIZE, "xterm")
        assert refused.value.reason == Reason.NOT_IMPLEMENTED
        assert "bsdutils" in hint(refused.value.remedy)
        # One that is another program of the same name, as that of busybox, is none either.
        assert (await driver.execute(VM, ["ln", "-s", "/bin/busybox", "/usr/bin/script"], 30)).exit_code == 0
        with pytest.raises(Refused, match="`script` of util-linux"):
            await driver.terminal(VM, ["sh"], SIZE, "xterm")
        await driver.execute(VM, ["mv", "-f", "/usr/bin/script.away", "/usr/bin/script"], 30)
        assert (await driver.execute(VM, ["mv", "/bin/sh", "/bin/sh.away"], 30)).exit_code == 0
        with pytest.raises(Refused, match=r"cannot have a terminal in this guest: .*'/bin/sh'") as refused:
            await driver.terminal(VM, ["true"], SIZE, "xterm")
        assert refused.value.reason == Reason.NOT_IMPLEMENTED
        assert "the guest needs Linux and /bin/sh" in hint(refused.value.remedy)
        await driver.execute(VM, ["mv", "/bin/sh.away", "/bin/sh"], 30)
        back = await driver.terminal(VM, ["true"], SIZE, "xterm")
        await whole(back.output())
        assert back.exit_code == 0
        await back.close()
    assert await ports(qemu_world) == []


@pytest.mark.parametrize("refused_command", ["chardev-add", "device_add"])
async def test_a_port_that_qemu_refuses_leaves_no_descriptor_there(
    qemu_world: QemuWorld, refused_command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = qemu_world.driver()
    async with running(driver):
        process = await booted(driver, TINY, ready="agent")
        await agent_answers(driver)
        execute = Machine._execute

        async def spoiled(self: Machine, command: str, **arguments: object) -> Any:
            more = {"nonsense": True} if command == refused_command else {}
            return await execute(self, command, **arguments, **more)

        tries, descriptors = 3, Path(f"/proc/{process.pid}/fd")
        before = len(list(descriptors.iterdir()))
        with monkeypatch.context() as patched:
            patched.setattr(driver._machines[VM]._plugs, "_execute", partial(spoiled, driver._machines[VM]))
            for _ in range(tries):
                with pytest.raises(
                    Refused, match=r"no port for the program could be plugged into the VM: it was refused"
                ):
                    await driver.terminal(VM, ["sh"], SIZE, "xterm")
        assert len(list(descriptors.iterdir())) < before + tries, "QEMU may open one of its own"
        echo = await driver.terminal(VM, ["echo", "hi"], SIZE, "xterm")
        assert await whole(echo.output()) == b"hi\r\n"
        await echo.close()
    assert await ports(qemu_world) == []


async def test_a_guest_that_is_restarted_from_within_ends_its_terminals(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with running(driver):
        await ready(driver)
        shell = await driver.terminal(VM, ["sh"], SIZE, "xterm")
        await shell.send(b"reboot -f\r")
        await whole(shell.output())
        assert shell.exit_code is None
        await shell.close()
    assert await ports(qemu_world) == []
