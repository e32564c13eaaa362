"""What a guest says of itself, for a human: marked as its word, in a few lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from aetherscale.gateways.cli.context import Context
from aetherscale.gateways.cli.failures import Failure

PATIENCE_S: Final = 5.0
"""How long to wait for a node that asks a guest, which it does for a shorter time."""
_MIB: Final = 1024 * 1024

Facts = Mapping[str, Any]


def facts_of(context: Context, vm: Mapping[str, Any]) -> Facts | None:
    """What the guest of a VM says of itself; None where none runs. Raises nothing: it is said that it is not known."""
    if vm["observed"] != "running":
        return None
    try:
        asked = context.client.result("compute", "guest-info", {"vm-id": vm["id"]}, timeout_s=PATIENCE_S)
    except Failure:
        return {"agent": "unknown"}
    return dict(asked["guest"])


def facts_text(facts: Facts) -> str:
    """The same in lines."""
    return "\n".join(_lines(facts))


def _lines(facts: Facts) -> Iterator[str]:
    match facts["agent"]:
        case "answers":
            yield f"by its own word, through its agent {facts.get('agent-version') or 'of unknown version'}:"
        case "silent":
            yield "its agent has not answered in time; what it has said, by its own word:"
        case "absent":
            yield "no guest agent answers: nothing is known of its inside"
            return
        case _:
            yield "nothing is known of its inside"
            return
    known = [part for part in (facts.get("os"), _labelled("kernel", facts.get("kernel"))) if part]
    yield f"OS {'; '.join(known) or 'unknown'}"
    yield f"host name {facts.get('host-name') or 'unknown'}"
    yield f"addresses {_addresses(facts.get('addresses'))}"
    load = facts.get("load")
    yield f"load {' '.join(f'{number:.2f}' for number in load) if load else 'unknown'}"
    for disk in facts.get("disks") or ():
        used, total = (round(disk[name] / _MIB) for name in ("used-bytes", "total-bytes"))
        yield f"disk {disk['mount-point']}: {used} of {total} MiB used"


def _labelled(label: str, value: str | None) -> str:
    return f"{label} {value}" if value else ""


def _addresses(addresses: list[Mapping[str, str]] | None) -> str:
    if addresses is None:
        return "unknown"
    return ", ".join(f"{each['ip']} ({each['interface']})" for each in addresses) or "none"
