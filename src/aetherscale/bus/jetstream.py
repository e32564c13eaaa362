"""One JetStream stream over the bus: its state, its making and unmaking, its messages, and publishing in order.

Speaks the JetStream API itself, since nats-py's asynchronous publishing never tells of a refused message. Has never
heard of the log whose copy the stream is. Source: ADR-1, ADR-31 (direct get, batches) of the NATS architecture.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from msgspec import Struct

from aetherscale.bus.bus import STATUS, Bus, Incoming, NoResponders, Subscription
from aetherscale.bus.protocol import parse_headers
from aetherscale.bus.streamplan import StreamState

API: Final = "$JS.API"
TIMEOUT_S: Final = 10.0
STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
NO_ROOM: Final = frozenset({10002, 10023, 10047, 10122})
"""An account, a cluster or a server has not got the room that a stream asks for, or may not give it."""
WINDOW: Final = 256
"""Messages under way at one time."""
ACK_TIMEOUT_S: Final = 5.0
"""Nothing stored for so long while something is under way: somebody else heard it, or nobody."""
COPY_TIMEOUT_S: Final = 120.0
COPY_POLL_S: Final = 0.02
DUPLICATE_WINDOW_NS: Final = 10**9
"""Expected positions tell what is there twice; a server reads the whole of this window anew when it starts."""

MESSAGE_ID: Final = "Nats-Msg-Id"
EXPECTED_LAST: Final = "Nats-Expected-Last-Sequence"
EXPECTED_STREAM: Final = "Nats-Expected-Stream"
MAX_HEADER_BYTES: Final = 1024
"""More than the headers of any message of ours take."""


class StreamError(Exception):
    """JetStream refused or does not answer; the message says what was asked and what it said."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class StoredMessage(Struct, frozen=True):
    """A message as the stream has it."""

    seq: int
    subject: str
    message_id: str
    body: bytes


