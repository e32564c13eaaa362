"""What happens at the bounds of what a host does, of its files and its programs: see docs/limits.md."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from aetherscale.actors.compute.driver import Process
from aetherscale.actors.compute.model.effects import ProvisionDisk, ShutDownVm
from aetherscale.actors.compute.model.pending import ASKING_S, PROVISION_S, SLOWEST_COPY_BYTES_S
from aetherscale.actors.compute.qemu import ceilings
from aetherscale.actors.compute.qemu.layout import RECORD_LIMIT_BYTES, RunRecord, VmDirectory
from aetherscale.actors.compute.reconcile import ADOPT_AT_ONCE
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.images.files.header import ImageRejected, inspect
from aetherscale.bus import jetstream
from aetherscale.bus.jetstream import Stream, StreamError
from aetherscale.bus.memory import MemoryBroker
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.integrity import MOST_PROBLEMS, verify
from aetherscale.eventstore.sqlite import open_store
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.fault import Fault
from aetherscale.setup import hostwork
from tests.support.event_logs import EPOCH, NODE, NOW_US, append_of, new, write
from tests.support.memory_node import MemoryNode
from tests.support.qcow2 import qcow2_image
from tests.support.vm_pasts import BOOTED, DISK, READY, REQUESTED, STOPPING, VM, given

PATIENCE_S = 30.0


def test_a_record_of_a_run_that_is_too_large_is_none(tmp_path: Path) -> None:
    directory = VmDirectory(tmp_path, VM)
    directory.make()
    record = RunRecord(1, "boot-a", "tcg", "none", 4711, 99)
    directory.write_record(record)
    assert directory.record() == record
    padding = {"padding": "x" * RECORD_LIMIT_BYTES, **msgspec.json.decode(msgspec.json.encode(record))}
    (directory.path / "run.json").write_bytes(msgspec.json.encode(padding))
    assert directory.record() is None


@pytest.mark.parametrize("changes", [{"l1_entries": (32 << 20) // 8 + 1}, {"table_clusters": (8 << 20 >> 16) + 1}])
def test_a_qcow2_file_with_tables_beyond_all_bounds_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    image = tmp_path / "image"
    # Large enough for the tables that it says to have, so that it is not refused for being cut off.
    image.write_bytes(qcow2_image(virtual_size=1 << 40, **changes))
    with image.open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(ImageRejected, match=r"table"):
        inspect(image)


async def test_no_more_processes_are_looked_for_at_once_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    node = MemoryNode()
    await node.start()
    await node.final("images", "build-image", {"recipe": "tiny"})
    count = ADOPT_AT_ONCE + 3
    await asyncio.gather(
        *(node.final("compute", "create-vm", {"name": f"vm-{n}", "image": "tiny"}) for n in range(count))
    )
    await node.close()
    plain = SimulatedDriver.adopt
    under_way = most = 0
    enough, go_on = asyncio.Event(), asyncio.Event()

    async def slow(driver: SimulatedDriver, process: Process) -> bool:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        if under_way == ADOPT_AT_ONCE:
            enough.set()
        await go_on.wait()
        under_way -= 1
        return await plain(driver, process)

    monkeypatch.setattr(SimulatedDriver, "adopt", slow)
    starting = asyncio.ensure_future(node.start())
    async with asyncio.timeout(PATIENCE_S):
        await enough.wait()
        go_on.set()
        await starting
    assert most == ADOPT_AT_ONCE
    assert (await node.types()).count("VmAdopted") == count
    await node.close()


def test_a_graceful_stop_has_an_end() -> None:
    pending = given(REQUESTED, DISK, BOOTED, READY, STOPPING).pending
    assert isinstance(pending, ShutDownVm)
    assert pending.deadline_s == STOPPING.grace_s + ASKING_S


def test_a_disk_has_longer_to_be_made_the_larger_its_image_is() -> None:
    pending = given(REQUESTED).pending
    assert isinstance(pending, ProvisionDisk)
    assert pending.image_size_bytes == REQUESTED.spec.image_size_bytes > 0
    assert pending.deadline_s == PROVISION_S + REQUESTED.spec.image_size_bytes / SLOWEST_COPY_BYTES_S


def test_a_vm_without_memory_is_not_started() -> None:
    with pytest.raises(Fault, match=f"QEMU {ceilings.OVERHEAD_MIB} MiB beside it") as fault:
        ceilings.require_memory(1 << 40, ())
    assert not fault.value.retryable
    ceilings.require_memory(1, ())


async def test_no_more_damage_is_told_than_the_bound(tmp_path: Path) -> None:
    path = tmp_path / "events.db"
    store = await open_store(path, node=NODE, epoch=EPOCH, now_us=NOW_US, program="0")
    await store.append(append_of(write("vm-1", 0, *[new("Unheard")] * (MOST_PROBLEMS + 20))))
    await store.close()
    found = verify(path, Codec([]))
    assert len(found.problems) == MOST_PROBLEMS
    assert found.problems[0].seq == 1


def test_a_program_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostwork, "CALL_S", 0.05)
    with pytest.raises(Refused, match=r"sleep 600: no end after 0\.05 s"):
        hostwork.run("sleep", "600")


async def test_a_question_to_jetstream_that_nobody_answers_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "TIMEOUT_S", 0.05)
    broker = MemoryBroker()
    silent, asking = broker.connect(lambda: 0), broker.connect(lambda: 0)
    await silent.listen("$JS.API.>", "", lambda incoming: None)
    with pytest.raises(StreamError, match="no answer within"):
        await Stream(asking, "S", (), description="", max_bytes=1).state()
