"""How objects look to humans: tables of many, fields of one. Views are plain JSON objects here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aetherscale.components import identities
from aetherscale.gateways.cli.grammar import Option
from aetherscale.gateways.cli.moments import ago, lasted, local, short_id
from aetherscale.gateways.cli.output import Layout, Output
from aetherscale.kernel.identity import NODE, Unit

View = Mapping[str, Any]

WIDE = Option("wide", "show full ids and times and all columns, at any width")


def show_table(out: Output, kind: str, views: Sequence[View], now_us: int, *, wide: bool = False) -> None:
    """A table of many objects of a kind."""
    (columns,) = (identity.columns for identity in identities() if identity.kind == kind)
    brief = out.terminal and not wide
    rows = [tuple(_cell(view[column.field], column.unit, now_us, brief) for column in columns) for view in views]
    names = tuple(column.heading for column in columns if column.is_name)
    one_node = (NODE.heading,) if len({view[NODE.field] for view in views}) < 2 else ()
    spare = (*(column.heading for column in columns if column.is_spare), *one_node)
    out.table(tuple(column.heading for column in columns), rows, 1, Layout(names, spare, wide=wide))


def _cell(value: Any, unit: Unit, now_us: int, brief: bool) -> str:
    match unit:
        case _ if value is None:
            return "-"
        case "MiB" | "GiB":
            return f"{value}{unit[0]}"
        case "bytes":
            return size(value)
        case "moment":
            return ago(value, now_us) if brief else f"{value[:19]}Z"
        case "id" if brief:
            return short_id(value)
        case _:
            return str(value)


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
