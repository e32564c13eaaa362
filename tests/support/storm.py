"""A storm of spoofed frames, from whoever has a descriptor of a tap, and an account of what was sent, came and counted.

One thread sends batch by batch and reads after each what has come, anywhere: at guests, at the host's end of bridges,
at the cables of resolvers. Another writes to taps that are only being made. A frame that comes is one that may pass, is
of the host itself, or is told with its kind and the moment.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from itertools import count, cycle
from typing import Final

from aetherscale.actors.network.model.chains import Drop
from tests.support import frames
from tests.support.drop_tally import Tally
from tests.support.fake_guest import PATIENCE_S, VNET_HDR, FakeGuest
from tests.support.spoofs import spoofs

_ETH_P_ALL: Final = 3
_EVERY_NTH_IS_LEGAL: Final = 12
_AFTER_IT_IS_OPEN: Final = 50
_AT_FULL_PACE: Final = 2000
_WITHOUT_RULES: Final = "without-rules-"
_NOTHING: Final = ("nothing ",)
_MAY_COME_TO: Final = {"aeb": ("host-",), "aes": ("foreign-",)}
"""What the host's own rules drop later; and what a bridge floods to its resolver, whose stack has another MAC."""


@dataclass(eq=False)
class Party:
    """A guest in the storm."""

    guest: FakeGuest
    network: str
    is_ruled: bool = True
    is_settled: bool = False
    """Whether what it may send, and what may be sent to it, has to arrive."""
    is_hurrying: threading.Event = field(default_factory=threading.Event)
    """Whether frames are written to its tap from another descriptor."""
    is_open: bool = False
    """Whether its tap is there, which was being made then."""
    has_tried: threading.Event = field(default_factory=threading.Event)
    """Whether the first of those was tried."""
    made_up: dict[str, list[tuple[str, Drop | None, bytes]]] = field(default_factory=dict)
    """By the tap of its victim: name, kind that it is counted as, and frame."""


@dataclass(eq=False)
class _Arrival:
    """A tap that is being made, and what is written to it meanwhile."""

    party: Party
    descriptor: int
    made_up: Iterator[tuple[Drop, bytes]]
    written: int = 0
    refused: int = 0

    def close(self) -> None:
        os.close(self.descriptor)
        self.party.is_hurrying.clear()


