"""What the dnsmasq of a network is told: its configuration, its two files of ports, and its devices. Pure.

A network has one resolver, which is its server of DNS, of DHCP and of router advertisements. It has two devices, in a
namespace of its own: by `SERVICE` it speaks for itself; by `ADVERTISER`, which has the addresses of the host's router,
it advertises that router. It only knows the ports that it is told of. What VMs that are in another network too have to
ask there it refuses, so that they do (decision 94).

What is written is made of validated names, numbers and addresses: a line ends where it is meant to end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import force_setattr

from aetherscale.actors.network.model.addresses import link_local_of, resolver_of, router_of
from aetherscale.kernel.names import NAME_PATTERN

SERVICE: Final = "eth0"
ADVERTISER: Final = "eth1"
ROOT: Final = "internal"
"""The domain of all networks (a private one: ICANN, 2024)."""

LEASES: Final = "leases"
NAMES: Final = "names"
UPSTREAMS: Final = "upstreams"
ELSEWHERE: Final = "elsewhere"

NOWHERE_TO_ASK: Final = IPv4Address("255.255.255.255")
"""A server that nothing can be sent to: the kernel fails each send at once, and dnsmasq answers REFUSED."""

LEASE: Final = "24h"
"""An address is its port's for ever: what this bounds is how old the rest of an answer may be."""
ADVERTISE_S: Final = 60
"""A router advertisement comes at least so often, to guests that did not ask."""
ROUTER_LIFETIME_S: Final = 9000
"""For so long guests keep the router without being told of it again: the most that RFC 4861 has."""
MOST_FORMER: Final = 16
"""MACs that an address had before and that may still lease it: dnsmasq reads some fifty in a line."""
MOST_LEASES: Final = 65536
"""More than a network has ports; dnsmasq's own limit is 1000."""

_NAME: Final = re.compile(NAME_PATTERN)
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_LEAST_MTU: Final = 1280
_MOST_MTU: Final = 65535

Address = IPv4Address | IPv6Address


class DnsNetwork(Struct, frozen=True):
    """A network, as its resolver knows it. ValueError: a name, kind or MTU that none can have."""

    name: str
    kind: Literal["isolated", "nat"]
    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None
    """A /64."""
    mtu: int = 1500
    """Bytes."""

    def __post_init__(self) -> None:
        _check(self.name, _NAME)
        if self.kind not in ("isolated", "nat"):
            raise ValueError(f"a network with a resolver is isolated or nat, not {self.kind!r}")
        if type(self.mtu) is not int or not _LEAST_MTU <= self.mtu <= _MOST_MTU:
            raise ValueError(f"no network has the MTU {self.mtu!r}")
        for prefix, kind in ((self.ipv4, IPv4Network), (self.ipv6, IPv6Network)):
            if prefix is not None and type(prefix) is not kind:
                raise ValueError(f"{prefix!r} is not of {kind}")

    @property
    def leads_outside(self) -> bool:
        """Whether names outside are resolved, and guests have a default route."""
        return self.kind == "nat"

    @property
    def domain(self) -> str:
        """The domain of its VMs."""
        return f"{self.name}.{ROOT}"

    @property
    def has_advertiser(self) -> bool:
        """Whether there is an IPv6 router to be advertised."""
        return self.leads_outside and self.ipv6 is not None


class Elsewhere(Struct, frozen=True):
    """What VMs of a network can resolve in the other networks that they are in."""

    networks: tuple[DnsNetwork, ...] = ()
    """Those that have a resolver."""
    outside: bool = False
    """Whether names outside are resolved in one of the others."""


NOTHING_ELSEWHERE: Final = Elsewhere()


class DnsPort(Struct, frozen=True):
    """A port of a network, as its resolver knows it. ValueError: a name or MAC that none can have."""

    vm: str
    """The name of its VM."""
    mac: str
    """Lower case, with colons."""
    ipv4: IPv4Address | None = None
    ipv6: IPv6Address | None = None
    written: tuple[str, ...] = ()
    """Its addresses as text, which follows from them: all of a network are written at each change of one."""

    def __post_init__(self) -> None:
        _check(self.vm, _NAME)
        _check(self.mac, _MAC)
        for address, kind in ((self.ipv4, IPv4Address), (self.ipv6, IPv6Address)):
            if address is not None and (type(address) is not kind or "%" in str(address)):
                raise ValueError(f"{address!r} is not of {kind}, without a zone")
        force_setattr(self, "written", tuple(str(each) for each in (self.ipv4, self.ipv6) if each is not None))


