"""All that can be sent from one end of a topology to the other: the ways there are, and where each of them leads."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_network

from msgspec import Struct

from aetherscale.actors.compute.model.commands import Forward
from aetherscale.actors.network.model.addresses import router_of
from tests.support.questions import Question
from tests.support.topologies import LANS, UPLINK, VERSIONS, Facts, Seat


class Attempt(Struct, frozen=True):
    """A packet to be sent: from where, as whom, to whom, by which MAC, and where it has to arrive with which port."""

    sender: str
    source: str
    to: str
    mac: str
    arrives: str
    number: int | None


class _End(Struct, frozen=True):
    """An end, as a question names it."""

    kind: str
    seats: tuple[Seat, ...] = ()
    address: str = ""

    def version(self) -> int:
        return 0 if not self.address else 6 if ":" in self.address else 4


def _end(facts: Facts, text: str) -> _End:
    if text == "host":
        return _End("host")
    if text.startswith("v"):
        return _End("vm", facts.vms[int(text[1:])].seats)
    for vm in facts.vms:
        for seat in vm.seats:
            if LANS[seat.lan].spec.kind != "bridged" and text in (seat.address(4), seat.address(6)):
                return _End("vm", (seat,), text)
    routers = {str(router_of(prefix)) for lan in LANS[2:5] for v in VERSIONS if (prefix := lan.prefix(v)) is not None}
    of_host = text in routers or text in UPLINK[4] or text in UPLINK[6]
    return _End("host" if of_host else "world", (), text)


def attempts(facts: Facts, question: Question, bridges: list[str]) -> Iterator[Attempt]:
    """All that is sent from one end to the other, in every way there is."""
    one, other = _end(facts, question.source), _end(facts, question.target)
    what, _, number = question.what.partition("/")
    port = int(number) if what != "icmp" else None
    if other.kind == "world" and any(_is_in(seat, other) for seat in one.seats):
        return
    for version in VERSIONS:
        if {one.version(), other.version()} - {0, version}:
            continue
        if other.kind == "host":
            for to in _of_host(facts, one, other, version, (what, port)):
                yield from _to_host(facts, one, to, version, (what, port))
        elif one.kind == "vm":
            for seat in one.seats:
                yield from _of_vm(seat, other, version, port)
        else:
            yield from _of_others(one, other, version, port)


def _is_in(seat: Seat, end: _End) -> bool:
    """Whether an address that nobody has is one of a network: what is sent there comes nowhere."""
    prefix = LANS[seat.lan].prefix(end.version())
    return prefix is not None and ip_address(end.address) in prefix


def _of_vm(seat: Seat, other: _End, version: int, port: int | None) -> Iterator[Attempt]:
    """From a VM to another one, and to the world."""
    source = seat.address(version)
    if source is None:
        return
    router = f"02:bb:00:00:00:{seat.lan:02x}"
    for there in other.seats:
        to = there.address(version)
        if to is not None:
            yield Attempt(seat.tap, source, to, there.mac if there.lan == seat.lan else router, there.tap, port)
    if other.kind == "world":
        if LANS[seat.lan].spec.kind == "bridged":
            name = f"cable{seat.lan}"
            yield Attempt(seat.tap, source, other.address, f"02:cc:00:00:00:{seat.lan:02x}", name, port)
        else:
            yield Attempt(seat.tap, source, other.address, router, "uplink", port)


def _of_others(one: _End, other: _End, version: int, port: int | None) -> Iterator[Attempt]:
    """From the world or the host to a VM."""
    for there in other.seats:
        to, lan = there.address(version), LANS[there.lan]
        if to is None:
            continue
        if one.kind == "world" and lan.spec.kind == "bridged":
            yield Attempt(f"cable{there.lan}", one.address, to, there.mac, there.tap, port)
        elif one.kind == "world":
            yield Attempt("uplink", one.address, to, "02:99:00:00:00:01", there.tap, port)
        else:
            prefix = lan.prefix(version)
            assert prefix is not None
            yield Attempt("host", one.address or str(prefix[1]), to, "", there.tap, port)


def _led(facts: Facts, to: str, sent: tuple[str, int | None]) -> tuple[Seat, Forward] | None:
    """The port that a forward leads to from an address of the host, and the forward."""
    found: tuple[Seat, Forward] | None = None
    for vm in facts.vms:
        first = next((seat for seat in vm.seats if LANS[seat.lan].spec.kind == "nat"), None)
        for forward in vm.forwards:
            if first is not None and (forward.protocol, forward.host_port) == sent and forward.address in ("", to):
                found = (first, forward) if found is None or forward.address else found
    return found


def _of_host(facts: Facts, one: _End, other: _End, version: int, sent: tuple[str, int | None]) -> Iterator[str]:
    """The addresses of the host that are meant."""
    if other.address:
        yield other.address
        return
    at = [f.address for vm in facts.vms for f in vm.forwards if (f.protocol, f.host_port) == sent]
    named = [address for address in at if address]
    if named and "" not in at:
        yield from (each for each in named if (":" in each) == (version == 6))
    elif one.kind == "vm":
        for seat in one.seats:
            if (prefix := LANS[seat.lan].prefix(version)) is not None:
                yield str(prefix[1])
    else:
        yield UPLINK[version][0]


def _to_host(facts: Facts, one: _End, to: str, version: int, sent: tuple[str, int | None]) -> Iterator[Attempt]:
    """To the host, and to where it leads."""
    leads = _led(facts, to, sent)
    arrives, port = (leads[0].tap, leads[1].guest_port) if leads is not None else ("host", sent[1])
    if one.kind == "vm":
        for seat in one.seats:
            source = seat.address(version)
            # Of several networks, a guest asks the host by the address of the network that it sends in.
            own = ip_address(to) in (LANS[seat.lan].prefix(version) or ip_network("0.0.0.0/32"))
            elsewhere = any(ip_address(to) in (lan.prefix(version) or ()) for lan in LANS)
            if source is not None and (own or not elsewhere or len(one.seats) == 1 or one.address):
                yield Attempt(seat.tap, source, to, f"02:bb:00:00:00:{seat.lan:02x}", arrives, port)
    elif leads is not None:
        source = one.address or to
        if one.kind == "host":
            yield Attempt("host", source, to, "", arrives, port)
        else:
            yield Attempt("uplink", source, to, "02:99:00:00:00:01", arrives, port)
