"""Ports on VDE switches: programs of the host that connect guests, as callers write them. Pure.

They are no ports in networks: no rule of ours is about what passes there, and no address of a guest there is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta, Struct

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import ID_PATTERN, ID_RULE, NAME_PATTERN, NAME_RULE
from aetherscale.kernel.rules import shown

FIELD: Final = "virtual-network"
PREFIX: Final = "vde:"
"""What a reference to a switch begins with, among those to networks."""
CONTROL: Final = "/ctl"
"""The socket in a switch's directory that ports are asked of."""
MAX_PATH_BYTES: Final = 107 - len(CONTROL)
"""The longest path of a switch: that of its socket has to fit into an address (unix(7), `sun_path`)."""

NetworkReference = Annotated[
    str,
    Meta(
        pattern=rf"(?:{NAME_PATTERN})|(?:{ID_PATTERN})|(?:\A{PREFIX})",
        description=f"a name ({NAME_RULE}), {ID_RULE}, or {PREFIX!r} and the path of a VDE switch",
    ),
]
"""A reference to a network, or to a VDE switch of the host, whose path is checked where it is used."""

_NOT_IN_A_LINE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class SwitchPort(Struct, frozen=True, rename="kebab"):
    """A port of a VM on a VDE switch of the host. A part of the event `VmRequested`."""

    path: str
    """The directory of the switch on the host: the path that `vde_switch -sock` was given."""
    mac: str
    """The MAC address of the guest's network card, lower case, with colons. It follows from the id of the VM."""


def is_switch(reference: str) -> bool:
    """Whether a reference to what a VM is to be in means a switch and no network."""
    return reference.startswith(PREFIX)


def parse_switches(references: Sequence[str]) -> list[str]:
    """The paths of the switches among some references, in their order.

    Raises `Refused` (bad request) for one that is no absolute path in its one form, for one that is too long for a
    socket, and for one that is given twice.
    """
    paths = [_path(reference) for reference in references if is_switch(reference)]
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise Refused(
                Reason.BAD_REQUEST,
                f"the VDE switch {path} is named twice",
                field=FIELD,
                remedy="name it once: a VM has one port on a switch",
            )
    return paths


def written(switch: SwitchPort) -> str:
    """The switch as a caller would write it."""
    return f"{PREFIX}{switch.path}"


def _path(reference: str) -> str:
    path = reference.removeprefix(PREFIX)
    size_bytes = len(path.encode())
    if size_bytes > MAX_PATH_BYTES:
        raise _bad(f"got a path of {size_bytes} bytes, expected at most {MAX_PATH_BYTES}, so that it fits a socket")
    if _NOT_IN_A_LINE.search(path):
        raise _bad(f"got {shown(reference)}, expected a path without control characters")
    if not path.startswith("/"):
        raise _bad(f"got {shown(reference)}, expected an absolute path of the host, as {PREFIX}/run/lab.ctl")
    if path == "/":
        raise _bad(f"got {shown(reference)}, expected the directory of a switch, as {PREFIX}/run/lab.ctl")
    if any(part in ("", ".", "..") for part in path[1:].split("/")):
        raise _bad(f"got {shown(reference)}, expected a path without '..', '.' and needless slashes")
    return path


def _bad(message: str) -> Refused:
    return Refused(Reason.BAD_REQUEST, message, field=FIELD)
