"""What every compute driver brings to its guests and from them: the serial line, the log, programs."""

from __future__ import annotations

import pytest

from aetherscale.actors.compute.driver import ComputeDriver, LogRange, OnHost
from aetherscale.actors.compute.model.effects import DiskProvisioned, Ended, GuestReady
from aetherscale.actors.compute.readers import last_lines
from aetherscale.kernel.errors import Reason, Refused
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    BARE,
    OTHER_VM,
    TINY,
    VM,
    Watcher,
    agent_answers,
    booted,
    ensure,
    provision,
    read_until,
    type_in,
    whole,
)
from tests.support.driver_fixtures import END, driver, watcher, world

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]


async def test_every_reader_of_the_serial_line_sees_everything_and_anyone_may_type(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    await booted(driver, TINY)
    await watcher.until(GuestReady)
    one, two = await driver.console(VM), await driver.console(VM)
    await read_until(one.output(), b"# ")
    await one.send(b"echo from-''one\n")
    for reader in (one, two):
        assert b"from-one" in await read_until(reader.output(), b"from-one")
    late = await driver.console(VM)
    assert b"from-one" in await read_until(late.output(), b"from-one")
    await one.close()
    assert await anext(one.output(), None) is None
    await two.send(b"echo from-''two\n")
    await read_until(two.output(), b"from-two")
    await ensure(driver, END, Ended)
    await whole(two.output())
    with pytest.raises(Refused) as refused:
        await two.send(b"x")
    assert refused.value.reason == Reason.CONFLICT


async def test_the_log_has_what_the_guest_wrote_also_when_it_has_ended(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, TINY)
    await watcher.until(GuestReady)
    following = driver.logs(VM, LogRange(1 << 20), follow=True)
    await read_until((await driver.console(VM)).output(), b"# ")  # what is typed earlier may be lost in the guest
    await type_in(driver, "echo in-the-''log")
    await read_until(following, b"in-the-log")
    await ensure(driver, END, Ended)
    stored = await whole(driver.logs(VM, LogRange(1 << 20), follow=False))
    assert b"in-the-log" in stored
    assert await whole(driver.logs(VM, LogRange(10), follow=True)) == stored[-10:]
    for follow in (False, True):
        lines = await whole(driver.logs(VM, LogRange(lines=2), follow=follow))
        assert lines == last_lines(stored, 2)
        assert await whole(driver.logs(VM, LogRange(ago_s=3600), follow=follow)) == stored
        assert await whole(driver.logs(VM, LogRange(ago_s=3600, lines=2), follow=follow)) == lines
        assert await whole(driver.logs(VM, LogRange(since_us=0), follow=follow)) == stored
        assert await whole(driver.logs(VM, LogRange(ago_s=-3600), follow=follow)) == b""


async def test_what_the_host_has_of_a_vm_is_told(driver: ComputeDriver, watcher: Watcher) -> None:
    assert driver.on_host(VM) == OnHost()
    process = await booted(driver, TINY)
    there = driver.on_host(VM)
    assert there.pid == process.pid
    assert there.uptime_s is not None
    assert there.directory is not None
    assert (there.disk, there.console_log) == (f"{there.directory}/disk.qcow2", f"{there.directory}/console.log")
    await ensure(driver, END, Ended)
    at_rest = driver.on_host(VM)
    assert (at_rest.directory, at_rest.disk) == (there.directory, there.disk)
    assert (at_rest.pid, at_rest.uptime_s) == (None, None)


async def test_a_program_runs_in_the_guest(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, TINY, ready="agent")
    await watcher.until(GuestReady)
    await agent_answers(driver)
    done = await driver.execute(VM, ["/bin/echo", "a b", "c"], 30)
    assert (done.exit_code, done.stdout, done.truncated) == (0, b"a b c\n", False)
    assert (await driver.execute(VM, ["/bin/false"], 30)).exit_code == 1
    assert (await driver.execute(VM, ["/bin/cat"], 30, b"a\x00\xff\n" * 20_000)).stdout == b"a\x00\xff\n" * 20_000
    assert (await driver.execute(VM, ["/bin/cat"], 30)).stdout == b""
    with pytest.raises(Refused) as refused:
        await driver.execute(VM, ["/no/such/program"], 30)
    assert refused.value.reason == Reason.BAD_REQUEST


async def test_where_there_is_no_agent_a_program_is_refused(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, BARE)
    with pytest.raises(Refused) as refused:
        await driver.execute(VM, ["true"], 1)
    assert refused.value.reason == Reason.UNAVAILABLE


async def test_a_vm_that_is_not_running_is_refused_as_such(driver: ComputeDriver, watcher: Watcher) -> None:
    await ensure(driver, provision(), DiskProvisioned)
    with pytest.raises(Refused) as console:
        await driver.console(VM)
    with pytest.raises(Refused) as execute:
        await driver.execute(VM, ["true"], 1)
    with pytest.raises(Refused) as logs:
        await whole(driver.logs(OTHER_VM, LogRange(100), follow=True))
    assert [refused.value.reason for refused in (console, execute, logs)] == [
        Reason.CONFLICT,
        Reason.CONFLICT,
        Reason.NOT_FOUND,
    ]
