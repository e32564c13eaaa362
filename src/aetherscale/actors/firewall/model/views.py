"""A group as callers see it."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from aetherscale.actors.firewall.model.commands import Direction, Protocol
from aetherscale.kernel.failures import Failure

ShownPhase = Literal["applying", "ready", "deleting", "failed", "deleted"]


class RuleView(Struct, frozen=True, rename="kebab"):
    """A rule of a group, in its canonical form."""

    text: str
    """The rule in short, as `in:tcp:80,443`."""
    direction: Direction
    """Whether it is about what VMs take, `in`, or send, `out`."""
    protocol: Protocol
    """The protocol; `icmp` is ICMPv6 too."""
    ports: list[str]
    """The ports that packets are sent to, as `80` and `8000-8100`; none for all, and where the protocol has none."""
    types: list[str]
    """The types of ICMP messages; none for all."""
    cidr: str | None
    """The prefix that it is about; null for any."""
    group_id: str | None
    """The id of the group whose members it is about; null for any."""
    group: str | None
    """The name of that group."""


class GroupView(Struct, frozen=True, rename="kebab"):
    """The view of a group."""

    id: str
    """The id of the group, 16 hex digits."""
    name: str
    """The name of the group, unique in its tenant until the group is deleted."""
    node: str
    """The name of the node that owns the group."""
    phase: ShownPhase
    """Where the group is in its life: `applying`, the kernel is given its rules; `ready`, it has them; `deleting`;
    `failed`, as `failure` says, and the kernel has the rules of `applied-revision`; `deleted`.
    """
    since: str
    """When the group entered its phase, RFC 3339 in UTC."""
    rules: list[RuleView]
    """The rules that were set last."""
    rules_revision: int
    """Of `rules`: it grows each time they are set. `set-rules` takes it as `revision`."""
    applied_revision: int
    """The revision of the rules that the kernel has; 0 where it never had any."""
    failure: Failure | None
    """Why the group has failed; null where it has not."""
    revision: int
    """The version of the group's stream, which is the number of its events; it grows with each change."""
    requested_by: str | None
    """The actor whose command was carried out last (see `docs/nats.md`); null where there was none."""
