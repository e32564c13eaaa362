"""A guest that is a descriptor of a tap: what it sends and receives is Ethernet, frame by frame, without a stack.

What a guest writes is at the other taps when `write` returns, or never: the kernel forwards it meanwhile. Tests do not
rely on that: they wait for a frame that was sent later.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import select
import struct
from dataclasses import dataclass, field

from tests.support import frames
from tests.support.frames import SYN

TUNSETIFF, TUNSETPERSIST = 0x400454CA, 0x400454CB
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
VNET_HDR = bytes(10)
PATIENCE_S = 20
"""Bounds a hang: what has to come does so within microseconds."""


def open_tap(name: str) -> int:
    """A descriptor of the tap, as QEMU inherits it. The tap stays when it is closed, which costs no time then."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETPERSIST, 1)
    return descriptor


def link_local(mac: str) -> str:
    """The address that a stack makes of its MAC (EUI-64)."""
    octets = frames.mac(mac)
    suffix = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + suffix))


@dataclass
class FakeGuest:
    """One guest, its addresses, and frames as it would make them. `ipv6` is its global address."""

    tap: str
    mac: str
    ipv4: str
    ipv6: str
    descriptor: int
    told: list[bytes] = field(default_factory=list)
    """What it has received so far and nobody has asked for."""
    read: int = 0
    """How many frames it has received."""

    @property
    def local(self) -> str:
        return link_local(self.mac)

    def send(self, *sent: bytes) -> None:
        for frame in sent:
            os.write(self.descriptor, VNET_HDR + frame)

    def received(self) -> list[bytes]:
        """All that has come since it was asked last."""
        got, self.told = self.told, []
        while True:
            try:
                got.append(os.read(self.descriptor, 65536)[len(VNET_HDR) :])
                self.read += 1
            except BlockingIOError:
                return got

    def until(self, wanted: bytes, patience_s: float = PATIENCE_S) -> list[bytes]:
        """All that has come up to and with a frame that has `wanted` in it, which has to come.

        Raises AssertionError where nothing has come for so long. Then all that has come can be asked for again.
        """
        got: list[bytes] = []
        while True:
            for at, frame in enumerate(new := self.received()):
                got.append(frame)
                if wanted in frame:
                    self.told = new[at + 1 :]
                    return got
            if not select.select([self.descriptor], [], [], patience_s)[0]:
                self.told = got
                raise AssertionError(f"{self.tap} did not receive {wanted!r}, but {got}")

    def has_seen(self, wanted: bytes) -> bool:
        """Whether it has received something with these bytes in it."""
        return any(wanted in frame for frame in self.received())

    def close(self) -> None:
        os.close(self.descriptor)

    # --- frames to another ---

    def _own(self, to: str) -> str:
        if ":" not in to:
            return self.ipv4
        return self.local if ipaddress.IPv6Address(to).is_link_local or to.startswith("ff02:") else self.ipv6

    def packet(self, to: str, protocol: int, payload: bytes, *, mac: str, source: str | None = None) -> bytes:
        """A packet of IPv4 or IPv6, as `to` is."""
        source = source or self._own(to)
        if ":" in to:
            return frames.ethernet(mac, self.mac, frames.IPV6, frames.ipv6(source, to, protocol, payload))
        return frames.ethernet(mac, self.mac, frames.IPV4, frames.ipv4(source, to, protocol, payload))

    def udp(
        self, to: str, data: bytes, *, mac: str, ports: tuple[int, int] = (4000, 4000), source: str | None = None
    ) -> bytes:
        return self.packet(to, frames.UDP, frames.udp(source or self._own(to), to, ports, data), mac=mac, source=source)

    def tcp(self, to: str, flags: int, *, mac: str, ports: tuple[int, int], at: tuple[int, int]) -> bytes:
        return self.packet(to, frames.TCP, frames.tcp(self._own(to), to, ports, flags, at=at), mac=mac)

    def ping(self, to: str, data: bytes, *, mac: str) -> bytes:
        """An echo request."""
        if ":" in to:
            return self.icmp6(to, 128, frames.echo(data), mac=mac)
        return self.packet(to, frames.ICMP, frames.icmp(8, frames.echo(data)), mac=mac)

    def icmp6(self, to: str, kind: int, rest: bytes, *, mac: str | None = None, source: str | None = None) -> bytes:
        message = frames.icmp6(source or self._own(to), to, kind, rest)
        return self.packet(to, frames.ICMP6, message, mac=mac or frames.group_mac(to), source=source)

    def arp(self, operation: int, ip: str, target: tuple[str, str], *, sender: str | None = None) -> bytes:
        """ARP that says that `ip` is at `sender`, which is this guest by default; a broadcast where it asks."""
        to = frames.BROADCAST if operation == 1 else target[0]
        return frames.ethernet(to, self.mac, frames.ARP, frames.arp(operation, (sender or self.mac, ip), target))

    def solicit(self, target: str, options: bytes = b"", *, source: str | None = None) -> bytes:
        """Asks who has `target`."""
        return self.icmp6(frames.solicited(target), 135, bytes(4) + frames.address(target) + options, source=source)

    def advertise(self, target: str, options: bytes = b"", *, source: str | None = None) -> bytes:
        """Tells all nodes that it has `target`, unasked."""
        rest = bytes([0x20, 0, 0, 0]) + frames.address(target) + options
        return self.icmp6("ff02::1", 136, rest, source=source)


def to(guest: FakeGuest, version: int) -> str:
    """The address of a guest."""
    return guest.ipv4 if version == 4 else guest.ipv6


def tcp(one: FakeGuest, other: FakeGuest, version: int, ports: tuple[int, int], flags: int = SYN) -> bytes:
    """A segment from one guest to another."""
    return one.tcp(to(other, version), flags, mac=other.mac, ports=ports, at=(1, 0))
