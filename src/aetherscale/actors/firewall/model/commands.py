"""What callers may say to the firewall component, and the rules that groups are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from aetherscale.kernel.names import Name, Reference
from aetherscale.kernel.reservations import User
from aetherscale.kernel.wire import Message

Direction = Literal["in", "out"]
"""`in`, to the VM; `out`, from it."""
Protocol = Literal["tcp", "udp", "icmp", "any"]
"""`icmp` is ICMP and ICMPv6."""

MOST_RULES: Final = 256
"""Rules of a group."""
MOST_RANGES: Final = 64
"""Ports and ranges of a rule."""
ICMP_TYPES: Final[Mapping[str, tuple[int | None, int]]] = {
    "destination-unreachable": (3, 1),
    "echo-reply": (0, 129),
    "echo-request": (8, 128),
    "packet-too-big": (None, 2),
    "parameter-problem": (12, 4),
    "time-exceeded": (11, 3),
}
"""The numbers of types of messages in ICMP (RFC 792; None where it has no such type) and in ICMPv6 (RFC 4443)."""


class Rule(Struct, frozen=True, rename="kebab", omit_defaults=True):
    """What a group allows. A part of events: what is in it is the same for ever. In its canonical form."""

    direction: Direction
    """Whether it is about what the VM takes, `in`, or sends, `out`."""
    protocol: Protocol
    """The protocol; `any` for each."""
    ports: tuple[str, ...] = ()
    """The ports that packets are sent to, in order, as `80` and `8000-8100`, which neither overlap nor touch; none for
    all, and where the protocol has none.
    """
    types: tuple[str, ...] = ()
    """The types of ICMP messages, by name and in order; none for all."""
    cidr: str | None = None
    """The prefix that it is about: of the sender where it is `in`, else of the receiver; null for any."""
    group_id: str | None = None
    """The group whose members it is about; null for any."""
    group: str | None = None
    """The name of that group when the rule was set."""


class GroupSpec(Struct, frozen=True):
    """What a group is when it begins."""

    name: str
    """The name of the group, unique in its tenant until the group is deleted."""
    rules: tuple[Rule, ...]
    """The first revision of its rules; none for a group that allows nothing."""


class RuleOptions(Message, frozen=True):
    """A rule of a group, field by field."""

    direction: Direction
    """Whether it is about what VMs take, `in`, or send, `out`."""
    protocol: Protocol
    """The protocol: `tcp`, `udp`, `icmp` (which is ICMPv6 too), or `any`."""
    ports: list[int | str] | str = field(default_factory=list)
    """The ports that packets are sent to, with `tcp` and `udp`: numbers, and ranges as `8000-8100`, or all of them in
    one text with commas; none for all.
    """
    types: list[str] | str = field(default_factory=list)
    """The types of messages, with `icmp`: names as `echo-request`; none for all."""
    cidr: str | None = None
    """An address or a prefix: of the sender where it is `in`, else of the receiver; null for any."""
    group: Reference | None = None
    """The group whose members it is about; null for any."""


RuleText = Annotated[
    str,
    Meta(max_length=1024, description="a rule, as in:tcp:80,443 or in:tcp:22:from=10.0.0.0/8"),
]
"""A rule in short: `DIRECTION:PROTOCOL[:PORTS or TYPES][:from=WHOM or :to=WHOM]`, where WHOM is a prefix or
`group/NAME`.
"""

Rules = Annotated[list[RuleText | RuleOptions], Meta(max_length=MOST_RULES)]


class CreateGroupOptions(Message, frozen=True):
    """Options of `create-group`."""

    name: Name
    """The name of the group."""
    rules: Rules = field(default_factory=list)
    """What it allows: rules as texts or as objects; none for nothing."""


class SetRulesOptions(Message, frozen=True):
    """Options of `set-rules`."""

    rules: Rules
    """What the group allows from now on, all of it."""
    group: Reference = ""
    """The group; "" where the subject names it (`obj`)."""
    revision: Annotated[int, Meta(ge=1)] | None = None
    """The `rules-revision` that the caller saw: where it is not the present one, nothing is set. Null for any."""
    keep_established: bool = False
    """Whether flows go on that the rules of before allowed, and these do not."""


class GroupOptions(Message, frozen=True):
    """Options of `delete-group` and `group-info`."""

    group: Reference = ""
    """The group; "" where the subject names it (`obj`)."""


class ListGroupsOptions(Message, frozen=True):
    """Options of `list-groups`."""

    all: bool = False
    """Whether deleted groups are listed too."""


class ExplainOptions(Message, frozen=True):
    """Options of `explain`."""

    source: Annotated[str, Meta(min_length=1, max_length=64)] = field(name="from")
    """From where: a VM by name or id, `host`, or an address."""
    target: Annotated[str, Meta(min_length=1, max_length=64)] = field(name="to")
    """To where, likewise. Of `host`, a port that is forwarded leads to a VM."""
    port: Annotated[str, Meta(min_length=1, max_length=64)]
    """What is sent: `tcp/443`, `udp/53`, `icmp` or `icmp/echo-request`."""


class WatchDropsOptions(Message, frozen=True):
    """Options of `watch-drops`: packets of VMs as they are dropped, with the reason. The status `watching` says that it
    has begun. Each item has a `drop`. Of each port and kind at most five in a second are told, and a hundred of all;
    `vm-info` counts all that are dropped at a port. It goes on until the caller leaves.
    """

    vm_id: Reference = ""
    """The VM whose packets are meant; "" for all."""


class CreateGroup(Struct, frozen=True):
    """Make a group."""

    group_id: str
    spec: GroupSpec


class SetRules(Struct, frozen=True):
    """Let a group have these rules and no other."""

    group_id: str
    rules: tuple[Rule, ...]
    revision: int | None = None
    keep_established: bool = False


class DeleteGroup(Struct, frozen=True):
    """Remove a group, which these bear or name."""

    group_id: str
    used_by: tuple[User, ...] = ()


GroupCommand = CreateGroup | SetRules | DeleteGroup
