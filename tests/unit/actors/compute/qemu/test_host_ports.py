"""The ports of the host that are to lead to a guest, tried before QEMU is started."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.qemu import hostports
from aetherscale.actors.compute.qemu.faults import not_started
from aetherscale.kernel.fault import Fault
from tests.support.nats_server import free_port


def tcp(port: int, address: str = "127.0.0.1") -> PublishedPort:
    return PublishedPort("tcp", address, port, 80)


def udp(port: int, address: str = "127.0.0.1") -> PublishedPort:
    return PublishedPort("udp", address, port, 53)


def test_ports_that_are_free_are_left_as_they_are() -> None:
    port = free_port()
    for _ in range(2):
        hostports.require([tcp(port), udp(port), tcp(port, "127.0.0.2")])
    with socket.create_server(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize(("has", "wants"), [("127.0.0.1", "127.0.0.1"), ("", "127.0.0.1"), ("127.0.0.1", "0.0.0.0")])  # noqa: S104
def test_a_port_that_a_program_has_is_told_by_its_number(kind: int, has: str, wants: str) -> None:
    with socket.socket(socket.AF_INET, kind) as other:
        other.bind((has, 0))
        if kind == socket.SOCK_STREAM:
            other.listen()
        port = other.getsockname()[1]
        wanted = tcp(port, wants) if kind == socket.SOCK_STREAM else udp(port, wants)
        with pytest.raises(Fault) as raised:
            hostports.require([wanted])
    what = f"the port {port}/{wanted.protocol} of the host is taken by another program"
    assert raised.value.reason == f"{what}, on {wants} or on all addresses"
    assert raised.value.remedy == f"see which: ss -lnp 'sport = :{port}'"
    assert not raised.value.retryable
    hostports.require([wanted])


def test_connections_of_a_run_before_are_not_in_the_way() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
    # The side that closes first is the one that waits: TIME_WAIT, at the port.
    served.close()
    client.close()
    hostports.require([tcp(port)])


def test_an_address_that_the_host_has_not_is_told() -> None:
    with pytest.raises(Fault) as raised:
        hostports.require([tcp(free_port(), "192.0.2.77")])
    assert "cannot be opened on 192.0.2.77, which is no address of this host" in raised.value.reason
    assert not raised.value.retryable


@pytest.mark.parametrize(("first", "port"), [("1024", 1023), ("8080", 8079), ("", 1023)])
def test_a_port_that_needs_a_privilege_is_told_with_what_to_do(
    first: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = tmp_path / "net" / "ipv4" / "ip_unprivileged_port_start"
    says.parent.mkdir(parents=True)
    if first:
        says.write_text(f"{first}\n")
    monkeypatch.setattr(hostports, "_FIRST_FREE", says)
    with pytest.raises(Fault) as raised:
        hostports.require([tcp(port)])
    assert f"no privilege to open the port {port} of the host, nor any below {first or 1024}" in raised.value.reason
    assert raised.value.remedy.endswith(f"sysctl -w net.ipv4.ip_unprivileged_port_start={port}")
    assert not raised.value.retryable
    says.write_text(str(port))
    if port >= 1024:
        hostports.require([tcp(port)])


def test_what_is_taken_in_the_moment_before_qemu_has_it_is_told_as_well() -> None:
    tail = "qemu-system-x86_64: -netdev {...}: Could not set up host forwarding rule 'udp:0.0.0.0:5353-10.0.2.15:53'"
    fault = not_started("gone", (1, None), "tcg", tail)
    assert fault.reason == "the port 5353/udp of the host could not be opened on 0.0.0.0"
    assert fault.log_tail == tail
    assert not_started("gone", (1, None), "tcg", "other").reason == "QEMU ended at its start with exit code 1"
