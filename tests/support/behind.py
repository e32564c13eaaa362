"""A network with a port whose node mends what it reports, and the programs that a person would use on its host."""

from __future__ import annotations

import asyncio
import os
import re
import struct
import subprocess
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.actors.network.model.devices import advertiser_name, bridge_name, service_name, tap_name
from aetherscale.actors.network.model.effects import NetworkEnsured, NetworkSpec
from tests.support.eventually import PATIENCE_S, asked_until
from tests.support.network_worlds import BOOT, LAB, SPEC, WEB, Process, kernel, port, state

BRIDGE, TAP, CABLE, ROUTER = bridge_name(LAB), tap_name(WEB, 0), service_name(LAB), advertiser_name(LAB)
NAT = NetworkSpec("lab", "nat", "10.9.8.0/24", "fd12:3456:789a:1::/64", None)
MAC = port(WEB).mac


class Behind:
    """A network with a VM's port, whose node mends what it reports as the actor of a network would have it mended."""

    def __init__(self, process: Process, spec: NetworkSpec, state_dir: Path) -> None:
        self.process = process
        self.state_dir = state_dir
        self._spec = spec
        self._mended = 0

    async def begin(self) -> None:
        assert await self.process.ensure(LAB, self._spec) == NetworkEnsured("k", BOOT)
        (self.tap,) = await self.process.driver.open(WEB, [port(WEB)])
        await self.silence()

    async def silence(self) -> None:
        """What this process did itself is heard, and is nothing to be told."""
        await asyncio.sleep(0.05)
        assert self.told() == []

    def told(self) -> list[str]:
        return [each.what for each in self.process.reports[self._mended :] if isinstance(each, NetworkLost)]

    async def mended(self) -> list[str]:
        """What was told, all of it mended, and then nothing more to be told."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.told():  # noqa: ASYNC110 - of the kernel
                await asyncio.sleep(0.005)
        told = await self.by_the_timer(look=False)
        return told

    async def by_the_timer(self, *, look: bool = True) -> list[str]:
        """The same, of which no notification tells."""
        if look:
            await self.process.driver.reconcile({LAB: state(LAB, self._spec)})
            await self.process.driver.reconnect()
        found = []
        while told := self.told():
            self._mended = len(self.process.reports)
            found += told
            assert await self.process.ensure(LAB, self._spec) == NetworkEnsured("k", BOOT)
            await asyncio.sleep(0.05)
        await self.process.driver.reconcile({LAB: state(LAB, self._spec)})
        assert self.told() == []
        return list(dict.fromkeys(found))


@pytest.fixture
async def behind(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Behind]:
    async with kernel(tmp_path / "state") as host:
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        process = Process(host.driver())
        await process.start({}, {})
        made = Behind(process, getattr(request, "param", SPEC), tmp_path / "state")
        await made.begin()
        yield made
        os.close(made.tap)
        await process.driver.close()


def arp(tap: int, header_bytes: int) -> bytes:
    """Who has the port's tap asks for a neighbor, which the rules let pass; the frame."""
    own = bytes.fromhex(MAC.replace(":", ""))
    question = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + own + IPv4Address("10.9.8.2").packed + bytes(6)
    frame = b"\xff" * 6 + own + b"\x08\x06" + question + IPv4Address("10.9.8.20").packed
    os.write(tap, bytes(header_bytes) + frame)
    return frame


async def do(words: str) -> str:
    """A person types this on the host."""
    shell = ("sh", "-c", words)
    done = await asyncio.to_thread(subprocess.run, shell, check=True, capture_output=True, text=True)
    return done.stdout


async def shown() -> str:
    """All that a person can see of the devices, but for what counts or passes, and when the kernel has all of it."""
    said = ""

    async def is_settled() -> bool:
        nonlocal said
        # A resolver's own MAC is learnt, and forgotten.
        looks = f"ip -d link; ip addr; bridge -d link; bridge fdb | grep -v 'dev {CABLE} master {BRIDGE} $' | sort"
        said = await do(looks)
        # That a link has its carrier, or no longer, is in its state within a second.
        flags = [set(found.split(",")) for found in re.findall("<([A-Z_,-]+)>", said)]
        return all(("NO-CARRIER" in each) != ("LOWER_UP" in each) for each in flags if "UP" in each)

    await asked_until(is_settled)
    return "\n".join(line for line in said.splitlines() if "timer" not in line and "valid_lft" not in line)
