"""Work of the driver of networks that is cancelled: it leaves what it found, and nothing goes on behind its back."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.network.firewall import Firewall
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.nft.nftables import Nftables
from tests.support import firewalled
from tests.support.firewalled import listed, rule
from tests.support.network_worlds import LAB, WEB, Process, opened, port, process, state, world

__all__ = ["process", "world"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
    pytest.mark.parametrize("world", ["kernel"], indirect=True),
]
GROUP = "a" * 16
MANY = [rule(f"in:tcp:{number}") for number in range(1, 250)]
"""More than is carried out at once: nft has them in a thread."""
PATIENCE_S = 30.0


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def rules(nft: Nftables) -> list[str]:
    """What the kernel has, but for the note of how the tables are."""
    return [line for line in listed(nft) if not line.startswith("elements = ['0x")]


async def test_what_nft_has_begun_is_at_its_end_before_anybody_else_has_a_turn(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or it would come after what the next one has done, and nobody would know."""
    await process.ensure()
    await opened(process, WEB, port(WEB))
    await process.driver.apply_rules(WEB, VmRules((GROUP,)))
    nft, begun, may_end = Nftables(), asyncio.Event(), threading.Event()
    before, run, loop = rules(nft), Nftables.run, asyncio.get_running_loop()

    def slow(self: Nftables, text: str, *, terse: bool = False) -> str:
        if "dport" in text:
            loop.call_soon_threadsafe(begun.set)
            assert may_end.wait(PATIENCE_S)
        return run(self, text, terse=terse)

    with monkeypatch.context() as slowed:
        slowed.setattr(Nftables, "run", slow)
        first = loop.create_task(process.driver.apply_group(GROUP, MANY))
        await begun.wait()
        first.cancel()
        second = loop.create_task(process.driver.remove_group(GROUP))
        await turns(10)
        assert not first.done()
        assert not second.done()
        may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
    assert rules(nft) == before, "the group allows nothing again, as before it was known"
    nft.close()


async def test_a_group_whose_change_is_cancelled_is_known_as_it_was(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.ensure()
    await opened(process, WEB, port(WEB))
    nft, reached = Nftables(), asyncio.Event()
    await process.driver.apply_group(GROUP, [rule("in:udp:53")])
    await process.driver.apply_rules(WEB, VmRules((GROUP,)))
    before = rules(nft)

    async def hangs(*_: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as hung:
        hung.setattr(Firewall, "change", hangs)
        work = asyncio.get_running_loop().create_task(process.driver.apply_group(GROUP, MANY))
        await reached.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    # What follows writes all that is known.
    nft.run("flush ruleset\n")
    await process.driver.apply_rules(WEB, VmRules())
    await process.driver.apply_rules(WEB, VmRules((GROUP,)))
    assert rules(nft) == before
    nft.close()


async def test_ports_that_are_cancelled_while_they_are_opened_leave_no_descriptor(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await process.ensure()
    made: list[int] = []
    reached, open_tap = asyncio.Event(), Links.open_tap

    async def hangs(self: Links, name: str, *how: object, **more: object) -> int:
        if made:
            reached.set()
            await asyncio.Event().wait()
        made.append(await open_tap(self, name, *how, **more))  # type: ignore[arg-type]
        return made[-1]

    ports = [port(WEB), port(WEB, 1)]
    with monkeypatch.context() as hung:
        hung.setattr(Links, "open_tap", hangs)
        work = asyncio.get_running_loop().create_task(process.driver.open(WEB, ports))
        await reached.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(made[0])
    await opened(process, WEB, *ports)
    await process.driver.reconcile({LAB: state()})
    assert process.reports == []
