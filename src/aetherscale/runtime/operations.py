"""Operations, from the log alone: what a command led to, long after the process that took it.

The events of a command name its aggregate, and the first one tells what was asked for. The states that follow are gone
through as a waiting caller would have seen them, up to the first one in which the command had come to its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.store import Accepted
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.messages import Recorded, split_stream
from aetherscale.kernel.operations import Operation
from aetherscale.kernel.registry import Aggregate, advance
from aetherscale.runtime.component import Component
from aetherscale.runtime.watches import is_whole


async def find(
    event_log: EventLog, components: Mapping[str, Component[Any, Any]], tenant: str, command_id: str
) -> Operation:
    """The operation of a command; `components` are by kind. Raises `Refused` (not found) for one never accepted."""
    accepted = await event_log.accepted(tenant, command_id)
    if accepted is None:
        raise Refused(
            Reason.NOT_FOUND,
            f"no such operation: {command_id[:140]!r}",
            field="operation",
            remedy="an operation is named by the key of a request that was accepted; one that was refused is none",
        )
    begun = await _begun(event_log, components, accepted)
    if begun is None:
        return Operation(command_id, "done")
    kind, target = split_stream(begun.stream)
    component = components[kind]
    named = Operation(
        command_id,
        "running",
        kind,
        target,
        accepted.first_seq,
        accepted.last_seq,
        begun.time_us,
        begun.actor,
    )
    return _ended(named, component, begun, await event_log.read_stream(begun.stream))


async def _begun(
    event_log: EventLog, components: Mapping[str, Component[Any, Any]], accepted: Accepted
) -> Recorded | None:
    """The first event of a command in the stream of its aggregate; None for a command that changed nothing."""
    count = accepted.last_seq - accepted.first_seq + 1
    if count <= 0:
        return None
    events = await event_log.read(accepted.first_seq - 1, count)
    return next((each for each in events if split_stream(each.stream)[0] in components), None)


def _ended(named: Operation, component: Component[Any, Any], begun: Recorded, stream: Sequence[Recorded]) -> Operation:
    """The operation with its end, by the first state in which it is one."""
    is_done = component.ends.get(type(begun.event))
    aggregate: Aggregate[Any] | None = None
    for index, each in enumerate(stream):
        aggregate = advance(component.kind, aggregate, each, named.object_id)
        if each.seq < begun.seq or not is_whole(stream, index):
            continue
        try:
            pending = component.decider.pending(aggregate.state)
            if pending is None if is_done is None else is_done(aggregate.state, begun.event):
                return replace(named, status="done", ended_us=each.time_us)
        except Refused as refused:
            return replace(named, status="failed", ended_us=each.time_us, refused=refused)
    return named
