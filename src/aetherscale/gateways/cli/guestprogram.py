"""A program in a guest as this client hears it and speaks to it: one session of `vm-program` on its node.

Output comes no faster than it is reported as taken; input is sent in pieces, each of which the node answers once the
guest has it, so that no more than a few are under way.
"""

from __future__ import annotations

import base64
import math
import select
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from aetherscale.bus.bus import BusUnavailable, NoResponders
from aetherscale.bus.chunks import Reply
from aetherscale.gateways.cli.client import ANSWER_S, Chunk, chunk_of
from aetherscale.gateways.cli.failures import NO_NODE, Failure
from aetherscale.gateways.cli.place import start
from aetherscale.kernel import subjects

if TYPE_CHECKING:
    from aetherscale.bus.blocking import Subscription
    from aetherscale.gateways.cli.context import Context

BEGIN_S: Final = 90.0
"""How long a node may take to start a program: it gives up earlier, and says why."""
STILL_HERE_S: Final = 10.0
WINDOW_BYTES: Final = 512 * 1024
"""The bytes of output that the node may have sent and that have not been taken yet."""
REPORT_BYTES: Final = 64 * 1024
"""How much is taken before it is reported."""
PIECE_BYTES: Final = 64 * 1024
"""The size of one piece of input."""
PIECES: Final = 8
"""Pieces of input that may be under way."""


class Output(NamedTuple):
    """A piece of what the program has written."""

    data: bytes
    is_error: bool


class NotBegun(Exception):
    """A program has not begun in the time that there was. If it begins later, its node hangs up on it."""


class GuestProgram:
    """One program, from its start until it has ended or `leave`."""

    def __init__(
        self,
        context: Context,
        reference: str,
        command: Sequence[str],
        *,
        has_input: bool,
        until_s: float = math.inf,
    ) -> None:
        """Start it, and wait until it runs, or until this moment of the monotonic clock.

        Raises `NotBegun`, `Failure`, `BusUnavailable`.
        """
        self._context = context
        self._tenant = context.settings.tenant
        self._session = context.program.new_token()
        self.connection = context.client.connection
        what = {"command": list(command), "has-input": has_input}
        wanted = context.client.whole({"vm-id": reference})
        body = {**wanted, **what, "session": self._session, "window-bytes": WINDOW_BYTES}
        subject = subjects.command(self._tenant, "compute", "vm-program")
        self._reply = self.connection.ask(subject, msgspec.json.encode(body))
        self._parts = Reply(subject)
        chunk = self._first_word(until_s)
        self.node = str(chunk["node"])
        self.pid = int(chunk["pid"])
        """Its process, as the guest counts them."""
        self.has_ended = False
        """Whether the node said that it is over."""
        self.exit_code: int | None = None
        """Of a program that has ended, where the node knows it."""
        self.is_deaf = False
        """Whether it takes no more input."""
        self._asked: deque[tuple[Subscription, Reply]] = deque()
        self._taken_bytes = self._reported_bytes = 0
        self._next_sign_s = time.monotonic() + STILL_HERE_S

    def _first_word(self, until_s: float) -> Chunk:
        try:
            chunk = self._next_until(ANSWER_S, until_s)
            while chunk is not None and chunk.get("status") in ("progress", "working"):
                chunk = self._next_until(BEGIN_S, until_s)
        except NoResponders:
            chunk = None
        if chunk is None:
            message = f"no node answers on {self.connection.url}"
            raise Failure(503, message, hint=start(self._context.settings), status=NO_NODE)
        return chunk

    def _next_until(self, patience_s: float, until_s: float) -> Chunk | None:
        left_s = until_s - time.monotonic()
        chunk = self._next(max(0.0, min(patience_s, left_s)))
        if chunk is None and left_s < patience_s:
            self._reply.unsubscribe()
            raise NotBegun
        return chunk

    def fileno(self) -> int:
        """For `poll`: readable where there is more than `heard` has said."""
        return self.connection.fileno()

    def patience_s(self) -> float:
        """How soon `heard` has to be called again, whatever comes."""
        return 0.0 if self._reply.waiting else max(0.0, self._next_sign_s - time.monotonic())

    def wait(self) -> None:
        """Until something has come, or `heard` has to be called again anyhow."""
        select.select([self.fileno()], (), (), self.patience_s())

    def heard(self) -> Output | None:
        """The next piece of output, where one has come. Raises `Failure`, `BusUnavailable`."""
        if time.monotonic() >= self._next_sign_s:
            self._say({})
        self._collect()
        while not self.has_ended and (chunk := self._next(0)) is not None:
            if chunk["type"] == "result":
                self.has_ended = True
                self.exit_code = chunk.get("exit-code")
                if chunk.get("reason") == "silence":
                    raise Failure(504, f"{self.node} ended this session, since it had heard nothing of it", status=1)
            elif chunk["type"] == "item":
                name = "error-data" if "error-data" in chunk else "data"
                return Output(base64.b64decode(chunk[name]), name == "error-data")
        return None

    def took(self, count: int) -> None:
        """So much more of its output has been taken: the node may send as much again."""
        self._taken_bytes += count
        if self._taken_bytes - self._reported_bytes >= REPORT_BYTES:
            self._reported_bytes = self._taken_bytes
            self._say({"seen-bytes": self._taken_bytes})

    def has_room(self) -> bool:
        """Whether a piece of input may be given now."""
        self._collect()
        return len(self._asked) < PIECES

    def has_given_all(self) -> bool:
        """Whether the guest has all of the input."""
        self._collect()
        return not self._asked

    def give(self, data: bytes) -> None:
        """Give it input, which ends where there is none."""
        if not self.is_deaf:
            self._ask({"data": base64.b64encode(data).decode()} if data else {"end": True})

    def signal(self, name: str) -> None:
        """Send it a signal."""
        self._say({"signal": name})

    def leave(self) -> None:
        """Tell the node that this client has left. Where the connection is lost, its silence says so."""
        with suppress(BusUnavailable):
            if not self.has_ended:
                self._say({"detach": True})
            self._reply.unsubscribe()
            for reply, _ in self._asked:
                reply.unsubscribe()
            self.connection.flush()

    def _collect(self) -> None:
        """Take the answers to pieces of input. Raises `BusUnavailable`."""
        while self._asked:
            reply, parts = self._asked[0]
            message = reply.receive(0)
            if message is None:
                return
            try:
                if chunk_of(message, parts)["type"] != "result":
                    continue
            except (Failure, NoResponders):
                self.is_deaf = True
            reply.unsubscribe()
            self._asked.popleft()

    def _ask(self, what: Mapping[str, Any]) -> None:
        subject, body = self._message(what)
        self._asked.append((self.connection.ask(subject, body), Reply(subject)))

    def _say(self, what: Mapping[str, Any]) -> None:
        self._next_sign_s = time.monotonic() + STILL_HERE_S
        try:
            self.connection.publish(*self._message(what))
        except BusUnavailable:
            if not self._reply.waiting:  # what the node said before the connection was lost is heard first
                raise

    def _message(self, what: Mapping[str, Any]) -> tuple[str, bytes]:
        subject = subjects.node_command(self._tenant, self.node, "compute", "console-input")
        return subject, msgspec.json.encode({"session": self._session, **what})

    def _next(self, timeout_s: float) -> Chunk | None:
        message = self._reply.receive(timeout_s)
        return chunk_of(message, self._parts) if message is not None else None
