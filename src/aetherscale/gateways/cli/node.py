"""`node`: the nodes that answer. Silent ones are not shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, Failure, near
from aetherscale.gateways.cli.grammar import Argument, Command, Group
from aetherscale.gateways.cli.moments import ago, short_id
from aetherscale.gateways.cli.output import Layout
from aetherscale.gateways.cli.views import WIDE, show_object

if TYPE_CHECKING:
    from aetherscale.bus.beats import Beat


def _list(context: Context) -> None:
    nodes = context.client.nodes()
    if context.out.json:
        context.out.value(nodes)
        return
    brief = context.out.terminal and not context.values["wide"]
    now_us = context.program.now_us()
    rows = [
        (
            node.node,
            node.version,
            str(node.seq),
            f"{node.vms_running}/{node.vms}",
            str(node.cpus or ""),
            f"{node.memory_available_mib}/{node.memory_mib}M" if node.memory_mib else "",
            short_id(node.epoch) if brief else node.epoch,
            ago(node.time, now_us) if brief else node.time,
        )
        for node in nodes
    ]
    headers = ("NAME", "VERSION", "EVENTS", "VMS", "CPUS", "MEMORY", "EPOCH", "HEARD")
    layout = Layout(("NAME",), ("EPOCH", "HEARD", "VERSION"), wide=context.values["wide"])
    context.out.table(headers, rows, layout=layout)
    _tell_troubles(context, nodes)


def _show(context: Context) -> None:
    name = context.values["NAME"]
    nodes = context.client.nodes()
    named = [node for node in nodes if node.node == name]
    if not named:
        meant = near(name, [node.node for node in nodes])
        hint = f"did you mean: {meant}?" if meant else "aetherscale node list"
        raise Failure(503, f"no node {name!r} answers", hint=hint, status=NO_NODE)
    view: Mapping[str, Any] = msgspec.to_builtins(named[0])
    if context.out.json:
        context.out.value(view)
    else:
        show_object(context.out, view)
        _tell_troubles(context, named)


def _tell_troubles(context: Context, nodes: Sequence[Beat]) -> None:
    """The problems that a human has to solve, after the requested data."""
    for node in nodes:
        for trouble in node.troubles:
            context.out.note(f"warning: node {node.node}: {trouble}")


NODE = Group(
    "node",
    "the nodes that answer",
    (
        Command(
            "list",
            "list all nodes that answer",
            _list,
            options=(WIDE,),
            examples=("aetherscale node list", "aetherscale node list --json"),
            details="Asks all nodes at once. VMS shows running and all VMs; MEMORY shows available and total memory.",
        ),
        Command(
            "show",
            "show what one node reports",
            _show,
            arguments=(Argument("NAME", "the name of the node"),),
            examples=("aetherscale node show host1",),
        ),
    ),
)
