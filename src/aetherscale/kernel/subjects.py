"""Every NATS subject, built and parsed in this one module. See `docs/subjects.md`.

aether.v1.<tenant>.cmd.<component>.<task>          any node takes it
aether.v1.<tenant>.node.<node>.<component>.<task>  one node
aether.v1.<tenant>.obj.<kind>.<id>.<task>          one object: only its owner listens
aether.v1.<tenant>.all.<component>.<task>          every node
aether.v1.<tenant>.evt.<node>.<kind>.<id>.<event>  events
aether.v1.<tenant>.rpc                             the first version's message
aether.v1.<tenant>.rsp.<channel>                   its response channel
aether.v1.sys.hb.<node>                            heartbeat
aether.v1.sys.all.node.info                        asks every node what it is
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final, Literal

from msgspec import Struct

from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import ID_RULE, NAME_RULE, is_id, is_name

ROOT: Final = "aether.v1"
QUEUE: Final = "aether"
SYSTEM: Final = "sys"
DEFAULT_TENANT: Final = "default"

AUCTION: Final = "auction"
"""The task that an auction stands for."""

SubjectClass = Literal["cmd", "node", "obj", "all", "auction", "rpc"]
FAN_OUT: Final = frozenset({"all", "auction"})
"""The classes that every node answers, each with one message."""

_PLAIN = re.compile(r"[^\x00-\x20\x7f*>]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class Address(Struct, frozen=True):
    """A parsed subject of a request. `component` is empty for `obj` and `rpc`, `target` is the node or the object."""

    subject_class: SubjectClass
    tenant: str
    component: str = ""
    task: str = ""
    kind: str = ""
    target: str = ""


def node_queue(node: str) -> str:
    """The queue group in which one node subscribes what is meant for itself alone."""
    return f"n-{node}"


def command(tenant: str, component: str, task: str) -> str:
    """A task that any node may take."""
    return f"{ROOT}.{tenant}.cmd.{component}.{task}"


def node_command(tenant: str, node: str, component: str, task: str) -> str:
    """A task for one node."""
    return f"{ROOT}.{tenant}.node.{node}.{component}.{task}"


def object_command(tenant: str, kind: str, object_id: str, task: str) -> str:
    """A task for one object, which only its owner listens to."""
    return f"{ROOT}.{tenant}.obj.{kind}.{object_id}.{task}"


def all_command(tenant: str, component: str, task: str) -> str:
    """A task for every node."""
    return f"{ROOT}.{tenant}.all.{component}.{task}"


def auction(tenant: str, component: str) -> str:
    """Where all nodes are asked what they would take a request for."""
    return f"{ROOT}.{tenant}.auction.{component}"


def every_tenants_command(component: str, task: str) -> str:
    """The pattern of a task that any node takes, from whichever tenant."""
    return f"{ROOT}.*.cmd.{component}.{task}"


def rpc(tenant: str) -> str:
    """Where the first version's message goes."""
    return f"{ROOT}.{tenant}.rpc"


def response_channel(tenant: str, channel: str) -> str:
    """Where the first version's replies go."""
    return f"{ROOT}.{tenant}.rsp.{channel}"


def heartbeat(node: str) -> str:
    """The subject of a node's heartbeats."""
    return f"{ROOT}.{SYSTEM}.hb.{node}"


def ask_nodes() -> str:
    """Where every node is asked what it is; each answers with what its heartbeat says."""
    return f"{ROOT}.{SYSTEM}.all.node.info"


def event(tenant: str, node: str, kind: str, aggregate_id: str, event_type: str) -> str:
    """Where an event is published."""
    return f"{ROOT}.{tenant}.evt.{node}.{kind}.{aggregate_id}.{kebab(event_type)}"


def object_events(tenant: str, kind: str, object_id: str) -> str:
    """All events of one object, on whichever node it is."""
    return f"{ROOT}.{tenant}.evt.*.{kind}.{object_id}.*"


