"""Whether the host itself listens at a port that a forward is to have, as the kernel's tables say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from aetherscale.actors.compute.model.effects import Forward
from aetherscale.actors.compute.qemu.hostports import require_free
from aetherscale.kernel.errors import Reason, Refused


@pytest.fixture(params=["tcp", "udp"])
def protocol(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(params=["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104
def listener(request: pytest.FixtureRequest, protocol: str) -> Iterator[tuple[str, int]]:
    """The address and the port that a program of the host has."""
    family = socket.AF_INET6 if ":" in request.param else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM) as opened:
        opened.bind((request.param, 0))
        if protocol == "tcp":
            opened.listen(1)
        yield request.param, opened.getsockname()[1]


def forward(protocol: Any, port: int, address: str = "") -> Forward:
    return Forward("1" * 16, protocol, address, port, 80)


def test_a_forward_takes_no_port_that_a_program_listens_at(listener: tuple[str, int], protocol: str) -> None:
    with pytest.raises(Refused, match="a program of the host listens at the port") as refused:
        require_free(forward(protocol, listener[1]))
    assert refused.value.reason is Reason.CONFLICT
    require_free(forward("udp" if protocol == "tcp" else "tcp", listener[1]))


def test_with_an_address_it_is_about_that_one(listener: tuple[str, int], protocol: str) -> None:
    address, port = listener
    for mine in ("127.0.0.1", "::1"):
        if address in (mine, "0.0.0.0", "::"):  # noqa: S104
            with pytest.raises(Refused):
                require_free(forward(protocol, port, mine))
        else:
            require_free(forward(protocol, port, mine))


def test_a_connection_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as own:
        require_free(forward("tcp", own.getsockname()[1]))


@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77"])
def test_an_address_of_others_is_refused(address: str) -> None:
    with pytest.raises(Refused, match=f"got {address}, expected an address of this host") as refused:
        require_free(forward("tcp", 8080, address))
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "host-address")
