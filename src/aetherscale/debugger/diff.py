"""The changes between two moments: object by object, field by field. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from aetherscale.debugger.past import Past

_ABSENT: Final = object()


class FieldChange(Struct, frozen=True, rename="kebab"):
    """One field of a view before and after; None also where the field was not there. Nested ones have dots."""

    field: str
    before: Any
    after: Any


class Change(Struct, frozen=True, rename="kebab"):
    """One object that is new, or looks different. A deleted one has changed its phase: its history stays."""

    kind: str
    id: str
    name: str
    change: Literal["added", "changed"]
    fields: list[FieldChange]


class Diff(Struct, frozen=True, rename="kebab"):
    """Everything that changed after the event at `before`, up to the one at `after`."""

    before: int
    after: int
    changes: list[Change]


def diff(before: Past, after: Past, tenant: str) -> Diff:
    """The changes, by kind, then by name."""
    changes = [change for kind in after.kinds for change in _changes(kind.name, before, after, tenant)]
    return Diff(before.position, after.position, changes)


def _changes(kind: str, before: Past, after: Past, tenant: str) -> Iterator[Change]:
    known = {aggregate.id: aggregate for aggregate in before.registries[kind].of_tenant(tenant)}
    for aggregate in after.objects(kind, tenant, deleted=True):
        old = known.get(aggregate.id)
        if old is not None and old.version == aggregate.version:
            continue  # no event of it came in between
        view = msgspec.to_builtins(after.view(kind, aggregate))
        fields = list(_fields("", msgspec.to_builtins(before.view(kind, old)) if old else {}, view))
        if fields:
            yield Change(kind, aggregate.id, view["name"], "changed" if old else "added", fields)


def _fields(prefix: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[FieldChange]:
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _fields(f"{prefix}{name}.", old, new)
        elif old != new:
            yield FieldChange(prefix + name, None if old is _ABSENT else old, None if new is _ABSENT else new)
