"""What other programs have of rules for packets that pass the host, as nft lists them, and what their words add."""

from __future__ import annotations

import shlex
from typing import Final

from aetherscale.actors.network.nft.nftables import Nftables

DOCKER: Final = """
table {family} filter {{
    chain DOCKER {{
        iifname != "docker0" oifname "docker0" counter drop
    }}
    chain DOCKER-FORWARD {{
        oifname "docker0" counter jump DOCKER
        iifname "docker0" counter accept
    }}
    chain DOCKER-USER {{
    }}
    chain FORWARD {{
        type filter hook forward priority filter; policy drop;
        counter jump DOCKER-USER
        counter jump DOCKER-FORWARD
    }}
}}
"""
"""Of Docker 28, by iptables-nft."""
UFW: Final = """
table {family} filter {{
    chain ufw-user-forward {{
    }}
    chain ufw-before-forward {{
        ct state related,established counter accept
        counter jump ufw-user-forward
    }}
    chain ufw-reject-forward {{
    }}
    chain FORWARD {{
        type filter hook forward priority filter; policy drop;
        counter jump ufw-before-forward
        counter jump ufw-reject-forward
    }}
}}
"""
"""Of ufw 0.36, by iptables-nft."""
FIREWALLD: Final = """
table inet firewalld {
    chain filter_FWD_trusted {
        accept
    }
    chain filter_FORWARD_ZONES {
        goto filter_FWD_public
    }
    chain filter_FWD_public {
        jump filter_FWD_public_allow
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public_allow {
    }
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
}
"""
"""Of firewalld 1.3."""
LIBVIRT: Final = """
table ip libvirt_network {
    chain forward {
        type filter hook forward priority filter; policy accept;
        counter jump guest_cross
        counter jump guest_input
        counter jump guest_output
    }
    chain guest_output {
        ip saddr 192.168.122.0/24 iifname "virbr0" counter accept
        iifname "virbr0" counter reject
    }
    chain guest_input {
        oifname "virbr0" ip daddr 192.168.122.0/24 ct state related,established counter accept
        oifname "virbr0" counter reject
    }
    chain guest_cross {
        iifname "virbr0" oifname "virbr0" counter accept
    }
}
"""
"""Of libvirt 10.4 and later, for its network `default`."""


def type_it(nft: Nftables, remedy: str) -> None:
    """Have the rules that a remedy adds, in the words of iptables, ip6tables, ufw, firewall-cmd or nft."""
    for command in remedy.removeprefix("after each boot: ").split("; "):
        match shlex.split(command):
            case ["nft", text]:
                nft.run(text)
            case ["iptables" | "ip6tables" as program, "-I", chain, way, "aeb+", "-j", "ACCEPT"]:
                family = "ip" if program == "iptables" else "ip6"
                nft.run(f'insert rule {family} filter {chain} {_side(way)} "aeb*" counter accept')
            case ["ufw", "route", "allow", way, "on", "aeb+"]:
                for family in ("ip", "ip6"):
                    nft.run(f'add rule {family} filter ufw-user-forward {_side(f"-{way[0]}")} "aeb*" counter accept')
            case ["firewall-cmd", "--permanent", "--zone=trusted", "--add-interface=aeb+"]:
                nft.run('insert rule inet firewalld filter_FORWARD_ZONES iifname "aeb*" goto filter_FWD_trusted')
            case ["firewall-cmd", "--reload"]:
                pass
            case words:
                raise AssertionError(f"what does this do: {words}?")


def _side(way: str) -> str:
    return {"-i": "iifname", "-o": "oifname"}[way]
