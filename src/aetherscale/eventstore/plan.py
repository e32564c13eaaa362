"""The plan of a batch of appends: which are refused, and which events the others lead to. Pure; both backends use it.

An append sees what those before it in the batch lead to. Nothing here is true until the batch is committed: a batch
that fails is planned anew, each append alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from msgspec import Struct, field

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.store import Accepted, AlreadyAccepted, Append, StoredEvent, StoreError, WrongVersion

MAX_TIME_US: Final = 253_402_300_799_999_999
"""The last microsecond of the year 9999, beyond which RFC 3339 has no times."""


class Known(Protocol):
    """The present state of the log."""

    def version(self, stream: str) -> int:
        """The version that a stream is at; 0 where it has no events."""
        ...

    def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """The events of a command, if it was accepted."""
        ...


class Plan(Struct):
    """A batch on its way into the log."""

    outcomes: list[Outcome] = field(default_factory=list)
    events: list[StoredEvent] = field(default_factory=list)
    commands: dict[tuple[str, str], Accepted] = field(default_factory=dict)
    """By tenant and command id."""
    versions: dict[str, int] = field(default_factory=dict)
    """Where the streams will be."""


def plan(appends: Sequence[Append], known: Known, seq: int, node: str, epoch: str) -> Plan:
    """Plan a batch that follows event `seq`. The events of one append are next to one another.

    Raises ValueError for a time that no log can hold.
    """
    planned = Plan()
    for append in appends:
        if not 0 <= append.time_us <= MAX_TIME_US:
            raise ValueError(f"append: time: got {append.time_us} microseconds, expected 0 to {MAX_TIME_US}")
        refusal = _refusal(append, known, planned)
        if refusal is None:
            events = _events(append, planned, seq, node, epoch)
            if append.key is not None:
                accepted = Accepted(append.key.digest, seq + 1, seq + len(events))
                planned.commands[append.key.tenant, append.key.command_id] = accepted
            planned.events.extend(events)
            seq += len(events)
            planned.outcomes.append(events)
        else:
            planned.outcomes.append(refusal)
    return planned


def _refusal(append: Append, known: Known, planned: Plan) -> StoreError | None:
    """Why an append is not taken. A repeat is recognised first: its versions are those of the past."""
    if append.key is not None:
        tenant, command_id = append.key.tenant, append.key.command_id
        accepted = planned.commands.get((tenant, command_id)) or known.accepted(tenant, command_id)
        if accepted is not None:
            return AlreadyAccepted(accepted)
    moved: dict[str, int] = {}
    for write in append.writes:
        stream = write.stream
        if stream not in planned.versions:
            planned.versions[stream] = known.version(stream)
        version = moved.get(stream, planned.versions[stream])
        if write.expected_version is not None and version != write.expected_version:
            return WrongVersion(stream, write.expected_version, version)
        moved[stream] = version + len(write.events)
    return None


def _events(append: Append, planned: Plan, seq: int, node: str, epoch: str) -> tuple[StoredEvent, ...]:
    events: list[StoredEvent] = []
    for write in append.writes:
        version = planned.versions[write.stream]
        for event in write.events:
            seq += 1
            version += 1
            events.append(
                StoredEvent(
                    seq,
                    write.stream,
                    version,
                    append.time_us,
                    node,
                    epoch,
                    append.tenant,
                    append.actor,
                    append.command_id,
                    append.correlation_id,
                    append.causation_id,
                    event,
                )
            )
        planned.versions[write.stream] = version
    return tuple(events)
