"""Where a download may lead to, whatever the name or the spelling."""

from __future__ import annotations

import socket
from ipaddress import ip_network
from typing import Any

import pytest

from aetherscale.actors.images.fetching.addresses import Forbidden, connect, is_allowed, require_for_proxy

PUBLIC = [
    "9.9.9.9",
    "1.1.1.1",
    "2620:fe::fe",
    "2001:4860:4860::8888",
    "::ffff:9.9.9.9",
    "64:ff9b::909:909",
    "2002:909:909::",
]
OURS = [
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),  # noqa: S104 - nothing is bound
    *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1"),
    *("255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "ff0e::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1"),
    *("2002:7f00:1::", "2002:a00:1::", "2001:db8::1", "2001::1", "100::1", "nonsense", "", "127.1"),
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_reached(address: str) -> None:
    assert is_allowed(address, ())


@pytest.mark.parametrize("address", OURS)
def test_what_is_not_public_is_not_reached(address: str) -> None:
    assert not is_allowed(address, ())
    assert not is_allowed(address, (ip_network("203.0.113.0/24"), ip_network("2001:db8:ffff::/48")))


def test_a_setting_allows_a_network_and_no_other() -> None:
    networks = (ip_network("10.1.0.0/16"), ip_network("::1/128"))
    assert is_allowed("10.1.255.255", networks)
    assert is_allowed("::ffff:10.1.0.0", networks)
    assert is_allowed("::1", networks)
    assert not is_allowed("10.2.0.0", networks)
    assert not is_allowed("10.0.255.255", networks)
    assert not is_allowed("127.0.0.1", networks)
    assert is_allowed("9.9.9.9", networks)


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST.", "a.localhost", "127.0.0.1", "127.1", "0x7f000001", "2130706433", "::1", "[::1]"]
)
def test_what_a_proxy_is_asked_for_is_judged_by_its_words(host: str) -> None:
    with pytest.raises(Forbidden):
        require_for_proxy(host, ())
    require_for_proxy(host, (ip_network("127.0.0.0/8"), ip_network("::1/128")))


@pytest.mark.parametrize("host", ["images.example", "9.9.9.9", "localhost.example", "2620:fe::fe"])
def test_a_proxy_may_be_asked_for_public_names(host: str) -> None:
    require_for_proxy(host, ())


def test_the_address_that_was_judged_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of which the second look-up says something else, and one with an address of each kind."""
    looked_up: list[str] = []
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        looked_up.append(host)
        addresses = ["127.0.0.1"] if len(looked_up) > 1 else ["10.0.0.1", "127.0.0.2"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(Forbidden, match=r"rebinding\.example"):
        connect(("rebinding.example", port), 5, (ip_network("127.0.0.1/32"),))
    assert looked_up == ["rebinding.example"]
    looked_up.clear()
    with listening, socket.create_server(("127.0.0.2", port)) as allowed:
        connection = connect(("mixed.example", port), 5, (ip_network("127.0.0.2/32"),))
        with connection:
            assert connection.getpeername() == ("127.0.0.2", port)
        allowed.accept()[0].close()
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            listening.accept()
