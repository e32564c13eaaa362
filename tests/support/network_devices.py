"""Devices in a network namespace of a test's own, and somebody else who looks at them: by pyroute2 and by ioctl."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from aetherscale.actors.network.model.devices import Alias, Link, bridge_name, group_of, tap_name
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.netlink.messages import link_of, messages_of
from tests.support.network_namespaces import network_namespace

NODE = "host1"
NETWORK, OTHER_NETWORK, VM, OTHER_VM = "0123456789abcdef", "1123456789abcdef", "2123456789abcdef", "3123456789abcdef"
BRIDGE, OTHER_BRIDGE = bridge_name(NETWORK), bridge_name(OTHER_NETWORK)
TAP, OTHER_TAP = tap_name(VM, 0), tap_name(OTHER_VM, 0)
LAB, OTHER_LAB = Alias(NODE, "network", NETWORK), Alias(NODE, "network", OTHER_NETWORK)
PORT, OTHER_PORT = Alias(NODE, "port", VM), Alias(NODE, "port", OTHER_VM)
GROUP = group_of(VM)
MTU = 1450
UP = 1
TAP_WITH_HEADER = 0x0002 | 0x1000 | 0x4000
HEADER = bytes(10)
NOBODY = 65534


@pytest.fixture
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
async def links(namespace: None) -> AsyncIterator[Links]:
    opened = Links(NODE)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def ip(namespace: None) -> AsyncIterator[Any]:
    """Somebody else on the host."""
    async with AsyncIPRoute() as opened:
        yield opened


async def seen(ip: Any, name: str) -> Any:
    """A link, as pyroute2 reads it; None for none."""
    with suppress(NetlinkError):
        return (await ip.link("get", ifname=name))[0]
    return None


async def addresses_of(ip: Any, name: str) -> list[str]:
    index = (await seen(ip, name))["index"]
    return [each.get("address") async for each in await ip.addr("dump") if each["index"] == index]


def properties(link: Any) -> tuple[Any, ...]:
    return (*(link.get(each) for each in ("index", "address", "mtu", "group", "ifalias", "master")), link["flags"] & UP)


async def open_tap(links: Links, name: str = TAP, alias: Alias = PORT, bridge: str = BRIDGE) -> int:
    return await links.open_tap(name, alias, bridge, GROUP)


def frame(payload: bytes) -> bytes:
    """A broadcast of an EtherType for experiments (IEEE 802a), so that no stack answers it."""
    return HEADER + b"\xff" * 6 + bytes.fromhex("020000000001") + b"\x88\xb5" + payload.ljust(50, b"\0")


async def passes(sender: int, receiver: int, payload: bytes) -> bool:
    """Whether a frame gets from one tap to the other; what else comes meanwhile is passed over."""
    os.set_blocking(receiver, False)
    os.write(sender, frame(payload))
    # The bridge forwards in the call that writes: there is nothing to wait for.
    while True:
        try:
            if os.read(receiver, 4096).endswith(frame(payload)[len(HEADER) :]):
                return True
        except BlockingIOError:
            return False


TUNGETIFF, TUNSETIFF, TUNSETPERSIST = 0x800454D2, 0x400454CA, 0x400454CB


class Everything:
    """Every notification about links, without any left out."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, 1))

    def of(self, name: str) -> list[Link]:
        """All that there was of a device until now."""
        found = []
        with suppress(BlockingIOError):
            while True:
                found += [link_of(message) for _, message in messages_of(self._socket.recv(1 << 16))]
        return [link for link in found if link is not None and link.name == name]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def everything(namespace: None) -> Iterator[Everything]:
    with closing(Everything()) as listening:
        yield listening
