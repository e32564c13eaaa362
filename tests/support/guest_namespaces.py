"""A guest that is a network namespace with a stack of its own, in a thread that never leaves it."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x4000_0000
PATIENCE_S = 20
"""Bounds a hang: what has to come does so within milliseconds."""
A, PTR, AAAA = 1, 12, 28
NO_ERROR, NO_SUCH_NAME, REFUSED = 0, 3, 5
DISCOVER, OFFER, REQUEST, ACK = 1, 2, 3, 5
COOKIE = bytes.fromhex("63825363")


def sh(*command: str) -> str:
    """What a program says, in the network namespace of this thread."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


class Guest:
    """Its device is eth0, at the other end of a cable in a bridge. What it does is done in its own thread."""

    def __init__(self, bridge: str, cable: str, mac: str) -> None:
        self.mac = mac
        self._thread = ThreadPoolExecutor(1)
        self._netns = self._enter()
        self.plug("eth0", bridge, cable, mac)

    def plug(self, device: str, bridge: str, cable: str, mac: str) -> None:
        """Give it a device, at the other end of a cable in a bridge."""
        sh("ip", "link", "add", cable, "type", "veth", "peer", "name", device, "address", mac, "netns", self._netns)
        sh("ip", "link", "set", cable, "master", bridge, "up")

    def _enter(self) -> str:
        def unshare() -> int:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            return threading.get_native_id()

        return str(self._thread.submit(unshare).result(PATIENCE_S))

    def close(self) -> None:
        """The namespace goes with its thread."""
        self._thread.shutdown()

    def do(self, work: Callable[[], T]) -> T:
        """Do something in its namespace."""
        return self._thread.submit(work).result(2 * PATIENCE_S)

    def sh(self, *command: str) -> str:
        """Run a program in its namespace."""
        return self.do(lambda: sh(*command))

    def up(self) -> None:
        """Set its device up, without detecting duplicates, which takes a second."""

        def switch_on() -> None:
            Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
            sh("ip", "link", "set", "lo", "up")
            sh("ip", "link", "set", "eth0", "up")
            deadline_s = time.monotonic() + PATIENCE_S
            while "fe80" not in sh("ip", "-6", "address", "show", "dev", "eth0", "-tentative"):
                assert time.monotonic() < deadline_s, "eth0 formed no address"

        self.do(switch_on)

    # --- DNS ---

    def ask(self, server: str, name: str, kind: int, *, tcp: bool = False) -> tuple[int, list[str]]:
        """The response code, and the addresses or names of the answers."""
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        question = struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", kind, 1)

        def exchange() -> bytes:
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            with socket.socket(family, socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.connect((server, 53))
                if tcp:
                    sock.sendall(struct.pack("!H", len(question)) + question)
                    return sock.recv(4096)[2:]
                sock.send(question)
                return sock.recv(4096)

        return _answers(self.do(exchange), len(question))

    # --- DHCP ---

    def dhcp(self, kind: int, *, mac: str | None = None, options: Sequence[tuple[int, bytes]] = ()) -> bytes:
        """A message of DHCP (RFC 2131), which asks for a broadcast as the answer."""
        chaddr = bytes.fromhex((mac or self.mac).replace(":", ""))
        head = struct.pack("!4BIHH16x16s192x", 1, 1, 6, 0, 0x3903F326, 0, 0x8000, chaddr)
        every = [(53, bytes([kind])), (55, bytes([1, 3, 6, 12, 15, 26, 51, 54, 119])), *options]
        return head + COOKIE + b"".join(bytes([code, len(data)]) + data for code, data in every) + b"\xff"

    def exchange(self, *sent: bytes) -> tuple[str, dict[int, bytes]]:
        """Send these; the address that the first answer is about, and its options."""

        def talk() -> bytes:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(PATIENCE_S)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
                sock.bind(("", 68))
                for message in sent:
                    sock.sendto(message, ("255.255.255.255", 67))
                return sock.recv(4096)

        answer = self.do(talk)
        return str(ip_address(answer[16:20])), dict(_options(answer[240:]))

    def advertisement(self) -> tuple[str, bytes]:
        """Ask for a router; the source and the text of the next advertisement (RFC 4861, 4.2)."""

        def talk() -> tuple[str, bytes]:
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sock:
                sock.settimeout(PATIENCE_S)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                index = socket.if_nametoindex("eth0")
                own = bytes.fromhex("0101" + self.mac.replace(":", ""))
                sock.sendto(bytes([133, 0, 0, 0, 0, 0, 0, 0]) + own, ("ff02::2", 0, 0, index))
                while True:
                    data, source = sock.recvfrom(4096)
                    if data[0] == 134:
                        return str(source[0]).partition("%")[0], data

        return self.do(talk)


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    while data and data[0] != 255:
        if data[0] == 0:
            data = data[1:]
            continue
        yield data[0], data[2 : 2 + data[1]]
        data = data[2 + data[1] :]


def _answers(message: bytes, at: int) -> tuple[int, list[str]]:
    """Answers begin after the question, whose name they point to."""
    found: list[str] = []
    for _ in range(struct.unpack_from("!H", message, 6)[0]):
        kind, _, _, length = struct.unpack_from("!2HIH", message, at + 2)
        data = message[at + 12 : at + 12 + length]
        found.append(".".join(_labels(data)) if kind == PTR else str(ip_address(data)))
        at += 12 + length
    return message[3] & 15, found


def _labels(data: bytes) -> Iterator[str]:
    while data and data[0]:
        yield data[1 : 1 + data[0]].decode()
        data = data[1 + data[0] :]


@contextmanager
def guests() -> Iterator[Callable[..., Guest]]:
    """Makes guests, and closes them."""
    made: list[Guest] = []

    def make(bridge: str, mac: str, cable: str = "") -> Guest:
        made.append(guest := Guest(bridge, cable or f"cable{len(made)}", mac))
        return guest

    try:
        yield make
    finally:
        for guest in made:
            guest.close()
