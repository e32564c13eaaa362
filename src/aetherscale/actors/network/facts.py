"""What the driver of networks tells of the host and of ports: a part of the driver, which changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from aetherscale.actors.network import lacks
from aetherscale.actors.network.claim import taken
from aetherscale.actors.network.hands import Hands
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.actors.network.model.views import Traffic
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.netlink.faults import no_bridge_of_host
from aetherscale.actors.network.ports import HostRoutes
from aetherscale.actors.network.routes import has_address, host_routes, is_of_host
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault

log = logging.getLogger(__name__)


class HostFacts:
    """The part of the driver that is `HostNetworks`."""

    _allow_unisolated: bool
    _public_bridge: str
    _hands: Hands | None
    _known: Known

    def require(self, kind: NetworkKind = "isolated") -> None:
        """As in `HostNetworks`."""
        lacking = lacks.for_kind(kind, allow_unisolated=self._allow_unisolated)
        lacking = lacking or (taken() if self._hands is None else None)
        if lacking is not None:
            raise Refused(
                Reason.NOT_IMPLEMENTED, f"this node cannot make networks: {lacking.reason}", remedy=lacking.remedy
            )

    def public_bridge(self) -> str:
        """As in `HostNetworks`."""
        if not taps.index_of(self._public_bridge):
            lacking = no_bridge_of_host(self._public_bridge, is_device=False)
            raise Refused(Reason.CONFLICT, lacking.reason, field="public-ip", remedy=lacking.remedy)
        return self._public_bridge

    def is_of_host(self, address: str) -> bool:
        """As in `HostNetworks`."""
        return is_of_host(address)

    def has_address(self, address: str) -> bool:
        """As in `HostNetworks`."""
        return has_address(address)

    def routes(self) -> HostRoutes:
        """As in `HostNetworks`."""
        return host_routes()

    def dropped(self, vm_id: str) -> Mapping[str, Mapping[str, int]]:
        """As in `VmPorts`."""
        return self._hands.dropped(port.tap for port in self._known.ports_of(vm_id)) if self._hands is not None else {}

    def traffic(self, vm_id: str) -> Mapping[str, Traffic]:
        """As in `VmPorts`."""
        try:
            every = [port.tap for port in self._known.ports_of(vm_id)]
            return self._hands.links.traffic(every) if self._hands is not None else {}
        except Fault as failure:
            log.warning("the counters of the ports of %s cannot be read: %s", vm_id, failure)
            return {}

    def leased(self, vm_id: str) -> Mapping[str, Sequence[str]]:
        """As in `VmPorts`."""
        try:
            every = [port.tap for port in self._known.ports_of(vm_id)]
            return self._hands.firewall.leased(every) if self._hands is not None else {}
        except OSError as failure:
            log.warning("the leased addresses of %s cannot be read: %s", vm_id, failure)
            return {}
