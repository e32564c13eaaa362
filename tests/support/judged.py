"""A host with the devices of all topologies at once: what the kernel says of a question, by all frames it stands for.

A question is about two ends. What is sent from one to the other is a frame for each way that there is: for each port,
each IP family, each network that leads there. It passes where one of them arrives.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import time
from collections import defaultdict
from functools import partial
from ipaddress import ip_address

from aetherscale.actors.firewall.model.commands import ICMP_TYPES
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.ruleset import Ruleset, delta, replace_all
from tests.support import frames
from tests.support.fake_guest import PATIENCE_S, FakeGuest, open_tap
from tests.support.firewalled import Firewalled, heard
from tests.support.questions import Question
from tests.support.topologies import LANS, SEATS, UPLINK, VERSIONS, WORLD, Facts, Seat
from tests.support.ways import Attempt, attempts

_TOKEN = re.compile(rb"tk([0-9]{8})")
ERRORS = ("destination-unreachable", "packet-too-big", "parameter-problem", "time-exceeded")
"""Messages of ICMP that quote a packet."""


class Judged:
    """The kernel as a judge: guests in all seats, a machine in each bridge of the host, the world, the host itself."""

    def __init__(self, host: Firewalled) -> None:
        self.host = host
        self.applied = host.applied
        self.ends: dict[str, FakeGuest] = {"uplink": host.outside()}
        self.bridges = [lan.spec.bridge or bridge_name(lan.id) for lan in LANS]
        for setting in ("all", "default", "uplink"):
            host.set(f"ipv4/conf/{setting}/rp_filter", "0")
        for version in VERSIONS:
            host.own("uplink", UPLINK[version][1], 24 if version == 4 else 64)
            default = "0.0.0.0/0" if version == 4 else "::/0"
            host.links.route("add", dst=default, gateway=WORLD[version][0], oif=host.index("uplink"))
        for number in range(len(LANS)):
            self._make(number)
        host.flows.ensure()
        self._count = 0
        self.patience_s: float = PATIENCE_S
        """How long is waited for what has to come."""
        self._arrived: dict[int, dict[tuple[str, int | None], bytes]] = defaultdict(dict)
        self._listening = [
            (socket.socket(family, socket.SOCK_RAW, protocol), family, protocol)
            for family, protocols in ((socket.AF_INET, (1, 6, 17)), (socket.AF_INET6, (58, 6, 17)))
            for protocol in protocols
        ]
        self._sending = {
            4: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW),
            6: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW),
        }
        for sock in (*(each[0] for each in self._listening), *self._sending.values()):
            sock.setblocking(False)
            host.sockets.append(sock)

    def _make(self, number: int) -> None:
        host, lan, bridge = self.host, LANS[number], self.bridges[number]
        host.links.link("add", ifname=bridge, kind="bridge", br_mcast_snooping=0)
        host.links.link("set", index=host.index(bridge), state="up", address=f"02:bb:00:00:00:{number:02x}")
        if lan.spec.kind == "isolated":
            host.set(f"ipv6/conf/{bridge}/disable_ipv6", "1")
        else:
            for version in VERSIONS:
                if (prefix := lan.prefix(version)) is not None:
                    host.own(bridge, str(prefix[1]), prefix.prefixlen)
        for place in range(SEATS):
            seat = Seat(number, place)
            self._plug(seat.tap, seat.mac, bridge, seat)
        if lan.spec.kind == "bridged":
            self._plug(f"cable{number}", f"02:cc:00:00:00:{number:02x}", bridge, None)
        if lan.spec.kind != "isolated":
            host.acquaint(bridge)

    def _plug(self, name: str, mac: str, bridge: str, seat: Seat | None) -> None:
        guest = FakeGuest(name, mac, "", "", open_tap(name))
        self.host.guests.append(guest)
        self.host.plug(name, bridge)
        self.ends[name] = guest
        if seat is not None and LANS[seat.lan].spec.kind != "isolated":
            for version in VERSIONS:
                if (address := seat.address(version)) is not None:
                    self.host.neighbor(bridge, address, mac)

    def apply(self, ruleset: Ruleset, *, whole: bool = False) -> None:
        """Let the kernel have these rules, by what changes or as a whole."""
        text = replace_all(ruleset) if whole else delta(self.applied, ruleset)
        self.host.nft.run(text or "list tables")
        self.applied = ruleset

    # --- questions ---

    def passes(self, facts: Facts, question: Question, *, expected: bool) -> bool | None:
        """Whether something of it arrives; None where there is nothing that could be sent. What is expected to come is
        waited for. What has come is answered, and the answer has to come too.
        """
        what, _, number = question.what.partition("/")
        sent: dict[int, Attempt] = {}
        for attempt in dict.fromkeys(attempts(facts, question, self.bridges)):
            if self._send(attempt, what, number):
                sent[self._count] = attempt
        if not sent:
            return None
        came = self._first(sent, expected=expected)
        if came is not None and sent[came].arrives != "host" and (what != "icmp" or number == "echo-request"):
            self._answer(came, sent[came], what)
        return came is not None

    def _first(self, sent: dict[int, Attempt], *, expected: bool) -> int | None:
        """The first of what was sent that has arrived."""
        self._collect()
        deadline_s = time.monotonic() + self.patience_s
        while True:
            for number, each in sent.items():
                if (each.arrives, each.number) in self._arrived[number]:
                    return number
            if not expected or time.monotonic() > deadline_s:
                return None
            descriptors = [guest.descriptor for guest in self.ends.values()]
            descriptors += [each[0].fileno() for each in self._listening]
            select.select(descriptors, [], [], 0.05)
            self._collect()

    def _answer(self, came: int, attempt: Attempt, what: str) -> None:
        """The fourth sentence of the law."""
        frame = self._arrived[came][attempt.arrives, attempt.number]
        by, packet, version = self.ends[attempt.arrives], frame[14:], 4 if frame[12:14] == b"\x08\x00" else 6
        at = 20 if version == 4 else 40
        one, other = (packet[12:16], packet[16:20]) if version == 4 else (packet[8:24], packet[24:40])
        source, to = str(ip_address(other)), str(ip_address(one))
        theirs, own = struct.unpack_from("!HH", packet, at)
        self._count += 1
        token = b"tk%08d" % self._count
        if what == "tcp":
            payload = frames.tcp(source, to, (own, theirs), frames.SYN | frames.ACK, at=(9, came + 11), data=token)
        elif what == "udp":
            payload = frames.udp(source, to, (own, theirs), token)
        else:
            rest = packet[at + 4 : at + 8] + token
            payload = frames.icmp(0, rest) if version == 4 else frames.icmp6(source, to, 129, rest)
        protocol = packet[9] if version == 4 else packet[6]
        answer = (frames.ipv4 if version == 4 else frames.ipv6)(source, to, protocol, payload)
        by.send(frames.ethernet(frame[6:12].hex(":"), by.mac, int.from_bytes(frame[12:14]), answer))
        port = theirs if what != "icmp" else None
        back = Attempt(attempt.arrives, source, to, "", attempt.sender, port)
        assert self._first({self._count: back}, expected=True), f"no answer came to {attempt}"

    def _send(self, attempt: Attempt, what: str, number: str) -> bool:
        """Send it, with a number of its own; False where its IP family has no such packet."""
        version = 6 if ":" in attempt.to else 4
        source, to = attempt.source, attempt.to
        if what == "icmp" and ICMP_TYPES[number][0 if version == 4 else 1] is None:
            return False
        self._count += 1
        token = b"tk%08d" % self._count
        if what == "icmp":
            kind = ICMP_TYPES[number][0 if version == 4 else 1]
            assert kind is not None
            # An error quotes nothing that anybody has sent.
            rest = (bytes(52) if number in ERRORS else struct.pack("!HH", self._count & 0xFFFF, 1)) + token
            protocol = frames.ICMP if version == 4 else frames.ICMP6
            payload = frames.icmp(kind, rest) if version == 4 else frames.icmp6(source, to, kind, rest)
        else:
            ports = 20_000 + self._count % 40_000, int(number)
            protocol = frames.TCP if what == "tcp" else frames.UDP
            if what == "tcp":
                payload = frames.tcp(source, to, ports, frames.SYN, at=(self._count, 0), data=token)
            else:
                payload = frames.udp(source, to, ports, token)
        packet = (frames.ipv4 if version == 4 else frames.ipv6)(source, to, protocol, payload)
        if attempt.sender == "host":
            with contextlib.suppress(OSError):  # So the host is told of what is dropped, or that it has no route.
                self._sending[version].sendto(packet, (to, 0))
        else:
            guest = self.ends[attempt.sender]
            kind_of = frames.IPV4 if version == 4 else frames.IPV6
            guest.send(frames.ethernet(attempt.mac, guest.mac, kind_of, packet))
        return True

    def _collect(self) -> None:
        for name, guest in self.ends.items():
            own = frames.mac(guest.mac)
            for frame in guest.received():
                if frame[:6] == own:
                    self._note(name, frame)
        for sock, family, protocol in self._listening:
            for packet in iter(partial(heard, sock), None):
                whole = packet if family == socket.AF_INET else bytes(6) + bytes([protocol]) + bytes(33) + packet
                self._note("host", bytes(12) + (b"\x08\x00" if family == socket.AF_INET else b"\x86\xdd") + whole)

    def _note(self, name: str, frame: bytes) -> None:
        packet = frame[14:]
        if (found := _TOKEN.search(packet)) is None:
            return
        protocol, at = (packet[9], 20) if frame[12:14] == b"\x08\x00" else (packet[6], 40)
        # An error of the kernel quotes what it is about, headers and all.
        if protocol not in (frames.ICMP, frames.ICMP6) or found.start() - at in (8, 56):
            port = struct.unpack_from("!H", packet, at + 2)[0] if protocol in (frames.TCP, frames.UDP) else None
            self._arrived[int(found[1])].setdefault((name, port), frame)
