"""What compute's driver tells its decisions of the host."""

from __future__ import annotations

from collections.abc import Awaitable
from shlex import quote
from typing import Final, Protocol

from aetherscale.actors.compute.model.effects import Forward
from aetherscale.actors.compute.model.switches import CONTROL
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault
from aetherscale.processes.launch import WITHOUT_MORE

HOST_PORTS: Final = "host-ports"
"""The name of `HostPorts`."""


class HostPorts(Protocol):
    """The ports of the host that programs of its own have."""

    def require_free(self, forward: Forward) -> None:
        """Raises `Refused`: conflict where a program listens at the port of the host, which the forward would take from
        it; bad request where the address is none of the host's.
        """
        ...


INIT_SCRIPTS: Final = "init-scripts"
"""The name of `InitScripts`."""


class InitScripts(Protocol):
    """The init scripts of VMs, which the log does not have."""

    def keep(self, vm_id: str, script: bytes) -> Awaitable[None]:
        """Ensure that the host has the script of the VM, for the node alone, also after a power cut.

        It stays until it is removed, or found to be of no VM that the log has. Raises `Refused` (storage full;
        unavailable).
        """
        ...

    def keep_user_data(self, vm_id: str, data: bytes) -> Awaitable[None]:
        """The same of its user-data for cloud-init, which stays until the VM is gone."""
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


def missing_switch(path: str, group: str = "", *, is_taken: bool = False) -> Fault:
    """What is wrong where there is nothing of a VDE switch at a path; `group` as in `unusable_switch`. `is_taken` is
    whether something else is there: vde_switch would make a directory of before its own, and remove it at its end.
    """
    if is_taken:
        return Fault(
            f"there is no VDE switch at {path}: {path}{CONTROL} is missing, and something else is there",
            remedy="name the directory of a switch (vde_switch -sock), or a path at which nothing is yet",
        )
    line = unusable_switch(path, "", group).remedy
    return Fault(
        f"there is no VDE switch at {path}: {path}{CONTROL} is missing",
        remedy=f"apt-get install {WITHOUT_MORE} vde2; {line}",
    )


def unusable_switch(path: str, why: str, group: str = "") -> Fault:
    """What is wrong with the VDE switch at a path; `group` is that of a node which is no root, and has to be let in."""
    mode = f" -mode 660 -group {quote(group)}" if group else ""
    return Fault(
        f"the VDE switch at {path} cannot be used: {why}", remedy=f"vde_switch -sock {quote(path)}{mode} -daemon"
    )


def missing_user_data(place: str) -> Fault:
    """What is wrong where the user-data of a VM is gone: its guest would take another for its own."""
    return Fault(
        f"the user-data of the VM for cloud-init is missing: {place}",
        remedy=f"put it back from a backup; or, where its guest needs it no more: touch {place}",
        retryable=False,
    )
