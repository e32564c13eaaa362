"""What was lost of networks, told: each loss is reported, and has a line in the node's log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any

from aetherscale.actors.network.fights import Fights
from aetherscale.actors.network.inspection import Lost
from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.runtime.component import Report

log = logging.getLogger(__name__)


class Losses:
    """Tells of them in the order of the calls, once `report` is there."""

    def __init__(self) -> None:
        self.report: Report[Any] | None = None
        self._fights = Fights(time.monotonic)

    async def tell(self, lost: Iterable[Lost], *, of: str = "") -> None:
        """Of parts of networks; `of` is the device that has changed, as it happens, of which too much may be told."""
        for network_id, what in lost:
            log.warning("network %s: %s", network_id, what)
            await self._report(NetworkLost(network_id, what), of)

    async def tell_of_rules(self, networks: Iterable[str], what: str, by: str = "") -> None:
        """Of the rules, which are one thing for all networks, and were replaced. `by` is who changed them, if known."""
        log.warning("rules of networks: %s%s; replaced", what, by and f", by {by}")
        for network_id in networks:
            await self._report(NetworkLost(network_id, what, by), f"rules of {network_id}")

    async def tell_of_reboot(self, networks: Iterable[str]) -> None:
        """The host was started anew: nothing is left of these networks, which is nobody's doing."""
        for network_id in networks:
            await self._report(NetworkLost(network_id, "the host was started anew"))

    async def _report(self, lost: NetworkLost, of: str = "") -> None:
        if not (of and self._fights.is_one(of)):
            assert self.report is not None, "the driver has not been started"
            await self.report(lost)
