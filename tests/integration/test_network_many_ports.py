"""Many ports: what comes together is done together, one that is refused keeps no other, and one more costs the same."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.network.dnsmasq import process as dnsmasq
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.dns import NAMES
from aetherscale.actors.network.nft.messages import NETLINK_NETFILTER, NEWGEN, messages
from aetherscale.actors.network.nft.watching import generation
from aetherscale.kernel.fault import Fault
from tests.support.eventually import asked_until
from tests.support.network_worlds import LAB, Kernel, Process, kernel, opened, state

pytestmark = pytest.mark.integration

NFNLGRP_NFTABLES = 7


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Kernel]:
    async with kernel(tmp_path / "state") as made:
        yield made


@pytest.fixture
async def process(host: Kernel) -> AsyncIterator[Process]:
    made = Process(host.driver())
    await made.start({}, {})
    await made.ensure()
    yield made
    await made.driver.close()


def ports(first: int, count: int) -> dict[str, PortSpec]:
    vms = {number: f"{number:016x}" for number in range(first, first + count)}
    return {
        vm_id: PortSpec(
            LAB, "lab", f"vm-{number}", tap_name(vm_id, 0), mac_of(vm_id), None, f"fd12:3456:789a:1::{number:x}"
        )
        for number, vm_id in vms.items()
    }


async def close(process: Process, every: dict[str, PortSpec]) -> Sequence[BaseException | None]:
    closing = (process.driver.close_ports(vm_id, [port]) for vm_id, port in every.items())
    return await asyncio.gather(*closing, return_exceptions=True)


async def test_ports_that_come_and_go_together_take_one_transaction(host: Kernel, process: Process) -> None:
    """Each removal of a tap by itself takes 20 ms, too."""
    every = ports(1, 50)
    before = generation()
    await asyncio.gather(*(opened(process, vm_id, port) for vm_id, port in every.items()))
    assert generation() - before == 1
    assert set(await host.taps()) == host.ruled() == {port.tap for port in every.values()}
    before = generation()
    assert set(await close(process, every)) == {None}
    assert generation() - before == 1
    assert (await host.taps(), host.ruled()) == ({}, set())


async def test_a_port_that_cannot_be_removed_keeps_no_other(host: Kernel, process: Process) -> None:
    every = ports(1, 6)
    await asyncio.gather(*(opened(process, vm_id, port) for vm_id, port in every.items()))
    strange = every[f"{4:016x}"].tap
    # Who watches would put it back at once.
    await process.driver._watches.close()  # type: ignore[attr-defined]
    subprocess.run(["ip", "link", "set", strange, "alias", "somebody's"], check=True)  # noqa: ASYNC221
    said = await close(process, every)
    assert [isinstance(each, Fault) for each in said] == [False, False, False, True, False, False]
    assert host.ruled() == {strange}


async def test_a_port_that_is_refused_keeps_no_other_that_waits(host: Kernel, process: Process) -> None:
    every = ports(1, 6)
    strange = every[f"{4:016x}"].tap
    subprocess.run(["ip", "tuntap", "add", strange, "mode", "tap"], check=True)  # noqa: ASYNC221
    opening = (opened(process, vm_id, port) for vm_id, port in every.items())
    said = await asyncio.gather(*opening, return_exceptions=True)
    assert [isinstance(each, Fault) for each in said] == [False, False, False, True, False, False]
    assert set(await host.taps()) == {port.tap for port in every.values()} - {strange}
    assert host.ruled() >= set(await host.taps())


async def test_what_is_restored_meanwhile_does_not_bring_back_what_is_closed_after_it(
    host: Kernel, process: Process
) -> None:
    """A port that is asked for after a restoration is not closed before it, which would make its rules again."""
    await process.driver.reconcile({LAB: state()})
    early, late = ports(1, 3), ports(10, 3)
    for vm_id, port in {**early, **late}.items():
        await opened(process, vm_id, port)
    every = {vm_id: [port] for vm_id, port in {**early, **late}.items()}
    closing = asyncio.ensure_future(close(process, early))
    await asyncio.sleep(0)
    restoring = asyncio.ensure_future(process.driver.restore({vm_id: every[vm_id] for vm_id in late}))
    await asyncio.sleep(0)
    assert set(await close(process, late)) == {None}
    assert set(await closing) == {None}
    await restoring
    assert (await host.taps(), host.ruled()) == ({}, set())


async def test_one_more_port_is_as_many_bytes_for_the_kernel_however_many_there_are(
    host: Kernel, process: Process
) -> None:
    sizes = []
    for count in (0, 10, 600):
        for vm_id, port in ports(1, count).items():
            process.driver._known.set_ports({vm_id: [port]})  # type: ignore[attr-defined]
        await opened(process, *next(iter(ports(5000 + count, 1).items())))
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER) as heard:
            heard.bind((0, 1 << NFNLGRP_NFTABLES - 1))
            ((vm_id, port),) = ports(6000 + count, 1).items()
            await opened(process, vm_id, port)
            sizes.append(told(heard))
        assert len(host.ruled()) >= count
    assert sizes == [sizes[0]] * 3
    assert sizes[0] < 2000


def told(heard: socket.socket) -> int:
    """The bytes of one transaction, as the kernel tells of it."""
    size = 0
    while True:
        for kind, _, _, body in messages(heard.recv(65536)):
            if kind == NEWGEN:
                return size
            size += len(body)


async def test_a_resolver_is_told_once_of_ports_that_come_together(
    host: Kernel, process: Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = []
    original = dnsmasq.Process.read_again

    def read_again(self: dnsmasq.Process) -> None:
        told.append(self)
        original(self)

    monkeypatch.setattr(dnsmasq.Process, "read_again", read_again)
    every = ports(1, 20)
    directory = tmp_path / "state" / "networks" / LAB
    await asyncio.gather(*(opened(process, vm_id, port) for vm_id, port in every.items()))
    await eventually(lambda: len(told) >= 1)
    assert names(directory) == {port.hostname for port in every.values()}
    await close(process, every)
    await eventually(lambda: len(told) >= 2)
    assert names(directory) == set()
    assert len(told) == 2


async def test_a_resolver_that_could_not_be_told_is_told_with_the_next_change(
    host: Kernel, process: Process, tmp_path: Path
) -> None:
    await process.driver.reconcile({LAB: state()})
    directory = tmp_path / "state" / "networks" / LAB
    blocked = directory / f"{NAMES}.new"
    blocked.mkdir()
    (first, port), (second, another) = ports(1, 2).items()
    await opened(process, first, port)
    await eventually(lambda: not process.driver._tasks)  # type: ignore[attr-defined]
    assert names(directory) == set()
    blocked.rmdir()
    await opened(process, second, another)
    await eventually(lambda: names(directory) == {"vm-1", "vm-2"})


def names(directory: Path) -> set[str]:
    """The VMs that the resolver of a network has names of."""
    return {line.split()[-1] for line in (directory / NAMES).read_text().splitlines()}


async def eventually(holds: Callable[[], bool]) -> None:
    async def asked() -> bool:
        return holds()

    await asked_until(asked)
