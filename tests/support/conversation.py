"""A connection between two guests of a real node, which goes on whatever happens to that: each frame has to arrive.

The guests are QEMU processes whose own guest does nothing. The test has a copy of the descriptor that a QEMU inherited
(pidfd_getfd(2)), and speaks Ethernet through it in the guest's place. QEMU itself reads nothing from a tap of which the
guest has not asked for a frame, but for one.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections import Counter
from itertools import count, cycle
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.support.fake_guest import PATIENCE_S, FakeGuest
from tests.support.spoofs import spoofs

_PIDFD_GETFD: Final = 438
_PAUSE_S: Final = 0.002
_ASKS_AGAIN_S: Final = 0.5
"""After so long without a frame that should have come the next one is sent."""
_libc: Final = ctypes.CDLL(None, use_errno=True)


def descriptor_of(pid: int, tap: str) -> int:
    """A copy of the descriptor by which a process is attached to a tap, which the caller closes."""
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        if re.search(rf"^iff:\s{tap}$", entry.read_text(), re.MULTILINE):
            pidfd = os.pidfd_open(pid)
            try:
                copied = int(_libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0))
            finally:
                os.close(pidfd)
            if copied < 0:
                raise OSError(ctypes.get_errno(), f"pidfd_getfd of {tap}")
            return copied
    raise AssertionError(f"the process {pid} has no descriptor of {tap}")


def guest_of(pid: int, view: dict[str, Any], number: int = 0) -> FakeGuest:
    """The guest of a port of a running VM, by the VM's view."""
    port = view["ports"][number]
    ipv4, ipv6 = (each["ip"] for each in port["addresses"])
    return FakeGuest(port["tap"], port["mac"], ipv4, ipv6, descriptor_of(pid, port["tap"]))


def taken_by_qemu(guest: FakeGuest) -> int:
    """How many frames the guest's own QEMU has read: all that were read of the tap but those that the guest has."""
    [read] = re.findall(rf"^ *{guest.tap}:(?: +\d+){{9}} +(\d+)", Path("/proc/thread-self/net/dev").read_text(), re.M)
    return int(read) - guest.read


class Conversation:
    """Two guests talk, and try to deceive each other, until it is left. `lost` and `passed` are what went wrong."""

    def __init__(self, one: FakeGuest, other: FakeGuest) -> None:
        self.guests = (one, other)
        self.sent = self.spoofed = 0
        self.lost: Counter[int] = Counter()
        """Frames that did not arrive, by the number of the exchange."""
        self.passed: Counter[str] = Counter()
        """Spoofed frames that arrived, by their names."""
        self._taken: dict[str, int] = {}
        """How many frames the QEMU of a guest had taken when the last one came, by the guest's tap. It takes one more
        when its firmware resets the card.
        """
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._talk)
        self._failure: BaseException | None = None

    def __enter__(self) -> Conversation:
        # A QEMU takes the first frame that comes, and keeps it.
        one, other = self.guests
        for guest, friend in ((one, other), (other, one)):
            for _ in range(2):
                guest.send(guest.udp(friend.ipv4, b"for QEMU", mac=friend.mac))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join()
        for guest in self.guests:
            guest.close()
        if kind is None and self._failure is not None:
            raise self._failure

    def _talk(self) -> None:
        try:
            one, other = self.guests
            names = {
                frame: f"{name} of {guest.tap}"
                for guest, friend in ((one, other), (other, one))
                for name, _, frame in spoofs(guest, friend)
            }
            made_up = cycle([(guest, frame) for guest, friend in ((one, other), (other, one))
                             for _, _, frame in spoofs(guest, friend)])  # fmt: skip
            for number in count():
                if self._is_over.is_set():
                    return
                for guest, friend in ((one, other), (other, one)):
                    self._exchange(number, guest, friend, names)
                for _ in range(20):
                    guest, frame = next(made_up)
                    guest.send(frame)
                    self.spoofed += 1
                self._is_over.wait(_PAUSE_S)
        except BaseException as failure:  # noqa: BLE001 - it is raised where the conversation is left
            self._failure = failure

    def _exchange(self, number: int, guest: FakeGuest, friend: FakeGuest, names: dict[bytes, str]) -> None:
        marker = f"exchange {number:8} of {guest.tap}".encode()
        to = friend.ipv6 if number % 2 else friend.ipv4
        guest.send(guest.udp(to, marker, mac=friend.mac))
        self.sent += 1
        try:
            come = friend.until(marker, _ASKS_AGAIN_S)
        except AssertionError:
            # Frames keep their order: the next one tells whether this one was late, or is lost.
            after = f"what follows {number:8} of {guest.tap}".encode()
            guest.send(guest.udp(to, after, mac=friend.mac))
            try:
                come = friend.until(after)
            except AssertionError:
                self.lost[number] += 1
                return
            if not any(marker in frame for frame in come) and taken_by_qemu(friend) == self._taken.get(friend.tap, 0):
                self.lost[number] += 1
        self._taken[friend.tap] = taken_by_qemu(friend)
        for frame in come:
            if frame in names:
                self.passed[names[frame]] += 1


__all__ = ["PATIENCE_S", "Conversation", "descriptor_of", "guest_of"]
