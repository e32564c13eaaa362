"""One JetStream stream over the bus: its state, its making and unmaking, and its messages.

Speaks the JetStream API itself, since nats-py's asynchronous publishing never reports a refused message. Knows nothing
of the log whose copy the stream is. Source: ADR-1, ADR-31 (direct get, batches) of the NATS architecture.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from aetherscale.bus import apianswers, beats, streamconfig
from aetherscale.bus.apianswers import Ack, Answer, Got, Info, MalformedAnswer, State
from aetherscale.bus.bus import STATUS, Bus, Incoming, NoResponders, TooLarge
from aetherscale.bus.streamplan import StreamState

A = TypeVar("A", bound=Answer)

API: Final = "$JS.API"
TIMEOUT_S: Final = 10.0
NO_JETSTREAM: Final = -1
"""The code of our own for a server that has none, or has turned it off."""
STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
NO_MESSAGE: Final = 10037
SUBJECTS_OVERLAP: Final = 10065
NO_ROOM: Final = frozenset({10002, 10023, 10047, 10122})
"""An account, a cluster or a server has not got the room that a stream asks for, or may not give it."""
COPY_TIMEOUT_S: Final = 120.0
COPY_POLL_S: Final = 0.02
PROBE_S: Final = 3.0
PROBE_BYTES: Final = 64 * 1024
"""With room for so much it is worth to make the stream anew."""
DUPLICATE_WINDOW_NS: Final = 10**9
"""Expected positions detect duplicates; a server reads the whole of this window anew when it starts."""

ADJUSTABLE: Final = ("max_bytes", "duplicate_window", "allow_direct")
"""The settings that may differ from those that the stream was made with, without an effect on its messages."""

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


class Stream:
    """A stream by name. `max_bytes` is what it may take on disk: the oldest messages go first."""

    def __init__(
        self, bus: Bus, name: str, subjects: tuple[str, ...], *, description: str, max_bytes: int, replicas: int = 1
    ) -> None:
        self.bus, self.name, self.subjects, self.max_bytes = bus, name, subjects, max_bytes
        self._description, self._replicas = description, replicas

    async def state(self) -> StreamState | None:
        """Its state; None where there is no such stream."""
        info = await self._info(self.name)
        if info is None:
            return None
        state = _state_of(info)
        return StreamState(
            first_seq=state.first_seq,
            last_seq=state.last_seq,
            messages=state.messages,
            deleted=state.num_deleted,
            size_bytes=state.bytes,
            subjects=streamconfig.subjects(info.config),
            tip_id=await self._message_id(state.last_seq) if state.messages else "",
            created=re.sub(r"[^0-9]", "", info.created[:40]),
        )

    async def create(self, first_seq: int) -> None:
        """Make it, so that its first message will be at `first_seq`."""
        made = {
            "name": self.name,
            "description": self._description,
            "num_replicas": self._replicas,
            "first_seq": first_seq,
            "deny_delete": True,
            **self._wanted,
        }
        await self._ask(f"STREAM.CREATE.{self.name}", made)

    async def adjust(self) -> str:
        """Give a stream that is there the limits that it would be made with now.

        Which of its other settings are not as they were made is in the answer: what it stored meanwhile may be
        anything, so it has to be made anew. "" where all is well.
        """
        info = await self._info(self.name)
        changed = streamconfig.differences(info.config, self._wanted) if info is not None else ()
        if info is None or not changed:
            return ""
        if others := [name for name in changed if name not in ADJUSTABLE]:
            return f"its settings were changed: {', '.join(others)}"
        await self._ask(f"STREAM.UPDATE.{self.name}", {**info.config, **{name: self._wanted[name] for name in changed}})
        return ""

    @property
    def _wanted(self) -> Mapping[str, Any]:
        return streamconfig.wanted(self.subjects, self.max_bytes, DUPLICATE_WINDOW_NS)

    async def has_room(self) -> bool:
        """Whether the broker stores a message in a new stream: an old one keeps a write error for ever.

        A broker that has no room, or is not there, is no error here.
        """
        probe = f"{self.name}_PROBE"
        subject = f"$AETHER.PROBE.{secrets.token_hex(8)}"
        body = bytes(min(PROBE_BYTES, self.bus.max_body_bytes // 2))
        try:
            await self._ask(f"STREAM.DELETE.{probe}", None, allow=STREAM_NOT_FOUND)
            await self._ask(f"STREAM.CREATE.{probe}", {"name": probe, "subjects": [subject], "storage": "file"})
            async with asyncio.timeout(PROBE_S), aclosing(self._chunks(subject, body)) as answers:
                async for answer in answers:
                    return apianswers.read(answer, Ack).error is None
        except (TimeoutError, StreamError, NoResponders, MalformedAnswer):
            return False
        finally:
            with suppress(StreamError):
                await self._ask(f"STREAM.DELETE.{probe}", None, allow=STREAM_NOT_FOUND)
        return False

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
        there = await self._copied(name, _state_of(here) if here else State(0, 0, 0, 0))
        if there is None:
            raise StreamError(f"stream {name}: it is gone again before it could be used")
        # A mirror without its origin would go on with the next stream of that name.
        if "mirror" in there.config:
            config = {key: value for key, value in there.config.items() if key != "mirror"}
            # Or it would go on answering for the other stream's name, with the messages of old.
            config["mirror_direct"] = False
            await self._ask(f"STREAM.UPDATE.{name}", config)
        await self.delete()

    async def _copied(self, name: str, wanted: State) -> Info | None:
        """Wait until a mirror has all messages; JetStream does not report when."""
        try:
            async with asyncio.timeout(COPY_TIMEOUT_S):
                while True:
                    info = await self._info(name)
                    if info is None or _has_all(_state_of(info), wanted):
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
                while position := apianswers.position(answer := await answers.get()):
                    if position < first_seq or len(found) >= count:
                        raise StreamError(
                            f"stream {self.name}: reading from {first_seq} got another message than was asked for"
                        )
                    found.append(_stored(answer, position))
        except TimeoutError:
            raise StreamError(f"stream {self.name}: reading from {first_seq} got no answer") from None
        finally:
            await subscription.unsubscribe()
        # 204 ends a batch, 404 says that there is nothing at or after the position.
        if (status := answer.headers.get(STATUS, "")) not in ("204", "404"):
            raise StreamError(f"stream {self.name}: reading from {first_seq} got the status {beats.line(status)}")
        return found

    async def _message_id(self, seq: int) -> str:
        what = f"STREAM.MSG.GET.{self.name}"
        got = await self._ask(what, {"seq": seq}, allow=NO_MESSAGE, kind=Got)
        try:
            return apianswers.header(got.message, MESSAGE_ID) if got.message is not None else ""
        except MalformedAnswer as broken:
            raise StreamError(f"{what}: {broken}") from None

    async def _info(self, name: str) -> Info | None:
        answer = await self._ask(f"STREAM.INFO.{name}", None, allow=STREAM_NOT_FOUND, kind=Info)
        return None if answer.error is not None else answer

    async def _ask(
        self,
        what: str,
        body: Mapping[str, Any] | None,
        *,
        allow: int = 0,
        kind: type[A] = Answer,  # type: ignore[assignment]
    ) -> A:
        """One question to the API. Raises `StreamError` for any error but the one that is allowed for."""
        question = msgspec.json.encode(body) if body is not None else b""
        try:
            async with aclosing(self._chunks(f"{API}.{what}", question)) as chunks:
                async for chunk in chunks:
                    answer = apianswers.read(chunk, kind)
                    error = answer.error
                    if error is not None and error.err_code != allow:
                        raise StreamError(f"{what}: {apianswers.refusal(error)}", error.err_code)
                    return answer
        except MalformedAnswer as broken:
            raise StreamError(f"{what}: not an answer: {broken}") from None
        except NoResponders:
            raise StreamError(f"{what}: this broker has no JetStream", NO_JETSTREAM) from None
        except TimeoutError:
            raise StreamError(f"{what}: no answer within {TIMEOUT_S:.0f} s") from None
        raise StreamError(f"{what}: an empty answer")

    async def _chunks(self, subject: str, body: bytes) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in self.bus.request(subject, body, timeout_s=TIMEOUT_S):
                yield chunk
        except TooLarge as too_large:
            raise StreamError(f"{subject}: {too_large}; raise the broker's max_payload") from None


def _state_of(info: Info) -> State:
    if info.state is None:
        raise StreamError("a stream without a state")
    return info.state


def _has_all(there: State, here: State) -> bool:
    return there.last_seq >= here.last_seq and there.messages >= here.messages


def _stored(incoming: Incoming, position: int) -> StoredMessage:
    headers = incoming.headers
    return StoredMessage(
        seq=position,
        subject=headers.get("Nats-Subject", ""),
        message_id=headers.get(MESSAGE_ID, ""),
        body=incoming.body,
    )
