"""Resolvers are told of the ports that the driver knows, and of other networks that the VMs of these are in."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from aetherscale.actors.network.hands import Hands, dns_elsewhere, dns_port
from aetherscale.actors.network.known import Known
from aetherscale.bus.tasks import Tasks

log = logging.getLogger(__name__)


class Telling:
    """What each resolver knows; it is told once of what comes together."""

    def __init__(self, known: Known, tasks: Tasks) -> None:
        self._known = known
        self._tasks = tasks
        self._told: dict[str, int] = {}
        """The stamp of the ports that the resolver of a network knows."""

    async def ensure(self, hands: Hands, network_id: str) -> None:
        """Ensure that the network's resolver serves, and knows its ports. Raises `Fault`, `OSError`."""
        stamp = self._known.stamp(network_id)
        spec, beside = self._known.spec(network_id), self._known.beside(network_id)
        await hands.ensure_resolver(network_id, spec, self._known.ports_in(network_id), beside)
        self._told[network_id] = stamp

    def forget(self, network_id: str) -> None:
        """The network is gone."""
        self._told.pop(network_id, None)

    def begin(self, hands: Hands, network_ids: Iterable[str]) -> None:
        """Begin to tell the resolvers of these networks, where they run.

        Nothing waits for it: files take 10 ms and more on a busy disk, and a guest asks only after it has booted. What
        fails is tried again with the next change, and on the timer.
        """
        for network_id in network_ids:
            self._tasks.spawn(self._tell(hands, network_id), f"tell the resolver of {network_id}")

    async def _tell(self, hands: Hands, network_id: str) -> None:
        stamp = self._known.stamp(network_id)
        if hands.resolvers.pid_of(network_id) is None or self._told.get(network_id) == stamp:
            return
        ports, elsewhere = self._known.ports_in(network_id), dns_elsewhere(self._known.beside(network_id))
        try:
            await hands.resolvers.update(network_id, map(dns_port, ports), elsewhere)
            self._told[network_id] = stamp
        except OSError as failure:
            log.warning("the resolver of network %s does not know all ports yet: %s", network_id, failure)
