"""A bridge that takes the place of the host's way out, in a namespace: on trial, kept, taken back."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from aetherscale.actors.network.netlink import holdings
from aetherscale.gateways.cli.program import BridgeAsked
from aetherscale.kernel.errors import Refused
from aetherscale.setup import bridgeboot, bridgekeeping
from aetherscale.setup.bridgetrial import read_kept, read_trial
from aetherscale.setup.hostbridge import Bridges
from tests.support.guest_namespaces import PATIENCE_S, sh
from tests.support.network_namespaces import missing, network_namespace
from tests.support.uplink_world import (
    FAR,
    HOST4,
    MAC,
    ROUTER4,
    World,
    dumps,
    eventually,
    expect_few,
    local_routes,
    world,
)

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

HOST = os.readlink("/proc/self/ns/net")
ASKED = BridgeAsked("eth0", "br0")
LONG_S = 600.0


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with network_namespace(), world(tmp_path) as made:
        assert os.readlink("/proc/thread-self/ns/net") != HOST, "or this machine would be changed"
        yield made


def bridges(here: World, period_s: float = LONG_S) -> Bridges:
    return Bridges(here.places, period_s=period_s, guard=here.guard, root=here.places.run / "no-root")


def statuses(bridge: Bridges, asked: BridgeAsked = ASKED) -> list[str]:
    return [step.status for step in bridge.set_up(asked, dry_run=False)]


def of(dump: list[str], device: str) -> list[str]:
    """The addresses and routes of a device, without its name and without what the kernel makes for every device."""
    own = [line for line in dump if line.startswith("address") and f" of {device}:" in line]
    own += [line for line in dump if line.startswith("route") and f"dev {device} " in f"{line} "]
    own = [line for line in own if "ff00::/8" not in line and not line.startswith("route anycast")]
    return sorted(re.sub(rf"\b{device}\b", "DEV", line).replace(" linkdown", "") for line in own)


def test_the_bridge_has_all_that_the_device_had_and_is_away_for_no_second(here: World) -> None:
    before = dumps()
    with here.looked_for() as lost:
        assert statuses(bridges(here)) == ["done"]
        # The kernel adds the local routes of IPv6 a moment after the addresses.
        eventually(lambda: of(dumps(), "br0") == of(before, "eth0"))
        taken = dumps()
        (step,) = bridges(here).undo(dry_run=False)
    here.wait_for_guards()
    assert step.status == "done"
    assert not here.places.lock.exists()
    assert of(taken, "br0") == of(before, "eth0")
    assert of(taken, "eth0") == []
    assert {f"br0: address = {MAC}", "br0: mtu = 1480", "eth0: master = br0"} <= set(taken)
    assert dumps() == before
    expect_few(lost, moves=2)


def test_a_connection_survives_there_and_back(here: World) -> None:
    def connect() -> socket.socket:
        return socket.create_connection((HOST4, 7777), PATIENCE_S, source_address=(FAR, 0))

    with socket.create_server(("0.0.0.0", 7777)) as server:  # noqa: S104
        far = here.router.do(connect)
        near, _ = server.accept()
        near.settimeout(PATIENCE_S)
        ended = threading.Event()

        def echo() -> None:
            while data := near.recv(4096):
                near.sendall(data)
            ended.set()

        threading.Thread(target=echo, daemon=True).start()

        def talk(count: int) -> bool:
            far.settimeout(PATIENCE_S)
            for number in range(count):
                far.sendall(text := b"%8d" % number)
                if far.recv(8, socket.MSG_WAITALL) != text:
                    return False
            return True

        with here.looked_for():
            assert here.router.do(lambda: talk(100))
            statuses(bridges(here))
            assert here.router.do(lambda: talk(100))
            list(bridges(here).undo(dry_run=False))
            assert here.router.do(lambda: talk(100))
        far.close()
        assert ended.wait(PATIENCE_S)
        near.close()
    here.wait_for_guards()


def test_without_confirmation_the_host_is_as_before_each_of_twenty_times(here: World) -> None:
    before = dumps()
    for attempt in range(20):
        assert statuses(bridges(here, period_s=0.3)) == ["done"]
        here.wait_for_guards()
        assert dumps() == before, attempt
        assert read_trial(here.places) is None
        here.expect_reachable()
    assert not here.places.kept.exists()
    assert not here.places.units.exists()


def test_nothing_that_a_boot_sees_is_written_before_the_confirmation(here: World) -> None:
    statuses(bridges(here))
    assert not here.places.kept.exists()
    assert not here.places.units.exists()
    (step,) = bridges(here).confirm(dry_run=False)
    here.wait_for_guards()
    assert step.status == "done"
    kept = read_kept(here.places)
    assert kept is not None
    assert bridgekeeping.is_kept(kept, here.places)
    assert read_trial(here.places) is None
    assert [each.status for each in bridges(here).confirm(dry_run=False)] == ["already"]
    assert statuses(bridges(here)) == ["already"]


def test_a_boot_makes_what_was_confirmed_and_undo_makes_what_was_before(here: World) -> None:
    before = dumps()
    statuses(bridges(here))
    list(bridges(here).confirm(dry_run=False))
    here.wait_for_guards()
    confirmed = dumps()
    # As a boot leaves it where nothing else configures the device, and its index is another.
    sh("ip", "link", "delete", "br0")
    sh("ip", "address", "flush", "dev", "eth0")
    sh("ip", "link", "set", "eth0", "down")
    assert bridgeboot.main([str(here.places.kept)]) == 0
    assert of(dumps(), "br0") == of(confirmed, "br0")
    assert bridgeboot.main([str(here.places.kept)]) == 0, "and again"
    with here.looked_for() as lost:
        here.router.sh("sleep", "0.05")
        assert [each.status for each in bridges(here).undo(dry_run=False)] == ["done"]
    here.wait_for_guards()
    expect_few(lost, moves=1)
    assert dumps() == before
    assert not here.places.kept.exists()
    assert not here.places.kept.parent.exists(), "an empty directory is left"
    assert list(here.places.units.rglob("*.service")) == []
    assert [each.status for each in bridges(here).undo(dry_run=False)] == ["already"]


def test_a_boot_that_cannot_make_the_bridge_leaves_the_host_reachable(here: World) -> None:
    statuses(bridges(here))
    list(bridges(here).confirm(dry_run=False))
    here.wait_for_guards()
    sh("ip", "link", "delete", "br0")
    sh("ip", "address", "flush", "dev", "eth0")
    sh("ip", "link", "add", "br0", "type", "veth", "peer", "name", "other0")
    assert bridgeboot.main([str(here.places.kept)]) == 1
    here.expect_reachable()


def test_a_boot_without_the_device_ends(here: World, monkeypatch: pytest.MonkeyPatch) -> None:
    statuses(bridges(here))
    list(bridges(here).confirm(dry_run=False))
    here.wait_for_guards()
    monkeypatch.setattr(bridgeboot, "DEVICE_S", 0.0)
    sh("ip", "link", "delete", "eth0")
    assert bridgeboot.main([str(here.places.kept)]) == 1


def test_a_route_that_is_lost_meanwhile_is_back_without_confirmation(here: World) -> None:
    before = dumps()
    statuses(bridges(here))
    sh("ip", "route", "delete", "default", "metric", "100")
    with pytest.raises(Refused, match=r"is not as it was set up: route default via 10\.77\.0\.1"):
        list(bridges(here).confirm(dry_run=False))
    here.run_out()
    here.wait_for_guards()
    assert dumps() == before


@pytest.mark.parametrize(
    "line",
    [
        "link delete br0",
        "link set eth0 nomaster",
        "link set br0 down",
        "link set eth0 mtu 1300",
        "address flush dev br0",
    ],
)
def test_whatever_happened_to_the_bridge_meanwhile_all_is_as_before(here: World, line: str) -> None:
    before = dumps()
    statuses(bridges(here))
    sh("ip", *line.split())
    here.run_out()
    here.wait_for_guards()
    assert dumps() == before


def test_what_has_an_end_moves_and_comes_back_and_is_not_kept(here: World) -> None:
    """As addresses and routes from router advertisements, which come anew."""
    sh(
        "ip",
        *["-6", "address", "add", "fd76::2/64", "dev", "eth0", "nodad", "valid_lft", "3600", "preferred_lft", "1800"],
    )
    sh("ip", *["-6", "route", "add", "fd81::/64", "via", "fd77::1", "dev", "eth0", "proto", "ra", "expires", "3600"])
    eventually(lambda: "local fd76::2 " in local_routes())
    before = dumps()
    statuses(bridges(here))
    eventually(lambda: of(dumps(), "br0") == of(before, "eth0"))
    taken = dumps()
    assert of(taken, "br0") == of(before, "eth0")
    assert any("fd81::/64" in line and "expires" in line for line in taken)
    list(bridges(here).confirm(dry_run=False))
    kept = read_kept(here.places)
    assert kept is not None
    addresses = {str(holdings.interface_of(each)) for each in kept.wanted.addresses}
    assert {"fd77::2/64", "fd76::2/64"} & addresses == {"fd77::2/64"}
    assert "fd81::/64" not in {holdings.route_of(each).to for each in kept.wanted.routes}
    list(bridges(here).undo(dry_run=False))
    here.wait_for_guards()
    assert dumps() == before, "what the bridge had by then"


def test_static_addresses_are_those_that_were_typed(here: World) -> None:
    from ipaddress import ip_address, ip_interface

    before = dumps()
    asked = BridgeAsked("eth0", "lan", (ip_interface("10.77.0.50/24"),), (ip_address(ROUTER4),))
    assert statuses(bridges(here), asked) == ["done"]
    taken = of(dumps(), "lan")
    assert f"route default via {ROUTER4} dev DEV proto static" in taken
    addresses = [line for line in taken if line.startswith("address")]
    are_there = [repr(address) in " ".join(addresses) for address in ("10.77.0.50", HOST4, "fd77::2")]
    assert are_there == [True, False, True], "the other family is taken over"
    list(bridges(here).undo(dry_run=False))
    here.wait_for_guards()
    assert dumps() == before
