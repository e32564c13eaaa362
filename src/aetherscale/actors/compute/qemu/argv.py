"""QEMU's command line, made of generated ids, numbers and descriptors. Pure; no user's text can get into it.

Every file and socket comes as an open descriptor: disks through `-add-fd`, listening sockets through `-chardev
socket,fd=`, both ends of the serial line by QMP (`console.py`). Devices, disks and objects are JSON, where a comma is
only a comma. The disk is a chain of two nodes that is spelled out, so that no file's header decides what is opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Literal

from aetherscale.actors.compute.model.commands import MAX_PORTS
from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.model.state import HOT_SLOTS
from aetherscale.actors.compute.qemu import usernetwork
from aetherscale.actors.compute.qemu.identity import machine_uuid
from aetherscale.kernel.names import ID_PATTERN

AGENT_PORT: Final = "org.qemu.guest_agent.0"
READY_PORT: Final = "org.aetherscale.ready.0"
INIT_PORT: Final = "org.aetherscale.init.0"
CREDENTIALS: Final = "opt/io.systemd.credentials/"
INIT_SCRIPT: Final = "aetherscale.init"
"""The credential that guests run once: see docs/guests.md."""
HOST_NAME: Final = "system.hostname"
"""systemd from version 254 on calls the guest so; for older ones and for `tiny` there are scripts of ours."""
USER: Final = "aetherscale.user"
USER_KEYS: Final = "aetherscale.user.keys"
ROOT_KEYS: Final = "ssh.authorized_keys.root"
"""The credential that systemd's own tmpfiles.d(5) writes to root's `authorized_keys`, where there is none yet."""

SANDBOX: Final = ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
NO_DEFAULTS: Final = ("-nodefaults", "-no-user-config", "-display", "none")

_BASE_SET, _DISK_SET, _SEED_SET = 1, 2, 3
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
    cards: tuple[tuple[str, str], ...] = ()
    """Of the network cards on taps, in order, the name of the tap and the MAC; without any, and without `switch_cards`,
    there is one card with user-mode networking.
    """
    switch_cards: tuple[str, ...] = ()
    """Of those on VDE switches, in order, the MAC."""
    publish: tuple[PublishedPort, ...] = ()
    """The ports of the host that lead to the guest, with user-mode networking."""

    def __post_init__(self) -> None:
        assert re.fullmatch(ID_PATTERN, self.vm_id), f"not a VM's id: {self.vm_id!r}"
        assert self.accelerator in ("kvm", "tcg"), f"not an accelerator: {self.accelerator!r}"
        assert self.base_format in ("qcow2", "raw"), f"not a format: {self.base_format!r}"
        for tap, _ in self.cards:
            assert re.fullmatch(r"[a-z0-9]{1,15}", tap), f"not a tap: {tap!r}"
        for mac in (*(mac for _, mac in self.cards), *self.switch_cards):
            assert re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac), f"not a MAC: {mac!r}"
        for port in self.publish:
            assert port.protocol in ("tcp", "udp"), f"not a protocol: {port.protocol!r}"
            assert re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3}){3}", port.address), f"not an address: {port.address!r}"
        ports = [number for port in self.publish for number in (port.host_port, port.guest_port)]
        for number in (self.cpus, self.memory_mib, *ports):
            assert type(number) is int, f"not a number: {number!r}"
            assert number > 0, f"too small: {number!r}"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """The descriptors that QEMU inherits, by their numbers: two files, listening sockets, a tap for each card; of
    each card on a VDE switch what its frames cross, and what keeps its port there, which QEMU is not told of.

    Without any card `cable` are the two ends of what is between that of user-mode networking and it; None for nothing.
    """

    base: int
    disk: int
    qmp: int
    agent: int
    ready: int
    taps: tuple[int, ...] = ()
    switches: tuple[tuple[int, int], ...] = ()
    cable: tuple[int, int] | None = None
    credentials: tuple[tuple[str, int], ...] = ()
    """Of each credential of systemd that the guest is given, the name and a file in memory, which QEMU opens again."""
    init: int | None = None
    """The listening socket at which the guest tells the end of its init script; None where it has none."""
    seed: int | None = None
    """The disk that cloud-init reads, a file in memory, open for reading alone; None where the guest has none."""

    def all(self) -> tuple[int, ...]:
        """Every one of them."""
        switches = (descriptor for each in self.switches for descriptor in each)
        others = (*switches, *(self.cable or ()), *(descriptor for _, descriptor in self.credentials))
        init = tuple(each for each in (self.init, self.seed) if each is not None)
        return (self.base, self.disk, self.qmp, self.agent, self.ready, *init, *self.taps, *others)


def mac_address(vm_id: str) -> str:
    """The MAC of the VM's card in user-mode networking: QEMU's prefix and 24 bits of its id, the same in every run."""
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
        *_small_devices(),
        *_cards(spec, descriptors),
        *_credentials(descriptors),
        # Last, so that no other device has another place for it.
        *_seed(descriptors),
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


def _seed(descriptors: Descriptors) -> list[str]:
    """The disk for cloud-init, which the guest cannot write to."""
    if descriptors.seed is None:
        return []
    file = {"driver": "file", "node-name": "seed-file", "filename": f"/dev/fdset/{_SEED_SET}", "read-only": True}
    return [
        *("-add-fd", f"fd={descriptors.seed},set={_SEED_SET}"),
        *_json("-blockdev", file),
        *_json("-blockdev", {"driver": "raw", "node-name": "seed", "file": "seed-file", "read-only": True}),
        *_json("-device", {"driver": "virtio-blk-pci", "id": "seed0", "drive": "seed"}),
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
        *_init_port(descriptors),
    ]


def _init_port(descriptors: Descriptors) -> list[str]:
    if descriptors.init is None:
        return []
    device = {"driver": "virtserialport", "id": "init-port", "bus": "ports.0", "chardev": "init", "name": INIT_PORT}
    return ["-chardev", f"socket,id=init,fd={descriptors.init},server=on,wait=off", *_json("-device", device)]


def _small_devices() -> list[str]:
    return [
        *_json("-device", {"driver": "pvpanic-pci", "id": "panic0"}),
        *_json("-object", {"qom-type": "rng-builtin", "id": "entropy"}),
        *_json("-device", {"driver": "virtio-rng-pci", "id": "rng0", "rng": "entropy"}),
    ]


def _cards(spec: MachineSpec, descriptors: Descriptors) -> list[str]:
    if not descriptors.taps and not descriptors.switches:
        netdevs = usernetwork.netdevs("user0", spec.publish, descriptors.cable)
        return [*netdevs, *_json("-device", card("net0", "user0", mac_address(spec.vm_id)))]
    words: list[str] = []
    for number, (descriptor, (tap, mac)) in enumerate(zip(descriptors.taps, spec.cards, strict=True)):
        words += _slot(f"slot{number}", number)
        words += _json("-netdev", {"type": "tap", "id": tap, "fd": str(descriptor)})
        words += _json("-device", {**card(card_id(tap), tap, mac), "bus": f"slot{number}"})
    for index, ((frames, _), mac) in enumerate(zip(descriptors.switches, spec.switch_cards, strict=True)):
        number, name = len(descriptors.taps) + index, f"vde{index}"
        words += _slot(f"slot{number}", number)
        words += _json("-netdev", {"type": "dgram", "id": name, "local": {"type": "fd", "str": str(frames)}})
        words += _json("-device", {**card(card_id(name), name, mac), "bus": f"slot{number}"})
    for number in range(HOT_SLOTS):
        words += _slot(hot_slot(number), MAX_PORTS + number)
    return words


def _credentials(descriptors: Descriptors) -> list[str]:
    """What systemd takes as credentials (systemd.exec(5)): never in the command line itself, which all may read."""
    words: list[str] = []
    for name, descriptor in descriptors.credentials:
        assert re.fullmatch(r"[a-z0-9._-]{1,64}", name), f"not a credential: {name!r}"
        words += ["-fw_cfg", f"name={CREDENTIALS}{name},file=/dev/fd/{descriptor}"]
    return words


def _slot(name: str, number: int) -> list[str]:
    """A root port, into which a card can be plugged, and out of it, while the guest runs."""
    return _json("-device", {"driver": "pcie-root-port", "id": name, "chassis": 1 + number, "io-reserve": 0})


def tap_of(command: Sequence[str], tap: str) -> int | None:
    """The descriptor that QEMU was started with for its port with this tap; None where it was not."""
    for option, value in pairwise(command):
        if option == "-netdev" and (netdev := json.loads(value)).get("id") == tap:
            return int(netdev["fd"])
    return None


def card_id(tap: str) -> str:
    """What the card of the port with this tap is called in QEMU. Its netdev is called as the tap is."""
    return f"net-{tap}"


def hot_slot(number: int) -> str:
    """The bus for a card that the guest is given while it runs, counted from 0."""
    return f"hot{number}"


def card(ident: str, netdev: str, mac: str) -> dict[str, str]:
    """A network card, as `-device` and `device_add` take it."""
    # No ROM: the firmware would try to boot from the network before it gives up.
    return {"driver": "virtio-net-pci", "id": ident, "netdev": netdev, "mac": mac, "romfile": ""}


def _json(option: str, value: Mapping[str, Any]) -> list[str]:
    return [option, json.dumps(value, separators=(",", ":"))]
