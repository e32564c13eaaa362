"""The figures of a process, and the answers that a QEMU may give to the question for those of a disk."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.actors.compute.model.figures import DiskUse
from aetherscale.actors.compute.qemu.figures import figures
from aetherscale.actors.compute.qemu.session import Rejected, Unresponsive
from aetherscale.actors.network.ports import NoPorts
from aetherscale.processes.identity import start_ticks

VM = "1" * 16
OURS = {"rd_bytes": 1, "rd_operations": 2, "wr_bytes": 3, "wr_operations": 4, "failed_rd_operations": 9}
DISK = {"device": "", "node-name": "disk", "qdev": "/machine/peripheral/disk0/virtio-backend", "stats": OURS}
OTHER = {**DISK, "qdev": "/machine/peripheral/seed0/virtio-backend"}


def machine(said: Any = (DISK,), *, ticks_off: int = 0) -> Any:
    """What has the number and the start of this very process, and answers so."""

    async def ask(command: str) -> Any:
        assert command == "query-blockstats"
        if isinstance(said, Exception):
            raise said
        return list(said) if isinstance(said, tuple) else said

    ticks = start_ticks(os.getpid())
    assert ticks is not None
    directory = SimpleNamespace(vm_id=VM)
    return SimpleNamespace(
        pid=os.getpid(), start_ticks=ticks + ticks_off, gone=asyncio.Event(), directory=directory, ask=ask
    )


async def test_a_living_process_has_figures_and_its_disk_is_the_guest_s() -> None:
    found = await figures([machine((OTHER, DISK))], NoPorts())
    assert found[VM].disk == DiskUse(read_bytes=1, reads=2, written_bytes=3, writes=4)
    assert found[VM].cpu_s > 0
    assert found[VM].resident_bytes > 1 << 20


async def test_a_process_that_has_the_number_of_another_has_no_figures() -> None:
    assert await figures([machine(ticks_off=1)], NoPorts()) == {}


async def test_a_machine_that_has_gone_is_not_asked() -> None:
    gone = machine(AssertionError("it was asked"))
    gone.gone.set()
    assert await figures([gone], NoPorts()) == {}


@pytest.mark.parametrize(
    "said",
    [
        Unresponsive("no answer"),
        Rejected("no such command"),
        (),
        (OTHER,),
        (DISK, DISK),
        "nonsense",
        ({**DISK, "stats": {"rd_bytes": "1"}},),
        (None,),
    ],
    ids=str,
)
async def test_a_qemu_that_does_not_tell_leaves_out_its_disk_alone(said: Any) -> None:
    found = await figures([machine(said)], NoPorts())
    assert found[VM].disk is None
    assert found[VM].cpu_s > 0
