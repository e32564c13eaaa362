"""What a host has of a node's networks, and what it has to have by the state: devices, rules, resolvers, files."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from aetherscale.actors.network.model.addresses import link_local_of, mac_of, router_of
from aetherscale.actors.network.model.chains import NOTE
from aetherscale.actors.network.model.devices import advertiser_name, bridge_name, service_name
from aetherscale.processes.identity import processes_with
from tests.support.fake_guest import link_local
from tests.support.node import RunningNode

Facts = Counter[str]
"""Sentences, and how often each is true."""


async def expected(node: RunningNode) -> Facts:
    """What has to be on the host of a node, by what it tells of its networks and VMs."""
    facts: Facts = Counter({"the link lo": 1})
    networks = {each["name"]: each for each in await node.items("network.list-networks", "network")}
    for each in networks.values():
        network_id, bridge = each["id"], bridge_name(each["id"])
        facts[f"the link {bridge} up in nothing"] += 1
        facts[f"the link {service_name(network_id)} up in {bridge}"] += 1
        facts[f"the bridges element {bridge}"] += 1
        facts[f"a resolver of {network_id}"] += 1
        facts[f"a directory of {network_id}"] += 1
        if each["kind"] == "nat":
            facts[f"the link {advertiser_name(network_id)} up in {bridge}"] += 1
            facts[f"the routed element {bridge}"] += 1
            facts[f"the leads4 element {bridge}"] += 1
            facts[f"the leads6 element {bridge}"] += 1
            routers = (router_of(ip_network(each["ipv4"])), router_of(ip_network(each["ipv6"])))
            facts.update(f"the address {ip} on {bridge}" for ip in (*routers, link_local_of(mac_of(bridge))))
    for vm in await node.items("compute.list-vms", "vm"):
        facts.update(fact for port in vm["ports"] for fact in _of_port(port, networks[port["network"]]))
    return facts


def _of_port(port: dict[str, Any], network: dict[str, Any]) -> list[str]:
    tap, mac = port["tap"], port["mac"]
    addresses = [each["ip"] for each in port["addresses"]]
    facts = [f"the link {tap} up in {bridge_name(network['id'])}", f"the ports element {tap}"]
    facts += [f"the {each} element {tap}" for each in ("ingress", "egress", "from_host", "nd_macs")]
    facts += [f"the macs element {tap} {mac}"]
    facts += [f"the sources4 element {tap} {mac} {ip}" for ip in addresses if ":" not in ip]
    for ip in [link_local(mac), *(ip for ip in addresses if ":" in ip)]:
        facts += [f"the sources6 element {tap} {mac} {ip}", f"the targets element {tap}"]
    return [*facts, *(f"a name of {ip}" for ip in addresses)]


def found(state_dir: Path) -> Facts:
    """What is there of all of that, and everything else of the kind, in the network namespace of this thread."""
    facts: Facts = Counter()
    for link in json.loads(_said("ip", "-json", "address")):
        name = link["ifname"]
        facts.update(f"the address {each['local']} on {name}" for each in link["addr_info"] if name != "lo")
        state = "up" if "UP" in link["flags"] else "down"
        facts["the link lo" if name == "lo" else f"the link {name} {state} in {link.get('master', 'nothing')}"] += 1
    for family in ("bridge", "inet"):
        for each in json.loads(_said("nft", "-json", "list", "ruleset", family))["nftables"]:
            of = each.get("set") or each.get("map")
            # What packets write is in no state: counts, and flows.
            if (
                of
                and of["table"] == "aetherscale"
                and of["name"] not in ("drops", NOTE)
                and not of["name"].startswith("masquerade")
            ):
                facts.update(f"the {of['name']} element {_words(element)}" for element in of.get("elem", ()))
    root = state_dir / "networks"
    if not root.exists():
        return facts
    place = root.stat()
    form = re.compile(rf"--conf-file=/tmp/aetherscale-([0-9a-f]+)-{place.st_dev:x}-{place.st_ino:x}\.conf")
    facts.update(f"a resolver of {match[1]}" for match, _ in processes_with(form))
    for path in root.iterdir():
        facts[f"a directory of {path.name}"] += 1
        lines = (path / "names").read_text().splitlines() if (path / "names").exists() else []
        facts.update(f"a name of {line.split()[0]}" for line in lines if line and not line.startswith("#"))
    return facts


def _words(element: Any) -> str:
    """An element of a set, without what a port has more than one of or nothing readable."""
    key = element[0] if isinstance(element, list) else element
    parts = key["concat"] if isinstance(key, dict) else [key]
    return " ".join(str(part) for part in dict.fromkeys(map(str, parts)) if _is_readable(part))


def _is_readable(part: str) -> bool:
    return re.fullmatch(r"ae.*|[0-9a-f:.]*[:.][0-9a-f:.]*", part) is not None


def _said(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
