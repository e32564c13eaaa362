"""What is told of devices of ours when somebody else does something to them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from aetherscale.actors.network.netlink import watching
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.netlink.watching import LinkChanged, LinkGone, Overflow
from tests.support.eventually import PATIENCE_S
from tests.support.network_devices import (
    BRIDGE,
    GROUP,
    LAB,
    MTU,
    NODE,
    PORT,
    TAP,
    ip,
    links,
    namespace,
    open_tap,
    seen,
)
from tests.support.network_namespaces import missing

__all__ = ["ip", "links", "namespace"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]


async def next_of(events: AsyncIterator[watching.Change]) -> watching.Change:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(events)


async def until(events: AsyncIterator[watching.Change], wanted: type[Any], **fields: Any) -> Any:
    """The first of a kind whose link has these fields; fails on a `LinkGone` that is not wanted."""
    while True:
        event = await next_of(events)
        if isinstance(event, wanted) and all(getattr(event.link, key) == value for key, value in fields.items()):
            return event
        assert not isinstance(event, LinkGone), event


async def test_what_somebody_else_does_to_a_device_is_told(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    os.close(await open_tap(links))
    index, bridge = (await seen(ip, TAP))["index"], (await seen(ip, BRIDGE))["index"]
    async with aclosing(links.watch()) as events:
        assert await next_of(events) == Overflow()
        await ip.link("set", index=index, mtu=1300)
        await until(events, LinkChanged, name=TAP, mtu=1300)
        # A bridge tells of a port that leaves it as if the port were gone.
        await ip.link("set", index=index, master=0)
        await until(events, LinkChanged, name=TAP, master=0)
        await ip.link("set", index=index, ifalias="")
        assert (await until(events, LinkChanged, index=index, alias_text="")).link.alias is None
        await ip.link("set", index=index, state="down")
        await until(events, LinkChanged, name=TAP, is_up=False)
        await ip.link("set", index=index, ifname="renamed")
        await until(events, LinkChanged, index=index, name="renamed")
        await ip.link("add", ifname="theirs", kind="bridge")
        await ip.link("del", index=index)
        assert (await until(events, LinkGone)).link.index == index
        await ip.link("del", index=bridge)
        assert (await until(events, LinkGone)).link.alias == LAB


async def test_what_was_ours_before_the_watch_is_told_when_it_loses_its_alias_first(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    async with aclosing(links.watch()) as events:
        assert await next_of(events) == Overflow()
        await ip.link("set", index=(await seen(ip, BRIDGE))["index"], ifalias="")
        assert (await until(events, LinkChanged)).link.name == BRIDGE


async def test_devices_of_others_and_what_did_not_change_are_not_told(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    async with aclosing(links.watch()) as events:
        assert await next_of(events) == Overflow()
        await ip.link("add", ifname="theirs", kind="bridge", state="up")
        await links.ensure_bridge(BRIDGE, LAB, MTU)
        await links.ensure_bridge(BRIDGE, LAB, MTU - 50)
        event = await next_of(events)
        assert isinstance(event, LinkChanged)
        assert (event.link.name, event.link.mtu) == (BRIDGE, MTU - 50)


async def test_too_much_to_be_kept_is_told_as_an_overflow_and_the_watch_goes_on(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    os.close(await open_tap(links))
    index = (await seen(ip, TAP))["index"]
    async with aclosing(watching.watch(links.ours, 16 * 1024)) as events:
        assert await next_of(events) == Overflow()
        for mtu in range(1300, 1500):
            await ip.link("set", index=index, mtu=mtu)
        while not isinstance(await next_of(events), Overflow):
            pass
        await ip.link("del", index=index)
        while not isinstance(event := await next_of(events), LinkGone):
            pass
        assert event.link.alias == PORT


def test_all_of_it_works_on_the_event_loop_that_a_node_prefers(namespace: None) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        links = Links(NODE)
        await links.open()
        async with aclosing(links.watch()) as events:
            assert await next_of(events) == Overflow()
            await links.ensure_bridge(BRIDGE, LAB, MTU)
            await until(events, LinkChanged, name=BRIDGE, is_up=True)
            os.close(await open_tap(links))
            await links.remove_group(GROUP)
            await until(events, LinkGone, name=TAP)
        await links.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
