"""What is decoded of the events that are appended: each once, whoever wants it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.memory import MemoryLog, open_memory
from aetherscale.eventstore.store import StoredEvent
from aetherscale.kernel.messages import Envelope, Event, Recorded


class Paid(Event, frozen=True):
    """Somebody paid."""

    amount: int


class CountingCodec(Codec):
    def __init__(self) -> None:
        super().__init__([Paid])
        self.decoded: list[int] = []

    def decode(self, stored: StoredEvent) -> Recorded:
        self.decoded.append(stored.seq)
        return super().decode(stored)


def envelope(command_id: str) -> Envelope[str]:
    return Envelope("pay", "default", "user:test", command_id, command_id, None, 1)


async def test_who_listens_who_follows_and_who_appends_get_the_same_events_decoded_once() -> None:
    codec = CountingCodec()
    log = EventLog(await open_memory(MemoryLog("host1", "epoch1")), codec)
    heard: list[Recorded] = []

    def listen(events: Sequence[Recorded]) -> None:
        heard.extend(events)

    log.on_commit(listen)
    following = log.subscribe(0)
    next_page = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    appended = await log.append([Write("account-1", 0, (Paid(1), Paid(2)))], envelope("first"))
    followed = await next_page
    assert [each.event for each in appended] == [Paid(1), Paid(2)]
    assert [id(each) for each in heard] == [id(each) for each in appended] == [id(each) for each in followed]
    assert codec.decoded == [1, 2]
    await following.aclose()
    await log.close()


async def test_what_is_committed_before_an_earlier_caller_has_its_turn_is_told_to_both() -> None:
    log = EventLog(await open_memory(MemoryLog("host1", "epoch1")), CountingCodec())
    answers = await asyncio.gather(
        *(log.append([Write(f"account-{number}", 0, (Paid(number),))], envelope(str(number))) for number in range(9))
    )
    assert [[each.event for each in answer] for answer in answers] == [[Paid(number)] for number in range(9)]
    await log.close()