class _Error(Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(Struct):
    stream: str = ""
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class Stream:
    """A stream by name. `max_bytes` is what it may take on disk: the oldest messages go first."""

    def __init__(
        self, bus: Bus, name: str, subjects: tuple[str, ...], *, description: str, max_bytes: int, replicas: int = 1
    ) -> None:
        self.bus, self.name, self.subjects, self.max_bytes = bus, name, subjects, max_bytes
        self._description, self._replicas = description, replicas

    async def state(self) -> StreamState | None:
        """What it has; None where there is no such stream."""
        info = await self._info(self.name)
        if info is None:
            return None
        state, last = info["state"], int(info["state"]["last_seq"])
        return StreamState(
            first_seq=int(state["first_seq"]),
            last_seq=last,
            messages=int(state["messages"]),
            deleted=int(state.get("num_deleted", 0)),
            size_bytes=int(state["bytes"]),
            subjects=tuple(info["config"].get("subjects", ())),
            tip_id=await self._message_id(last) if state["messages"] else "",
        )

    async def create(self, first_seq: int) -> None:
        """Make it, so that its first message will be at `first_seq`."""
        config = {
            "name": self.name,
            "description": self._description,
            "subjects": self.subjects,
            "retention": "limits",
            "storage": "file",
            "discard": "old",
            "num_replicas": self._replicas,
            "allow_direct": True,
            "deny_delete": True,
            "first_seq": first_seq,
            **self._adjustable,
        }
        await self._ask(f"STREAM.CREATE.{self.name}", config)

    async def adjust(self) -> None:
        """Give a stream that is there the settings that it would be made with now, where they can be changed."""
        info = await self._info(self.name)
        if info is not None and not self._adjustable.items() <= info["config"].items():
            await self._ask(f"STREAM.UPDATE.{self.name}", {**info["config"], **self._adjustable})

    @property
    def _adjustable(self) -> Mapping[str, int]:
        return {"max_bytes": self.max_bytes, "duplicate_window": DUPLICATE_WINDOW_NS}

    async def delete(self) -> None:
        """Remove it, if it is there."""
        await self._ask(f"STREAM.DELETE.{self.name}", None, allow=STREAM_NOT_FOUND)

    async def set_aside(self, name: str) -> None:
        """Give all its messages to a stream `name` of their own, at the same positions, and remove this one.

        Nothing is removed before the other has everything; done half and then again, it ends the same.
        """
        copy = {
            "name": name, "description": f"set aside: {self._description}", "storage": "file", "retention": "limits",
            "num_replicas": self._replicas, "allow_direct": True, "deny_delete": True, "mirror": {"name": self.name},
        }  # fmt: skip
        await self._ask(f"STREAM.CREATE.{name}", copy, allow=NAME_IN_USE)
        here = await self._info(self.name)
        there = await self._copied(name, here["state"] if here else {"last_seq": 0, "messages": 0})
        if there is None:
            raise StreamError(f"stream {name}: it is gone again before it could be used")
        # A mirror without its origin would go on with the next stream of that name.
        if "mirror" in there["config"]:
            config = {key: value for key, value in there["config"].items() if key != "mirror"}
            # Or it would go on answering for the other stream's name, with the messages of old.
            config["mirror_direct"] = False
            await self._ask(f"STREAM.UPDATE.{name}", config)
        await self.delete()

    async def _copied(self, name: str, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Wait until a mirror has all messages; JetStream tells nobody when."""
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S):
                while True:
                    info = await self._info(name)
                    if info is None or _has_all(info["state"], wanted):
                        return info
                    await asyncio.sleep(COPY_POLL_S)
        except TimeoutError:
            raise StreamError(f"stream {name}: it has not got everything within {COPY_TIMEOUT_S:.0f} s") from None

    async def read(self, first_seq: int, count: int) -> list[StoredMessage]:
        """The next messages from a position on, at most `count`; gaps are left out."""
        found: list[StoredMessage] = []
        answers: asyncio.Queue[Incoming] = asyncio.Queue()
        inbox = self.bus.inbox()
        subscription = await self.bus.listen(inbox, "", answers.put_nowait)
        try:
            question = msgspec.json.encode({"seq": first_seq, "batch": count})
            await self.bus.publish(f"{API}.DIRECT.GET.{self.name}", question, reply=inbox)
            async with asyncio.timeout(TIMEOUT_S):
                while (answer := await answers.get()).headers.get("Nats-Sequence", "").isdigit():
                    found.append(_stored(answer))
        except TimeoutError:
            raise StreamError(f"stream {self.name}: reading from {first_seq} got no answer") from None
        finally:
            await subscription.unsubscribe()
        # 204 ends a batch, 404 says that there is nothing at or after the position.
        if (status := answer.headers.get(STATUS)) not in ("204", "404"):
            raise StreamError(f"stream {self.name}: reading from {first_seq} got the status {status}")
        return found

    async def _message_id(self, seq: int) -> str:
        answer = await self._ask(f"STREAM.MSG.GET.{self.name}", {"seq": seq}, allow=10037)
        block = answer.get("message", {}).get("hdrs", "")
        return _headers(block).get(MESSAGE_ID, "")

    async def _info(self, name: str) -> dict[str, Any] | None:
        answer = await self._ask(f"STREAM.INFO.{name}", None, allow=STREAM_NOT_FOUND)
        return None if "error" in answer else answer

    async def _ask(self, what: str, body: Mapping[str, Any] | None, allow: int = 0) -> dict[str, Any]:
        """One question to the API. Raises `StreamError` for any error but the one that is allowed for."""
        question = msgspec.json.encode(body) if body is not None else b""
        try:
            async for chunk in self.bus.request(f"{API}.{what}", question, timeout_s=TIMEOUT_S):
                answer: dict[str, Any] = msgspec.json.decode(chunk)
                error = answer.get("error")
                if error and error.get("err_code") != allow:
                    raise StreamError(f"{what}: {error.get('description')}", int(error.get("err_code", 0)))
                return answer
        except NoResponders:
            raise StreamError(f"{what}: this broker has no JetStream; turn it on, or use the embedded one") from None
        except TimeoutError:
            raise StreamError(f"{what}: no answer within {TIMEOUT_S:.0f} s") from None
        raise StreamError(f"{what}: an empty answer")


class Pipeline:
    """Messages on their way into a stream, in order, each at the position that it must get; many under way at once.

    The first one that does not get its position fails the pipeline: every later one is refused too. `on_failure` is
    called then, from within the loop. Use as a context.
    """

    def __init__(
        self,
        stream: Stream,
        after: int,
        *,
        window: int = WINDOW,
        ack_timeout_s: float = ACK_TIMEOUT_S,
        on_failure: Callable[[], None],
    ) -> None:
        self._stream, self._window, self._ack_timeout_s = stream, window, ack_timeout_s
        self._on_failure = on_failure
        self._sent = self.stored = after
        self._failure: StreamError | None = None
        self._changed = asyncio.Event()
        self._inbox = stream.bus.inbox()
        self._subscription: Subscription | None = None
        self._watch: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._subscription = await self._stream.bus.listen(f"{self._inbox}.*", "", self._acknowledged)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def publish(self, subject: str, body: bytes, message_id: str, headers: Mapping[str, str]) -> None:
        """Send the next message; waits where too many are under way. Raises `StreamError`, `BusUnavailable`."""
        if self._sent - self.stored >= self._window:
            await self._until(lambda: self._sent - self.stored <= self._window // 2)
        if self._failure is not None:
            raise self._failure
        previous, self._sent = self._sent, self._sent + 1
        fields = {
            MESSAGE_ID: message_id,
            EXPECTED_LAST: str(previous),
            EXPECTED_STREAM: self._stream.name,
            **headers,
        }
        if self._watch is None:
            self._watch_from(self.stored)
        await self._stream.bus.publish(subject, body, fields, reply=f"{self._inbox}.{self._sent}")

    async def drained(self) -> None:
        """Wait until everything that was sent is stored. Raises `StreamError`."""
        await self._until(lambda: self.stored >= self._sent)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while self._failure is None and not holds():
            self._changed.clear()
            await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _acknowledged(self, incoming: Incoming) -> None:
        seq = int(incoming.subject.rpartition(".")[2])
        failure = _refusal(incoming, seq)
        if failure:
            self._fail(f"message {seq}: {failure}")
        elif self._failure is None:
            self.stored = max(self.stored, seq)
        self._changed.set()

    def _watch_from(self, stored: int) -> None:
        """Look again later whether more than `stored` is stored by then."""
        loop = asyncio.get_running_loop()
        self._watch = loop.call_later(self._ack_timeout_s, self._look, stored)

    def _look(self, stored_before: int) -> None:
        self._watch = None
        if self.stored == stored_before:
            self._fail(f"nothing was stored for {self._ack_timeout_s:g} s")
        elif self.stored < self._sent:
            self._watch_from(self.stored)

    def _fail(self, why: str) -> None:
        if self._failure is None:
            self._failure = StreamError(f"stream {self._stream.name}, {why}")
            self._changed.set()
            self._on_failure()


def _refusal(incoming: Incoming, seq: int) -> str:
    """Why a message is not stored where it must be; "" where it is. One that was there before is there."""
    if incoming.is_no_responders:
        return "no stream takes it"
    try:
        ack = msgspec.json.decode(incoming.body, type=_Ack)
    except msgspec.DecodeError as broken:
        return f"an acknowledgement that is none: {broken}"
    if ack.error is not None:
        return ack.error.description or f"error {ack.error.err_code}"
    return "" if ack.seq == seq else f"it was stored at {ack.seq}"


def _has_all(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    return bool(there["last_seq"] >= here["last_seq"] and there["messages"] >= here["messages"])


def _stored(incoming: Incoming) -> StoredMessage:
    headers = incoming.headers
    return StoredMessage(
        seq=int(headers["Nats-Sequence"]),
        subject=headers.get("Nats-Subject", ""),
        message_id=headers.get(MESSAGE_ID, ""),
        body=incoming.body,
    )


def _headers(encoded: str) -> Mapping[str, str]:
    """The headers of a message as `STREAM.MSG.GET` has them: a header block in base64."""
    return parse_headers(b64decode(encoded)) if encoded else {}
