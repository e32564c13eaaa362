"""The hash chain over the log, and its head: what proves that nothing has vanished. Pure.

Each commit adds one link, SHA-256 over the link before it, its number, its events and its commands, with every name
spelled out. A log whose links fit says what was written; that it *ends* where writing ended, only a head kept in a
file of its own can tell: one flipped bit in a write-ahead log makes SQLite drop everything after it without a word.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from aetherscale.eventstore.store import Accepted, Damaged, StoredEvent

GENESIS: Final = bytes(32)
"""The link before the first."""

_HEAD = re.compile(rb"aetherscale-head 1 (\d{1,19}) (\d{1,19}) ([0-9a-f]{64}) ([0-9a-f]{8})\n *\n")
HEAD_BYTES: Final = 256
"""The size of the head's file: less than a sector, so that a power cut leaves the old one or the new one."""

_encoder = msgspec.msgpack.Encoder()


class StoredCommand(Struct, frozen=True, array_like=True):
    """The record of a command, with its key. The order of the fields is part of the hash chain."""

    tenant: str
    command_id: str
    accepted: Accepted


class Head(Struct, frozen=True):
    """The end of the log: how many commits there were, the position of the last event, and the last link."""

    batch: int
    seq: int
    link: bytes


EMPTY: Final = Head(0, 0, GENESIS)


def next_head(head: Head, events: Sequence[StoredEvent], commands: Sequence[StoredCommand]) -> Head:
    """The head after one more commit.

    The link is SHA-256 of the MessagePack array [previous link, number of the commit, events, commands] in smallest
    encodings; events are the arrays that `_hashed` makes of them, commands are in the order of tenant and command id.
    """
    number = head.batch + 1
    ordered = sorted(commands, key=lambda command: (command.tenant, command.command_id))
    link = hashlib.sha256(_encoder.encode((head.link, number, [_hashed(event) for event in events], ordered))).digest()
    return Head(number, events[-1].seq if events else head.seq, link)


def _hashed(event: StoredEvent) -> tuple[int | str | bytes | None, ...]:
    """The fields of an event that are hashed: all of them. The order is for ever."""
    seq, stream, version, time_us, node, epoch, tenant, actor, command_id, correlation_id, causation_id, new = astuple(
        event
    )
    kind, schema, data = new.type, new.schema, new.data
    return (
        seq, stream, version, kind, schema, data, time_us,
        node, epoch, tenant, actor, command_id, correlation_id, causation_id,
    )  # fmt: skip


def head_to_bytes(head: Head) -> bytes:
    """One line of text, with a checksum of its own, filled up to `HEAD_BYTES`."""
    text = f"aetherscale-head 1 {head.batch} {head.seq} {head.link.hex()}".encode()
    line = text + b" %08x\n" % zlib.crc32(text)
    return line.ljust(HEAD_BYTES - 1) + b"\n"


def head_from_bytes(raw: bytes, where: str) -> Head:
    """The inverse of `head_to_bytes`. Raises `Damaged`, naming `where` it was read."""
    match = _HEAD.fullmatch(raw)
    if match is None or int(match[4], 16) != zlib.crc32(raw[: match.start(4) - 1]):
        raise Damaged(f"{where}: this is not the head of a log: {raw[:96]!r}")
    return Head(int(match[1]), int(match[2]), bytes.fromhex(match[3].decode()))
