"""Resolvers outlive their node, wherever that is killed, and the next one finds them again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.dnsmasq.directory import Directory
from aetherscale.actors.network.model.devices import advertiser_name, service_name
from aetherscale.actors.network.model.dns import DnsNetwork
from aetherscale.processes.identity import start_ticks
from tests.support.guest_namespaces import (
    NO_ERROR,
    A,
)
from tests.support.network_namespaces import network_namespace
from tests.support.resolver_world import (
    DB,
    IPV6,
    LAB,
    MTU,
    OTHER,
    RESOLVER4,
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


async def test_the_next_node_adopts_the_same_process_and_is_told_of_its_end(world: World) -> None:
    pid = await world.ensure(network("nat"), WEB)
    await world.restart()
    await world.resolvers.reconcile({LAB})
    assert world.resolvers.pid_of(LAB) == pid
    assert await world.ensure(network("nat"), WEB) == pid
    os.kill(pid, signal.SIGKILL)
    await world.end_told.wait()
    assert world.ends == [(LAB, "it was ended by SIGKILL")]


async def test_what_is_not_expected_is_removed(world: World) -> None:
    await world.bridge(OTHER)
    pid = await world.ensure(network(), WEB)
    await world.ensure(DnsNetwork("other", "isolated", None, IPV6, MTU), network_id=OTHER)
    await world.restart()
    await world.resolvers.reconcile({LAB})
    assert world.processes() == [pid]
    assert cables() == [service_name(LAB)]
    assert [path.name for path in (world.state_dir / "networks").iterdir()] == [LAB]


async def test_a_node_of_a_copy_of_the_state_leaves_the_process_of_the_other_alone(
    world: World, tmp_path: Path
) -> None:
    pid = await world.ensure(network(), WEB)
    shutil.copytree(world.state_dir / "networks", tmp_path / "copy" / "networks")
    with network_namespace():
        copy = World(tmp_path / "copy")
        await copy.open()
        await copy.resolvers.reconcile({LAB})
        assert copy.resolvers.pid_of(LAB) is None
        other = await copy.ensure(network(), WEB)
        await copy.close()
    assert other != pid
    assert copy.processes() == []
    assert world.processes() == [pid]
    assert world.ends == []


async def test_a_state_directory_that_was_moved_still_has_its_process(world: World) -> None:
    pid = await world.ensure(network(), WEB)
    await world.resolvers.close()
    networks = world.state_dir / "networks"
    world.state_dir = world.state_dir / "elsewhere"
    world.state_dir.mkdir()
    networks.rename(world.state_dir / "networks")
    world.resolvers = world.node()
    await world.resolvers.start()
    assert await world.ensure(network(), WEB) == pid


async def test_one_without_a_record_is_not_left_beside_the_next(world: World) -> None:
    pid = await world.ensure(network(), WEB)
    await world.restart()
    (world.state_dir / "networks" / LAB / "run.json").write_text("{")
    assert await world.ensure(network(), WEB) != pid
    assert len(world.processes()) == 1
    assert cables() == [service_name(LAB)]


NODE_THAT_DIES = """
import asyncio, os, signal, sys
from pathlib import Path
from aetherscale.actors.network.dnsmasq import process, resolvers
from aetherscale.actors.network.netlink.cables import Cables
from aetherscale.actors.network.netlink.requests import Requests
from aetherscale.actors.network.model.devices import bridge_name
from tests.support.resolver_world import DB, LAB, NODE, WEB, network

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    made = resolvers.Resolvers(Path(sys.argv[1]), NODE, die, upstreams=list)
    await made.start()
    match sys.argv[2]:
        case "spawned": process.Directory.write_record = die
        case "up": Cables.connect = die
        case "half made": Requests.set_link = die
        case "connected": process.Starting.release = die
        case "released": process.Starting._serves = die
        case "written": process.Process.read_again = die
    await made.ensure(LAB, bridge_name(LAB), network("nat"), [WEB])
    await made.update(LAB, [WEB, DB])
    print(made.pid_of(LAB), flush=True)
    die()

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["spawned", "up", "half made", "connected", "released", "written", "done"])
async def test_a_node_that_is_killed_anywhere_leaves_one_process_or_none(
    world: World, guest: MakeGuest, moment: str
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", NODE_THAT_DIES, str(world.state_dir), moment],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    await world.restart()
    await world.resolvers.reconcile({LAB})
    adopted = world.resolvers.pid_of(LAB)
    if moment == "done":
        assert adopted == int(done.stdout)
    pid = await world.ensure(network("nat"), WEB, DB)
    if moment in ("written", "done"):
        assert pid == adopted
    made = await with_addresses(web_in(guest))
    await until(lambda: made.ask(RESOLVER4, "db.lab.internal", A) == (NO_ERROR, [str(DB.ipv4)]))
    assert made.ask(RESOLVER4, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)])
    # One that was never released ends by itself.
    await until(lambda: world.processes() == [pid])
    assert cables() == sorted([advertiser_name(LAB), service_name(LAB)])


def shell_that_waits(at: int, word: str) -> int:
    """Not a child of asyncio: the one that is tested waits for it."""
    command = ["sh", "-c", "read -r _", word]
    return os.posix_spawnp("sh", command, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, at, 0)])


async def test_a_shell_that_waits_for_a_node_which_is_gone_is_not_adopted(world: World) -> None:
    await world.ensure(network(), WEB)
    await world.restart()
    directory = Directory(world.state_dir / "networks", LAB)
    record = directory.record()
    assert record is not None
    reading, writing = os.pipe()
    waiting = shell_that_waits(reading, directory.word)
    ticks = start_ticks(waiting)
    assert ticks is not None
    directory.write_record(replace(record, pid=waiting, start_ticks=ticks))
    await world.resolvers.reconcile([LAB])
    assert world.resolvers.pid_of(LAB) is None
    pid = await world.ensure(network(), WEB)
    assert world.processes() == [pid]
    os.close(reading)
    os.close(writing)
