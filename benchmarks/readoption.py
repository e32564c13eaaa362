"""How long a node takes to find a thousand living QEMUs again: `python -m benchmarks.readoption [COUNT]`.

They are `-M none`, with the sockets and the identity that the node's own have: 10 MiB each instead of 200. The node is
started on a log that says that all of them run; it is ready once each was adopted.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.actors.compute.qemu import identity, layout
from aetherscale.actors.compute.qemu.layout import RunRecord, VmDirectory
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access
from aetherscale.eventstore.store import PAGE
from aetherscale.kernel.messages import stream_name
from aetherscale.kernel.names import derive_id
from aetherscale.kernel.reservations import NameClaimed, name_stream
from aetherscale.processes import launch
from benchmarks.logs import NODE, TENANT, codec, envelope, open_log
from benchmarks.served import memory_mib, published, start, stop

COUNT: Final = 1_000
TARGET_S: Final = 5.0
TIMES: Final = 3


def spawn(root: Path, vm_id: str) -> RunRecord:
    """A QEMU without a machine in the directory of a VM."""
    directory = VmDirectory(root, vm_id)
    directory.make()
    with ExitStack() as opened:
        errors = directory.open_file(layout.QEMU_LOG, os.O_WRONLY | os.O_CREAT)
        opened.callback(os.close, errors)
        names = (layout.QMP, layout.SERIAL, layout.AGENT, layout.READY)
        sockets = [opened.enter_context(directory.listen(name)).fileno() for name in names]
        chardevs: list[str] = []
        for name, descriptor in zip(("qmp", "serial", "agent", "ready"), sockets, strict=True):
            chardevs += ["-chardev", f"socket,id={name},fd={descriptor},server=on,wait=off"]
        command = [
            *(launch.program("qemu-system-x86_64"), "-M", "none", "-uuid", identity.machine_uuid(vm_id)),
            *("-nodefaults", "-display", "none", *chardevs, "-mon", "chardev=qmp,mode=control"),
        ]
        pid = launch.spawn(command, launch.Jail(None, drops_bounds=False), directory.path, errors, sockets)
    record = RunRecord(1, identity.boot_id(), "tcg", "none", pid, identity.start_ticks(pid))
    directory.write_record(record)
    return record


async def write(log: EventLog, vm_id: str, number: int, record: RunRecord) -> None:
    """What the log has of a VM that runs."""
    name = f"vm-{number}"
    spec = VmSpec(name, "2" * 16, "bare", "raw", 1 << 20, "none", 1, 64, 10_240, "never", True, {})
    assert record.pid is not None
    assert record.start_ticks is not None
    own = (
        events.VmRequested(vm_id, spec),
        events.DiskProvisioned(10_240),
        events.VmBooted(1, record.pid, record.start_ticks, record.boot_id, "tcg"),
    )
    claimed = Write(name_stream(events.KIND, TENANT, name), 0, (NameClaimed(events.KIND, name, vm_id),))
    await log.append([Write(stream_name(events.KIND, vm_id), 0, own), claimed], envelope())


async def adopted(state: Path) -> Counter[str]:
    """How many events of each type the log has."""
    reader = LogReader(await open_access(state / LOG_NAME), codec().decoding)
    found: Counter[str] = Counter()
    position = 0
    while page := await reader.read(position, PAGE):
        found.update(type(each.event).__name__ for each in page)
        position = page[-1].seq
    await reader.close()
    return found


async def measure(count: int) -> bool:
    """Start a node beside so many QEMUs, kill it, and again; whether all were found in time, and none was restarted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8 * count)), hard))
    records: list[RunRecord] = []
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        state = Path(directory) / "state"
        log = await open_log(state)
        try:
            for number in range(count):
                vm_id = derive_id("bench", str(number))
                records.append(await asyncio.to_thread(spawn, state / "vms", vm_id))
                await write(log, vm_id, number, records[-1])
            head = await log.head()
            await log.close()
            process, _ = await start(state, simulated=False)
            # What its broker has to be told of the past is no part of what is measured.
            await published(state, NODE, head)
            await stop(process)
            return await times(state, count)
        finally:
            end(records)


def end(records: Sequence[RunRecord]) -> None:
    """Kill them all."""
    for record in records:
        assert record.pid is not None
        os.kill(record.pid, signal.SIGKILL)
        os.waitpid(record.pid, 0)


async def times(state: Path, count: int) -> bool:
    """The starts."""
    is_well = True
    for turn in range(1, TIMES + 1):
        before = await adopted(state)
        begun = time.perf_counter()
        process, _ = await start(state, simulated=False)
        took_s = time.perf_counter() - begun
        memory = memory_mib(process.pid)
        after = await adopted(state)
        process.kill()
        await process.communicate()
        found = after["VmAdopted"] - before["VmAdopted"]
        others = {name for name in after if after[name] != before[name]} - {"VmAdopted"}
        told = f"; also: {', '.join(sorted(others))}" if others else ""
        print(f"start {turn}: {found:,} of {count:,} adopted in {took_s:.2f} s, {memory:.0f} MiB{told}", flush=True)
        is_well &= found == count and not others and took_s <= TARGET_S
    return is_well


def main(arguments: Sequence[str]) -> int:
    """Measure; 1 where it took too long, or not all were found."""
    return 0 if asyncio.run(measure(int(arguments[0]) if arguments else COUNT)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
