"""Reservations: keys that one object holds. Each key has a stream of its own, which is written in the same append as
the holder's event that takes or releases it. One event may take or release several.

*Exclusive*: a unique name (`NameClaimed`). Two requests for it meet at the version of its stream: one of them is
refused.

*Shared*: the use of another object (`UseBegan`). Any number may use it at one time, so a use is written at any version
of its stream. A use begins on the version of the used object's stream that the decision was made on, and a deletion of
the used object is made on the version of the stream of its uses. So of two that race one is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from msgspec import Struct, field

from aetherscale.kernel.errors import Reason, Refused, Remedy, Task
from aetherscale.kernel.messages import Event, stream_name
from aetherscale.kernel.names import derive_id

RESERVATION_KIND = "claim"
MOST_TOLD: Final = 5
"""Users of each kind in the sentence of a refusal."""
MOST_LISTED: Final = 100
"""Users in its details."""


class NameClaimed(Event, frozen=True):
    """A name is reserved for its owner until it is released."""

    kind: str
    """The kind of object whose name it is, such as `vm` or `image`."""
    name: str
    """The name, unique among the objects of its kind and tenant."""
    owner: str
    """The id of the object that bears the name from now on."""


class NameReleased(Event, frozen=True):
    """The name is free again."""

    kind: str
    """The kind of object whose name it is, such as `vm` or `image`."""
    name: str
    """The name."""
    owner: str
    """The id of the object that bore it."""


class UseBegan(Event, frozen=True):
    """An object, the user, needs another one, which cannot be deleted until the use has ended."""

    kind: str
    """The kind of the object that is used, such as `image`."""
    id: str
    """The id of the object that is used."""
    user_kind: str
    """The kind of the user, such as `vm`."""
    user: str
    """The id of the user."""


class UseEnded(Event, frozen=True):
    """The user no longer needs the object."""

    kind: str
    """The kind of the object that is used, such as `image`."""
    id: str
    """The id of the object that is used."""
    user_kind: str
    """The kind of the user, such as `vm`."""
    user: str
    """The id of the user."""


NameEvent = NameClaimed | NameReleased
UseEvent = UseBegan | UseEnded
Reservation = NameEvent | UseEvent
NAME_EVENTS = (NameClaimed, NameReleased)
USE_EVENTS = (UseBegan, UseEnded)
RESERVATION_EVENTS: tuple[type[Event], ...] = (*NAME_EVENTS, *USE_EVENTS)


class Name(Struct, frozen=True):
    """An exclusive key of a tenant: a name, and whatever else only one of its aggregates may have."""

    kind: str
    """The kind of object that the key names."""
    name: str


class NodeKey(Struct, frozen=True):
    """An exclusive key of the node: an address, or a port of the host, which one aggregate has, whosever it is."""

    kind: str
    """The kind of the key, such as `address`."""
    name: str


class Use(Struct, frozen=True):
    """A shared key: the use of another aggregate, which is not deleted until the use has ended."""

    kind: str
    id: str


Holding = Name | NodeKey | Use
"""Something that an aggregate holds."""


class User(NamedTuple):
    """An aggregate that uses another one."""

    kind: str
    noun: str
    """What a person calls such an aggregate: "VM"."""
    id: str
    name: str


def in_use(subject: str, users: Sequence[User], remedy: Remedy = ()) -> Refused:
    """The refusal of a deletion: it names the first users of each kind.

    `remedy` is what frees the object; where it is empty, the deletion of the first user does.
    """
    by_noun: dict[str, list[str]] = {}
    for user in users:
        by_noun.setdefault(user.noun, []).append(user.name)
    shown = " and ".join(
        f"{len(names)} {noun}(s): {', '.join(names[:MOST_TOLD])}{' …' if len(names) > MOST_TOLD else ''}"
        for noun, names in by_noun.items()
    )
    return Refused(
        Reason.CONFLICT,
        f"{subject} is in use by {shown}",
        remedy=remedy or (Task(users[0].kind, "delete", users[0].name),),
        details={"used-by": [user.name for user in users[:MOST_LISTED]]},
    )


class Holder(Struct, frozen=True):
    """The state of a name's reservation: the version of its stream, and the id of its owner, or None."""

    version: int
    owner: str | None


class Uses(Struct):
    """The uses of an object: the version of their stream, and the kind of each user by its id."""

    version: int = 0
    users: dict[str, str] = field(default_factory=dict)


class Seen(Struct, frozen=True):
    """A stream that a decision was made on without writing to it: the append requires that it has not moved on."""

    stream: str
    version: int


FREE = Holder(version=0, owner=None)

NO_TENANT = ""
"""Stands for the tenant in the streams of the keys of a node; no tenant is called so."""


def name_stream(kind: str, tenant: str, name: str) -> str:
    """The stream in which one name of one kind of object is reserved and released."""
    return stream_name(RESERVATION_KIND, derive_id(kind, tenant, name))


def use_stream(kind: str, object_id: str) -> str:
    """The stream in which the uses of one object begin and end."""
    return stream_name(RESERVATION_KIND, derive_id("use", kind, object_id))


def stream_of(holding: Holding, tenant: str) -> str:
    """The stream in which something is reserved that an aggregate of a tenant holds."""
    match holding:
        case Use():
            return use_stream(holding.kind, holding.id)
        case NodeKey():
            return name_stream(holding.kind, NO_TENANT, holding.name)
        case Name():
            return name_stream(holding.kind, tenant, holding.name)


def changes(
    kind: str, holder: str, tenant: str, before: Sequence[Holding], after: Sequence[Holding]
) -> Iterator[tuple[str, Reservation]]:
    """What to write, and to which streams, where the holdings of an aggregate of `kind` have changed."""
    for each in before:
        if each not in after:
            yield stream_of(each, tenant), _released(kind, holder, each)
    for each in after:
        if each not in before:
            yield stream_of(each, tenant), _reserved(kind, holder, each)


def _reserved(kind: str, holder: str, holding: Holding) -> Reservation:
    if isinstance(holding, Use):
        return UseBegan(holding.kind, holding.id, kind, holder)
    return NameClaimed(holding.kind, holding.name, holder)


def _released(kind: str, holder: str, holding: Holding) -> Reservation:
    if isinstance(holding, Use):
        return UseEnded(holding.kind, holding.id, kind, holder)
    return NameReleased(holding.kind, holding.name, holder)


def evolve(holder: Holder, event: NameEvent) -> Holder:
    """The holder of a name after an event."""
    match event:
        case NameClaimed():
            return Holder(holder.version + 1, event.owner)
        case NameReleased():
            return Holder(holder.version + 1, None)


def evolve_uses(uses: Uses, event: UseEvent) -> None:
    """Fold an event into the uses, in place: an image may have thousands of them."""
    uses.version += 1
    match event:
        case UseBegan():
            uses.users[event.user] = event.user_kind
        case UseEnded():
            uses.users.pop(event.user, None)
