"""Ports of the host that lead to guests, decided by a whole node on a simulated host: reserved, shown and refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aetherscale.actors.compute.model import commands, events
from aetherscale.actors.compute.model.commands import MAX_PUBLISHED
from aetherscale.actors.compute.model.effects import PublishedPort
from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.actors.compute.model.publishing import host_port_key, parse_published
from aetherscale.kernel.errors import Refused
from tests.support.imaged_node import IMAGE, node
from tests.support.memory_node import PATIENCE_S, MemoryNode

__all__ = ["node"]


async def vm(node: MemoryNode, name: str, *publish: str, **options: Any) -> Any:
    return await node.final("compute", "create-vm", {"image": "i", "name": name, "publish": list(publish), **options})


async def deleted(node: MemoryNode, name: str) -> None:
    gone = await node.final("compute", "delete-vm", {"vm-id": name, "kill": True})
    assert gone["type"] == "result", gone


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("8080:80", PublishedPort("tcp", "127.0.0.1", 8080, 80)),
        ("8080:80/tcp", PublishedPort("tcp", "127.0.0.1", 8080, 80)),
        ("1:65535", PublishedPort("tcp", "127.0.0.1", 1, 65535)),
        ("0.0.0.0:8080:80", PublishedPort("tcp", "0.0.0.0", 8080, 80)),  # noqa: S104 - nothing is bound
        ("192.0.2.9:5353:53/udp", PublishedPort("udp", "192.0.2.9", 5353, 53)),
        ("0.0.0.0:5353:53/udp", PublishedPort("udp", "0.0.0.0", 5353, 53)),  # noqa: S104 - nothing is bound
    ],
)
def test_a_port_is_open_to_the_host_alone_unless_an_address_is_named(text: str, port: PublishedPort) -> None:
    assert parse_published([text], host_loopback=False) == [port]


BAD = [
    "", "80", ":", "8080:", ":80", "a:b", "8080:80/", "8080:80/icmp", "8080:80/TCP", "0:80", "8080:0", "65536:80",
    "8080:65536", "99999999999999999999:80", "-1:80", "+1:80", " 8080:80", "8080:80\n", "8080 :80", "8o8o:80",
    "\u0661:80", "localhost:8080:80", "127.0.0.1:8080", "127.0.0.1::80", ":8080:80", "127.1:8080:80",
    "127.0.0.01:8080:80", "::1:8080:80", "[::1]:8080:80", "224.0.0.1:8080:80", "255.255.255.255:8080:80",
    "256.0.0.1:8080:80", "240.0.0.1:8080:80", "0.0.0.1:8080:80", "127.0.0.1/8:8080:80", "8080-8090:80",
    "127.0.0.1,x=y:8080:80", "tcp:127.0.0.1:8080:80", "x" * 64, "x" * 65,
]  # fmt: skip


@pytest.mark.parametrize("text", BAD)
async def test_what_is_no_port_is_refused_with_its_field(node: MemoryNode, text: str) -> None:
    refused = await vm(node, "web", text)
    assert (refused["code"], refused["details"]["field"].partition("[")[0]) == (400, "publish"), refused
    assert not [each for each in await node.events() if each.stream.startswith("vm-")]


async def test_more_ports_than_a_vm_can_have_are_refused_with_their_field(node: MemoryNode) -> None:
    for many in (MAX_PUBLISHED + 1, 1000):
        refused = await vm(node, "web", *(f"{8000 + number}:80" for number in range(many)))
        assert (refused["code"], refused["details"]["field"]) == (400, "publish")
    made = await vm(node, "web", *(f"{8000 + number}:80" for number in range(MAX_PUBLISHED)))
    assert len(made["vm"].publish) == MAX_PUBLISHED


@pytest.mark.parametrize("twice", [["8080:80", "8080:81"], ["8080:80", "8080:80"], ["8080:80", "0.0.0.0:8080:80/tcp"]])
async def test_one_port_of_the_host_given_twice_is_refused(node: MemoryNode, twice: list[str]) -> None:
    refused = await vm(node, "web", *twice)
    assert (refused["code"], refused["message"]) == (400, "the port 8080/tcp of the host is given twice")


async def test_one_number_is_a_port_of_tcp_and_one_of_udp_and_two_may_lead_to_one_of_the_guest(
    node: MemoryNode,
) -> None:
    made = await vm(node, "web", "8080:80", "0.0.0.0:8080:80/udp", "8081:80")
    assert [(port.host_port, port.protocol) for port in made["vm"].publish] == [
        (8080, "tcp"), (8080, "udp"), (8081, "tcp"),
    ]  # fmt: skip


async def test_a_port_of_udp_on_the_loopback_is_refused_unless_the_guest_reaches_that(node: MemoryNode) -> None:
    for text in ("5353:53/udp", "127.0.0.2:5353:53/udp"):
        refused = await vm(node, "dns", text)
        assert (refused["code"], refused["details"]["field"]) == (400, "publish")
        assert "would get no answer" in refused["message"]
        assert "0.0.0.0:5353:53/udp" in refused["details"]["hint"]
    made = await vm(node, "dns", "5353:53/udp", **{"host-loopback": True})
    assert made["vm"].host_loopback
    assert made["vm"].publish == [PublishedPort("udp", "127.0.0.1", 5353, 53)]


async def test_a_port_that_another_vm_has_is_refused_by_its_name_until_that_is_deleted(node: MemoryNode) -> None:
    await vm(node, "web", "8080:80")
    # On whatever address: one that is open on all of them needs each.
    for text in ("8080:80", "0.0.0.0:8080:22", "192.0.2.9:8080:80"):
        refused = await vm(node, "db", text)
        assert (refused["code"], refused["message"]) == (409, "the VM 'web' has the port 8080/tcp of the host")
        assert refused["details"]["field"] == "publish"
    assert (await vm(node, "dns", "192.0.2.9:8080:80/udp"))["type"] == "result"
    stopped = await node.final("compute", "stop-vm", {"vm-id": "web", "kill": True})
    assert stopped["type"] == "result"
    assert (await vm(node, "db", "8080:80"))["code"] == 409, "a stopped VM keeps its port"
    await deleted(node, "web")
    assert (await vm(node, "db", "8080:80"))["type"] == "result"


async def test_a_port_of_another_tenant_is_refused_without_the_name_of_its_vm(node: MemoryNode) -> None:
    await vm(node, "secret", "8080:80")
    asked = {"image": "i", "name": "web", "publish": ["8080:80"]}
    await node.final("images", "import-image", IMAGE, tenant="blue")
    refused = await node.final("compute", "create-vm", asked, tenant="blue")
    assert (refused["code"], refused["message"]) == (409, "a VM of another tenant has the port 8080/tcp of the host")


async def test_of_many_that_ask_for_one_port_at_once_one_gets_it(node: MemoryNode) -> None:
    ends = await asyncio.gather(*(vm(node, f"v{number}", "8080:80", "9090:90") for number in range(20)))
    assert sorted(end["type"] for end in ends) == ["error"] * 19 + ["result"]
    (won,) = (end["vm"].name for end in ends if end["type"] == "result")
    said = {end["message"] for end in ends if end["type"] == "error"}
    assert said == {f"the VM {won!r} has the port 8080/tcp of the host"}


@pytest.mark.parametrize(
    ("options", "code", "field"),
    [({"publish": ["8080:80"]}, 501, "publish"), ({"host-loopback": True}, 400, "host-loopback")],
)
async def test_a_vm_in_a_network_has_neither(node: MemoryNode, options: dict[str, Any], code: int, field: str) -> None:
    made = await node.final("network", "create-network", {"name": "lab"})
    assert made["type"] == "result"
    asked = {"image": "i", "name": "web", "virtual-network": "lab", **options}
    # Where the network is missing, it would be made in vain.
    for network in ("lab", "missing", ["lab"]):
        refused = await node.final("compute", "create-vm", {**asked, "virtual-network": network})
        assert (refused["code"], refused["details"]["field"]) == (code, field)
        assert "leave out one of the two" in refused["details"]["hint"]
    # An empty list is no network.
    assert (await node.final("compute", "create-vm", {**asked, "virtual-network": []}))["type"] == "result"


async def test_a_port_that_a_program_has_fails_the_start_once_and_nothing_is_left(node: MemoryNode) -> None:
    node.host.taken_ports.add("tcp-8080")
    failed = await vm(node, "web", "8080:80")
    assert failed["message"].endswith("the port 8080/tcp of the host is taken by another program"), failed
    async with asyncio.timeout(PATIENCE_S):
        while (await node.final("compute", "vm-info", {"vm-id": "web"})).get("code") != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    failures = [each.event for each in await node.events() if isinstance(each.event, events.VmStepFailed)]
    assert [(failure.step, failure.retry_at) for failure in failures] == [("booting", None)]
    node.host.taken_ports.clear()
    assert (await vm(node, "web", "8080:80"))["type"] == "result"
    assert node.host.leads_to("tcp-8080") is not None


async def test_a_vm_keeps_its_ports_through_stops_and_starts_of_it_and_of_the_node(node: MemoryNode) -> None:
    made = (await vm(node, "web", "8080:80"))["vm"]
    assert not made.host_loopback
    await node.final("compute", "stop-vm", {"vm-id": "web", "kill": True})
    assert node.host.leads_to("tcp-8080") is None
    await node.close()
    await node.start()
    started = await node.final("compute", "start-vm", {"vm-id": "web"})
    assert started["vm"].publish == made.publish
    assert node.host.leads_to("tcp-8080") == made.id
    assert (await vm(node, "db", "8080:80"))["code"] == 409


def test_what_was_requested_by_an_earlier_version_reaches_no_loopback_and_publishes_nothing() -> None:
    spec = commands.VmSpec("web", "1" * 16, "tiny", "raw", 1, "channel", 1, 64, 64, "never", True, {})
    assert (spec.publish, spec.host_loopback) == ([], False)
    assert "hostport" in VM_KIND.keys


def test_a_key_is_of_a_protocol_and_a_port() -> None:
    (one,) = parse_published(["8080:80"], host_loopback=False)
    assert host_port_key(one) == "tcp-8080"
    with pytest.raises(Refused):
        parse_published(["8080:80", "127.0.0.2:8080:80"], host_loopback=False)
