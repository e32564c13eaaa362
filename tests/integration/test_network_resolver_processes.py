"""The process of a resolver, its cables and files: what it may do, and that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aetherscale.actors.network.dnsmasq.directory import Directory, Record
from aetherscale.actors.network.dnsmasq.process import LOG_LIMIT_BYTES, Process, Starting
from aetherscale.actors.network.model.devices import Alias, bridge_name, service_name
from aetherscale.actors.network.netlink.cables import Cables
from aetherscale.kernel.fault import Fault
from aetherscale.processes import users
from aetherscale.processes.identity import boot_id, start_ticks
from tests.support.guest_namespaces import (
    NO_ERROR,
    A,
    sh,
)
from tests.support.network_namespaces import network_namespace
from tests.support.resolver_world import (
    DB,
    LAB,
    NODE,
    RESOLVER4,
    RESOLVER6,
    WEB,
    MakeGuest,
    World,
    cables,
    guest,
    missing,
    network,
    until,
    web_in,
    with_addresses,
    world,
)

__all__ = ["guest", "world"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]


async def test_it_has_no_capability_on_the_host_and_a_user_and_namespaces_of_its_own(world: World) -> None:
    pid = await world.ensure(network("nat"), WEB)
    status = dict(line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(users.derived_uid(LAB))}
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 1 << 10 | 1 << 12 | 1 << 13
    for space in ("user", "net", "mnt"):
        assert os.readlink(f"/proc/{pid}/ns/{space}") != os.readlink(f"/proc/self/ns/{space}")
    command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    word = Directory(world.state_dir / "networks", LAB).word
    assert word.startswith(f"--conf-file=/tmp/aetherscale-{LAB}-")
    assert [Path(command[0]).name, *command[1:]] == ["dnsmasq", word, ""]


async def test_an_ensured_one_is_left_alone(world: World) -> None:
    pid = await world.ensure(network("nat"), WEB)
    before = sh("ip", "-brief", "link")
    assert await world.ensure(network("nat"), WEB, DB) == pid
    assert sh("ip", "-brief", "link") == before


async def test_another_configuration_needs_another_process(world: World) -> None:
    pid = await world.ensure(network("nat"), WEB)
    assert await world.ensure(network("isolated"), WEB) != pid
    assert cables() == [service_name(LAB)]
    assert len(world.processes()) == 1
    assert world.ends == []


async def test_one_that_is_killed_is_told_of_and_its_cables_go_with_it(world: World, guest: MakeGuest) -> None:
    pid = await world.ensure(network("nat"), WEB)
    os.kill(pid, signal.SIGKILL)
    await world.end_told.wait()
    assert world.ends == [(LAB, "it was ended by SIGKILL")]
    assert world.resolvers.pid_of(LAB) is None
    await until(lambda: cables() == [])
    await world.ensure(network("nat"), WEB)
    made = await with_addresses(web_in(guest))
    assert made.ask(RESOLVER6, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)])
    assert len(world.ends) == 1


@pytest.mark.parametrize("change", ["delete", "nomaster", "down"])
async def test_a_cable_that_somebody_took_is_there_again(world: World, guest: MakeGuest, change: str) -> None:
    await world.ensure(network(), WEB)
    name = service_name(LAB)
    sh("ip", "link", *(["delete", name] if change == "delete" else ["set", name, change]))
    await world.ensure(network(), WEB)
    made = await with_addresses(web_in(guest))
    assert made.ask(RESOLVER4, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)])
    assert len(world.processes()) == 1


async def test_nothing_is_left_of_a_removed_one_not_even_who_holds_a_connection(world: World, guest: MakeGuest) -> None:
    await world.ensure(network("nat"), WEB)
    made = await with_addresses(web_in(guest))
    holding = made.do(lambda: socket.create_connection((RESOLVER4, 53)))
    with holding:
        # dnsmasq has a child for each connection.
        await until(lambda: len(world.processes()) == 2)
        await world.resolvers.remove(LAB)
        assert world.processes() == []
        assert cables() == []
    assert list((world.state_dir / "networks").iterdir()) == []
    await world.resolvers.remove(LAB)
    assert world.ends == []


async def test_who_holds_a_connection_does_not_keep_the_next_one_away(world: World, guest: MakeGuest) -> None:
    pid = await world.ensure(network(), WEB)
    made = await with_addresses(web_in(guest))
    with made.do(lambda: socket.create_connection((RESOLVER4, 53))):
        await until(lambda: len(world.processes()) == 2)
        os.kill(pid, signal.SIGKILL)
        await world.end_told.wait()
        after = await world.ensure(network(), WEB)
        assert world.processes() == [after]
        assert made.ask(RESOLVER4, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)])


@pytest.mark.parametrize(
    ("where", "what", "left"), [(Cables, "connect", 0), (Starting, "_serves", 0), (Process, "end", 1)]
)
async def test_one_that_is_cancelled_anywhere_leaves_what_it_knows_of(
    world: World, monkeypatch: pytest.MonkeyPatch, where: type, what: str, left: int
) -> None:
    before = await world.ensure(network(), WEB) if left else None
    reached = asyncio.Event()

    async def hang(*_: object, **__: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as changed:
        changed.setattr(where, what, hang)
        work = asyncio.get_running_loop().create_task(world.ensure(network("nat"), WEB))
        await reached.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert len(world.processes()) == len(cables()) == left
    assert world.resolvers.pid_of(LAB) == before
    pid = await world.ensure(network("nat"), WEB)
    assert world.processes() == [pid]
    assert world.ends == []


async def test_calls_for_one_network_wait_for_one_another(world: World) -> None:
    nat, isolated = network("nat"), network("isolated")
    every = [world.ensure(nat, WEB), world.ensure(nat, WEB, DB), world.ensure(isolated), world.ensure(isolated, WEB)]
    pids = await asyncio.gather(*every)
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert world.processes() == [pids[3]]
    await asyncio.gather(world.ensure(nat, WEB), world.resolvers.remove(LAB), world.resolvers.update(LAB, [DB]))
    assert world.processes() == []
    assert cables() == []
    assert world.ends == []


async def test_a_device_of_somebody_else_is_never_taken(world: World) -> None:
    sh("ip", "link", "add", service_name(LAB), "type", "bridge")
    for _ in range(2):
        with pytest.raises(Fault, match="did not make"):
            await world.ensure(network(), WEB)
    assert world.processes() == []
    assert "bridge" in sh("ip", "-details", "link", "show", service_name(LAB))
    sh("ip", "link", "delete", service_name(LAB))


async def test_without_its_bridge_it_does_not_start_and_leaves_no_process(world: World) -> None:
    await world.links.remove_bridge(bridge_name(LAB), Alias(NODE, "network", LAB))
    with pytest.raises(Fault, match=f"there is no bridge {bridge_name(LAB)}"):
        await world.ensure(network(), WEB)
    assert world.processes() == []
    assert cables() == []


async def test_a_configuration_that_dnsmasq_refuses_is_told_with_its_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale.actors.network.model.dns.LEASE", "for ever")
    with pytest.raises(Fault, match="did not start: it ended with status 1") as fault:
        await world.ensure(network(), WEB)
    assert "bad dhcp-range at line" in fault.value.log_tail
    assert world.processes() == []
    assert cables() == []


@pytest.fixture
def stand_in() -> Iterator[Callable[[str], str]]:
    """Makes a program that is started in the place of dnsmasq, which does not see what is in /tmp."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:

        def make(script: str) -> str:
            path = Path(directory, "dnsmasq")
            path.write_text(f"#!/bin/sh\n{script}\n")
            for each in (path, path.parent):
                each.chmod(0o755)
            return str(path)

        yield make


