"""How objects look to humans: tables of many, fields of one. Views are plain JSON objects here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from aetherscale.gateways.cli.grammar import Option
from aetherscale.gateways.cli.moments import ago, lasted, local, short_id
from aetherscale.gateways.cli.output import Layout, Output

View = Mapping[str, Any]

WIDE = Option("wide", "show full ids and times and all columns, at any width")


def show_vms(out: Output, vms: Sequence[View], now_us: int, *, wide: bool = False) -> None:
    """A table of VMs."""
    brief = out.terminal and not wide
    rows = [
        (
            vm["name"],
            vm["phase"],
            vm["image"],
            str(vm["cpus"]),
            f"{vm['memory-mib']}M",
            f"{vm['disk-gib']}G",
            vm["node"],
            ago(vm["since"], now_us) if brief else vm["since"][:19] + "Z",
            short_id(vm["id"]) if brief else vm["id"],
        )
        for vm in vms
    ]
    headers = ("NAME", "PHASE", "IMAGE", "CPUS", "MEMORY", "DISK", "NODE", "SINCE", "ID")
    out.table(headers, rows, 1, Layout(("NAME", "IMAGE", "NODE"), ("DISK", *_one_node(vms)), wide=wide))


def show_images(out: Output, images: Sequence[View], now_us: int, *, wide: bool = False) -> None:
    """A table of images."""
    brief = out.terminal and not wide
    rows = [
        (
            image["name"],
            image["phase"],
            image["format"] or "-",
            size(image["size-bytes"]),
            size(image["virtual-size-bytes"]),
            image["ready"],
            image["node"],
            short_id(image["id"]) if brief else image["id"],
        )
        for image in images
    ]
    headers = ("NAME", "PHASE", "FORMAT", "SIZE", "DISK", "READY BY", "NODE", "ID")
    out.table(headers, rows, 1, Layout(("NAME", "NODE"), ("READY BY", *_one_node(images)), wide=wide))


def _one_node(views: Sequence[View]) -> tuple[str, ...]:
    """The column that says nothing where all are on one node."""
    return ("NODE",) if len({view["node"] for view in views}) < 2 else ()


class Show(Protocol):
    """Shows many objects of a kind."""

    def __call__(self, out: Output, views: Sequence[View], now_us: int, /, *, wide: bool = False) -> None:
        """As `show_vms`."""
        ...


TABLES: Final[Mapping[str, Show]] = {"vm": show_vms, "image": show_images}


def table_of(kind: str) -> Show:
    """How many objects of a kind are shown."""
    return TABLES.get(kind, show_some)


def show_some(out: Output, views: Sequence[View], now_us: int, /, *, wide: bool = False) -> None:
    """A table of objects whose kind has none of its own."""
    brief = out.terminal and not wide
    rows = [
        (
            view["name"],
            view["phase"],
            view["node"],
            ago(view["since"], now_us) if brief else view["since"][:19] + "Z",
            short_id(view["id"]) if brief else view["id"],
        )
        for view in views
    ]
    out.table(("NAME", "PHASE", "NODE", "SINCE", "ID"), rows, 1, Layout(("NAME", "NODE"), _one_node(views), wide=wide))


def show_object(out: Output, view: View) -> None:
    """All that is known of one object, a field on each line, nested ones with dots."""
    out.fields(_flat("", view))


def show_vm_to_human(out: Output, vm: View, now_us: int) -> None:
    """All that is known of a VM; on a terminal with times as a human reads them."""
    shown = dict(vm)
    if (uptime_s := shown.pop("uptime-s", None)) is not None:
        shown["uptime"] = lasted(uptime_s) if out.terminal else f"{uptime_s} s"
    if out.terminal:
        shown["since"] = f"{local(vm['since'])} ({ago(vm['since'], now_us)})"
    show_object(out, shown)


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
