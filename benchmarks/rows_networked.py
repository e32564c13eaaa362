"""The start of a node with networks, and with VMs that have ports in them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.presentation import holds as holds_of_vm
from aetherscale.actors.network.model import events
from aetherscale.actors.network.model.decide import NETWORKS
from aetherscale.actors.network.model.presentation import holds as holds_of_network
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.identifiers import boot_id, now_us
from aetherscale.kernel import reservations
from aetherscale.kernel.messages import Event, stream_name
from benchmarks import networks
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.logs import TENANT, envelope, life, open_log
from benchmarks.namespaces import own_namespace
from benchmarks.networks import Networks, Ports
from benchmarks.rows_node import STOPPED, VMS, known
from benchmarks.served import cpu_ms, memory_mib, start, stop, whole_process

COUNT: Final = 20
SERVES: Final = ": started, version "
VM_KIND: Final = "vm"


class _Log:
    """Appends the lives of aggregates with all that they hold."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._versions: dict[str, int] = {}

    async def append(self, kind: str, aggregate_id: str, own: Sequence[Event], holdings: Sequence[Any]) -> None:
        """A new aggregate, with its events and with what it holds."""
        writes = [Write(stream_name(kind, aggregate_id), 0, tuple(own))]
        for stream, reserved in reservations.changes(kind, aggregate_id, TENANT, (), holdings):
            version = self._versions.get(stream, 0)
            writes.append(Write(stream, version, (reserved,)))
            self._versions[stream] = version + 1
        await self._log.append(writes, envelope())


async def networked(directory: Path, among: Networks, those: Ports) -> Path:
    """A state directory whose log has these networks, and a stopped VM for each of these ports."""
    log = await open_log(directory)
    writing = _Log(log)
    for network_id, spec in among.items():
        requested = events.NetworkRequested(network_id, spec)
        state = NETWORKS.evolve(None, requested, now_us())
        own = (requested, events.NetworkUp(boot_id()))
        await writing.append(events.KIND, network_id, own, holds_of_network(state))
    for vm_id, ports in those.items():
        first, *rest = itertools.islice(life(vm_id, ports[0].hostname), STOPPED)
        first = replace(first, spec=replace(first.spec, ports=list(ports)))  # type: ignore[attr-defined]
        state_of_vm: Any = COMPUTE.evolve(None, first, now_us())  # type: ignore[arg-type]
        await writing.append(VM_KIND, vm_id, (first, *rest), holds_of_vm(state_of_vm))
    await log.close()
    return directory


@asynccontextmanager
async def starts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """Nodes that find their networks on the host as they left them, and nodes with as many VMs that have no ports."""
    among = networks.networks(COUNT)
    full = await networked(context.directory / "full", among, networks.ports(among, 0, VMS))
    with own_namespace():
        try:
            yield {
                OURS: partial(start_turn, full, list(among)),
                "without": partial(start_turn, await known(context.directory / "bare", VMS), []),
                "import asyncio": partial(whole_process, ["python3", "-c", "import asyncio"]),
            }
        finally:
            await networks.end_resolvers(full)


async def start_turn(directory: Path, network_ids: Sequence[str]) -> Samples:
    """Milliseconds until it is ready, those of a CPU that the node took for it, and its memory.

    It ends when its networks are complete.
    """
    process, took_ms = await start(directory, simulated=False)
    try:
        cpu, mib = cpu_ms(process.pid), memory_mib(process.pid)
        logs = [directory / "networks" / network_id / "dnsmasq.log" for network_id in network_ids]
        while not all(path.exists() and SERVES in path.read_text() for path in logs):  # noqa: ASYNC110 - of dnsmasq
            await asyncio.sleep(0.05)
        return {"ms": [took_ms], "CPU ms": [cpu], "MiB": [mib]}
    finally:
        await stop(process)


NETWORKED_ROWS: Final = (
    Row(
        "start-networks",
        "start of the node with 20 networks and 1,000 stopped VMs with ports in them, until it is ready",
        starts,
        (Target("ms", "<=", 200, "without", more=True), Target("CPU ms", "<=", 200, "without", more=True)),
        rounds=7,
        note="The bridges and the resolvers are there, as an earlier node has left them; the rules are replaced. "
        "`without` has as many stopped VMs, with neither networks nor ports.",
    ),
)