def configuration(network: DnsNetwork, directory: str) -> str:
    """The configuration of dnsmasq (dnsmasq(8)); `directory` is where it finds its files.

    It is read once: a process of before has to be started anew where this has changed.
    """
    lines = [
        "keep-in-foreground",
        "log-facility=-",
        "quiet-dhcp",
        "quiet-dhcp6",
        "quiet-ra",
        "pid-file=",
        "bind-interfaces",
        "except-interface=lo",
        f"interface={SERVICE}",
        *([f"interface={ADVERTISER}"] if network.has_advertiser else ()),
        # Names.
        "no-hosts",
        f"addn-hosts={directory}/{NAMES}",
        f"local=/{ROOT}/",
        f"domain={network.domain}",
        "domain-needed",
        "bogus-priv",
        f"resolv-file={directory}/{UPSTREAMS}" if network.leads_outside else "no-resolv",
        f"servers-file={directory}/{ELSEWHERE}",
    ]
    if network.ipv4 is not None:
        lines += _dhcp(network, network.ipv4, directory)
    if network.ipv6 is not None:
        lines += _advertisements(network, network.ipv6)
    return "".join(f"{line}\n" for line in lines)


def _dhcp(network: DnsNetwork, prefix: IPv4Network, directory: str) -> list[str]:
    router = f",{router_of(prefix)}" if network.leads_outside else ""
    return [
        f"dhcp-range={prefix.network_address},static,{prefix.netmask},{LEASE}",
        f"dhcp-hostsfile={directory}/{LEASES}",
        f"dhcp-lease-max={MOST_LEASES}",
        # The MAC decides, whatever a guest calls itself: a second system on a VM's disk has the same address.
        "dhcp-ignore-clid",
        "dhcp-ignore-names",
        # It knows no lease of the process before it, and there is no other server.
        "dhcp-authoritative",
        "leasefile-ro",
        "no-ping",
        f"dhcp-option=option:router{router}",
        f"dhcp-option=option:dns-server,{resolver_of(prefix)}",
        f"dhcp-option=option:domain-search,{network.domain}",
        f"dhcp-option=option:mtu,{network.mtu}",
    ]


def _advertisements(network: DnsNetwork, prefix: IPv6Network) -> list[str]:
    device, lifetime_s = (ADVERTISER, ROUTER_LIFETIME_S) if network.has_advertiser else (SERVICE, 0)
    other = [f"no-dhcpv6-interface={SERVICE}", f"no-dhcpv4-interface={ADVERTISER}"] if network.has_advertiser else []
    return [
        "enable-ra",
        f"dhcp-range={prefix.network_address},ra-only,{prefix.prefixlen},infinite",
        f"ra-param={device},mtu:{network.mtu},{ADVERTISE_S},{lifetime_s}",
        *other,
        f"dhcp-option=option6:dns-server,[{resolver_of(prefix)}]",
        f"dhcp-option=option6:domain-search,{network.domain}",
    ]


def leases(ports: Iterable[DnsPort], before: str = "") -> str:
    """The dhcp-hostsfile: the IPv4 address and the name that each MAC gets. SIGHUP reads it anew.

    dnsmasq keeps an address that a MAC has leased from others until the lease ends, unless the host that it is now for
    has that MAC too. So a line goes on with the MACs that `before`, the file as it was, has of its address, and is a
    comment while the address is nobody's. Those are of ports that are gone, and come again with no other.
    """
    had = {address: macs for macs, address in map(_macs_and_address, before.splitlines()) if macs}
    lines = []
    for port in ports:
        if port.ipv4 is not None:
            address = port.written[0]
            former = [mac for mac in had.pop(address, ()) if mac != port.mac][:MOST_FORMER]
            lines.append(",".join((port.mac, *former, address, port.vm)))
    lines += (f"#{','.join((*macs, address))}" for address, macs in had.items())
    return "".join(f"{line}\n" for line in lines)


