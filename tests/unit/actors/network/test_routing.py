"""Forwarding and router advertisements, read from made-up files of a kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from aetherscale.actors.network import routing
from aetherscale.actors.network.routing import IPV4, IPV6, Routing, accept_ra

ANY, HOST = "0" * 32, "fd000000000000000000000000000002"
LINK_LOCAL = "fe80000000000000000000000000000a"
ADVERTISED, STATIC = "00450003", "00000003"


def route(to: str, bits: str, flags: str, device: str) -> str:
    """A line of /proc/net/ipv6_route."""
    return f"{to} {bits} {ANY} 00 {LINK_LOCAL} 00000400 00000002 00000000 {flags} {device:>8}\n"


def address(text: str, scope: str, flags: str, device: str) -> str:
    """A line of /proc/net/if_inet6."""
    return f"{text} 04 40 {scope} {flags} {device:>8}\n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host that forwards nothing, and has no device."""
    for path in (IPV4, IPV6):
        setting(tmp_path, path, "0")
    (tmp_path / "thread-self/net").mkdir(parents=True)
    return tmp_path


def setting(proc: Path, path: str, value: str) -> None:
    file = proc / "sys" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{value}\n")


def routes(proc: Path, *lines: str) -> None:
    (proc / "thread-self/net/ipv6_route").write_text("".join(lines))


def addresses(proc: Path, *lines: str) -> None:
    (proc / "thread-self/net/if_inet6").write_text("".join(lines))


def test_a_default_route_from_an_advertisement_is_heard(proc: Path) -> None:
    routes(proc, route(ANY, "00", ADVERTISED, "eth0"))
    setting(proc, accept_ra("eth0"), "1")
    assert routing.routing(proc) == Routing(False, False, ("eth0",))


@pytest.mark.parametrize(
    "line",
    [
        route(ANY, "00", STATIC, "eth0"),
        route(HOST, "40", ADVERTISED, "eth0"),
        route(ANY, "08", ADVERTISED, "eth0"),
    ],
    ids=["static", "a prefix", "not the default"],
)
def test_no_other_route_is(proc: Path, line: str) -> None:
    routes(proc, line)
    setting(proc, accept_ra("eth0"), "1")
    assert routing.routing(proc).hearing == ()


@pytest.mark.parametrize(
    ("line", "heard"),
    [
        (address(HOST, "00", "00", "eth0"), ("eth0",)),
        (address(HOST, "00", "01", "eth0"), ("eth0",)),  # a temporary one, RFC 8981
        (address(HOST, "00", "80", "eth0"), ()),
        (address(LINK_LOCAL, "20", "00", "eth0"), ()),
    ],
    ids=["for a time", "temporary", "permanent", "of the link"],
)
def test_an_address_for_a_time_is_heard_too(proc: Path, line: str, heard: tuple[str, ...]) -> None:
    """Its default route is gone already, where somebody turned forwarding on before."""
    addresses(proc, line)
    setting(proc, accept_ra("eth0"), "1")
    assert routing.routing(proc).hearing == heard


@pytest.mark.parametrize("value", ["0", "2"])
def test_a_device_that_hears_never_or_always_is_left_alone(proc: Path, value: str) -> None:
    routes(proc, route(ANY, "00", ADVERTISED, "eth0"))
    setting(proc, accept_ra("eth0"), value)
    assert routing.routing(proc).hearing == ()


@pytest.mark.parametrize(("v4", "v6"), [("0", "0"), ("1", "0"), ("0", "1"), ("1", "1")])
def test_each_family_is_forwarded_by_itself(proc: Path, v4: str, v6: str) -> None:
    setting(proc, IPV4, v4)
    setting(proc, IPV6, v6)
    assert routing.routing(proc) == Routing(v4 == "1", v6 == "1", ())


def test_a_host_without_ipv6_has_none(proc: Path) -> None:
    (proc / "sys" / IPV6).unlink()
    seen = routing.routing(proc)
    assert seen == Routing(False, None, ())
    assert routing.wanted(seen, also=("eth0",)) == [(IPV4, "1")]


def test_devices_hear_before_the_host_forwards() -> None:
    seen = Routing(True, False, ("wan1",))
    assert routing.wanted(seen, also=("eth0.100", "wan1")) == [
        (accept_ra("eth0.100"), "2"),
        (accept_ra("wan1"), "2"),
        (IPV4, "1"),
        (IPV6, "1"),
    ]


def test_a_device_with_a_dot_in_its_name_is_written_with_slashes() -> None:
    assert routing.written(accept_ra("eth0")) == "net.ipv6.conf.eth0.accept_ra"
    assert routing.written(accept_ra("eth0.100")) == "net/ipv6/conf/eth0.100/accept_ra"


def test_this_host_is_read() -> None:
    assert routing.routing().ipv4 is not None
    assert all(routing.value(accept_ra(device)) is not None for device in routing.advertised())
