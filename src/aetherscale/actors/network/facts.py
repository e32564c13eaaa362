"""What the driver of networks tells decisions of the host: a part of the driver, which changes nothing."""

from __future__ import annotations

from aetherscale.actors.network import lacks
from aetherscale.actors.network.claim import taken
from aetherscale.actors.network.hands import Hands
from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.netlink.faults import no_bridge_of_host
from aetherscale.actors.network.ports import HostRoutes
from aetherscale.actors.network.routes import has_address, host_routes, is_of_host
from aetherscale.kernel.errors import Reason, Refused


class HostFacts:
    """The part of the driver that is `HostNetworks`."""

    _allow_unisolated: bool
    _public_bridge: str
    _hands: Hands | None

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
