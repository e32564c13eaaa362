"""User-mode networking by QEMU's own stack, and a guest that says whatever it likes: nothing reaches the loopback."""

from __future__ import annotations

import random
import select
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.qemu import usernetwork
from tests.support import frames
from tests.support.network_namespaces import missing, network_namespace
from tests.support.stack_behind_filter import ACK, GUEST, GUEST6, MAC, ROUTER_MAC, SYN, Stack, stack

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]

PORT = 7777
LOOPBACK = ("10.0.2.2", "127.0.0.1", "127.1.2.3", "0.0.0.0", "255.255.255.255")  # noqa: S104 - a destination
LOOPBACK6 = ("fec0::2", "fec0::9", "::1", "::", "::ffff:127.0.0.1", "ff02::1")
OTHERS = ("10.0.2.0", "10.0.2.3", "10.0.2.9", GUEST, "10.0.2.255", "224.0.0.1", "127.255.255.255", "0.0.0.1")
OTHERS6 = ("fec0::3", GUEST6, "::127.0.0.1", "fe80::1", "fe80::2", "ff01::1", "ff02::2", "ff05::1:3")


class Listeners:
    """Sockets of the host that hear all that comes to a port, at every address of it, and what they have heard."""

    def __init__(self, opened: ExitStack, port: int = PORT) -> None:
        self._tcp: list[socket.socket] = []
        self._udp: list[socket.socket] = []
        for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104 - in a namespace
            for kind, sockets in ((socket.SOCK_STREAM, self._tcp), (socket.SOCK_DGRAM, self._udp)):
                one = opened.enter_context(socket.socket(family, kind))
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind((address, port))
                if kind == socket.SOCK_STREAM:
                    one.listen(128)
                one.setblocking(False)
                sockets.append(one)

    def heard(self) -> list[str]:
        """`tcp` or `udp` and from where, of all that came since it was asked last."""
        found = []
        while ready := select.select([*self._tcp, *self._udp], [], [], 0)[0]:
            for one in ready:
                if one in self._udp:
                    found.append(f"udp {one.recvfrom(100)[1][0]}")
                else:
                    connection, whose = one.accept()
                    connection.close()
                    found.append(f"tcp {whose[0]}")
        return found


@contextmanager
def lonely_host(port: int = PORT) -> Iterator[Listeners]:
    """A host that has nothing but its loopback: whoever is heard by its listeners has come by that."""
    with network_namespace(), ExitStack() as opened:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        yield Listeners(opened, port)


def tried(guest: Stack, to: str, number: int) -> None:
    guest.send(guest.tcp(to, (20000 + number, PORT), SYN))
    guest.send(guest.udp(to, (20000 + number, PORT)))
    guest.until_answer()


def test_without_the_filter_all_of_these_lead_to_the_loopback() -> None:
    """What the other tests stand on: that their listeners would hear it."""
    with lonely_host() as listeners, stack(filtered=False) as guest:
        for number, to in enumerate((*LOOPBACK, *LOOPBACK6)):
            tried(guest, to, number)
            assert any(each.startswith("tcp") for each in listeners.heard()), to


def test_no_destination_leads_to_the_loopback() -> None:
    with lonely_host() as listeners, stack() as guest:
        for number, to in enumerate((*LOOPBACK, *LOOPBACK6, *OTHERS, *OTHERS6)):
            tried(guest, to, number)
            assert listeners.heard() == [], to


def strange_frame(rng: random.Random) -> bytes:
    """A frame that has a mistake, or more of them, or none: towards the loopback, from anywhere, of any shape."""
    is_ipv6 = rng.random() < 0.5
    to = rng.choice((*LOOPBACK6, *OTHERS6) if is_ipv6 else (*LOOPBACK, *OTHERS))
    source = rng.choice(
        ["fec0::15", "::1", "fe80::15", "::ffff:127.0.0.1"] if is_ipv6 else [GUEST, "127.0.0.1", "10.0.2.2"]
    )
    ports = (rng.randrange(1, 65536), PORT)
    if rng.random() < 0.5:
        flags = rng.choice([SYN, SYN, SYN | 0xC0, SYN | ACK, ACK, 0x04, rng.randrange(256)])
        protocol, segment = (
            frames.TCP,
            frames.tcp(source, to, ports, flags, at=(rng.getrandbits(32), rng.getrandbits(32))),
        )
    else:
        protocol, segment = frames.UDP, frames.udp(source, to, ports, b"strange")
    if is_ipv6:
        frame = frames.ethernet(ROUTER_MAC, MAC, frames.IPV6, frames.ipv6(source, to, protocol, segment))
    else:
        first, fragment = rng.choice([(0x45, 0), (0x45, 0), (0x46, 0), (0x4F, 0), (0x45, 0x2000), (0x45, 1)])
        options = rng.choice([b"\1", b"\0", b"\x83"]) * (4 * ((first & 15) - 5))
        packet = frames.ipv4(source, to, protocol, options + segment, first=first, fragment=fragment)
        frame = frames.ethernet(ROUTER_MAC, MAC, frames.IPV4, packet)
    if rng.random() < 0.3:
        at = rng.randrange(len(frame))
        frame = frame[:at] + bytes([rng.randrange(256)]) + frame[at + 1 :]
    return frame[: rng.randrange(20, len(frame))] if rng.random() < 0.1 else frame