def node_events(node: str) -> str:
    """The subjects of the stream that holds one node's events."""
    return f"{ROOT}.*.evt.{node}.>"


def event_stream(node: str) -> str:
    """The name of the JetStream stream of one node's events."""
    return f"AETHER_EVT_{node}"


@lru_cache(maxsize=1024)
def kebab(event_type: str) -> str:
    """`VmBooted` as the token `vm-booted`."""
    return _CAMEL.sub("-", event_type).lower()


def subscriptions(component: str, node: str) -> list[tuple[str, str]]:
    """(subject, queue) of everything that a component of a node listens to, one wildcard a class.

    A wildcard for each component, so that one caller's messages keep their order.
    """
    mine = node_queue(node)
    return [
        (f"{ROOT}.*.cmd.{component}.*", QUEUE),
        (f"{ROOT}.*.node.{node}.{component}.*", mine),
        (f"{ROOT}.*.all.{component}.*", mine),
        (f"{ROOT}.*.auction.{component}", mine),
    ]


def object_subscription(tenant: str, kind: str, object_id: str, node: str) -> tuple[str, str]:
    """(subject, queue) of one object on its owner."""
    return object_command(tenant, kind, object_id, "*"), node_queue(node)


def rpc_subscription() -> tuple[str, str]:
    """(subject, queue) of the first version's message."""
    return f"{ROOT}.*.rpc", QUEUE


def parse(subject: str) -> Address:
    """The address in a request's subject. Raises `Refused` (bad request) for any other shape, tenant or token."""
    tokens = subject.split(".")
    if len(tokens) < 4 or ".".join(tokens[:2]) != ROOT:
        raise _malformed(subject)
    tenant, subject_class, rest = tokens[2], tokens[3], tokens[4:]
    if not is_name(tenant) or tenant == SYSTEM:
        raise Refused(
            Reason.BAD_REQUEST,
            f"subject: got the tenant {tenant[:80]!r}, expected a name other than {SYSTEM!r}: {NAME_RULE}",
            field="tenant",
        )
    match subject_class, rest:
        case "rpc", []:
            return Address("rpc", tenant)
        case ("cmd" | "all") as found, [component, task] if is_name(component) and is_name(task):
            return Address(found, tenant, component, task)
        case "auction", [component] if is_name(component):
            return Address("auction", tenant, component, AUCTION)
        case "node", [node, component, task] if is_name(node) and is_name(component) and is_name(task):
            return Address("node", tenant, component, task, target=node)
        case "obj", [kind, object_id, task] if is_name(kind) and is_id(object_id) and is_name(task):
            return Address("obj", tenant, task=task, kind=kind, target=object_id)
        case "obj", [kind, object_id, task] if is_name(kind) and is_name(task):
            raise Refused(
                Reason.BAD_REQUEST, f"subject: got the object {object_id[:80]!r}, expected {ID_RULE}", field="subject"
            )
        case "node", [node, component, task] if is_name(component) and is_name(task):
            raise Refused(
                Reason.BAD_REQUEST,
                f"subject: got the node {node[:80]!r}, expected a name: {NAME_RULE}",
                field="subject",
            )
        case _:
            raise _malformed(subject)


def may_answer(reply: str, tenant: str) -> bool:
    """Whether a node may publish answers on the subject that a stranger names for them.

    It publishes with rights of its own. So not where the broker takes orders (`$JS.API…`), and nowhere among our own
    subjects but on a response channel of the same tenant. A subject with wildcards or control characters is no subject.
    """
    tokens = reply.split(".")
    if reply.startswith("$") or not all(_PLAIN.fullmatch(token) for token in tokens):
        return False
    return tokens[0] != ROOT.partition(".")[0] or reply.startswith(response_channel(tenant, ""))


def _malformed(subject: str) -> Refused:
    return Refused(
        Reason.BAD_REQUEST,
        f"subject: got {subject[:200]!r}, expected {ROOT}.<tenant>.cmd.<component>.<task> or the like",
        remedy="see docs/subjects.md",
        field="subject",
    )
