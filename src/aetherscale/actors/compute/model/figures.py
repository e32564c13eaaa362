"""What a VM uses of its host at a moment, and what went through its disk and its ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from msgspec import Struct

from aetherscale.actors.network.model.views import Traffic


class DiskUse(NamedTuple):
    """What a guest has had of its disk since its QEMU was started."""

    read_bytes: int
    reads: int
    written_bytes: int
    writes: int


class Figures(Struct, frozen=True):
    """The figures of one process of a VM, at this moment."""

    cpu_s: float
    """CPU time of the process, in seconds, since the VM was booted."""
    resident_bytes: int
    """Its memory that is resident on the host: that of the guest so far as it was touched, and of QEMU."""
    disk: DiskUse | None
    """None where QEMU did not say it in time."""
    traffic: Mapping[str, Traffic] = {}
    """By the tap; without ports of which it is not known."""
