"""Readers of a line: each gets the recent past and what follows, and a slow one loses only its own."""

from __future__ import annotations

from aetherscale.actors.compute import readers
from aetherscale.actors.compute.readers import Reader, Readers


async def send_nowhere(data: bytes) -> None:
    """Type into a line that leads nowhere."""


async def drained(reader: Reader) -> bytes:
    """All that is waiting for a reader of a simulated line."""
    await reader.close()
    return b"".join([piece async for piece in reader.output()])


async def test_a_slow_reader_loses_its_own_oldest_bytes_and_nobody_else_any() -> None:
    line = Readers(send_nowhere)
    slow, quick = line.attach(), line.attach()
    output = quick.output()
    for number in range(100):
        line.feed(b"%04d" % number * 1024)
        assert await anext(output) == b"%04d" % number * 1024
    said = await drained(slow)
    marker, _, rest = said.partition(b"too slow]\r\n")
    assert marker.startswith(b"\r\n[147456 bytes lost")
    assert len(rest) == readers.READER_LIMIT_BYTES
    assert rest.endswith(b"0099" * 1024)


async def test_a_late_reader_gets_the_recent_past_and_no_more_is_kept() -> None:
    line = Readers(send_nowhere)
    line.feed(b"x" * readers.RECENT_BYTES)
    line.feed(b"last")
    said = await drained(line.attach())
    assert len(said) == readers.RECENT_BYTES
    assert said.endswith(b"xlast")


async def test_a_reader_of_a_line_that_has_ended_gets_the_past_and_the_end() -> None:
    line = Readers(send_nowhere)
    line.feed(b"bye")
    line.end()
    assert [piece async for piece in line.attach().output()] == [b"bye"]
