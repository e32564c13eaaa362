"""Real guests without a network: what reaches them, and what they reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.effects import Booted, DiskProvisioned, GuestReady, PublishedPort
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    PATIENCE_S,
    TINY,
    VM,
    QemuWorld,
    agent_answers,
    boot,
    ensure,
    node,
    provision,
)
from tests.support.nats_server import free_port

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SERVED = "mkdir -p /www && echo from the guest >/www/index.html && httpd -h /www -p 80"
REQUEST = b"GET /index.html HTTP/1.0\r\n\r\n"


@asynccontextmanager
async def guest(world: QemuWorld, *published: PublishedPort, host_loopback: bool) -> AsyncIterator[ComputeDriver]:
    """A guest of the recipe `tiny` whose agent answers, with an address."""
    driver = world.driver()
    async with node(driver) as watcher:
        await ensure(driver, provision(TINY), DiskProvisioned)
        await ensure(driver, replace(boot(), publish=published, host_loopback=host_loopback), Booted)
        await watcher.until(GuestReady)
        await agent_answers(driver)
        await told(driver, "until ip -4 addr show eth0 | grep -q 10.0.2.15; do sleep 0.1; done")
        yield driver


async def told(driver: ComputeDriver, line: str) -> tuple[int | None, str]:
    """The exit status of a line of a shell in the guest, and what it printed."""
    ended = await driver.execute(VM, ["sh", "-c", line], PATIENCE_S)
    return ended.exit_code, (ended.stdout + ended.stderr).decode()


class Listener:
    """Services on the host's loopback, of TCP and of UDP at one port, and who has come."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.udp_came = asyncio.Event()
        self.port = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Listener]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        listener = self

        class Heard(asyncio.DatagramProtocol):
            def datagram_received(self, data: bytes, addr: object) -> None:
                listener.came.append("udp")
                listener.udp_came.set()

        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            Heard, local_addr=("127.0.0.1", self.port)
        )
        try:
            async with server:
                yield self
        finally:
            transport.close()
            await asyncio.sleep(0)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.came.append("tcp")
        # One that is not read yet when this closes would make of the end a reset.
        with suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nfrom the host\n")
        writer.close()


async def fetched(port: int) -> bytes:
    """The answer of what listens at a port of the host's loopback."""
    async with asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        answer = await reader.read()
        writer.close()
    return answer


async def test_a_published_port_reaches_a_guest_that_does_not_reach_the_host(qemu_world: QemuWorld) -> None:
    port = free_port()
    published = PublishedPort("tcp", "127.0.0.1", port, 80)
    async with Listener().open() as host, guest(qemu_world, published, host_loopback=False) as driver:
        assert await told(driver, SERVED) == (0, "")
        for _ in range(3):
            assert b"from the guest" in await fetched(port)
        # Its router answers, and hands on names: it has a network like any other.
        assert (await told(driver, "ping -c 1 -W 60 10.0.2.2"))[0] == 0
        for address in ("10.0.2.2", "10.0.2.3", "10.0.2.9", "[fec0::2]", "[::ffff:127.0.0.1]"):
            code, said = await told(driver, f"wget -q -T 2 -O - http://{address}:{host.port}/")
            assert code != 0, said
            await told(driver, f"timeout 1 tftp -g -r x -l /dev/null {address.strip('[]')} {host.port}")
        # A packet to 127.0.0.1 leaves no guest that does not mean it to.
        await told(driver, "ip route add table 7 default via 10.0.2.2; ip rule add pref 0 to 127.1.2.3 lookup 7")
        await told(driver, "ip rule add pref 1 lookup local; ip rule del pref 0 lookup local")
        assert (await told(driver, f"wget -q -T 2 -O - http://127.1.2.3:{host.port}/"))[0] != 0
        assert host.came == []
        assert b"from the guest" in await fetched(port)


async def test_a_guest_reaches_the_loopback_where_it_was_asked_to(qemu_world: QemuWorld) -> None:
    port = free_port()
    published = PublishedPort("tcp", "127.0.0.1", port, 80)
    async with Listener().open() as host, guest(qemu_world, published, host_loopback=True) as driver:
        assert await told(driver, SERVED) == (0, "")
        assert b"from the guest" in await fetched(port)
        assert await told(driver, f"wget -q -O - http://10.0.2.2:{host.port}/") == (0, "from the host\n")
        await told(driver, f"timeout 10 tftp -g -r x -l /dev/null 10.0.2.2 {host.port}")
        await asyncio.wait_for(host.udp_came.wait(), PATIENCE_S)
