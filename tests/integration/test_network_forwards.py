"""Forwards in the kernel: from everywhere to a guest, both IP families, both protocols, with real stacks."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support import firewalled
from tests.support.forwarded import (
    ORIGINS,
    UPLINK,
    WORLD,
    Flow,
    Forwarded,
    Origin,
    Protocol,
    forward,
    forwarded,
    hears,
    says,
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
WEB, NONE = "a" * 16, "b" * 16
VERSIONS = (4, 6)
PROTOCOLS: tuple[Protocol, ...] = ("tcp", "udp")
ROUTER = {4: "10.64.1.1", 6: "fd00:1::1"}
SEEN = {
    "world": WORLD,
    "host": UPLINK,
    # Their answers would not pass the host otherwise.
    "neighbor": ROUTER,
    "itself": ROUTER,
    "other network": {4: "10.64.2.2", 6: "fd00:2::2"},
}
"""What the guest sees as the source."""


@pytest.fixture
def made() -> Iterator[Forwarded]:
    with forwarded() as world:
        yield world


def tries(made: Forwarded, origin: Origin, version: int, protocol: Protocol, to: str, port: int) -> None:
    """Begin what does not come to anything: whoever listens hears of what is begun later first."""
    client = made.begins(origin, version, protocol, to, port, b"forbidden")
    made.settle(origin)
    client.close()


def begins(
    made: Forwarded, origin: Origin, version: int, protocol: Protocol, server: socket.socket, port: int = 8080
) -> Flow:
    client = made.begins(origin, version, protocol, UPLINK[version], port, b"a question")
    return made.flow(client, server, protocol, b"a question")


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_forward_leads_from_everywhere_to_what_the_groups_allow_and_takes_its_flows_with_it(
    made: Forwarded, origin: Origin, version: int, protocol: Protocol
) -> None:
    server = made.listens(version, protocol, 80)
    made.lead(forward(protocol, 8080, 80))
    # A guest without groups, then one that has none for the guest's port: that of the host is of no account.
    tries(made, origin, version, protocol, UPLINK[version], 8080)
    made.host.group(WEB, f"in:{protocol}:8080")
    made.bear(WEB)
    tries(made, origin, version, protocol, UPLINK[version], 8080)
    made.host.group(WEB, f"in:{protocol}:80")
    flow = begins(made, origin, version, protocol, server)
    assert flow.source == SEEN[origin][version]
    assert flow.client.getpeername()[:2] == (UPLINK[version], 8080)
    made.host.replace()
    flow.goes_on()
    made.lead()
    says(flow.client, b"not any more")
    made.settle(origin)
    assert hears(flow.server) is None
    flow.answers(b"nor this")
    made.settle("itself")
    assert hears(flow.client) is None
    tries(made, origin, version, protocol, UPLINK[version], 8080)
    made.lead(forward(protocol, 8080, 80))
    flow.close()
    begins(made, origin, version, protocol, server)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("origin", ["world", "host", "neighbor"])
def test_a_group_taken_away_ends_what_a_forward_has_led(
    made: Forwarded, origin: Origin, version: int, protocol: Protocol
) -> None:
    server = made.listens(version, protocol, 80)
    made.host.group(WEB, f"in:{protocol}:80")
    made.host.group(NONE)
    made.bear(WEB)
    made.lead(forward(protocol, 8080, 80))
    flow = begins(made, origin, version, protocol, server)
    for groups in ((NONE,), ()):
        made.bear(*groups)
        says(flow.client, b"not any more")
        made.settle(origin)
        assert hears(flow.server) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_one_who_bears_groups_has_the_answers_of_what_a_forward_leads_to(
    made: Forwarded, origin: Origin, version: int
) -> None:
    server = made.listens(version, "udp", 80)
    made.host.group(WEB, "in:udp:80", f"out:udp:8080:to={UPLINK[version]}/{32 if version == 4 else 128}")
    made.bear(WEB)
    if origin in ("neighbor", "other network"):
        made.bear(WEB, to=origin)
    made.lead(forward("udp", 8080, 80))
    begins(made, origin, version, "udp", server).goes_on()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_forward_at_an_address_answers_at_no_other(made: Forwarded, version: int, protocol: Protocol) -> None:
    second = {4: "192.0.2.7", 6: "2001:db8::7"}[version]
    made.host.own("uplink", second, 24 if version == 4 else 64)
    server = made.listens(version, protocol, 80)
    of_host = made.listens(version, protocol, 8080, at="host", address=second)
    made.host.group(WEB, f"in:{protocol}:80-81")
    made.bear(WEB)
    made.lead(forward(protocol, 8080, 80, UPLINK[version]))
    flow = begins(made, "world", version, protocol, server)
    made.flow(made.begins("world", version, protocol, second, 8080, b"to the host"), of_host, protocol, b"to the host")
    begins(made, "neighbor", version, protocol, server)
    # Beside one of all addresses, it is the one that is meant; of the other family there is none.
    made.lead(forward(protocol, 8080, 80, UPLINK[version]), forward(protocol, 8080, 81))
    flow.goes_on()
    other = made.listens(version, protocol, 81)
    made.flow(made.begins("world", version, protocol, second, 8080, b"to all"), other, protocol, b"to all")
    begins(made, "world", version, protocol, server)
    made.lead(forward(protocol, 8080, 81))
    says(flow.client, b"not any more")
    made.settle("world")
    assert hears(flow.server) is None
    begins(made, "world", version, protocol, other)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_forward_at_an_address_is_of_its_family(made: Forwarded, version: int) -> None:
    of_host = made.listens(10 - version, "udp", 8080, at="host")
    made.host.group(WEB, "in:any")
    made.bear(WEB)
    made.lead(forward("udp", 8080, 80, UPLINK[version]))
    begins(made, "world", 10 - version, "udp", of_host)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_port_that_is_to_lead_elsewhere_ends_what_it_has_led(
    made: Forwarded, version: int, protocol: Protocol
) -> None:
    made.host.group(WEB, f"in:{protocol}:80-81")
    made.bear(WEB)
    made.bear(WEB, to="neighbor")
    server, other = made.listens(version, protocol, 80), made.listens(version, protocol, 80, at="neighbor")
    made.lead(forward(protocol, 8080, 80))
    made.lead(forward(protocol, 8081, 80), to="neighbor")
    flow = begins(made, "world", version, protocol, server)
    begins(made, "world", version, protocol, other, 8081).goes_on()
    # In one transaction.
    made.lead(apply=False)
    made.lead(forward(protocol, 8080, 80), to="neighbor")
    says(flow.client, b"not any more")
    made.settle("world")
    assert hears(flow.server) is None
    begins(made, "world", version, protocol, other)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("address", ["", "one"])
def test_what_was_kept_goes_on_and_nothing_begins(
    made: Forwarded, version: int, protocol: Protocol, address: str
) -> None:
    at = UPLINK[version] if address else ""
    server = made.listens(version, protocol, 80)
    made.host.group(WEB, f"in:{protocol}:80")
    made.bear(WEB)
    made.lead(forward(protocol, 8080, 80, at))
    flow = begins(made, "world", version, protocol, server)
    made.lead(forward(protocol, 8080, 80, at, begins=False))
    flow.goes_on()
    tries(made, "world", version, protocol, UPLINK[version], 8080)
    flow.goes_on()
    made.lead()
    says(flow.client, b"not any more")
    made.settle("world")
    assert hears(flow.server) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_the_loopback_of_the_host_and_what_passes_it_are_not_led(made: Forwarded, version: int) -> None:
    made.host.group(WEB, "in:any")
    made.bear(WEB)
    made.lead(forward("udp", 8080, 80))
    loopback = {4: "127.0.0.1", 6: "::1"}[version]
    of_host = made.listens(version, "udp", 8080, at="host", address=loopback)
    made.flow(made.begins("host", version, "udp", loopback, 8080, b"to myself"), of_host, "udp", b"to myself")
    of_world = made.listens(version, "udp", 8080, at="world")
    for origin in ("host", "neighbor", "itself"):
        client = made.begins(origin, version, "udp", WORLD[version], 8080, b"to the world")
        made.flow(client, of_world, "udp", b"to the world")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_an_error_of_the_guest_comes_back(made: Forwarded, origin: Origin, version: int) -> None:
    made.host.group(WEB, "in:udp:80")
    made.bear(WEB)
    made.lead(forward("udp", 8080, 80))
    client = made.begins(origin, version, "udp", UPLINK[version], 8080, b"to a port that nothing listens at")
    with pytest.raises(ConnectionRefusedError):
        client.recv(2048)


@pytest.mark.parametrize("version", VERSIONS)
def test_what_another_program_leads_to_a_guest_is_not_ended(made: Forwarded, version: int) -> None:
    made.host.group(WEB, "in:udp:80")
    made.bear(WEB)
    to = f"{made.web.ipv4}:80" if version == 4 else f"[{made.web.ipv6}]:80"
    made.host.nft.run(
        f"table {'ip' if version == 4 else 'ip6'} others {{\nchain p {{\ntype nat hook prerouting priority -100\n"
        f"udp dport 9090 dnat to {to}\n}}\n}}\n"
    )
    server = made.listens(version, "udp", 80)
    made.lead(forward("udp", 8080, 80))
    flow = begins(made, "world", version, "udp", server, 9090)
    made.lead()
    flow.goes_on()


@pytest.mark.parametrize("version", VERSIONS)
def test_networks_stay_apart_but_for_what_is_led(made: Forwarded, version: int) -> None:
    made.host.group(WEB, "in:udp:80")
    made.bear(WEB)
    server = made.listens(version, "udp", 80)
    address = made.web.ipv4 if version == 4 else made.web.ipv6
    tries(made, "other network", version, "udp", address, 80)
    made.lead(forward("udp", 8080, 80))
    tries(made, "other network", version, "udp", address, 80)
    begins(made, "other network", version, "udp", server).goes_on()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_member_of_a_group_is_not_told_as_one_by_way_of_the_host(made: Forwarded, version: int) -> None:
    """Who comes by a forward is judged by its address."""
    length = 32 if version == 4 else 128
    made.host.group(NONE)
    made.host.group(WEB, f"in:udp:80:from=group/{NONE}", f"in:udp:81:from={ROUTER[version]}/{length}")
    made.bear(NONE, to="neighbor")
    made.bear(WEB)
    made.lead(forward("udp", 8080, 80), forward("udp", 8081, 81))
    of_80, of_81 = made.listens(version, "udp", 80), made.listens(version, "udp", 81)
    tries(made, "neighbor", version, "udp", UPLINK[version], 8080)
    begins(made, "neighbor", version, "udp", of_81, 8081)
    assert hears(of_80) is None
