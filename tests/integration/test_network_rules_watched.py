"""What is told of our rules when somebody else changes them: by the real nft, in a network namespace of each test."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.model.chains import Drop
from aetherscale.actors.network.model.ruleset import replace_all
from aetherscale.actors.network.nft import watching
from aetherscale.actors.network.nft.nftables import Nftables
from aetherscale.actors.network.nft.watching import Change, Overflow, RulesChanged, generation, watch
from tests.support import firewalled
from tests.support.eventually import PATIENCE_S
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled
from tests.support.network_namespaces import without_net_admin
from tests.support.nft_program import IS_NUMBERED_AS_THE_KERNEL_DOES, NFT, nft, pid_of
from tests.support.spoofs import spoofs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
    pytest.mark.skipif(not os.access(NFT, os.X_OK), reason="needs the program nft"),
]
ARP, BRIDGE = 3, 7
LAST = "add counter arp aetherscale last"
"""What a test does last, to see that nothing was told before."""


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


@pytest.fixture
def guests(host: Firewalled) -> tuple[FakeGuest, FakeGuest]:
    network = host.network(1)
    return host.guest(network, 2), host.guest(network, 3)


@pytest.fixture
async def told(host: Firewalled) -> AsyncIterator[AsyncGenerator[Change, None]]:
    async with aclosing(watch()) as events:
        assert await next_of(events) == Overflow()
        yield events


async def next_of(events: AsyncIterator[Change]) -> Change:
    async with asyncio.timeout(PATIENCE_S):
        change = await anext(events)
    if isinstance(change, RulesChanged) and not IS_NUMBERED_AS_THE_KERNEL_DOES:
        assert change.pid > 0
        return replace(change, pid=0)
    return change


def delete_table(family: int) -> bytes:
    """Deletes our table of a family (NFPROTO_…), as a program without libnftables would: one batch, acknowledged."""
    name = b"aetherscale\0"
    parts = (
        (0x10, 0x01, struct.pack("!BBH", 0, 0, 10)),
        (0xA02, 0x05, struct.pack("!BBH", family, 0, 0) + struct.pack("=HH", 4 + len(name), 1) + name),
        (0x11, 0x01, struct.pack("!BBH", 0, 0, 10)),
    )
    return b"".join(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body for kind, flags, body in parts)


async def assert_nothing_told(events: AsyncIterator[Change]) -> None:
    """Nothing was told until now that has not been asked for."""
    pid = await nft(LAST)
    assert await next_of(events) == RulesChanged(generation(), pid, "nft", "objects changed")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("flush ruleset", "tables removed"),
        ("delete table inet aetherscale", "tables removed"),
        ("delete table arp aetherscale; add table arp aetherscale", "tables changed"),
        ("add table bridge aetherscale { flags dormant; }", "tables changed"),
        ("flush table bridge aetherscale", "rules removed"),
        ("flush chain bridge aetherscale guard", "rules removed"),
        ("insert rule bridge aetherscale guard accept", "rules added"),
        ("flush chain arp aetherscale input; add rule arp aetherscale input accept", "rules changed"),
        ("chain inet aetherscale input { policy drop; }", "chains changed"),
        ("add chain inet aetherscale more", "chains changed"),
        ("add set bridge aetherscale more { type ifname; }", "sets changed"),
        ('add element bridge aetherscale ports { "aep00000000ffff" }', "elements added"),
        ('delete element bridge aetherscale ports { "aep000000000102" }', "elements removed"),
        ("flush set bridge aetherscale ports; add element bridge aetherscale ports { lo }", "elements changed"),
        ("add table ip aetherscale", "tables of our name added"),
        ("table ip6 aetherscale { chain guard { accept; }; }", "tables of our name added"),
        ("add table netdev aetherscale; add table ip theirs; flush ruleset ip", "tables of our name added"),
    ],
)
async def test_what_somebody_does_to_our_tables_is_told_once_with_who_it_was(
    host: Firewalled, guests: tuple[FakeGuest, FakeGuest], text: str, what: str
) -> None:
    async with aclosing(watch()) as told:
        assert await next_of(told) == Overflow()
        before = generation()
        pid = await nft(text)
        assert generation() == before + 1
        assert await next_of(told) == RulesChanged(before + 1, pid, "nft", what)
        host.replace()
        await assert_nothing_told(told)


async def test_what_somebody_does_to_other_tables_is_not_told(
    host: Firewalled, told: AsyncGenerator[Change, None]
) -> None:
    await nft("table ip theirs { chain c { type filter hook input priority 0; }; }; add rule ip theirs c accept")
    await nft("table bridge aetherscale2 { set ports { type ifname; }; }; add element bridge aetherscale2 ports { lo }")
    await nft("delete table ip theirs; delete table bridge aetherscale2")
    await assert_nothing_told(told)


async def test_a_transaction_that_touches_ours_beside_others_is_told_by_what_it_does_to_ours(
    host: Firewalled, told: AsyncGenerator[Change, None]
) -> None:
    pid = await nft(
        "table ip theirs { chain c { accept; }; }; add rule arp aetherscale input accept; flush table ip theirs"
    )
    assert await next_of(told) == RulesChanged(generation(), pid, "nft", "rules added")


async def test_what_is_refused_is_not_told(host: Firewalled, told: AsyncGenerator[Change, None]) -> None:
    before = generation()
    process = await asyncio.create_subprocess_exec(
        NFT, "flush chain arp aetherscale input; delete chain ip nothing nowhere", stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() != 0
    assert generation() == before
    await assert_nothing_told(told)


async def test_what_this_process_does_is_not_told_by_whichever_thread_and_context(
    host: Firewalled, guests: tuple[FakeGuest, FakeGuest], told: AsyncGenerator[Change, None]
) -> None:
    host.replace()
    other = Nftables()
    other.run(replace_all(host.applied))
    threads = [threading.Thread(target=each.run, args=(replace_all(host.applied),)) for each in (host.nft, other) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    del host.ports[guests[0].tap]
    host.apply()
    await assert_nothing_told(told)
    other.close()


async def test_what_packets_add_to_the_counted_drops_is_not_told(
    host: Firewalled, guests: tuple[FakeGuest, FakeGuest], told: AsyncGenerator[Change, None]
) -> None:
    guest, victim = guests
    before = generation()
    guest.send(*(frame for _, _, frame in spoofs(guest, victim)))
    assert host.counters.of_port(guest.tap).get(Drop.MAC)
    assert generation() == before
    await assert_nothing_told(told)


async def test_two_watches_are_told_the_same(host: Firewalled, told: AsyncGenerator[Change, None]) -> None:
    async with aclosing(watch()) as others:
        assert await next_of(others) == Overflow()
        pid = await nft("flush ruleset")
        host.replace()
        wanted = RulesChanged(generation() - 1, pid, "nft", "tables removed")
        assert (await next_of(told), await next_of(others)) == (wanted, wanted)
        pid = await nft(LAST)
        last = RulesChanged(generation(), pid, "nft", "objects changed")
        assert (await next_of(told), await next_of(others)) == (last, last)


async def test_too_much_to_be_kept_is_told_as_an_overflow_and_the_watch_goes_on(host: Firewalled) -> None:
    async with aclosing(watch(16 * 1024)) as told:
        assert await next_of(told) == Overflow()
        await nft("flush ruleset")
        host.replace()
        assert await next_of(told) == Overflow()
        await assert_nothing_told(told)


async def test_an_overflow_of_our_own_making_is_known_by_the_generation(
    host: Firewalled, guests: tuple[FakeGuest, FakeGuest]
) -> None:
    """Else a node that may not have much kept for it would replace its rules for ever."""
    async with aclosing(watch(16 * 1024)) as told:
        assert await next_of(told) == Overflow()
        before = generation()
        host.replace()
        assert await next_of(told) == Overflow()
        assert generation() == before + 1
        await nft("add table ip theirs")
        assert generation() == before + 2


async def test_replacing_the_rules_of_a_thousand_ports_does_not_overflow(
    host: Firewalled, guests: tuple[FakeGuest, FakeGuest]
) -> None:
    port = host.ports[guests[0].tap]
    for number in range(1000):
        mac = f"52:54:00:01:{number >> 8:02x}:{number & 255:02x}"
        tap = f"aep1{number:011x}"
        host.ports[tap] = replace(port, tap=tap, mac=mac, ipv4=port.ipv4 and port.ipv4 + 1000 + number, ipv6=())
    async with aclosing(watch()) as told:
        assert await next_of(told) == Overflow()
        for _ in range(3):
            host.replace()
        await assert_nothing_told(told)


async def test_a_program_that_calls_itself_something_is_told_so_that_it_can_be_printed(
    host: Firewalled, told: AsyncGenerator[Change, None]
) -> None:
    """And one that has the library as we do, in another process."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from aetherscale.actors.network.nft.nftables import Nftables\n"
        r"Path('/proc/self/comm').write_bytes(b'\x1b[2J\xff\n')" + "\n"
        "Nftables().run(sys.argv[1])\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, "flush ruleset")
    assert await process.wait() == 0
    assert await next_of(told) == RulesChanged(generation(), pid_of(process), r"\x1b[2J\xff\n", "tables removed")


