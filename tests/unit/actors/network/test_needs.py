"""What `doctor` says of networks, for every host that was made up, and for this one."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aetherscale.actors.network import needs
from aetherscale.actors.network.needs import Seen, judge
from aetherscale.actors.network.routing import Routing
from aetherscale.kernel.findings import Finding
from aetherscale.settings import Settings

GOOD = Seen(
    is_service=False,
    may_administer=True,
    tun_errno=0,
    has_bridges=True,
    may_write_settings=True,
    nft="",
    chains="",
    tables={},
    dnsmasq="/usr/sbin/dnsmasq",
    namespaces="",
    forbidding=(),
    routing=Routing(True, True, ()),
)
DOCKER = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\n"
UNIT = "sudo aetherscale host setup --networks; if it is missing still: systemctl cat aetherscale.service"
CLONE = "kernel/unprivileged_userns_clone"
APPARMOR = "kernel/apparmor_restrict_unprivileged_userns"


def told(**changed: Any) -> dict[str, Finding]:
    """The findings of a good host but for this, by their check."""
    found = list(judge(msgspec.structs.replace(GOOD, **changed)))
    by_check = {each.check: each for each in found}
    assert len(by_check) == len(found)
    return by_check


def test_a_host_that_has_everything_is_well() -> None:
    found = told()
    assert list(found) == ["networks", "forwarding", "other filters"]
    assert {each.status for each in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("check", "changed", "why", "remedy"),
    [
        (
            "networks",
            {"may_administer": False},
            "this process does not have the capability CAP_NET_ADMIN",
            "the node needs CAP_NET_ADMIN: ",
        ),
        (
            "networks",
            {"may_administer": False, "is_service": True},
            "aetherscale.service does not have the capability CAP_NET_ADMIN",
            UNIT,
        ),
        ("tun", {"tun_errno": errno.EACCES}, "the node may not open /dev/net/tun", "chmod 666 /dev/net/tun, "),
        ("tun", {"tun_errno": errno.EPERM}, "the node may not open /dev/net/tun", "chmod 666 /dev/net/tun, "),
        (
            "tun",
            {"tun_errno": errno.ENOENT},
            "/dev/net/tun cannot be opened: No such file",
            "load the module: modprobe tun",
        ),
        (
            "networks of the host",
            {"is_another": True},
            "another node has the networks of this host",
            "stop that node, or have the networks made there: ",
        ),
        ("bridge", {"has_bridges": False}, "this kernel has no bridges", "load the module: modprobe bridge"),
        (
            "settings of devices",
            {"may_write_settings": False},
            "/proc/sys/net/ipv6/conf/default/accept_ra cannot be written",
            "the node must be able to write below /proc/sys/net",
        ),
        ("settings of devices", {"may_write_settings": False, "is_service": True}, "cannot be written", UNIT),
        (
            "nft",
            {"nft": "libnftables.so.1 cannot be loaded"},
            "libnftables.so.1 cannot be loaded",
            "apt-get install --no-install-recommends nftables; modprobe nf_tables",
        ),
        (
            "dnsmasq",
            {"dnsmasq": ""},
            "dnsmasq is not installed",
            "apt-get install --no-install-recommends dnsmasq-base",
        ),
        (
            "namespaces",
            {"namespaces": "No space left", "forbidding": ("user/max_user_namespaces", CLONE)},
            "No space left",
            "sysctl -w user.max_user_namespaces=15000 kernel.unprivileged_userns_clone=1",
        ),
        (
            "namespaces",
            {"namespaces": "Operation not permitted", "forbidding": (APPARMOR,)},
            "Operation not permitted",
            "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        (
            "namespaces",
            {"namespaces": "Operation not permitted"},
            "Operation not permitted",
            "in a container: allow unshare(2)",
        ),
        ("namespaces", {"namespaces": "Operation not permitted", "is_service": True}, "Operation not permitted", UNIT),
    ],
)
def test_what_is_missing_is_a_warning_of_its_own(check: str, changed: dict[str, Any], why: str, remedy: str) -> None:
    found = told(**changed)
    warnings = [each for each in found.values() if each.status != "ok"]
    assert [each.check for each in warnings] == [check]
    (warning,) = warnings
    assert warning.status == "warning"
    assert warning.found.startswith("no virtual networks: ")
    assert warning.found.endswith("; VMs have user-mode networking")
    assert why in warning.found
    assert warning.remedy.startswith(remedy)


def test_each_thing_that_is_missing_is_told() -> None:
    found = told(tun_errno=errno.EACCES, has_bridges=False, nft="none", dnsmasq="", namespaces="no")
    assert [each.check for each in found.values() if each.status == "warning"] == [
        "tun",
        "bridge",
        "nft",
        "dnsmasq",
        "namespaces",
    ]


def test_settings_that_forbid_namespaces_do_not_count_where_there_are_some() -> None:
    """Root has them all the same."""
    assert told(forbidding=(CLONE,)) == told()


def test_a_node_that_can_have_no_networks_hears_nothing_of_where_they_would_lead() -> None:
    found = told(
        may_administer=False,
        routing=Routing(False, False, ()),
        chains=None,
        may_write_settings=False,
        calls=("bridge-nf-call-iptables",),
        legacy={"iptables-legacy": None},
    )
    assert list(found) == ["networks"]


@pytest.mark.parametrize(
    ("routing", "said", "typed"),
    [
        (Routing(False, True, ()), "does not forward IPv4 (net.ipv4.ip_forward = 0)", "net.ipv4.ip_forward=1 "),
        (
            Routing(True, False, ()),
            "does not forward IPv6 (net.ipv6.conf.all.forwarding = 0)",
            "net.ipv4.ip_forward=1 ",
        ),
        (Routing(False, None, ()), "does not forward IPv4 (net.ipv4.ip_forward = 0)", "net.ipv4.ip_forward=1"),
        (
            Routing(False, False, ("eth0",)),
            "does not forward IPv4 and IPv6 (",
            "net.ipv6.conf.eth0.accept_ra=2 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        ),
    ],
)
def test_what_is_not_forwarded_is_told(routing: Routing, said: str, typed: str) -> None:
    finding = told(routing=routing)["forwarding"]
    assert finding.status == "warning"
    assert finding.found.startswith("networks of kind nat lead nowhere: ")
    assert said in finding.found
    assert finding.remedy.startswith(f"sysctl -w {typed}")
    assert told(routing=routing, is_service=True)["forwarding"].remedy == needs.SET_UP
    assert "uplink" not in told(routing=routing)


def test_an_uplink_that_the_host_made_deaf_is_told() -> None:
    finding = told(routing=Routing(True, True, ("eth0.100",)))["uplink"]
    assert finding.status == "warning"
    assert finding.found.startswith("eth0.100: the host forwards IPv6, so it ignores the router advertisements there")
    assert finding.remedy.startswith("sysctl -w net/ipv6/conf/eth0.100/accept_ra=2 ")


def test_a_host_without_ipv6_forwards_what_it_has() -> None:
    finding = told(routing=Routing(True, None, ()))["forwarding"]
    assert (finding.status, finding.found) == ("ok", "networks of kind nat lead out: the host forwards IPv4")


def test_what_cannot_be_read_is_not_called_well() -> None:
    assert told(routing=Routing(None, None, ()))["forwarding"].status == "warning"


def test_others_who_filter_are_told() -> None:
    found = told(chains=DOCKER, calls=("bridge-nf-call-iptables",))
    assert found["other filters"].status == "warning"
    assert found["bridge netfilter"].status == "warning"
    assert told(legacy={"iptables-legacy": "-P FORWARD DROP\n"})["other filters"].status == "warning"
    assert "other filters" not in told(chains=None), "nobody looked"
    rules = "\n".join(f'{side} "aeb*" counter packets 0 bytes 0 accept' for side in ("iifname", "oifname"))
    rule = f"table ip filter {{\n\tchain FORWARD {{\n{rules}\n\t}}\n}}"
    assert told(chains=DOCKER, tables={"ip filter": rule})["other filters"].status == "ok"
    assert told(chains=DOCKER, tables={"ip6 filter": rule})["other filters"].status == "warning"


# --- what is read ----------------------------------------------------------------------------------------------------


MODULES, BUILTIN = "lib/modules/6.1/modules.dep", "lib/modules/6.1/modules.builtin"


@pytest.mark.parametrize(
    ("files", "has"),
    [
        ({MODULES: "kernel/net/bridge/br_netfilter.ko:\n", BUILTIN: ""}, False),
        ({MODULES: "kernel/net/bridge/br_netfilter.ko:\n", "sys/module/bridge/parameters": ""}, True),
        ({MODULES: "", BUILTIN: "kernel/net/bridge/bridge.ko\n"}, True),
        ({MODULES: "kernel/net/bridge/bridge.ko.xz: kernel/net/llc/llc.ko.xz\n", BUILTIN: ""}, True),
        ({MODULES: "", "lib/modules/6.2/modules.dep": "kernel/net/bridge/bridge.ko:\n"}, False),
        ({}, True),
        ({"lib/modules": "the service cannot look into it"}, True),
    ],
    ids=["none", "loaded", "built in", "to be loaded", "of another kernel", "nothing to tell by", "hidden"],
)
def test_bridges_are_there_or_can_be_loaded(tmp_path: Path, files: dict[str, str], has: bool) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert needs.has_bridges(tmp_path, "6.1") is has


@pytest.fixture
def made_up(tmp_path: Path) -> Path:
    """The root of a host that allows nothing, and whose process has every capability but CAP_NET_ADMIN."""
    files = {
        "proc/self/status": f"Name:\tx\nCapEff:\t{(1 << 41) - 1 - (1 << 12):016x}\n",
        "proc/sys/net/ipv4/ip_forward": "0\n",
        "proc/sys/user/max_user_namespaces": "0\n",
        "proc/sys/user/max_net_namespaces": "99\n",
        f"proc/sys/{CLONE}": "0\n",
        f"proc/sys/{APPARMOR}": "1\n",
        "proc/sys/net/bridge/bridge-nf-call-iptables": "1\n",
        "proc/sys/net/bridge/bridge-nf-call-ip6tables": "0\n",
        f"lib/modules/{platform.release()}/modules.dep": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_made_up_host_is_read(made_up: Path) -> None:
    seen = needs.look(Settings(made_up / "state", "host1"), made_up)
    assert seen.may_administer is False
    assert seen.chains is None
    assert seen.tun_errno == errno.ENOENT
    assert seen.has_bridges is False
    assert seen.may_write_settings is True, "it has no IPv6, and so nothing to write"
    assert seen.forbidding == ("user/max_user_namespaces", CLONE, APPARMOR)
    assert seen.routing == Routing(False, None, ())
    assert seen.calls == ("bridge-nf-call-iptables",)
    assert seen.legacy == {}
    assert seen.is_service is False


def test_a_device_that_opens_is_well_and_the_capability_is_its_bit(made_up: Path) -> None:
    (made_up / "dev/net").mkdir(parents=True)
    (made_up / "dev/net/tun").touch()
    (made_up / "proc/self/status").write_text(f"CapEff:\t{1 << 12:016x}\n")
    (made_up / "sys/module/iptable_filter").mkdir(parents=True)
    seen = needs.look(Settings(made_up / "state", "host1"), made_up)
    assert seen.tun_errno == 0
    assert seen.may_administer is True
    assert set(seen.legacy) == {"iptables-legacy"}


@pytest.mark.parametrize(
    ("script", "has"),
    [
        ("echo AmbientCapabilities=cap_net_admin", True),
        ("echo AmbientCapabilities=cap_net_raw", False),
        ("echo AmbientCapabilities=", False),
        ("exit 1", True),
        ("true", True),
    ],
    ids=["has it", "has another", "has none", "no systemd", "says nothing"],
)
def test_of_the_service_it_is_its_unit_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, has: bool
) -> None:
    """Where systemd says nothing, it is this process: `doctor` runs as the service's user, with its capabilities."""
    program = tmp_path / "systemctl"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert needs._of_the_unit(True) is has
    if script in ("exit 1", "true"):
        assert needs._of_the_unit(False) is False


def test_this_host_is_looked_at_and_nothing_is_an_error(tmp_path: Path) -> None:
    before = sorted(os.listdir("/sys/class/net"))
    found = list(needs.findings(Settings(tmp_path, "host1")))
    assert found
    assert {each.status for each in found} <= {"ok", "warning"}
    assert all(each.remedy for each in found if each.status == "warning")
    assert sorted(os.listdir("/sys/class/net")) == before
