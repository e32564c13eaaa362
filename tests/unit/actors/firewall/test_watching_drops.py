"""`watch-drops`, asked of a whole node on a simulated host: what is told of packets that are dropped, and to whom."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import pytest

from aetherscale.actors.firewall.model.judge import LAW
from aetherscale.actors.network.model.marks import Drop
from aetherscale.actors.network.model.views import Dropped, Frame
from aetherscale.kernel.calls import Call
from aetherscale.kernel.wire import encode
from tests.support.memory_node import MemoryNode

WORLD: Final = "192.0.2.7"
TCP: Final = Frame(WORLD, "10.64.0.2", "tcp/22", "tcp", 22)


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    """The VMs `web`, which bears a group, and `db`, which bears none, in a network of the kind nat."""
    node = MemoryNode()
    await node.start()
    await good(node, "images", "import-image", source="/x.raw", name="i", ready="none")
    await good(node, "network", "create-network", name="lab", kind="nat")
    await good(node, "firewall", "create-group", name="http", rules=["in:tcp:80", "out:tcp:5432"])
    for name, groups in (("web", ["http"]), ("db", [])):
        await good(node, "compute", "create-vm", image="i", name=name, virtual_network="lab", groups=groups)
    yield node
    await node.close()


async def good(node: MemoryNode, component: str, task: str, **options: Any) -> Any:
    answer = await node.final(component, task, {name.replace("_", "-"): value for name, value in options.items()})
    assert answer["type"] == "result", answer
    return answer


def asked(node: MemoryNode, tenant: str = "default", **options: Any) -> AsyncGenerator[Any, None]:
    """The chunks of an answer that does not end by itself."""
    assert node.node is not None
    body = encode({name.replace("_", "-"): value for name, value in options.items()})
    call = Call(tenant, "firewall", "watch-drops", body, "user:test", "c", False, "corr")
    return node.node.serve["firewall"](call)  # type: ignore[return-value]


async def begun(chunks: AsyncGenerator[Any, None]) -> None:
    async for chunk in chunks:
        if chunk.get("status") == "watching":
            return
    raise AssertionError("the watch has ended")


async def dropped(
    node: MemoryNode, vm: str, kind: str, frame: Frame, other: str = "", *, to_host: bool = False
) -> Dropped:
    view = (await good(node, "compute", "vm-info", vm_id=vm))["vm"]
    other_id = (await good(node, "compute", "vm-info", vm_id=other))["vm"].id if other else ""
    (port,) = view.ports
    return Dropped(
        at_us=1_800_000_000_000_000,
        vm_id=view.id,
        other_id=other_id,
        network_id=port.network_id,
        tap=port.tap,
        kind=kind,
        is_inward=kind == "uninvited",
        is_to_host=to_host,
        frame=frame,
    )


async def told(node: MemoryNode, *drops: Dropped, **options: Any) -> list[Any]:
    """What is told of these, of which the last one has to be told."""
    found: list[Any] = []
    async with aclosing(asked(node, **options)) as chunks:
        await begun(chunks)
        for each in drops:
            node.networks.drop(each)
        async for chunk in chunks:
            found.append(chunk["drop"])
            if found[-1].packet == drops[-1].frame.packet:
                return found
    raise AssertionError(f"the watch has ended after {found}")


async def test_what_the_law_decides_has_the_sentence_of_explain(node: MemoryNode) -> None:
    for source, vm, frame, other in (
        (WORLD, "web", TCP, ""),
        (WORLD, "db", TCP, ""),
        ("db", "web", TCP, "db"),
        (WORLD, "web", Frame(WORLD, "10.64.0.2", "icmp/echo-request", "icmp", None, "echo-request"), ""),
    ):
        (view,) = await told(node, await dropped(node, vm, "uninvited", frame, other))
        asked_of = {"from": source, "to": vm, "port": frame.packet}
        explained = await node.final("firewall", "explain", asked_of)
        assert not explained["passes"]
        assert view.because == explained["because"]
        assert (view.vm, view.direction, view.kind, view.other) == (vm, "in", "uninvited", other or None)
        assert (view.source, view.target, view.packet) == (WORLD, "10.64.0.2", frame.packet)


async def test_what_a_vm_may_not_send_has_the_sentence_about_its_groups(node: MemoryNode) -> None:
    sent = Frame("10.64.0.2", WORLD, "tcp/22", "tcp", 22)
    (view,) = await told(node, await dropped(node, "web", "forbidden", sent))
    assert view.because == f"No rule `out` of the groups of 'web' allows it. {LAW[2]}"
    assert (view.direction, view.source, view.target) == ("out", "10.64.0.2", WORLD)
    # Wherever it leads: a group of the link is in no network of ours.
    mdns = Frame("10.64.0.2", "224.0.0.251", "udp/5353", "udp", 5353)
    (view,) = await told(node, await dropped(node, "web", "forbidden", mdns))
    assert view.because == f"No rule `out` of the groups of 'web' allows it. {LAW[2]}"


async def test_what_the_host_does_not_take_has_the_sentence_of_explain(node: MemoryNode) -> None:
    await good(node, "network", "create-network", name="other", kind="nat", ipv4_prefix="10.99.0.0/24")
    for to, address in (("host", "10.64.0.1"), ("10.99.0.2", "10.99.0.2")):
        sent = Frame("10.64.0.2", address, "tcp/22", "tcp", 22)
        (view,) = await told(node, await dropped(node, "db", "unreachable", sent, to_host=to == "host"))
        explained = await node.final("firewall", "explain", {"from": "db", "to": to, "port": "tcp/22"})
        assert not explained["passes"]
        assert (view.because, view.direction, view.target) == (explained["because"], "out", address)


async def test_what_the_host_sends_from_the_address_of_its_router_is_not_from_elsewhere(node: MemoryNode) -> None:
    router = (await good(node, "network", "network-info", network="lab"))["network"].router[0]
    for vm, number, because in (("web", 22, f"No group of 'web' allows it. {LAW[1]}"), ("db", 80, LAW[0])):
        sent = Frame(router, "10.64.0.2", f"tcp/{number}", "tcp", number)
        (view,) = await told(node, await dropped(node, vm, "uninvited", sent))
        explained = await node.final("firewall", "explain", {"from": "host", "to": vm, "port": f"tcp/{number}"})
        assert (view.because, explained["because"]) == (because, because)


async def test_what_no_rule_of_a_group_has_a_word_for_is_judged_too(node: MemoryNode) -> None:
    (view,) = await told(node, await dropped(node, "web", "uninvited", Frame(WORLD, "10.64.0.2", "protocol 47")))
    assert view.because == f"No group of 'web' allows it. {LAW[1]}"
    reported = Frame("fe80::1", "ff02::16", "icmp/143", "icmp")
    (view,) = await told(node, await dropped(node, "web", "uninvited", reported))
    assert view.because.endswith("as every machine does with IPv6: harmless.")
    (view,) = await told(node, await dropped(node, "web", "uninvited", Frame("", "", "ethertype 0x88cc")))
    assert view.because == "The groups of a VM are about IP alone."


async def test_what_would_pass_by_now_says_so(node: MemoryNode) -> None:
    drop = await dropped(node, "web", "uninvited", TCP)
    await good(node, "firewall", "set-rules", group="http", rules=["in:tcp:22"])
    (view,) = await told(node, drop)
    assert view.because == "By the rules of now it passes. The group 'http' allows it."


@pytest.mark.parametrize("kind", [kind.name.lower() for kind in Drop if kind not in (Drop.UNINVITED, Drop.FORBIDDEN)])
async def test_each_other_kind_has_a_sentence_of_its_own(node: MemoryNode, kind: str) -> None:
    (view,) = await told(node, await dropped(node, "db", kind, TCP))
    assert view.because.startswith(("It", "Its", "Only"))
    assert view.kind == kind


async def test_of_one_vm_nothing_of_others_is_told(node: MemoryNode) -> None:
    last = await dropped(node, "web", "uninvited", Frame(WORLD, "10.64.0.2", "tcp/99", "tcp", 99))
    of_db, of_web = await dropped(node, "db", "uninvited", TCP), await dropped(node, "web", "uninvited", TCP)
    assert [view.vm for view in await told(node, of_db, of_web, last, vm_id="web")] == ["web", "web"]
    assert [view.vm for view in await told(node, of_db, of_web, last)] == ["db", "web", "web"]


async def test_another_tenant_is_told_nothing(node: MemoryNode) -> None:
    async with aclosing(asked(node, tenant="red")) as chunks:
        await begun(chunks)
        node.networks.drop(await dropped(node, "web", "uninvited", TCP))
        for each in node.networks.watching:
            each.finish()
        assert [chunk["type"] async for chunk in chunks] == ["result"]


async def test_who_leaves_watches_no_more(node: MemoryNode) -> None:
    async with aclosing(asked(node)) as first:
        await begun(first)
        async with aclosing(asked(node)) as second:
            await begun(second)
            assert len(node.networks.watching) == 2
        assert len(node.networks.watching) == 1
    assert node.networks.watching == []


async def test_a_vm_that_is_not_there_is_refused_and_so_is_one_that_was_deleted(node: MemoryNode) -> None:
    refused = await node.final("firewall", "watch-drops", {"vm-id": "nobody"})
    assert (refused["error"], refused["details"]["field"]) == ("not-found", "vm-id")
    vm_id = (await good(node, "compute", "vm-info", vm_id="db"))["vm"].id
    await good(node, "compute", "delete-vm", vm_id="db")
    refused = await node.final("firewall", "watch-drops", {"vm-id": vm_id})
    assert refused["message"] == f"no such VM: {vm_id!r} has been deleted"


async def test_a_host_without_networks_is_not_watched(node: MemoryNode) -> None:
    node.networks.lacking = "no CAP_NET_ADMIN"
    refused = await node.final("firewall", "watch-drops")
    assert refused["error"] == "not-implemented"
    assert node.networks.watching == []