class Storm:
    """Made in the network namespace of the bridges. What went wrong is in `passed`, `lost` and `failure`."""

    def __init__(self, infrastructure: set[str], routers: dict[str, str], listener: str) -> None:
        """`infrastructure` are the MACs that the host itself has, `routers` those of the bridges, by the network.

        `listener` is an address of the host where nothing may be heard.
        """
        self.listener = listener
        self.turn = threading.Lock()
        """Held for a batch: who has it may change `parties`."""
        self.parties: list[Party] = []
        self.tally = Tally()
        self.sent = self.legal = self.from_host = 0
        self.early = self.raced = 0
        """Frames sent to taps that were being made, and the taps that refused some of them before they took the first,
        since they were not up yet."""
        self.kinds: Counter[str] = Counter()
        self.passed: list[str] = []
        self.lost: list[str] = []
        self.doing: dict[str, str] = {}
        """What is going on beside, by who does it."""
        self.failure: BaseException | None = None
        self._own = {frames.mac(mac) for mac in infrastructure}
        self._routers = routers
        self._names: dict[bytes, str] = {}
        self._due: dict[bytes, str] = {}
        """Frames that may pass and have not come yet, with the tap that they are for."""
        self._numbers = count()
        self._listening: list[tuple[str, socket.socket]] = []
        self._arriving: deque[tuple[Party, int]] = deque()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._flood, self._hurry)]

    # --- those who take part ---

    def listen(self, device: str) -> None:
        """Read what passes a device of the host: all that comes to a bridge, all that is sent into a cable."""
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.htons(_ETH_P_ALL))
        made.bind((device, _ETH_P_ALL))
        self._listening.append((device, made))

    def join(self, party: Party) -> None:
        with self.turn:
            self.parties.append(party)

    def settle(self, party: Party, *, settled: bool) -> None:
        with self.turn:
            party.is_settled = settled

    def leave(self, party: Party) -> None:
        """It sends nothing more, and its descriptor is closed, as when its QEMU ends."""
        with self.turn:
            party.is_settled = False
            self.parties.remove(party)
            party.guest.close()

    def hurry(self, party: Party, descriptor: int) -> None:
        """Write frames to a tap that may not be up yet, until it has been for a while; the descriptor is taken.

        The first was tried when this returns.
        """
        party.is_hurrying.set()
        party.is_open = False
        party.has_tried.clear()
        self._arriving.append((party, descriptor))
        party.has_tried.wait(PATIENCE_S)

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No frame is sent any more, and all that has come was read."""
        self._is_over.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def close(self) -> None:
        self.stop()
        for party in self.parties:
            party.guest.close()
        for _, sock in self._listening:
            sock.close()

    # --- sending ---

    def made_up(self, party: Party, victim: Party) -> list[tuple[str, Drop | None, bytes]]:
        """All that one makes up against another."""
        known = party.made_up.get(victim.guest.tap)
        if known is None:
            known = list(self._made_up(party, victim))
            party.made_up[victim.guest.tap] = known
            self._names |= {frame: f"{name} of {party.guest.tap}" for name, _, frame in known}
        return known

    def _made_up(self, party: Party, victim: Party) -> Iterator[tuple[str, Drop | None, bytes]]:
        guest, other = party.guest, victim.guest
        if not party.is_ruled:
            for name, _, frame in spoofs(guest, other):
                yield _WITHOUT_RULES + name, None, frame
            yield _WITHOUT_RULES + "udp4", None, guest.udp(other.ipv4, b"without rules", mac=other.mac)
            yield _WITHOUT_RULES + "udp6", None, guest.udp(other.ipv6, b"without rules", mac=other.mac)
        elif party.network != victim.network:
            yield "foreign-udp4", None, guest.udp(other.ipv4, b"foreign", mac=other.mac)
            yield "foreign-udp6", None, guest.udp(other.ipv6, b"foreign", mac=other.mac)
            yield "foreign-ping", None, guest.ping(other.ipv4, b"foreign", mac=other.mac)
        else:
            yield from spoofs(guest, other)
            router = self._routers[party.network]
            outside, outside6 = "198.51.100.7", "2001:db8::7"
            for name, frame in (
                ("routed-ipv4", guest.udp(outside, b"r", mac=router, source=other.ipv4)),
                ("routed-ipv4-of-world", guest.udp(outside, b"r", mac=router, source="203.0.113.9")),
            ):
                yield name, Drop.IPV4, frame
            yield "routed-ipv6", Drop.IPV6, guest.udp(outside6, b"r", mac=router, source=other.ipv6)
            yield "host-udp", None, guest.udp(self.listener, b"r", mac=router, ports=(4000, 53))
            as_router = guest.udp(other.ipv4, b"r", mac=other.mac)
            yield "mac-of-router", Drop.MAC, as_router[:6] + frames.mac(router) + as_router[12:]

    def batch(self, party: Party, victim: Party, legal: bool = True) -> None:
        """All that one makes up against the other, and between it what it may send; then what has come is read."""
        guest, begun, done = party.guest, self.tally.begun, self.tally.done
        made_up = self.made_up(party, victim)
        tap = guest.tap
        for at, (name, kind, frame) in enumerate(made_up):
            if legal and at % _EVERY_NTH_IS_LEGAL == 0:
                self._talk(party, victim)
            if kind is not None:
                begun[tap, kind] += 1
            try:
                os.write(guest.descriptor, VNET_HDR + frame)
            except OSError:
                if party.is_settled:
                    raise
                break  # Its tap is being removed, and is no port any more.
            self.sent += 1
            self.kinds[name.removeprefix(_WITHOUT_RULES)] += 1
            if kind is not None:
                done[tap, kind] += 1
        self.read()

    def _talk(self, party: Party, victim: Party) -> None:
        guest, other = party.guest, victim.guest
        if not party.is_settled or not victim.is_settled or party.network != victim.network:
            return
        number = next(self._numbers)
        to = other.ipv6 if number % 2 else other.ipv4
        frame = guest.udp(to, f"this may pass {number:10}".encode(), mac=other.mac)
        self._due[frame] = other.tap
        os.write(guest.descriptor, VNET_HDR + frame)
        self.legal += 1

    def _flood(self) -> None:
        for number in count():
            if self._is_over.is_set():
                return
            with self.turn:
                for at, party in enumerate(self.parties):
                    others = [each for each in self.parties if each is not party and each.is_ruled]
                    if others:
                        self.batch(party, others[(number + at) % len(others)])
            # Whoever wants the turn gets it.
            self._is_over.wait(0.0005)

    def _hurry(self) -> None:
        arrived: list[_Arrival] = []
        try:
            while not self._is_over.is_set():
                while self._arriving:
                    arrived.append(self._arrived(*self._arriving.popleft()))
                for each in list(arrived):
                    if each.party.is_open and (each.written >= _AFTER_IT_IS_OPEN or not each.party.is_settled):
                        arrived.remove(each)
                        each.close()
                    else:
                        self._write_early(each)
                if all(each.written > _AT_FULL_PACE for each in arrived):
                    self._is_over.wait(0.0005)
        finally:
            for each in arrived:
                each.close()

    def _arrived(self, party: Party, descriptor: int) -> _Arrival:
        with self.turn:
            others = [each for each in self.parties if each.network == party.network and each.is_ruled]
            victim = next((each for each in others if each is not party), _absent(party))
            made_up = [(kind, frame) for _, kind, frame in self.made_up(party, victim) if kind is not None]
        return _Arrival(party, descriptor, cycle(made_up))

    def _write_early(self, arrival: _Arrival) -> None:
        kind, frame = next(arrival.made_up)
        key, tally = (arrival.party.guest.tap, kind), self.tally
        tally.begun_early[key] += 1
        try:
            os.write(arrival.descriptor, VNET_HDR + frame)
        except OSError:  # It is not up yet.
            tally.begun_early[key] -= 1
            arrival.refused += 1
        else:
            tally.done_early[key] += 1
            self.early += 1
            self.raced += arrival.written == 0 and arrival.refused > 0
            arrival.written += 1
        arrival.party.has_tried.set()

    def _run(self, work: object) -> None:
        assert callable(work)
        try:
            work()
        except BaseException as failure:  # noqa: BLE001 - the test raises it
            self.failure = failure

    # --- what came ---

    def read(self) -> None:
        """Read what has come anywhere. What was due and has not come by now is lost: a bridge forwards at once."""
        for party in self.parties:
            with suppress(OSError):  # Its tap was removed.
                for frame in party.guest.received():
                    self._came(frame, party.guest.tap)
        for device, sock in self._listening:
            with suppress(BlockingIOError):
                while True:
                    frame, (_, _, how, *_) = sock.recvfrom(65536)
                    if (how == socket.PACKET_OUTGOING) != device.startswith("aeb"):
                        self._came(frame, device)
        for frame, tap in self._due.items():
            self.lost.append(f"{frame[-20:]!r} to {tap}: {self._moment()}")
        self._due.clear()

    def _came(self, frame: bytes, where: str) -> None:
        name = self._names.get(frame)
        if name is not None and name.startswith(_MAY_COME_TO.get(where[:3], _NOTHING)):
            return
        if name is not None:
            self.passed.append(f"{name} came to {where}: {self._moment()}")
        elif self._due.get(frame) == where:
            del self._due[frame]
        elif frame[6:12] in self._own:
            self.from_host += 1
        else:
            self.passed.append(f"{frame.hex()} came to {where}: {self._moment()}")

    def _moment(self) -> str:
        return f"after {self.sent} frames, while {', '.join(self.doing.values()) or 'nothing'} was going on"


def _absent(party: Party) -> Party:
    """One of the network whom nothing can reach."""
    ipv4, ipv6 = (IPv4Network((party.guest.ipv4, 24), strict=False), IPv6Network((party.guest.ipv6, 64), strict=False))
    return Party(FakeGuest("absent", "52:54:00:00:77:01", str(ipv4[77]), str(ipv6[77]), -1), party.network)
