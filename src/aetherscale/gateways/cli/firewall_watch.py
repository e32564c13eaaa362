"""`firewall watch`: packets of VMs as they are dropped, and why."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing, suppress
from typing import Any, Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.grammar import Argument, Command
from aetherscale.gateways.cli.moments import local_clock
from aetherscale.gateways.cli.streams import ends_with_its_reader
from aetherscale.gateways.cli.work import suggesting

HANG: Final = 4
"""By how much the second line of a packet is indented, and those after it."""
BY_RULES: Final = ("uninvited", "forbidden", "unreachable")
"""Kinds whose sender is known: something else was wrong than who it claims to be from."""


def _watch(context: Context) -> None:
    name = context.values["VM"] or ""
    chunks = context.client.ask("firewall", "watch-drops", {"vm-id": name} if name else {}, timeout_s=None)
    # Watching ends in no other way.
    with suppress(KeyboardInterrupt), ends_with_its_reader(), closing(chunks), suggesting(context, "vm", name):
        for chunk in chunks:
            if chunk.get("status") == "watching":
                context.out.note(f"watching what is dropped of {name or 'all VMs'}; Ctrl-C ends it")
            elif chunk["type"] == "item" and context.out.json:
                context.out.json_line(chunk["drop"])
            elif chunk["type"] == "item":
                _show(context, chunk["drop"])


def _show(context: Context, drop: Mapping[str, Any]) -> None:
    time = local_clock(drop["time"]) if context.out.terminal else drop["time"]
    context.out.paragraph(f"{time} {drop['vm']}: {_packet(drop)} ({drop['kind']})", hang=HANG)
    context.out.paragraph(f"{' ' * HANG}{drop['because']}", hang=HANG)


def _packet(drop: Mapping[str, Any]) -> str:
    """What it is, and its other end; both ends where the sender may be a lie."""
    inward = drop["direction"] == "in"
    words = [drop["packet"]]
    if drop["kind"] not in BY_RULES or inward:
        words.append(f"from {_end(drop['source'], drop['other'] if inward else None)}")
    if drop["kind"] not in BY_RULES or not inward:
        words.append(f"to {_end(drop['target'], None if inward else drop['other'])}")
    return " ".join(words)


def _end(address: str, name: str | None) -> str:
    return f"{name}, {address}" if name else address or "?"


WATCH: Final = Command(
    "watch",
    "show packets of VMs as they are dropped, and why",
    _watch,
    arguments=(Argument("VM", "the name or id of the VM; all VMs if not given", required=False, completes="vm"),),
    examples=("aetherscale firewall watch", "aetherscale firewall watch web"),
    details=(
        "Each packet has its kind, as `vm show` has it, and the sentence that decides, as `firewall explain` "
        "has it. Of each port and kind at most five packets in a second are shown, and a hundred of all; `vm show` "
        "counts all that are dropped at a port. Nothing is kept, and without a caller who watches nothing is logged."
    ),
)
