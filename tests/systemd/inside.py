"""Inside of a booted systemd: scopes with their limits, and a node that is a service. Run by `just systemd`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from aetherscale.actors.compute.qemu import supervision
from tests.contract.test_supervisor import Spawned
from tests.support.eventually import asked_until
from tests.systemd.units import no_units, told, units


async def one_unit() -> bool:
    return len(units()) == 1


async def test_the_limits_are_those_of_the_scope(tmp_path: Path) -> None:
    supervisor = await supervision.choose("systemd")
    spawned = Spawned(supervisor, tmp_path, "sleep", "600")
    await asked_until(one_unit)
    (unit,) = units()
    shown = told("show", unit, "-p", "MemoryMax,TasksMax,CPUQuotaPerSecUSec,IOWeight,CPUWeight,Slice")
    assert set(shown.split()) == {
        f"MemoryMax={(64 + supervision.QEMU_MIB) * 1024**2}",
        f"TasksMax={supervision.TASKS + 2}",
        "CPUQuotaPerSecUSec=3s",
        f"IOWeight={supervision.SHARE}",
        f"CPUWeight={supervision.SHARE}",
        f"Slice={supervision.SLICE}",
    }
    os.kill(spawned.pid, signal.SIGKILL)
    await spawned.ended()
    await asked_until(no_units)
