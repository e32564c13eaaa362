"""A host in a namespace whose one way out is eth0, and a router at its other end that looks for it all the time."""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from aetherscale.setup.bridgetrial import Places, read_trial, write_trial
from tests.support.guest_namespaces import CLONE_NEWNET, PATIENCE_S, sh

T = TypeVar("T")

HOST4, ROUTER4 = "10.77.0.2", "10.77.0.1"
HOST6, ROUTER6 = "fd77::2", "fd77::1"
FAR = "10.78.0.9"
MAC = "02:77:00:00:00:02"


class Router:
    """The other end of the cable, in a namespace of its own that one thread is in."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.thread_id = self._thread.submit(_unshare).result(PATIENCE_S)

    def do(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result(3 * PATIENCE_S)

    def sh(self, *command: str) -> str:
        return self.do(lambda: sh(*command))

    def begin(self, work: Callable[[], None]) -> threading.Thread:
        """Do something in its namespace, in another thread that is started there."""

        def start() -> threading.Thread:
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            return thread

        return self.do(start)

    def close(self) -> None:
        self._thread.shutdown()


class World:
    """What a test of the bridge has: the router, and where files are."""

    def __init__(self, router: Router, places: Places) -> None:
        self.router, self.places = router, places
        self.guards: list[subprocess.Popen[bytes]] = []

    def guard(self, places: Places) -> None:
        """Start a guard in a session of its own, and wait until it is ready."""
        self.guards.append(guard(places))

    def wait_for_guards(self) -> None:
        for each in self.guards:
            assert each.wait(2 * PATIENCE_S) == 0
        self.guards.clear()

    def run_out(self) -> None:
        """The time of the trial that is on is over."""
        trial = read_trial(self.places)
        assert trial is not None
        write_trial(self.places, replace(trial, deadline_ns=0))

    def expect_reachable(self) -> None:
        """The router's questions are answered, each of them."""
        with self.looked_for() as lost:
            self.router.sh("sleep", "0.1")
        assert lost == []

    @contextmanager
    def looked_for(self) -> Iterator[list[str]]:
        """The router asks for the host, by both families, all the while; the questions that got no answer."""
        lost: list[str] = []
        end = threading.Event()
        threads = [self.router.begin(lambda v=version: _ask(v, end, lost)) for version in (4, 6)]  # type: ignore[misc]
        try:
            yield lost
        finally:
            end.set()
            for thread in threads:
                thread.join(PATIENCE_S)


