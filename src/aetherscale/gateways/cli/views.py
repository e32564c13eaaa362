"""How objects look to humans: tables of many, fields of one. Views are plain JSON objects here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from aetherscale.gateways.cli.output import Output

View = Mapping[str, Any]


def show_vms(out: Output, vms: Sequence[View]) -> None:
    """A table of VMs."""
    rows = [
        (
            vm["name"],
            vm["phase"],
            vm["image"],
            str(vm["cpus"]),
            f"{vm['memory-mib']}M",
            f"{vm['disk-gib']}G",
            vm["node"],
            vm["since"][:19] + "Z",
            vm["id"],
        )
        for vm in vms
    ]
    out.table(("NAME", "PHASE", "IMAGE", "CPUS", "MEMORY", "DISK", "NODE", "SINCE", "ID"), rows, styled=1)


def show_images(out: Output, images: Sequence[View]) -> None:
    """A table of images."""
    rows = [
        (
            image["name"],
            image["phase"],
            image["format"] or "-",
            size(image["size-bytes"]),
            size(image["virtual-size-bytes"]),
            image["ready"],
            image["node"],
            image["id"],
        )
        for image in images
    ]
    out.table(("NAME", "PHASE", "FORMAT", "SIZE", "DISK", "READY BY", "NODE", "ID"), rows, styled=1)


TABLES: Final[Mapping[str, Callable[[Output, Sequence[View]], None]]] = {"vm": show_vms, "image": show_images}
"""How many objects of a kind are shown."""


def show_object(out: Output, view: View) -> None:
    """All that is known of one object, a field on each line, nested ones with dots."""
    out.fields(_flat("", view))


def _flat(prefix: str, view: View) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in view.items():
        if isinstance(value, Mapping):
            pairs += _flat(f"{prefix}{name}.", value)
        elif isinstance(value, bool):
            pairs.append((prefix + name, "yes" if value else "no"))
        else:
            pairs.append((prefix + name, value))
    return pairs


def size(size_bytes: int | None) -> str:
    """A number of bytes in the largest unit that it fills."""
    if size_bytes is None:
        return "-"
    amount = float(size_bytes)
    for unit in ("B", "K", "M", "G"):
        if amount < 1024:
            return f"{amount:.0f}{unit}" if unit == "B" or amount >= 10 else f"{amount:.1f}{unit}"
        amount /= 1024
    return f"{amount:.1f}T"


def count(number: int, what: str) -> str:
    """`1 event`, `2 events`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
