"""The fake of JetStream: streams on a broker in memory, as far as the publisher speaks to them.

Holds to what a nats-server does: the expected last sequence is looked at before duplicates are, a duplicate is
acknowledged and not stored, a deleted stream takes its duplicate window along, and nobody answers while the broker is
down. Source: the publisher's tests on the real server, and ADR-31 of the NATS architecture.
"""

from __future__ import annotations

import base64
from typing import Any, Final

import msgspec
from msgspec import Struct, field

from aetherscale.bus import protocol
from aetherscale.bus.bus import STATUS, Incoming
from aetherscale.bus.jetstream import API, EXPECTED_LAST, EXPECTED_STREAM, MESSAGE_ID, NAME_IN_USE, STREAM_NOT_FOUND
from aetherscale.bus.memory import MemoryBroker, MemoryBus

WRONG_LAST: Final = 10071


class Message(Struct):
    """A stored message."""

    seq: int
    subject: str
    message_id: str
    body: bytes
    headers: dict[str, str]


class SimulatedStream(Struct):
    """One stream. `messages` is in the order of the sequence."""

    config: dict[str, Any]
    messages: list[Message] = field(default_factory=list)
    last_seq: int = 0
    recent: dict[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def first_seq(self) -> int:
        """As JetStream has it: of an empty stream, the sequence that comes next."""
        return self.messages[0].seq if self.messages else self.last_seq + 1


class JetStream:
    """All streams of a broker. They outlive its restarts, as files do."""

    def __init__(self, broker: MemoryBroker, now_s: Any) -> None:
        self.streams: dict[str, SimulatedStream] = {}
        self._now_s = now_s
        self._broker = broker
        self._bus: MemoryBus = broker.connect(lambda: 0)
        self._apis = {
            "STREAM.INFO": self._info,
            "STREAM.CREATE": self._create,
            "STREAM.UPDATE": self._update,
            "STREAM.DELETE": self._delete,
            "STREAM.MSG.GET": self._get,
        }

    async def start(self) -> None:
        """Answer from now on."""
        await self._bus.listen(f"{API}.>", "", self._asked)
        await self._bus.listen("aether.v1.*.evt.>", "", self._published)

    def lose_newest(self, name: str, count: int) -> None:
        """What a broker that was killed may not have synced."""
        stream = self.streams.get(name)
        if stream is not None and stream.messages:
            del stream.messages[len(stream.messages) - count :]
            stream.last_seq = stream.messages[-1].seq if stream.messages else stream.config.get("first_seq", 1) - 1
            stream.recent = {message.message_id: (message.seq, 0.0) for message in stream.messages[-50:]}

    def _published(self, incoming: Incoming) -> None:
        for name, stream in self.streams.items():
            if any(protocol.matches(pattern, incoming.subject) for pattern in stream.config.get("subjects", ())):
                answer = self._store(name, stream, incoming)
                if incoming.reply:
                    self._send(incoming.reply, msgspec.json.encode(answer))

    def _store(self, name: str, stream: SimulatedStream, incoming: Incoming) -> dict[str, Any]:
        headers = dict(incoming.headers)
        if headers.get(EXPECTED_STREAM, name) != name:
            return {"stream": name, "seq": 0, "error": {"code": 400, "err_code": 10060, "description": "other stream"}}
        if int(headers.get(EXPECTED_LAST, stream.last_seq)) != stream.last_seq:
            said = f"wrong last sequence: {stream.last_seq}"
            return {"stream": name, "seq": 0, "error": {"code": 400, "err_code": WRONG_LAST, "description": said}}
        message_id = headers.get(MESSAGE_ID, "")
        known = stream.recent.get(message_id)
        if known is not None and self._now_s() - known[1] < stream.config["duplicate_window"] / 1e9:
            return {"stream": name, "seq": known[0], "duplicate": True}
        stream.last_seq += 1
        stream.messages.append(Message(stream.last_seq, incoming.subject, message_id, incoming.body, headers))
        stream.recent[message_id] = (stream.last_seq, self._now_s())
        return {"stream": name, "seq": stream.last_seq}

    def _asked(self, incoming: Incoming) -> None:
        what = incoming.subject.removeprefix(f"{API}.")
        body = msgspec.json.decode(incoming.body) if incoming.body else {}
        if what.startswith("DIRECT.GET."):
            self._direct(what.removeprefix("DIRECT.GET."), body, incoming.reply)
            return
        verb, _, name = what.rpartition(".")
        answer = self._apis[verb](name, body)
        if incoming.reply:
            self._send(incoming.reply, msgspec.json.encode(answer))
            self._send(incoming.reply, b"")

    def _info(self, name: str, body: Any) -> dict[str, Any]:
        stream = self.streams.get(name)
        if stream is None:
            return _error(STREAM_NOT_FOUND, "stream not found")
        count = len(stream.messages)
        return {
            "config": stream.config,
            "state": {
                "first_seq": stream.first_seq,
                "last_seq": stream.last_seq,
                "messages": count,
                "num_deleted": (stream.last_seq - stream.first_seq + 1 - count) if count else 0,
                "bytes": sum(len(message.body) for message in stream.messages),
            },
        }

    def _create(self, name: str, body: Any) -> dict[str, Any]:
        if name in self.streams:
            return _error(NAME_IN_USE, "stream name already in use")
        stream = self.streams[name] = SimulatedStream(body, last_seq=body.get("first_seq", 1) - 1)
        if mirrored := self.streams.get((body.get("mirror") or {}).get("name", "")):
            stream.messages, stream.last_seq = list(mirrored.messages), mirrored.last_seq
        return self._info(name, body)

    def _update(self, name: str, body: Any) -> dict[str, Any]:
        self.streams[name].config = body
        return self._info(name, body)

    def _delete(self, name: str, body: Any) -> dict[str, Any]:
        if self.streams.pop(name, None) is None:
            return _error(STREAM_NOT_FOUND, "stream not found")
        return {"success": True}

    def _get(self, name: str, body: Any) -> dict[str, Any]:
        stream = self.streams.get(name)
        found = [message for message in stream.messages if message.seq == body["seq"]] if stream else []
        if not found:
            return _error(10037, "no message found")
        block = protocol.encode_headers(found[0].headers)
        return {"message": {"seq": found[0].seq, "hdrs": base64.b64encode(block).decode()}}

    def _direct(self, name: str, body: Any, reply: str) -> None:
        stream = self.streams.get(name)
        found = (
            [message for message in stream.messages if message.seq >= body["seq"]][: body["batch"]] if stream else []
        )
        for message in found:
            headers = {**message.headers, "Nats-Sequence": str(message.seq), "Nats-Subject": message.subject}
            self._send(reply, message.body, headers)
        self._send(reply, b"", {STATUS: "204" if found else "404"})

    def _send(self, reply: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._broker.route(Incoming(reply, body, headers or {}, ""))


def _error(code: int, description: str) -> dict[str, Any]:
    return {"error": {"code": 404, "err_code": code, "description": description}}
