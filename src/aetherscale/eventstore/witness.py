"""Heads of a log that are kept elsewhere, so that a log that was rolled back or rewritten is seen. Pure.

The hash chain proves that a log is one that was written, and the head file that it ends where writing ended. Anyone who
can write to the state directory can make both anew, or put an older copy of both in their place. A head that is kept
elsewhere cannot be made anew: a log has it, or is another one.

    {"node": "host1", "epoch": …, "head-seq": 12, "head-hash": "64 hex digits", "time": …}

One line each, and a node's heartbeat is such a line, with more in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from aetherscale.eventstore.chain import EMPTY, Head


class Witnessed(Struct, frozen=True, rename="kebab"):
    """The durable end of a node's log, as it was at a moment."""

    node: str
    epoch: str
    head_seq: Annotated[int, Meta(ge=0)]
    head_hash: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    time: str


_decoder = msgspec.json.Decoder(Witnessed)


def encode(witnessed: Witnessed) -> bytes:
    """Its line."""
    return msgspec.json.encode(witnessed) + b"\n"


def decode(raw: bytes) -> Witnessed:
    """A line, or the body of a heartbeat. Raises ValueError that says what is wrong with it."""
    try:
        return _decoder.decode(raw)
    except msgspec.MsgspecError as wrong:
        raise ValueError(str(wrong)) from None


def decode_lines(lines: Iterable[bytes]) -> list[Witnessed]:
    """All lines of a file. Raises ValueError that names the line."""
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(decode(line))
        except ValueError as wrong:
            raise ValueError(f"line {number} is not a witnessed head: {wrong}") from None
    return found


class Comparison:
    """Compares a log with its witnessed heads. It is given every head that the log proves to have had, in order."""

    def __init__(self, witnessed: Sequence[Witnessed], node: str) -> None:
        """Only the heads of this node count."""
        self._node = node
        self._others = sorted({each.node for each in witnessed} - {node})
        self._missing = {(each.head_seq, each.head_hash): each for each in witnessed if each.node == node}
        self._total = len(self._missing)
        self._last: Witnessed | None = None
        self.prove(EMPTY)

    @property
    def found(self) -> int:
        """How many of the witnessed heads the log has."""
        return self._total - len(self._missing)

    def prove(self, head: Head) -> None:
        """The log has had this head."""
        self._last = self._missing.pop((head.seq, head.link.hex()), self._last)

    def problem(self, end: int, *, damaged: bool) -> tuple[int | None, str] | None:
        """The fault of a log that is verified up to event `end`, with the first event that may be affected.

        Where it is `damaged` there, it is not known whether the heads of later events fit.
        """
        if not self._total:
            of = f"they are of {', '.join(self._others)}" if self._others else "there are none"
            return None, f"no head of node {self._node} was witnessed: {of}"
        missing = sorted(
            (each for each in self._missing.values() if not damaged or each.head_seq <= end),
            key=lambda each: (each.head_seq, each.time),
        )
        if not missing:
            return None
        first = missing[0]
        fits = f"event {self._last.head_seq}, witnessed at {self._last.time}" if self._last else "none"
        more = f"; {len(missing) - 1} more do not fit" if len(missing) > 1 else ""
        if first.head_seq > end:
            what = f"log rolled back: event {first.head_seq} was witnessed at {first.time}, and the log ends at {end}"
        else:
            what = (
                f"log rewritten: up to event {first.head_seq} it is not the one that was witnessed at {first.time} "
                f"({first.head_hash[:16]}…)"
            )
        return min(first.head_seq, end + 1), f"{what}; the last head that fits: {fits}{more}"