async def delete_from(port: int, family: int) -> int:
    """Somebody else's program has deleted our table of a family by a socket with this id; its process id."""
    code = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)\n"
        "s.bind((int(sys.argv[1]), 0))\n"
        "s.send(bytes.fromhex(sys.argv[2]))\n"
        "s.recv(65536)\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(port), delete_table(family).hex())
    assert await process.wait() == 0
    return pid_of(process)


async def test_a_port_id_that_was_ours_is_not_ours_any_more(
    host: Firewalled, told: AsyncGenerator[Change, None]
) -> None:
    """The kernel may give the id of a socket that is closed to another program's."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as mine:
        mine.bind((0, 0))
        port = mine.getsockname()[0]
        mine.send(delete_table(ARP))
        assert struct.unpack_from("=i", mine.recv(65536), 16) == (0,)
        pid = await nft("delete table inet aetherscale")
        assert await next_of(told) == RulesChanged(generation(), pid, "nft", "tables removed")
    pid = await delete_from(port, BRIDGE)
    change = await next_of(told)
    assert isinstance(change, RulesChanged)
    assert change.pid == pid


async def test_a_port_id_that_a_socket_of_ours_to_something_else_has_is_not_ours(
    host: Firewalled, told: AsyncGenerator[Change, None]
) -> None:
    """It is so where a node and somebody else have the same process id, each in a container of its own."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as mine:
        mine.bind((0, 0))
        pid = await delete_from(mine.getsockname()[0], BRIDGE)
        change = await next_of(told)
    assert isinstance(change, RulesChanged)
    assert change.pid == pid