async def test_one_that_never_serves_is_ended_and_told_with_its_log(
    world: World, stand_in: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def told_after(limit_s: float) -> Fault:
        monkeypatch.setattr("aetherscale.actors.network.dnsmasq.process.START_LIMIT_S", limit_s)
        with pytest.raises(Fault, match=f"does not serve {limit_s:g} s after its start") as fault:
            await world.ensure(network(), WEB)
        return fault.value

    world.program = stand_in("echo it is slow; while :; do sleep 1; done")
    await world.restart()
    limits_s = iter((0.5, 5.0, 60.0))  # on a busy machine it takes longer to get to its first words
    while not (fault := await told_after(next(limits_s))).log_tail:
        pass
    assert fault.log_tail == "it is slow"
    assert fault.retryable
    assert world.processes() == []
    assert cables() == []
    assert world.ends == []


async def test_the_log_of_a_resolver_is_bounded(world: World, stand_in: Callable[[str], str]) -> None:
    world.program = stand_in("head -c 3000000 /dev/zero; exit 7")
    await world.restart()
    with pytest.raises(Fault, match="it ended with status 7"):
        await world.ensure(network(), WEB)
    assert (world.state_dir / "networks" / LAB / "dnsmasq.log").stat().st_size == LOG_LIMIT_BYTES


async def test_a_process_on_record_that_is_no_resolver_is_left_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale.actors.network.dnsmasq.process._FIND_LIMIT_S", 0.05)
    await world.ensure(network(), WEB)
    await world.restart()
    directory = Directory(world.state_dir / "networks", LAB)
    other = await asyncio.create_subprocess_exec("sleep", "1000")
    ticks = start_ticks(other.pid)
    assert ticks is not None
    directory.write_record(Record(boot_id(), other.pid, ticks, "x"))
    assert await world.ensure(network(), WEB) != other.pid
    assert other.returncode is None
    other.kill()
    await other.wait()
    assert len(world.processes()) == 1


async def test_one_that_outlives_its_kill_is_told_and_can_be_ended_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = await world.ensure(network(), WEB)
    with monkeypatch.context() as changed:
        changed.setattr("aetherscale.actors.network.dnsmasq.process.KILL_LIMIT_S", 0.05)
        changed.setattr(Process, "send", lambda *_: None)
        with pytest.raises(Fault, match=f"dnsmasq, pid {pid}, does not end 0.05 s after SIGKILL"):
            await world.resolvers.remove(LAB)
    assert world.processes() == [pid]
    await world.resolvers.remove(LAB)
    assert world.processes() == []
    assert world.ends == []


PLAIN_USER = 12345
AS_A_PLAIN_USER = (
    *("setpriv", f"--reuid={PLAIN_USER}", f"--regid={PLAIN_USER}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin", sys.executable),
)
PLAIN_NODE = """
import asyncio, sys
from pathlib import Path
from tests.support.resolver_world import LAB, WEB, World, cables, network

async def main():
    world = World(Path(sys.argv[1]), allow_unisolated=True)
    await world.links.open()
    await world.resolvers.start()
    await world.bridge(LAB)
    pid = await world.ensure(network("nat"), WEB)
    status = Path(f"/proc/{pid}/status").read_text()
    print(*[line.split()[1] for line in status.splitlines() if line.startswith(("Uid", "CapEff"))], len(cables()))
    await world.restart()
    await world.resolvers.reconcile([LAB])
    print(world.resolvers.pid_of(LAB) == pid)
    await world.resolvers.remove(LAB)
    print(world.processes(), cables(), world.ends)

asyncio.run(main())
"""


def test_a_node_that_has_cap_net_admin_and_no_more_does_it_too() -> None:
    root = Path(__file__).parents[2]
    can = subprocess.run([*AS_A_PLAIN_USER, "-c", "import tests, aetherscale"], cwd=root, check=False)
    if can.returncode != 0:
        pytest.skip("another user may not read what this test is made of")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory, network_namespace():
        os.chown(directory, PLAIN_USER, PLAIN_USER)
        command = [*AS_A_PLAIN_USER, "-c", PLAIN_NODE, directory]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=180, check=False)
        assert done.stdout.splitlines() == [f"{PLAIN_USER} {0x3400:016x} 2", "True", "[] [] []"], done.stderr
