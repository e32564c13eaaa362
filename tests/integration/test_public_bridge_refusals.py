"""What no bridge can take the place of, and what is told instead: each names its option, and changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.netlink.direct import DUMP_ATTEMPTS, Direct
from aetherscale.actors.network.netlink.holdings import Holdings
from aetherscale.actors.network.netlink.uplink import Uplink
from aetherscale.gateways.cli.program import BridgeAsked
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.setup import bridgeguard, bridgetrial
from aetherscale.setup.hostbridge import Bridges
from aetherscale.setup.hostwork import write
from tests.support.cli import run
from tests.support.guest_namespaces import sh
from tests.support.network_namespaces import missing, network_namespace, without_net_admin
from tests.support.uplink_world import HOST4, MAC, ROUTER4, World, dumps, eventually, world

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

HOST = os.readlink("/proc/self/ns/net")
ASKED = BridgeAsked("eth0", "br0")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[World]:
    with network_namespace(), world(tmp_path) as made:
        assert os.readlink("/proc/thread-self/ns/net") != HOST, "or this machine would be changed"
        yield made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def refusal(here: World, root: Path, asked: BridgeAsked = ASKED) -> Refused:
    before = dumps()
    with pytest.raises(Refused) as refused:
        list(Bridges(here.places, guard=here.guard, root=root).set_up(asked, dry_run=False))
    assert dumps() == before
    assert not here.places.trial.exists()
    assert here.guards == []
    assert refused.value.remedy
    return refused.value


def file(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    write(root / path, text)


def index() -> str:
    return sh("ip", "-o", "link", "show", "dev", "eth0").split(":")[0]


@pytest.mark.parametrize(
    ("lines", "asked", "field", "what"),
    [
        ((), BridgeAsked("lo", "br0"), "device", "lo is the loopback of the host"),
        ((), BridgeAsked("eth9", "br0"), "device", "there is no device eth9"),
        (
            ("link add other type bridge", "link set eth0 master other"),
            ASKED,
            "device",
            "eth0 is a port of other already",
        ),
        (("link add other type bridge",), BridgeAsked("other", "br0"), "device", "other is a bridge already"),
        (
            ("tuntap add dev tap0 mode tap", "link set tap0 alias 'aetherscale host1 port 2123456789abcdef'"),
            BridgeAsked("tap0", "br0"),
            "device",
            "tap0 is a device of aetherscale's",
        ),
        (("tuntap add dev tun0 mode tun",), BridgeAsked("tun0", "br0"), "device", "tun0 carries no Ethernet"),
        (("link set eth0 down",), ASKED, "device", "eth0 is down"),
        (
            ("link add br0 type bridge",),
            ASKED,
            "bridge",
            "br0 is a bridge that was not made by host setup",
        ),
        (("tuntap add dev br0 mode tap",), ASKED, "bridge", "br0 is another device"),
        (
            ("route add 10.99.0.0/16 nexthop via 10.77.0.1 dev eth0 nexthop via 10.77.0.9 dev eth0",),
            ASKED,
            "device",
            "eth0 has a route by several devices or by a nexthop object: 10.99.0.0/16",
        ),
        (
            ("address add 10.77.0.9/24 dev eth0 valid_lft 600 preferred_lft 600",),
            ASKED,
            "address",
            "eth0 has 10.77.0.9/24 for a limited time",
        ),
        (
            (),
            BridgeAsked("eth0", "br0", (ip_interface("10.77.0.9/24"),)),
            "gateway",
            "eth0 has a default route of IPv4, which --address alone would take",
        ),
        (
            (),
            BridgeAsked("eth0", "br0", (), (ip_address(ROUTER4),)),
            "gateway",
            "and no address of its family",
        ),
        (
            (),
            BridgeAsked("eth0", "br0", (ip_interface("10.77.0.9/24"),), (ip_address("10.78.0.1"),)),
            "gateway",
            "the router 10.78.0.1 is not a neighbor of 10.77.0.9/24",
        ),
        (
            (),
            BridgeAsked("eth0", "br0", (ip_interface("10.77.0.9/24"),), (ip_address("10.77.0.9"),)),
            "gateway",
            "is not a neighbor",
        ),
        (
            (),
            BridgeAsked(
                "eth0", "br0", (ip_interface("10.77.0.9/24"),), (ip_address("10.77.0.1"), ip_address("10.77.0.2"))
            ),
            "gateway",
            "two routers of IPv4",
        ),
        (
            (),
            BridgeAsked("eth0", "br0", (ip_interface("10.77.0.255/24"),), (ip_address(ROUTER4),)),
            "address",
            "10.77.0.255/24 is no address of a host",
        ),
    ],
)
def test_it_is_refused(
    here: World, root: Path, lines: tuple[str, ...], asked: BridgeAsked, field: str, what: str
) -> None:
    import shlex

    for line in lines:
        sh("ip", *shlex.split(line))
    refused = refusal(here, root, asked)
    assert what in refused.message
    assert refused.message.startswith(f"host setup bridge: --{field}: ")
    assert refused.field == field


def test_a_device_without_a_carrier_is_refused(here: World, root: Path) -> None:
    here.router.sh("ip", "link", "set", "up0", "down")
    eventually(lambda: "NO-CARRIER" in sh("ip", "link", "show", "dev", "eth0"))
    assert "eth0 has no carrier" in refusal(here, root).message


@pytest.mark.parametrize("sign", ["phy80211", "wireless"])
def test_wifi_is_refused(here: World, root: Path, sign: str) -> None:
    file(root, f"sys/class/net/eth0/{sign}/index")
    assert "eth0 is a Wi-Fi device" in refusal(here, root).message


def test_a_device_that_a_program_manages_is_refused(here: World, root: Path) -> None:
    file(root, f"run/NetworkManager/devices/{index()}", "[device]\nmanaged=true\n")
    assert "NetworkManager manages eth0" in refusal(here, root).message
    file(root, f"run/NetworkManager/devices/{index()}", "[device]\nmanaged=false\n")
    file(
        root,
        f"run/systemd/netif/links/{index()}",
        "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/a.network\n",
    )
    assert "systemd-networkd manages eth0" in refusal(here, root).message
    file(root, f"run/systemd/netif/links/{index()}", "ADMIN_STATE=unmanaged\n")
    file(root, "etc/network/interfaces.d/eth0", "auto eth0\niface eth0 inet dhcp\n")
    assert "ifupdown (dhcp in " in refusal(here, root).message
    file(root, "etc/network/interfaces.d/eth0", "auto eth0\niface eth0 inet static\n")
    file(root, "proc/123/cmdline", "/sbin/dhclient\0-4\0-pf\0/run/dhclient.pid\0eth0\0")
    assert "dhclient manages eth0" in refusal(here, root).message
    file(root, "proc/123/cmdline", "/sbin/dhclient\0-4\0eth1\0")
    (step,) = Bridges(here.places, guard=here.guard, root=root).set_up(ASKED, dry_run=True)
    assert step.status == "to do"


def test_a_second_one_is_refused_while_the_first_is_on_trial(here: World, root: Path) -> None:
    bridges = Bridges(here.places, guard=here.guard, root=root)
    list(bridges.set_up(ASKED, dry_run=False))
    with pytest.raises(Refused, match=r"br0 is on trial: [0-9]+ s are left"):
        list(bridges.set_up(BridgeAsked("eth0", "br1"), dry_run=False))
    list(bridges.confirm(dry_run=False))
    with pytest.raises(Refused, match="has br0 in the place of eth0, and not as asked"):
        list(bridges.set_up(BridgeAsked("eth0", "br1"), dry_run=False))
    sh("ip", "address", "delete", f"{HOST4}/24", "dev", "br0")
    with pytest.raises(Refused, match="and not as asked"):
        list(bridges.set_up(ASKED, dry_run=False))
    list(bridges.undo(dry_run=False))
    here.wait_for_guards()


def test_a_process_without_the_capability_is_refused_and_changes_nothing(here: World, root: Path) -> None:
    before = dumps()
    with without_net_admin(), pytest.raises(Refused, match="the kernel refused it") as refused:
        list(Bridges(here.places, guard=lambda places: None, root=root).set_up(ASKED, dry_run=False))
    assert refused.value.reason == Reason.INTERNAL
    assert dumps() == before
    here.places.trial.unlink(missing_ok=True)


def test_a_record_that_is_damaged_is_told(here: World, root: Path) -> None:
    file(here.places.run, "trial.json", "{")
    with pytest.raises(Refused, match=r"trial\.json cannot be read"):
        list(Bridges(here.places, guard=here.guard, root=root).undo(dry_run=False))


def test_without_a_guard_nothing_is_changed(here: World, root: Path) -> None:
    def fails(places: object) -> None:
        raise Refused(Reason.INTERNAL, "no guard")

    before = dumps()
    with pytest.raises(Refused, match="no guard"):
        list(Bridges(here.places, guard=fails, root=root).set_up(ASKED, dry_run=False))
    assert dumps() == before
    assert not here.places.trial.exists()


def test_a_host_that_changes_all_the_while_is_given_up(
    here: World, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel says so by a flag of what it lists (NLM_F_DUMP_INTR)."""
    dump, count = Direct._dump, 0

    def interrupted(self: Direct, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        nonlocal count
        count += 1
        return dump(self, kind, body)[0], False

    monkeypatch.setattr(Direct, "_dump", interrupted)
    assert "it changed while it was read, again and again" in refusal(here, root).message
    assert count == DUMP_ATTEMPTS


def test_a_guard_in_another_namespace_than_the_bridge_is_none(here: World) -> None:
    uplink = Uplink("eth0", 1, MAC, 1480, "br0", Holdings(), Holdings())
    trial = bridgetrial.begun(uplink, 60.0)
    bridgetrial.write_trial(here.places, replace(trial, namespace=trial.namespace + 1))
    places = (here.places.run, here.places.kept, here.places.units)
    assert bridgeguard.main([str(path) for path in places]) == bridgeguard.WRONG_PLACE


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("bridge", 2, "host setup bridge: --device is missing"),
        ("bridge --device eth0 --bridge eth0", 2, "which is the device itself"),
        ("bridge --device eth0/1", 2, "got 'eth0/1', expected the name of a network device"),
        ("bridge --device eth0 --address 10.0.0.1", 2, "expected an address with the length of its prefix"),
        ("bridge --device eth0 --address 10.0.0.1/33", 2, "expected an address with the length of its prefix"),
        ("bridge --device eth0 --gateway router", 2, "expected the address of a router"),
        ("bridge --confirm --device eth0", 2, "takes no other option than --dry-run"),
        ("bridge --confirm --undo", 2, "takes no other option than --dry-run"),
        ("bridge --device eth0 --networks", 2, "--networks is for `host setup` alone"),
        ("--device eth0", 2, "host setup: --device is for the bridge"),
        ("bridges --device eth0", 2, "did you mean: bridge?"),
    ],
)
async def test_what_makes_no_sense_is_refused_as_it_is_typed(line: str, status: int, said: str) -> None:
    got, _, error = await run("host", "setup", *line.split())
    assert (got, said in error) == (status, True), error