async def test_what_was_heard_of_a_transaction_before_an_overflow_is_forgotten(
    host: Firewalled, told: AsyncGenerator[Change, None]
) -> None:
    """An overflow within a transaction, of which the first messages have been read already."""
    loop = asyncio.get_running_loop()
    original, first = loop.sock_recv, True

    async def receive(sock: socket.socket, size: int) -> bytes:
        nonlocal first
        data = await original(sock, size)
        if not first:
            raise OSError(errno.ENOBUFS, "planned")
        first = False
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "sock_recv", receive)
        await nft("delete table arp aetherscale; add table arp aetherscale")
        assert await next_of(told) == Overflow()
    await nft("add table ip theirs")
    host.replace()
    await assert_nothing_told(told)


def test_who_may_not_exceed_the_hosts_limit_gets_what_it_lets_him(host: Firewalled) -> None:
    with without_net_admin(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as heard:
        watching._make_room(heard, 8192)
        assert heard.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 8192


def test_it_works_on_the_event_loop_that_a_node_prefers(host: Firewalled) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with aclosing(watch()) as told:
            assert await next_of(told) == Overflow()
            pid = await nft("flush ruleset")
            assert await next_of(told) == RulesChanged(generation(), pid, "nft", "tables removed")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def test_without_the_capability_nothing_is_told_and_that_is_an_error(host: Firewalled) -> None:
    with without_net_admin():
        with pytest.raises(PermissionError):
            generation()
        async with aclosing(watch()) as told:
            with pytest.raises(PermissionError):
                await anext(told)
