"""The cards that a guest is given, or has taken from it, while it runs.

    getfd ─▶ netdev_add ─▶ device_add                        what an earlier attempt has left without a card goes first
    device_del ─▶ DEVICE_DELETED, or set_link off ─▶ netdev_del

Each is an ensure, since QEMU is asked what it has. Nothing here knows networks: a port is its tap and its MAC.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from msgspec import Struct

from aetherscale.actors.compute.qemu import argv
from aetherscale.actors.compute.qemu.session import Ask, Give, Rejected, shaped

_PERIPHERALS: Final = "/machine/peripheral"
_LOOK_S: Final = 1.0
"""How often it is looked whether a card is gone, beside the event, which is lost where QMP breaks."""


class Peripheral(Struct, frozen=True):
    """One of the answer to `qom-list`."""

    name: str


class Cards:
    """Those of one guest."""

    def __init__(self, execute: Ask, give: Give) -> None:
        self._execute = execute
        self._give = give
        self._gone: dict[str, asyncio.Event] = {}
        """Set once the guest has let go of the card with this id, or there is no guest any more."""

    async def has(self, tap: str) -> bool:
        """Whether the guest has the card of the port with this tap."""
        found = shaped(await self._execute("qom-list", path=_PERIPHERALS), list[Peripheral])
        return argv.card_id(tap) in {each.name for each in found}

    async def clear(self, tap: str) -> None:
        """Take out what there is of a port without a card, so that nothing has its tap open."""
        for command, name in (("netdev_del", "id"), ("closefd", "fdname")):
            with suppress(Rejected):  # as where there is nothing
                await self._execute(command, **{name: tap})

    async def plug(self, tap: str, mac: str, slot: int, descriptor: int) -> None:
        """Give the guest a card, in this slot."""
        await self._give(descriptor, tap)
        await self._execute("netdev_add", type="tap", id=tap, fd=tap)
        await self._execute("device_add", **argv.card(argv.card_id(tap), tap, mac), bus=argv.hot_slot(slot))

    async def unplug(self, tap: str, patience_s: float) -> bool:
        """Have the guest let go of a card, and take out what is behind it. Whether it has; else it has no cable."""
        ident = argv.card_id(tap)
        gone = self._gone.setdefault(ident, asyncio.Event())
        try:
            # Refused where the guest was asked before, where its card is in no slot, and where there is none.
            with suppress(Rejected):
                await self._execute("device_del", id=ident)
            has_let_go = await self._has_let_go(tap, gone, patience_s)
            if not has_let_go:
                with suppress(Rejected):  # it has let go at the last moment
                    await self._execute("set_link", name=ident, up=False)
        finally:
            self._gone.pop(ident, None)
        await self.clear(tap)
        return has_let_go

    async def _has_let_go(self, tap: str, gone: asyncio.Event, patience_s: float) -> bool:
        until_s = asyncio.get_running_loop().time() + patience_s
        while await self.has(tap):
            left_s = until_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _LOOK_S)):
                    await gone.wait()
                    return True
        return True

    def card_gone(self, ident: str) -> None:
        """The guest has let go of a card."""
        if (gone := self._gone.get(ident)) is not None:
            gone.set()
