"""QEMU's user-mode networking without a guest: what a guest would send comes from the test, frame by frame."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.qemu import argv, usernetwork
from aetherscale.actors.compute.qemu.driver import QEMU
from tests.support import frames

MAC, ROUTER_MAC = "52:54:00:11:22:33", "52:55:0a:00:02:02"
GUEST, GUEST6 = usernetwork.GUEST, "fec0::15"
PATIENCE_S = 60
SYN, ACK = frames.SYN, frames.ACK


@dataclass
class Stack:
    """The end of the cable that a guest's card would have."""

    card: socket.socket
    told: list[bytes] = field(default_factory=list)

    def send(self, frame: bytes) -> None:
        self.card.send(frame)

    def until_answer(self) -> list[bytes]:
        """All frames up to the answer to a question that is asked now: what was sent before is done by then."""
        asked = frames.arp(1, (MAC, GUEST), ("00:00:00:00:00:00", usernetwork.ROUTER))
        self.send(frames.ethernet(frames.BROADCAST, MAC, frames.ARP, asked))
        return self.until(lambda frame: frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\2")

    def until(self, wanted: Callable[[bytes], object]) -> list[bytes]:
        """All frames up to and with the one that is wanted, which has to come."""
        got: list[bytes] = []
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if not select.select([self.card], [], [], 1)[0]:
                continue
            got.append(self.card.recv(65536))
            if wanted(got[-1]):
                return got
        raise AssertionError(f"no frame came that is wanted, but {got}")

    def tcp(
        self, to: str, ports: tuple[int, int], flags: int, at: tuple[int, int] = (1, 0), data: bytes = b""
    ) -> bytes:
        own = GUEST6 if ":" in to else GUEST
        return self.packet(to, frames.TCP, frames.tcp(own, to, ports, flags, at=at, data=data))

    def udp(self, to: str, ports: tuple[int, int], data: bytes = b"data") -> bytes:
        own = GUEST6 if ":" in to else GUEST
        return self.packet(to, frames.UDP, frames.udp(own, to, ports, data))

    def packet(self, to: str, protocol: int, payload: bytes) -> bytes:
        if ":" in to:
            return frames.ethernet(ROUTER_MAC, MAC, frames.IPV6, frames.ipv6(GUEST6, to, protocol, payload))
        return frames.ethernet(ROUTER_MAC, MAC, frames.IPV4, frames.ipv4(GUEST, to, protocol, payload))


@contextmanager
def stack(
    published: Sequence[PublishedPort] = (), *, filtered: bool = True, around: Sequence[str] = ()
) -> Iterator[Stack]:
    """A QEMU of no machine, in the network namespace of the test, with the words and the sandbox of a guest's.

    `around` are words that come before its command.
    """
    pair = usernetwork.cable() if filtered else socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    card, far = pair
    words = usernetwork.behind(far.fileno(), published)
    command = [*around, QEMU, *argv.NO_DEFAULTS, *argv.SANDBOX, "-machine", "none", *words]
    process = subprocess.Popen(
        command, pass_fds=[far.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    far.close()
    try:
        it = Stack(card)
        it.until_answer()
        yield it
    finally:
        process.kill()
        assert process.stderr is not None
        process.stderr.close()
        process.wait()
        card.close()
