"""What a message asks for: its subject and headers, checked and made a `Call`; of the first version's also the body.

Pure. Knows neither the bus nor what a task means; the options stay bytes, which the component decodes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from aetherscale.bus.bus import Incoming
from aetherscale.bus.callers import NOBODY
from aetherscale.kernel import subjects, wire
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import CHANNEL_PATTERN, KEY_PATTERN, Channel, Name
from aetherscale.kernel.subjects import Address

KEY: Final = "Nats-Msg-Id"
CORRELATION: Final = "Aether-Correlation-Id"
CAUSATION: Final = "Aether-Causation-Id"
DEADLINE: Final = "Aether-Deadline"
TIMEOUT: Final = "Aether-Timeout-Ms"
TRACEPARENT: Final = "traceparent"

CLAIMED: Final = "Aether-Claimed-User"
"""The name that a caller gives itself. The broker does not prove it, so the actor shows that it is only claimed."""
FIRST_VERSION_NAMES: Final[Mapping[str, str]] = {"computing": "compute"}
"""How the first version called its components."""

_DEADLINE = re.compile(r"[0-9]{1,15}")
_USER = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


class FirstVersion(wire.Message, frozen=True):
    """The first version's message."""

    component: Name
    task: Name
    response_channel: Channel | None = None
    options: msgspec.Raw = msgspec.Raw(b"{}")


class _ChannelAlone(msgspec.Struct, frozen=True, rename="kebab"):
    response_channel: str = ""


def response_channels(body: bytes, tenant: str, besides: Sequence[str]) -> list[str]:
    """Where the first version's message wants its replies, also where all else in it is wrong.

    At most one subject, and none where it is among those that get them anyway.
    """
    try:
        channel = msgspec.json.decode(body, type=_ChannelAlone).response_channel
    except (ValueError, RecursionError):
        return []
    if not re.fullmatch(CHANNEL_PATTERN, channel):
        return []
    subject = subjects.response_channel(tenant, channel)
    return [] if subject in besides else [subject]


def check_size(incoming: Incoming) -> None:
    """Raises `Refused` (413) before anything else is done with a large body."""
    if len(incoming.body) > wire.MAX_BODY_BYTES:
        raise Refused(
            Reason.TOO_LARGE, f"message: got {len(incoming.body)} bytes, expected at most {wire.MAX_BODY_BYTES}"
        )


def read(
    incoming: Incoming,
    address: Address,
    owners: Mapping[str, str],
    *,
    actor: str,
    now_us: int,
    new_id: Callable[[], str],
) -> Call:
    """The call that a message of `actor` makes. `owners` names the component of each kind of object.

    Raises `Refused`: 400 for a malformed header or first version's message, 404 for an unknown kind, 504 where the
    caller has stopped to wait already.
    """
    headers = incoming.headers
    key = _text(headers, KEY)
    deadlines_us = [each for each in (_deadline(headers, now_us), _timeout(headers, now_us)) if each is not None]
    command_id = key or new_id()
    component, task, body = address.component, address.task, incoming.body
    if address.subject_class == "rpc":
        message = wire.decode(body, FirstVersion, "message")
        component = FIRST_VERSION_NAMES.get(message.component, message.component)
        task, body = message.task, bytes(message.options)
    elif address.subject_class == "obj":
        if address.kind not in owners:
            raise Refused(Reason.NOT_FOUND, f"subject: there is no kind of object {address.kind!r}", field="subject")
        component = owners[address.kind]
    return Call(
        tenant=address.tenant,
        component=component,
        task=task,
        body=body,
        actor=_actor(actor, headers),
        command_id=command_id,
        keyed=bool(key),
        correlation_id=_text(headers, CORRELATION) or trace_id(headers) or command_id,
        causation_id=_text(headers, CAUSATION) or None,
        deadline_us=min(deadlines_us, default=None),
        object_id=address.target if address.subject_class == "obj" else "",
        legacy=address.subject_class == "rpc",
    )


def _actor(actor: str, headers: Mapping[str, str]) -> str:
    """The caller: the name that is known, and in parentheses the one that the message gives.

    No name has parentheses, so none can be taken for another.
    """
    if CLAIMED not in headers:
        return actor
    value = headers[CLAIMED]
    if not _USER.fullmatch(value):
        expected = "1 to 64 letters, digits, '.', '_', '-', '@' and '+'"
        raise Refused(Reason.BAD_REQUEST, f"header {CLAIMED}: got {value[:80]!r}, expected {expected}", field=CLAIMED)
    is_known = actor != NOBODY and actor.partition(":")[2] == value
    return actor if is_known else f"{actor} (says: {value})"


def _text(headers: Mapping[str, str], name: str) -> str:
    """The value of a header, or "" where it is not there."""
    if name not in headers:
        return ""
    value = headers[name]
    if not re.fullmatch(KEY_PATTERN, value):
        raise Refused(
            Reason.BAD_REQUEST,
            f"header {name}: got {value[:140]!r}, expected 1 to 128 printable ASCII characters",
            field=name,
        )
    return value


def _deadline(headers: Mapping[str, str], now_us: int) -> int | None:
    if DEADLINE not in headers:
        return None
    value = headers[DEADLINE]
    if not _DEADLINE.fullmatch(value):
        raise Refused(
            Reason.BAD_REQUEST,
            f"header {DEADLINE}: got {value[:40]!r}, expected milliseconds since 1970",
            field=DEADLINE,
        )
    deadline_us = int(value) * 1000
    if deadline_us < now_us:
        late_ms = (now_us - deadline_us) // 1000
        raise Refused(
            Reason.DEADLINE,
            f"the message came {late_ms} ms after its deadline; nothing was done",
            field=DEADLINE,
            retryable=True,
            remedy=f"compare the clocks of caller and node, or send the time to wait as a duration: {TIMEOUT}",
            details={"goes-on": False},
        )
    return deadline_us


def _timeout(headers: Mapping[str, str], now_us: int) -> int | None:
    """The deadline of a caller who says how long it waits, counted from the arrival: no two clocks are compared."""
    if TIMEOUT not in headers:
        return None
    value = headers[TIMEOUT]
    if not _DEADLINE.fullmatch(value):
        raise Refused(Reason.BAD_REQUEST, f"header {TIMEOUT}: got {value[:40]!r}, expected milliseconds", field=TIMEOUT)
    return now_us + int(value) * 1000


def trace_id(headers: Mapping[str, str]) -> str:
    """The trace id of a W3C `traceparent`, so that a caller's traces and our events share an id; a bad one is none."""
    found = _TRACE.fullmatch(headers.get(TRACEPARENT, ""))
    return found.group(1) if found else ""
