"""`node`: the nodes that can be heard. Each says every five seconds that it is there; silent ones are not shown."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from aetherscale.bus.bus import BusUnavailable
from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import NO_NODE, Failure, near
from aetherscale.gateways.cli.grammar import Argument, Command, Group
from aetherscale.gateways.cli.place import start
from aetherscale.gateways.cli.views import show_object
from aetherscale.kernel import subjects

LISTEN_S: Final = 5.5
"""A little longer than from one sign of life to the next."""


def _list(context: Context) -> None:
    nodes = sorted(_heard(context).values(), key=lambda beat: str(beat["node"]))
    if context.out.json:
        context.out.value(nodes)
        return
    rows = [(beat["node"], beat["version"], str(beat["seq"]), beat["epoch"], beat["time"]) for beat in nodes]
    context.out.table(("NAME", "VERSION", "EVENTS", "EPOCH", "HEARD"), rows)


def _show(context: Context) -> None:
    name = context.values["NAME"]
    nodes = _heard(context, name)
    if name not in nodes:
        meant = near(name, list(nodes))
        hint = f"did you mean: {meant}?" if meant else "aetherscale node list"
        raise Failure(404, f"no node {name!r} was heard within {LISTEN_S:g} s", hint=hint)
    if context.out.json:
        context.out.value(nodes[name])
    else:
        show_object(context.out, nodes[name])


def _heard(context: Context, wanted: str | None = None) -> Mapping[str, Mapping[str, Any]]:
    """The last sign of life of each node, after all had time for one, or as soon as the wanted one is heard.

    Raises `Failure` (status 4) where none is heard.
    """
    beats = context.client.connection.subscribe(subjects.heartbeat("*"))
    found: dict[str, Mapping[str, Any]] = {}
    until_s = time.monotonic() + LISTEN_S
    with context.out.progress("nodes") as progress:
        progress.step("listening")
        while wanted not in found and (remaining_s := until_s - time.monotonic()) > 0:
            try:
                heard = beats.receive(remaining_s)
            except BusUnavailable as away:
                raise Failure(503, str(away), hint=start(context.settings), status=NO_NODE) from None
            if heard is not None:
                beat = msgspec.json.decode(heard.body, type=dict[str, Any])
                found[beat["node"]] = beat
    if not found:
        raise Failure(503, f"no node was heard within {LISTEN_S:g} s", hint=start(context.settings), status=NO_NODE)
    return found


NODE = Group(
    "node",
    "the nodes that can be heard",
    (
        Command(
            "list",
            "all nodes that say that they are there",
            _list,
            examples=("aetherscale node list", "aetherscale node list --json"),
            details="Listens for a moment: a node says every five seconds that it is there.",
        ),
        Command(
            "show",
            "what one node says of itself",
            _show,
            arguments=(Argument("NAME", "the name of the node"),),
            examples=("aetherscale node show host1",),
        ),
    ),
)
