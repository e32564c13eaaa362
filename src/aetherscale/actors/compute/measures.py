"""The figures of VMs: what their processes use, and what went through their disks and ports, as their guests see it.

Memory is what a VM may have, and what of it the host holds: how much its guest uses, only the guest knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.figures import Figures
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.measures import Labels, Measure, counter, gauge
from aetherscale.kernel.registry import Aggregate, Registry

_Rows = list[tuple[Labels, float]]


async def measures(registry: Registry[Vm], driver: ComputeDriver) -> Sequence[Measure]:
    """Those of all VMs that are not deleted; of what runs for those alone that run."""
    vms = {each.id: each for each in registry.aggregates.values() if each.state.phase != "deleted"}
    figures = {vm_id: found for vm_id, found in (await driver.figures()).items() if vm_id in vms}
    return [*_of_all(vms), *_of_processes(figures), *_of_ports(vms, figures)]


def _of_all(vms: Mapping[str, Aggregate[Vm]]) -> Iterator[Measure]:
    named = [
        ({"vm": vm_id, "name": each.state.spec.name, "tenant": each.tenant, "image": each.state.spec.image}, 1.0)
        for vm_id, each in vms.items()
    ]
    yield gauge("vm_info", "A VM that is not deleted: its name, tenant and image; always 1.", named)
    ready = [({"vm": vm_id}, float(each.state.phase == "ready")) for vm_id, each in vms.items()]
    yield gauge("vm_ready", "Whether the guest has reported that it is ready.", ready)
    cpus = [({"vm": vm_id}, float(each.state.spec.cpus)) for vm_id, each in vms.items()]
    yield gauge("vm_cpus", "Virtual CPUs of the VM.", cpus)
    limits = [({"vm": vm_id}, float(each.state.spec.memory_mib << 20)) for vm_id, each in vms.items()]
    yield gauge("vm_memory_limit_bytes", "Memory that the guest has.", limits)


def _of_processes(figures: Mapping[str, Figures]) -> Iterator[Measure]:
    def of(value: str) -> _Rows:
        return [({"vm": vm_id}, getattr(found, value)) for vm_id, found in figures.items()]

    yield counter("vm_cpu_seconds_total", "CPU time of the VM's process since the VM was booted.", of("cpu_s"))
    about = "Memory of the VM's process that is resident: the guest's so far as it was touched, and QEMU's own."
    yield gauge("vm_memory_resident_bytes", about, of("resident_bytes"))
    for name, value, about in (
        ("vm_disk_read_bytes_total", "read_bytes", "Bytes that the guest has read from its disk."),
        ("vm_disk_reads_total", "reads", "Reads of the guest from its disk."),
        ("vm_disk_written_bytes_total", "written_bytes", "Bytes that the guest has written to its disk."),
        ("vm_disk_writes_total", "writes", "Writes of the guest to its disk."),
    ):
        had: _Rows = [({"vm": id_}, getattr(each.disk, value)) for id_, each in figures.items() if each.disk]
        yield counter(name, about, had)


def _of_ports(vms: Mapping[str, Aggregate[Vm]], figures: Mapping[str, Figures]) -> Iterator[Measure]:
    ports = [
        ({"vm": vm_id, "network": port.network_id}, figures[vm_id].traffic[port.tap])
        for vm_id, each in vms.items()
        for port in each.state.ports.specs()
        if vm_id in figures and port.tap in figures[vm_id].traffic
    ]
    for name, value, about in (
        ("vm_network_receive_bytes_total", "received_bytes", "Bytes that the guest was sent."),
        ("vm_network_receive_packets_total", "received_packets", "Packets that the guest was sent."),
        (
            "vm_network_transmit_bytes_total",
            "sent_bytes",
            "Bytes that it has sent, those that were dropped too.",
        ),
        ("vm_network_transmit_packets_total", "sent_packets", "Packets that it has sent, those that were dropped too."),
    ):
        yield counter(name, about, [(labels, getattr(went, value)) for labels, went in ports])