def _macs_and_address(line: str) -> tuple[list[str], str]:
    """The MACs of a line of that file, the latest first, and its address."""
    words = line.removeprefix("#").split(",")
    macs = [word for word in words if _MAC.fullmatch(word)]
    return macs, words[len(macs)] if macs and len(words) > len(macs) else ""


def names(network: DnsNetwork, ports: Iterable[DnsPort]) -> str:
    """The hosts file, from which names are resolved both ways. SIGHUP reads it anew.

    The bare name is there for guests without a search domain: dnsmasq would know it only while it knows their lease.
    """
    domain = network.domain
    return "".join(f"{address} {port.vm}.{domain} {port.vm}\n" for port in ports for address in port.written)


def upstreams(servers: Iterable[Address]) -> str:
    """The resolv-file: whom names outside are asked of. It is read again when it changes."""
    return "".join(f"nameserver {server}\n" for server in servers)


def elsewhere(network: DnsNetwork, others: Elsewhere) -> str:
    """The servers-file: what is refused, since VMs of the network resolve it elsewhere. SIGHUP reads it anew.

    A client goes on to its next server after REFUSED, and does not after NXDOMAIN, which is for what is nowhere. With
    neither a server for names outside nor a line that there are none, dnsmasq refuses them too.
    """
    lines = [] if network.leads_outside or others.outside else ["server=/#/"]
    for other in others.networks:
        lines.append(f"server=/{other.domain}/{NOWHERE_TO_ASK}")
        lines += (f"rev-server={prefix},{NOWHERE_TO_ASK}" for prefix in (other.ipv4, other.ipv6) if prefix is not None)
    return "".join(f"{line}\n" for line in lines)


def upstreams_of(text: str) -> tuple[list[Address], bool]:
    """The servers of a resolv.conf(5) that can be reached from elsewhere, and whether one listens on loopback.

    A link-local one cannot: its zone is a device of the host.
    """
    found: list[Address] = []
    has_stub = False
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ip_address(words[1])
        except ValueError:
            continue
        if address.is_loopback:
            has_stub = True
        elif not (address.is_link_local or address.is_unspecified or address.is_multicast) and address not in found:
            found.append(address)
    return found, has_stub


def devices(network: DnsNetwork, service_mac: str, router_mac: str) -> str:
    """What its devices are to be, as `ip -batch` reads it (ip(8)). The MACs are those of its device, and of the bridge.

    Addresses need no detection of duplicates, which takes a second: nobody else may have them.
    """
    lines = ["link set lo up", f"link set {SERVICE} addrgenmode none"]
    lines.append(f"address add {link_local_of(service_mac)}/64 dev {SERVICE} nodad")
    if network.ipv4 is not None:
        lines.append(f"address add {resolver_of(network.ipv4)}/{network.ipv4.prefixlen} dev {SERVICE}")
    if network.ipv6 is not None:
        lines.append(f"address add {resolver_of(network.ipv6)}/64 dev {SERVICE} nodad")
    lines.append(f"link set {SERVICE} up")
    if network.has_advertiser and network.ipv6 is not None:
        lines += (
            f"link set {ADVERTISER} addrgenmode none",
            f"address add {link_local_of(router_mac)}/64 dev {ADVERTISER} nodad",
            f"address add {router_of(network.ipv6)}/64 dev {ADVERTISER} nodad noprefixroute",
            f"link set {ADVERTISER} up",
            f"route add default via {link_local_of(router_mac)} dev {SERVICE}",
        )
    if network.leads_outside and network.ipv4 is not None:
        lines.append(f"route add default via {router_of(network.ipv4)} dev {SERVICE}")
    return "".join(f"{line}\n" for line in lines)


def _check(text: object, form: re.Pattern[str]) -> None:
    if type(text) is not str or not text.isascii() or not form.fullmatch(text):
        raise ValueError(f"expected {form.pattern}, got {text!r}")
