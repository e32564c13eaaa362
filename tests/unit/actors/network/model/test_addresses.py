"""Prefixes and addresses: what is free is found, what cannot work is refused, and each has its reason."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.network.model import addresses
from aetherscale.actors.network.model.addresses import POOL, Prefix
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import ID_PATTERN

LAB = "0123456789abcdef"

ids = st.from_regex(ID_PATTERN, fullmatch=True)
in_pool = st.builds(
    lambda number, bits: IPv4Network((int(POOL.network_address) + number, bits), strict=False),
    st.integers(0, POOL.num_addresses - 1),
    st.integers(11, 32),
)
ipv4_prefixes = st.builds(
    lambda number, bits: IPv4Network((number, bits), strict=False), st.integers(0, 2**32 - 1), st.integers(0, 32)
)
ipv6_prefixes = st.builds(
    lambda number, bits: IPv6Network((number, bits), strict=False), st.integers(0, 2**128 - 1), st.integers(0, 128)
)


@given(ids)
def test_a_network_has_a_unique_local_prefix_of_its_own(network_id: str) -> None:
    prefix = addresses.ula_prefix(network_id)
    assert (prefix.prefixlen, prefix.network_address.packed[0]) == (64, 0xFD)
    assert addresses.parse_ipv6(str(prefix)) == prefix


def test_what_follows_from_an_id_is_the_same_for_ever() -> None:
    assert str(addresses.ula_prefix(LAB)) == "fd00:4e86:88df:4125::/64"
    assert str(addresses.free_ipv4_prefix(LAB, ())) == "10.68.250.0/24"
    assert addresses.mac_of(LAB) == "5e:ce:fa:5e:be:9d"


def test_prefixes_and_macs_of_many_ids_differ() -> None:
    every = [f"{number:016x}" for number in range(10_000)]
    assert len({addresses.ula_prefix(each) for each in every}) == len(every)
    assert len({addresses.mac_of(each) for each in every}) == len(every)


def test_a_tap_has_a_mac_of_its_own_above_those_of_cards() -> None:
    assert addresses.tap_mac_of("02:00:00:00:00:01") == "fe:ff:00:00:00:01"
    for mac in ("fe:00:00:00:00:00", "fe:ff:00:00:00:00", "ff:ff:ff:ff:ff:ff"):
        own = int(addresses.tap_mac_of(mac)[:2], 16)
        assert addresses.tap_mac_of(mac) != mac
        assert own & 0x03 == 0x02, "unicast, locally administered"


@given(ids, st.lists(st.one_of(in_pool, ipv6_prefixes), max_size=20))
def test_a_free_prefix_is_in_the_pool_and_overlaps_nothing(network_id: str, taken: list[Prefix]) -> None:
    try:
        free = addresses.free_ipv4_prefix(network_id, taken)
    except Refused:
        every = POOL.subnets(new_prefix=24)
        assert all(addresses.overlaps(each, taken) is not None for each in every)
        return
    assert free.prefixlen == 24
    assert free.subnet_of(POOL)
    assert addresses.overlaps(free, taken) is None


@given(ids)
def test_the_next_network_of_the_same_start_gets_the_prefix_behind(network_id: str) -> None:
    first = addresses.free_ipv4_prefix(network_id, ())
    second = addresses.free_ipv4_prefix(network_id, (first,))
    distance = (int(second.network_address) - int(first.network_address)) % POOL.num_addresses
    assert distance == 256


def test_the_last_free_prefix_is_found_and_then_there_is_none() -> None:
    last = IPv4Network("10.127.255.0/24")
    rest = [*POOL.address_exclude(last)]
    assert addresses.free_ipv4_prefix(LAB, rest) == last
    with pytest.raises(Refused) as refused:
        addresses.free_ipv4_prefix(LAB, [*rest, IPv4Network("10.127.255.255/32")])
    assert (refused.value.reason, refused.value.field) == (Reason.CONFLICT, "ipv4")


@pytest.mark.parametrize(
    ("prefix", "others", "found"),
    [
        ("10.64.3.0/24", ["10.64.2.0/24", "10.64.4.0/24"], None),
        ("10.64.3.0/24", ["10.64.2.0/24", "10.64.0.0/16"], "10.64.0.0/16"),
        ("10.64.3.0/24", ["10.64.3.255/32"], "10.64.3.255/32"),
        ("10.0.0.0/8", ["::/0", "10.64.3.0/24"], "10.64.3.0/24"),
        ("fd00::/64", ["0.0.0.0/0", "fd00:0:0:1::/64"], None),
        ("fd00::/64", ["fd00::/8"], "fd00::/8"),
        ("10.0.0.0/8", [], None),
    ],
)
def test_an_overlap_names_the_other(prefix: str, others: list[str], found: str | None) -> None:
    overlapping = addresses.overlaps(ip_network(prefix), map(ip_network, others))
    assert (None if overlapping is None else str(overlapping)) == found


@given(ids)
def test_a_mac_is_locally_administered_and_of_one_card(port_id: str) -> None:
    first = int(addresses.mac_of(port_id)[:2], 16)
    assert first & 0b11 == 0b10


def test_ipv6_addresses_are_those_that_a_guest_forms() -> None:
    # RFC 4291, appendix A, has 34-56-78-9A-BC-DE for an example.
    mac = "34:56:78:9a:bc:de"
    assert addresses.link_local_of(mac) == IPv6Address("fe80::3656:78ff:fe9a:bcde")
    assert addresses.ipv6_of(IPv6Network("fd12:0:0:7::/64"), mac) == IPv6Address("fd12::7:3656:78ff:fe9a:bcde")


@given(ids, ids)
def test_the_address_of_a_port_is_in_its_prefix_and_not_the_routers(network_id: str, port_id: str) -> None:
    prefix = addresses.ula_prefix(network_id)
    address = addresses.ipv6_of(prefix, addresses.mac_of(port_id))
    assert address in prefix
    assert address not in (addresses.router_of(prefix), prefix.network_address)


def is_in(taken: Iterable[IPv4Address]) -> Callable[[str], bool]:
    return {str(each) for each in taken}.__contains__


def test_ports_get_the_addresses_behind_the_router_one_by_one_until_none_is_left() -> None:
    prefix = IPv4Network("192.168.7.0/29")
    taken: list[IPv4Address] = []
    for _ in range(4):
        taken.append(addresses.next_ipv4(prefix, is_in(taken)))
    assert [str(each) for each in taken] == [f"192.168.7.{number}" for number in (2, 3, 4, 5)]
    with pytest.raises(Refused) as refused:
        addresses.next_ipv4(prefix, is_in(taken))
    assert refused.value.reason is Reason.CONFLICT
    assert "all 4 addresses of 192.168.7.0/29" in refused.value.message
    taken.remove(IPv4Address("192.168.7.4"))
    assert addresses.next_ipv4(prefix, is_in(taken)) == IPv4Address("192.168.7.4")


@given(st.integers(8, 29), st.sets(st.integers(0, 40)))
def test_an_address_of_a_port_is_never_one_of_those_that_mean_something_else(bits: int, offsets: set[int]) -> None:
    prefix = IPv4Network(("10.0.0.0", bits))
    taken = {IPv4Address(int(prefix.network_address) + offset) for offset in offsets}
    try:
        found = addresses.next_ipv4(prefix, is_in(taken))
    except Refused:
        assert {*prefix} - taken <= {prefix[0], prefix[1], prefix[-2], prefix[-1]}
        return
    assert found in prefix
    assert found not in {*taken, prefix[0], addresses.router_of(prefix), addresses.resolver_of(prefix), prefix[-1]}
    assert all(lower in taken for lower in map(IPv4Address, range(int(prefix[2]), int(found))))


@pytest.mark.parametrize("text", ["10.20.30.0/24", "10.0.0.0/16", "172.16.0.0/16", "192.168.255.248/29"])
def test_a_private_ipv4_prefix_is_taken_as_it_is(text: str) -> None:
    assert addresses.parse_ipv4(text) == IPv4Network(text)


def test_none_is_no_ipv4() -> None:
    assert addresses.parse_ipv4("none") is None


@pytest.mark.parametrize("text", ["fd12:3456:789a:1::/64", "FD12:3456:789A:1::/64", "fd12:3456:789a:0001:0:0:0:0/64"])
def test_a_unique_local_prefix_is_taken_however_it_is_written(text: str) -> None:
    assert addresses.parse_ipv6(text) == IPv6Network(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("0.0.0.0/0", "not of all"),
        ("0.0.0.0/24", "addresses of no network"),
        ("10.20.30.1/24", "no bit set behind the prefix, as 10.20.30.0/24"),
        ("10.20.30.0/8", "no bit set behind the prefix, as 10.0.0.0/8"),
        ("10.0.0.0/15", "/16 or longer"),
        ("10.0.0.0/8", "/16 or longer"),
        ("10.20.30.0/30", "/29 or shorter"),
        ("10.20.30.0/31", "/29 or shorter"),
        ("10.20.30.0/32", "/29 or shorter"),
        ("8.8.8.0/24", "within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16"),
        ("10.0.0.0/7", "within 10.0.0.0/8"),
        ("172.0.0.0/8", "within"),
        ("100.64.0.0/10", "within"),
        ("127.0.0.0/8", "loopback"),
        ("126.0.0.0/7", "loopback"),
        ("128.0.0.0/1", "link-local"),
        ("169.254.7.0/24", "link-local"),
        ("224.0.0.0/24", "multicast"),
        ("239.1.0.0/16", "multicast"),
        ("255.255.255.0/24", "reserved"),
        *((text, "an IPv4 prefix, as") for text in (
            "", "None", "10.20.30.0", "10.20.30.0/", "/24", "10.20.30.0/33", "10.20.30/24", "10.20.30.0/255.255.255.0",
            "10.20.30.0/0.0.0.255", "10.20.030.0/24", "10.20.30.256/24", "10.20.30.0/-1", " 10.20.30.0/24",
            "10.20.30.0/24\n", "１０.20.30.0/24", "10.20.30.0/２４", "fd00::/64", "::ffff:10.20.30.0/120",
            "10.20.30.0/024", "0x0a.20.30.0/24", "10.20.30.0/24; drop", "9" * 100_000,
        )),
    ],
)  # fmt: skip
def test_an_ipv4_prefix_that_cannot_work_is_refused_with_its_field(text: str, why: str) -> None:
    check_refusal(addresses.parse_ipv4, text, "ipv4", why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("::/0", "not of all"),
        ("::/64", "loopback"),
        ("::1/128", "loopback"),
        ("fd12::1/64", "no bit set behind the prefix, as fd12::/64"),
        ("fd12:3456::/63", "/64"),
        ("fd12:3456::/48", "/64"),
        ("fd12:3456::/127", "/64"),
        ("fd12:3456::/128", "/64"),
        ("fc00:1::/64", "within fd00::/8"),
        ("2001:db8:1:2::/64", "within fd00::/8"),
        ("fd00::/7", "no bit set"),
        ("fe80::/64", "link-local"),
        ("fe80:1::/64", "link-local"),
        ("ff02::/64", "multicast"),
        ("::ffff:0:0/96", "IPv4-mapped"),
        ("::ffff:10.0.0.0/104", "IPv4-mapped"),
        ("::fffe:0:0/95", "IPv4-mapped"),
        *((text, "an IPv6 prefix, as") for text in (
            "", "none", "fd12::", "fd12::/", "fd12::/129", "fd12::/64\n", "fd12::%eth0/64", "fe80::%1/64", "fd12:::/64",
            "fd12::g/64", "10.20.30.0/24", "fd12::/ffff::", "fd12::/０64", "[fd12::]/64", "fd12::/0064", "f" * 100_000,
        )),
    ],
)  # fmt: skip
def test_an_ipv6_prefix_that_cannot_work_is_refused_with_its_field(text: str, why: str) -> None:
    check_refusal(addresses.parse_ipv6, text, "ipv6", why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "an address or a prefix, as 10.20.30.0/24 or fd12:3456:789a:1::/64") for text in (
            "", "foo", "10.0.0", "10.0.0.300", "fd12::g", "fe80::1%eth0", "10.0.0.1/", "10.0.0.1/33", "fd12::1/129",
        )),
        ("127.0.0.1", "without loopback addresses"),
        ("ff02::1", "without multicast addresses"),
    ],
)  # fmt: skip
def test_an_address_that_no_guest_may_send_from_is_refused_as_it_was_written(text: str, why: str) -> None:
    check_refusal(partial(addresses.parse_allowed, field="allow-addresses"), text, "allow-addresses", why)


def test_the_refusal_of_an_address_quotes_what_was_written() -> None:
    for text in ("foo", "10.0.0.300", "fd12::g", "127.0.0.1", "ff02::1"):
        with pytest.raises(Refused) as refused:
            addresses.parse_allowed(text, "allow-addresses")
        assert refused.value.message.startswith(f"got {text!r}, expected ")


def test_that_a_network_has_no_ipv6_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(Refused) as refused:
        addresses.parse_ipv6("none", field="ipv6-prefix")
    assert refused.value.message.endswith("every network has IPv6")
    assert refused.value.remedy == ("leave it out: the network then has a prefix of its own",)


def check_refusal(parse: Callable[[str], Prefix | None], text: str, field: str, why: str) -> None:
    with pytest.raises(Refused) as refused:
        parse(text)
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, field)
    assert why in refused.value.message
    assert refused.value.message.startswith("got ")
    assert len(refused.value.message) < 300


def test_where_the_network_is_the_hosts_own_its_prefixes_may_be_public_and_nothing_more() -> None:
    assert addresses.parse_ipv4("198.51.100.0/24", may_be_public=True) == IPv4Network("198.51.100.0/24")
    assert addresses.parse_ipv6("2001:db8:1:2::/64", may_be_public=True) == IPv6Network("2001:db8:1:2::/64")
    for text in ("127.0.0.0/8", "224.0.0.0/24", "198.51.100.1/24", "0.0.0.0/0", "198.51.100.0/31"):
        with pytest.raises(Refused, match="got"):
            addresses.parse_ipv4(text, may_be_public=True)
    for text in ("::/0", "::ffff:0:0/96", "fe80::/64", "2001:db8::/32", "2001:db8::1/64"):
        with pytest.raises(Refused, match="got"):
            addresses.parse_ipv6(text, may_be_public=True)


@given(st.text(max_size=60))
def test_any_text_is_a_prefix_or_refused(text: str) -> None:
    for parse in (addresses.parse_ipv4, addresses.parse_ipv6):
        with suppress(Refused):
            parse(text)


@given(st.one_of(ipv4_prefixes, ipv6_prefixes))
def test_a_prefix_that_is_taken_is_private_and_overlaps_nothing_special(prefix: Prefix) -> None:
    parse = addresses.parse_ipv4 if prefix.version == 4 else addresses.parse_ipv6
    try:
        found = parse(str(prefix))
    except Refused:
        return
    assert found == prefix
    assert not any((prefix.is_loopback, prefix.is_multicast, prefix.is_link_local, prefix.is_unspecified))
    assert prefix.is_private


def test_the_field_is_the_one_that_the_caller_has() -> None:
    with pytest.raises(Refused) as refused:
        addresses.parse_ipv4("x", field="ports.0.ipv4")
    assert refused.value.field == "ports.0.ipv4"