def guard(places: Places) -> subprocess.Popen[bytes]:
    """A guard, as systemd would start it: it says when it is ready."""
    told = places.run / f"notify-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        told.unlink(missing_ok=True)
        sock.bind(str(told))
        sock.settimeout(PATIENCE_S)
        words = [str(places.run), str(places.kept), str(places.units)]
        process = subprocess.Popen(
            [sys.executable, "-m", "aetherscale.setup.bridgeguard", *words],
            env={**os.environ, "NOTIFY_SOCKET": str(told)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        assert sock.recv(64) == b"READY=1"
    return process


@contextmanager
def world(directory: Path, *, is_configured: bool = True) -> Iterator[World]:
    """In the namespace of this thread, which has nothing yet."""
    places = Places(directory / "run", directory / "etc/bridge.json", directory / "units")
    router = Router()
    made = World(router, places)
    try:
        sh("ip", "link", "set", "lo", "up")
        cable = ("type", "veth", "peer", "name", "up0", "netns", str(router.thread_id))
        sh("ip", "link", "add", "eth0", "address", MAC, "mtu", "1480", *cable)
        router.sh("ip", "link", "set", "lo", "up")
        router.sh("ip", "link", "set", "up0", "mtu", "1480", "up")
        router.sh("ip", "address", "add", f"{ROUTER4}/24", "dev", "up0")
        router.sh("ip", "address", "add", f"{ROUTER6}/64", "dev", "up0", "nodad")
        router.sh("ip", "address", "add", f"{FAR}/32", "dev", "lo")
        if is_configured:
            configure()
        yield made
    finally:
        for each in made.guards:
            each.kill()
            each.wait()
        router.close()


def configure() -> None:
    """Addresses and routes of many kinds."""
    detects = Path("/proc/sys/net/ipv6/conf/eth0/accept_dad")
    detects.write_text("0")  # which takes a second
    sh("ip", "link", "set", "eth0", "up")
    eventually(lambda: "local fe80" in sh("ip", "-6", "route", "show", "dev", "eth0", "table", "local"))
    detects.write_text("1")
    for line in (
        f"address add {HOST4}/24 dev eth0 brd + metric 50",
        "address add 10.77.0.3/24 dev eth0 label eth0:1",
        "address add 10.79.0.2 peer 10.79.0.1/32 dev eth0",
        f"-6 address add {HOST6}/64 dev eth0 nodad",
        f"-6 address change {HOST6}/64 dev eth0",
        "-6 address add fd79::2/64 dev eth0 nodad noprefixroute",
        f"route add default via {ROUTER4} dev eth0 proto dhcp metric 100 mtu 1400",
        f"route add 10.80.0.0/16 via {ROUTER4} dev eth0 src 10.77.0.3 table 77",
        "route add 169.254.9.9 dev eth0 scope link proto static",
        "route add 10.81.0.0/16 via 192.0.2.9 dev eth0 onlink",
        f"-6 route add default via {ROUTER6} dev eth0 metric 200 proto static",
        "-6 route add fd80::/48 dev eth0 metric 300 pref high",
    ):
        sh("ip", *line.split())
    # The kernel adds the local route of an address a moment after it.
    eventually(lambda: all(f"local {each} " in local_routes() for each in (HOST6, "fd79::2")))


def local_routes() -> str:
    """Those of IPv6, of all devices."""
    return sh("ip", "-6", "route", "show", "table", "local")


def dumps() -> list[str]:
    """Everything of links, addresses (in their order) and routes, of all tables, but for what changes by itself."""
    found = []
    for link in json.loads(sh("ip", "-json", "-details", "address")):
        name = link["ifname"]
        for number, address in enumerate(link.pop("addr_info")):
            if address.get("valid_life_time") != 0xFFFF_FFFF:
                address["valid_life_time"] = address["preferred_life_time"] = 1
            found.append(f"address {number} of {name}: {sorted(address.items())}")
        for kind in ("info_data", "info_slave_data"):  # timers
            link.get("linkinfo", {}).pop(kind, None)
        found += [f"{name}: {key} = {value}" for key, value in link.items()]
    for family in ("-4", "-6"):
        found += sorted(
            re.sub(r"expires \d+sec", "expires", f"route {line.strip()}")
            for line in sh("ip", family, "route", "show", "table", "all").splitlines()
        )
    return found


def expect_few(lost: list[str], moves: int) -> None:
    """The kernel drops what arrives in the instant in which a port joins a bridge or leaves it, and nothing more.

    A question that is lost is waited for a second long: so the host was away for less than that.
    """
    assert len(lost) <= 2 * moves, lost
    numbers = {tuple(each.split()) for each in lost}
    assert not any((family, str(int(number) + 1)) in numbers for family, number in numbers), lost


def settled() -> None:
    """No address of IPv6 is looked for duplicates of any more."""
    eventually(lambda: "tentative" not in sh("ip", "-6", "address"))
    eventually(lambda: "local fe80" in local_routes())


def eventually(is_so: Callable[[], bool]) -> None:
    eventually_within(PATIENCE_S, is_so)


def eventually_within(limit_s: float, is_so: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _unshare() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    return threading.get_native_id()


def _ask(version: int, end: threading.Event, lost: list[str]) -> None:
    family, protocol = (socket.AF_INET, 1) if version == 4 else (socket.AF_INET6, socket.IPPROTO_ICMPV6)
    host = HOST4 if version == 4 else HOST6
    with socket.socket(family, socket.SOCK_RAW, protocol) as sock:
        number = 0
        while not end.wait(0.002):
            number += 1
            sock.sendto(_echo(version, number), (host, 0))
            if not _answered(sock, version, number):
                lost.append(f"IPv{version} {number}")


def _answered(sock: socket.socket, version: int, number: int) -> bool:
    while select.select([sock], [], [], 1.0)[0]:
        data = sock.recv(2048)
        message = data[20:] if version == 4 else data
        if message[0] == (0 if version == 4 else 129) and message[4:8] == struct.pack("!HH", 7, number & 0xFFFF):
            return True
    return False


def _echo(version: int, number: int) -> bytes:
    message = struct.pack("!BBHHH", 8 if version == 4 else 128, 0, 0, 7, number & 0xFFFF)
    if version == 6:
        return message  # the kernel makes the checksum
    total = sum(struct.unpack("!4H", message))
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:]
