"""What is remembered of callers has an end; what a server answers is read strictly."""

from __future__ import annotations

import msgspec
import pytest

from aetherscale.bus import callers
from aetherscale.bus.bus import Incoming
from aetherscale.bus.callers import NOBODY, NatsCallers
from aetherscale.bus.endpoint import Endpoint
from aetherscale.bus.memory import MemoryBroker, MemoryBus


class World:
    """Callers over a bus in memory, whose server says of each inbox that connection 7 of `joe` listens there."""

    def __init__(self) -> None:
        broker = MemoryBroker()
        self.bus, self._server = (broker.connect(lambda: 0) for _ in range(2))
        self.callers = NatsCallers(self.bus, lambda: Endpoint("nats://h:4222"))
        self.asked = 0
        self.answer: bytes | None = None

    async def start(self) -> None:
        await self._server.listen(callers.OUR_ACCOUNT, "", self._asked)
        await self.callers.start()

    def _asked(self, incoming: Incoming) -> None:
        self.asked += 1
        subject = msgspec.json.decode(incoming.body)["filter_subject"]
        listening = [f"{subject.rpartition('.')[0]}.*"]
        caller = {"cid": 7, "in_msgs": 10**9, "authorized_user": "joe", "subscriptions_list": listening}
        answer = self.answer or msgspec.json.encode({"data": {"connections": [caller]}})
        self.callers._tasks.spawn(self._say(self._server, incoming.reply, answer), "answer")

    async def _say(self, server: MemoryBus, reply: str, answer: bytes) -> None:
        await server.publish(reply, answer)


def inbox(number: int) -> str:
    return f"_INBOX.{number:016d}.1"


async def test_no_more_is_remembered_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callers, "MAX_KNOWN", 3)
    monkeypatch.setattr(callers, "FRESH_S", 3600.0)
    world = World()
    await world.start()
    for number in range(10):
        assert await world.callers.find(inbox(number)) == "nats:joe"
    known = [world.callers.known(Incoming("x", b"", {}, inbox(number))) for number in range(10)]
    assert known == [""] * 7 + ["nats:joe"] * 3
    await world.callers.close()


@pytest.mark.parametrize(
    "answer",
    [b"nonsense", b"{}", b"[]", b'{"data": {"connections": [{"cid": -1}]}}', b'{"data": {"connections": 7}}', b"\xff"],
)
async def test_an_answer_that_is_none_names_nobody(answer: bytes) -> None:
    world = World()
    await world.start()
    world.answer = answer
    assert await world.callers.find(inbox(1)) == NOBODY
    assert world.callers.known(Incoming("x", b"", {}, inbox(2))) == NOBODY, "it is not asked again"
    await world.callers.close()


@pytest.mark.parametrize("user", ["", "[REDACTED]", "a b", "joe) (is: root", "x" * 65, "jö"])
async def test_what_is_no_name_is_none(user: str) -> None:
    world = World()
    await world.start()
    caller = {"cid": 1, "in_msgs": 1, "authorized_user": user, "subscriptions_list": [inbox(1)]}
    world.answer = msgspec.json.encode({"data": {"connections": [caller]}})
    assert await world.callers.find(inbox(1)) == NOBODY
    await world.callers.close()