def test_of_ten_thousand_strange_frames_none_leads_to_the_loopback() -> None:
    rng = random.Random(12)  # noqa: S311 - no secret
    with lonely_host() as listeners:
        with stack() as guest:
            for _ in range(100):
                for _ in range(100):
                    guest.send(strange_frame(rng))
                guest.until_answer()
                assert listeners.heard() == []
        heard: list[str] = []
        with stack(filtered=False) as guest, suppress(ConnectionError):
            # One of them may be the end of this QEMU.
            while not heard:
                guest.send(strange_frame(rng))
                guest.until_answer()
                heard = listeners.heard()
        assert heard, "none of them would have"


def answered(guest: Stack, port: int, data: bytes) -> str:
    """Take the connection that comes to a port of the guest, and say something; from where it seems to come."""
    (*_, syn) = guest.until(lambda frame: frame[12:14] == b"\x08\0" and frame[23] == frames.TCP and frame[47] & SYN)
    source, its_port = socket.inet_ntoa(syn[26:30]), int.from_bytes(syn[34:36])
    assert int.from_bytes(syn[36:38]) == port
    next_one = int.from_bytes(syn[38:42]) + 1
    guest.send(guest.tcp(source, (port, its_port), SYN | ACK, (100, next_one)))
    guest.send(guest.tcp(source, (port, its_port), ACK | 0x08, (101, next_one), data))
    return source


def test_a_published_port_leads_to_the_guest_and_its_answer_back() -> None:
    ports = [PublishedPort("tcp", "127.0.0.1", 8080, 80)]
    with lonely_host() as listeners, stack(ports) as guest:
        with socket.create_connection(("127.0.0.1", 8080), timeout=60) as client:
            assert answered(guest, 80, b"from the guest") == usernetwork.ROUTER
            assert client.recv(100) == b"from the guest"
        # The port that is open for the host is no way out to it.
        guest.send(guest.tcp(usernetwork.ROUTER, (80, PORT), SYN))
        guest.until_answer()
        assert listeners.heard() == []


def datagram(guest: Stack) -> tuple[str, int]:
    """From where the datagram comes that the guest is to get."""
    (*_, got) = guest.until(
        lambda frame: frame[12:14] == b"\x08\0" and frame[23] == frames.UDP and b"question" in frame
    )
    return socket.inet_ntoa(got[26:30]), int.from_bytes(got[34:36])


def test_a_published_port_of_udp_answers_the_world_and_not_the_loopback() -> None:
    ports = [PublishedPort("udp", "0.0.0.0", 5353, 53)]  # noqa: S104 - in a namespace
    with lonely_host() as listeners, stack(ports) as guest:
        subprocess.run(["ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1"], check=True)
        subprocess.run(["ip", "address", "add", "192.0.2.9/24", "dev", "up0"], check=True)
        subprocess.run(["ip", "link", "set", "up0", "up"], check=True)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(60)
            client.bind(("192.0.2.9", 0))
            client.sendto(b"question", ("192.0.2.9", 5353))
            where = datagram(guest)
            assert where == client.getsockname()
            guest.send(guest.udp(where[0], (53, where[1]), b"answer"))
            assert client.recv(100) == b"answer"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", ("127.0.0.1", 5353))
            source, its_port = datagram(guest)
            assert source in (usernetwork.ROUTER, "127.0.0.1"), "it depends on who was answered before"
            # Were this answered, every port of the loopback could be.
            for port in (its_port, PORT):
                guest.send(guest.udp(source, (53, port), b"answer"))
            guest.until_answer()
            assert listeners.heard() == []
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(100)


def asking(tmp_path: Path, address: str) -> list[str]:
    """Words before a command: for it the host's server of names is at this address."""
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"nameserver {address}\n")
    script = 'mount --bind "$1" /etc/resolv.conf && shift && exec "$@"'
    return ["unshare", "--mount", "--", "sh", "-c", script, "sh", str(conf)]


def test_names_are_asked_for_and_nothing_else_of_who_knows_them(tmp_path: Path) -> None:
    """The host's own server of names may be on the loopback."""
    with lonely_host(53) as names, ExitStack() as opened:
        listeners = Listeners(opened)
        with stack(around=asking(tmp_path, "127.0.0.1")) as guest:
            guest.send(guest.udp(usernetwork.NAMES, (4000, PORT)))
            guest.send(guest.tcp(usernetwork.NAMES, (4001, PORT), SYN))
            guest.send(guest.udp(usernetwork.NAMES, (4002, 53), b"question"))
            guest.until_answer()
            assert names.heard() == ["udp 127.0.0.1"]
            assert listeners.heard() == []
