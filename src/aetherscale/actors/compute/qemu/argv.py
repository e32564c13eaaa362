"""QEMU's command line, made of generated ids, numbers and descriptors. Pure; no user's text can get into it.

Every file and socket comes as an open descriptor: disks through `-add-fd`, listening sockets through `-chardev
socket,fd=`, both ends of the serial line by QMP (`console.py`). Devices, disks and objects are JSON, where a comma is
only a comma. The disk is a chain of two nodes that is spelled out, so that no file's header decides what is opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from aetherscale.actors.compute.qemu.identity import machine_uuid
from aetherscale.kernel.names import ID_PATTERN

AGENT_PORT: Final = "org.qemu.guest_agent.0"
READY_PORT: Final = "org.aetherscale.ready.0"

SANDBOX: Final = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
NO_DEFAULTS: Final = ("-nodefaults", "-no-user-config", "-display", "none")

_BASE_SET, _DISK_SET = 1, 2
_TRANSLATION_CACHE_MIB: Final = 128
"""Without a bound TCG may take 1 GiB beside the guest's memory."""


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """A machine to boot."""

    vm_id: str
    cpus: int
    memory_mib: int
    accelerator: Literal["kvm", "tcg"]
    base_format: Literal["qcow2", "raw"]

    def __post_init__(self) -> None:
        assert re.fullmatch(ID_PATTERN, self.vm_id), f"not a VM's id: {self.vm_id!r}"
        assert self.accelerator in ("kvm", "tcg"), f"not an accelerator: {self.accelerator!r}"
        assert self.base_format in ("qcow2", "raw"), f"not a format: {self.base_format!r}"
        for number in (self.cpus, self.memory_mib):
            assert type(number) is int, f"not a number: {number!r}"
            assert number > 0, f"too small: {number!r}"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The descriptors that QEMU inherits: two files and three listening sockets, by their numbers."""

    base: int
    disk: int
    qmp: int
    agent: int
    ready: int

    def all(self) -> tuple[int, ...]:
        """Every one of them."""
        return (self.base, self.disk, self.qmp, self.agent, self.ready)


def mac_address(vm_id: str) -> str:
    """The MAC of the VM's only network card: QEMU's prefix and 24 bits of its id, the same in every run."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return f"52:54:00:{digest[0]:02x}:{digest[1]:02x}:{digest[2]:02x}"


def command_line(qemu: str, spec: MachineSpec, descriptors: Descriptors) -> list[str]:
    """The whole command: the guest is loaded but does not run until QMP says `cont`."""
    return [
        qemu,
        *("-name", f"aether-{spec.vm_id}"),
        *("-uuid", machine_uuid(spec.vm_id)),
        *NO_DEFAULTS,
        *SANDBOX,
        *("-machine", "q35,dump-guest-core=off"),
        *("-accel", "kvm" if spec.accelerator == "kvm" else f"tcg,tb-size={_TRANSLATION_CACHE_MIB}"),
        *("-cpu", "max"),
        *("-smp", str(spec.cpus)),
        *("-m", str(spec.memory_mib)),
        "-S",
        # The guest's end is held until the node has written down why.
        *("-action", "shutdown=pause,panic=pause"),
        *_monitor(descriptors),
        *_disk(spec, descriptors),
        *_serial_line(),
        *_guest_ports(descriptors),
        *_small_devices(spec),
    ]


def _monitor(descriptors: Descriptors) -> list[str]:
    return [
        *("-chardev", f"socket,id=qmp,fd={descriptors.qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
    ]


def _disk(spec: MachineSpec, descriptors: Descriptors) -> list[str]:
    base_file = {"driver": "file", "node-name": "base-file", "filename": f"/dev/fdset/{_BASE_SET}", "read-only": True}
    base: dict[str, Any] = {"driver": spec.base_format, "node-name": "base", "file": "base-file", "read-only": True}
    if spec.base_format == "qcow2":
        base["backing"] = None
    overlay_file = {
        "driver": "file",
        "node-name": "disk-file",
        "filename": f"/dev/fdset/{_DISK_SET}",
        "discard": "unmap",
    }
    overlay = {"driver": "qcow2", "node-name": "disk", "file": "disk-file", "backing": "base", "discard": "unmap"}
    # No room on the host's disk pauses the guest; other errors are the guest's own to handle.
    device = {
        "driver": "virtio-blk-pci",
        "id": "disk0",
        "drive": "disk",
        "bootindex": 1,
        "werror": "enospc",
        "rerror": "report",
    }
    return [
        *("-add-fd", f"fd={descriptors.base},set={_BASE_SET}"),
        *("-add-fd", f"fd={descriptors.disk},set={_DISK_SET}"),
        *_json("-blockdev", base_file),
        *_json("-blockdev", base),
        *_json("-blockdev", overlay_file),
        *_json("-blockdev", overlay),
        *_json("-device", device),
    ]


def _serial_line() -> list[str]:
    return [
        *("-chardev", "null,id=serial"),
        *_json("-device", {"driver": "isa-serial", "id": "serial0", "chardev": "serial"}),
    ]


def _guest_ports(descriptors: Descriptors) -> list[str]:
    return [
        *("-chardev", f"socket,id=agent,fd={descriptors.agent},server=on,wait=off"),
        *("-chardev", f"socket,id=ready,fd={descriptors.ready},server=on,wait=off"),
        *_json("-device", {"driver": "virtio-serial-pci", "id": "ports"}),
        *_json(
            "-device",
            {"driver": "virtserialport", "id": "agent-port", "bus": "ports.0", "chardev": "agent", "name": AGENT_PORT},
        ),
        *_json(
            "-device",
            {"driver": "virtserialport", "id": "ready-port", "bus": "ports.0", "chardev": "ready", "name": READY_PORT},
        ),
    ]


def _small_devices(spec: MachineSpec) -> list[str]:
    card = {
        "driver": "virtio-net-pci",
        "id": "net0",
        "netdev": "user0",
        "mac": mac_address(spec.vm_id),
        # No ROM: the firmware would try to boot from the network before it gives up.
        "romfile": "",
    }
    return [
        *_json("-device", {"driver": "pvpanic-pci", "id": "panic0"}),
        *_json("-object", {"qom-type": "rng-builtin", "id": "entropy"}),
        *_json("-device", {"driver": "virtio-rng-pci", "id": "rng0", "rng": "entropy"}),
        *_json("-netdev", {"type": "user", "id": "user0"}),
        *_json("-device", card),
    ]


def _json(option: str, value: Mapping[str, Any]) -> list[str]:
    return [option, json.dumps(value, separators=(",", ":"))]
