"""`network`: what virtual machines reach each other through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Argument, Command, Group, Option
from aetherscale.gateways.cli.objects import carry_out_and_tell, done, each_named, list_objects
from aetherscale.gateways.cli.views import WIDE, show_to_human
from aetherscale.gateways.cli.work import WAIT_OPTIONS, info

KINDS = ("isolated", "nat", "bridged", "public")


def _create(context: Context) -> None:
    values = context.values
    given = {
        "kind": values["kind"],
        "ipv4-prefix": values["ipv4"],
        "ipv6-prefix": values["ipv6"],
        "bridge": values["bridge"],
    }
    options = {"name": values["NAME"]} | {name: value for name, value in given.items() if value is not None}
    use = "vm create --image tiny --network"
    carry_out_and_tell(context, "network", "create-network", options, subject=values["NAME"], use=use)


def _delete(context: Context) -> int:
    def delete(name: str) -> Mapping[str, Any]:
        return done(context, "network", "delete-network", {"network": name}, subject=name)

    return each_named(context, "network", delete)


def _list(context: Context) -> None:
    list_objects(context, "network", none="no networks; to create one: aetherscale network create lab")


def _show(context: Context) -> None:
    view = info(context, "network", context.values["NAME"])
    if context.out.json:
        context.out.value(view)
        return
    vms = (item["vm"] for item in context.client.items("compute", "list-vms", {}, node=view["node"]))
    inside = [vm["name"] for vm in vms if any(port["network-id"] == view["id"] for port in vm["ports"])]
    addresses = {field: ", ".join(view[field]) for field in ("router", "resolver")}
    show_to_human(context.out, {**view, **addresses, "vms": ", ".join(inside)}, context.program.now_us())


_NAME = Argument("NAME", "the name or id of the network", completes="network")

NETWORK = Group(
    "network",
    "the networks that VMs are in",
    (
        Command(
            "create",
            "create a network",
            _create,
            arguments=(Argument("NAME", "the name of the network"),),
            options=(
                Option("kind", "where it leads; isolated if not given", "KIND", choices=KINDS),
                Option("ipv4", "its IPv4 prefix, or none; a free one with --kind nat, else none", "PREFIX"),
                Option("ipv6", "its IPv6 prefix, a /64; one of its own if not given", "PREFIX"),
                Option("bridge", "the bridge of the host that it is, with --kind bridged or public", "BRIDGE"),
                *WAIT_OPTIONS,
            ),
            examples=(
                "aetherscale network create lab",
                "aetherscale network create web --kind nat",
                "aetherscale network create office --kind bridged --bridge br0",
            ),
            details=(
                "VMs of one network reach each other. `isolated` leads nowhere, and the host is not in it. `nat` leads "
                "to the world through the host, which nothing from outside comes back through but answers. `bridged` "
                "is a bridge that the host has. `public` is one too, br0 if none is named, on which no machine is "
                "trusted: VMs there take only what their groups allow, also from each other, and send from their own "
                "addresses alone; `vm create --public-ip` makes it."
            ),
        ),
        Command(
            "list",
            "list all networks, sorted by name",
            _list,
            options=(Option("all", "include deleted networks"), WIDE),
            examples=("aetherscale network list", "aetherscale network list --json"),
        ),
        Command(
            "show",
            "show all details of a network",
            _show,
            arguments=(_NAME,),
            examples=("aetherscale network show lab",),
        ),
        Command(
            "delete",
            "delete a network that no VM has a port in",
            _delete,
            arguments=(replace(_NAME, help="the name or id; several may be given", many=True),),
            options=WAIT_OPTIONS,
            examples=("aetherscale network delete lab",),
        ),
    ),
)
