"""What compute's driver tells its decisions of the host."""

from __future__ import annotations

from typing import Final, Protocol

from aetherscale.actors.compute.model.effects import Forward
from aetherscale.kernel.errors import Reason, Refused

HOST_PORTS: Final = "host-ports"
"""The name of `HostPorts`."""


class HostPorts(Protocol):
    """The ports of the host that programs of its own have."""

    def require_free(self, forward: Forward) -> None:
        """Raises `Refused`: conflict where a program listens at the port of the host, which the forward would take from
        it; bad request where the address is none of the host's.
        """
        ...


def taken(forward: Forward) -> Refused:
    """The refusal of a forward for a port that the host itself listens at."""
    number = f"{forward.host_port}/{forward.protocol}"
    return Refused(
        Reason.CONFLICT,
        f"a program of the host listens at the port {number}, which a forward would take from it",
        field="host-port",
        remedy=f"take another port of the host; this one is listened at by: ss -lnp 'sport = :{forward.host_port}'",
    )
