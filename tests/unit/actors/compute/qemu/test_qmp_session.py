"""A QMP connection to a QEMU that hangs, lies or floods: each ends as unresponsive, none as an end of the guest."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import QMPClient

from aetherscale.actors.compute.qemu import session
from aetherscale.actors.compute.qemu.session import Monitor, Rejected, Unresponsive, taken
from aetherscale.bus.tasks import Tasks

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}\n'
PATIENCE_S = 30.0


class FakeQemu:
    """The other end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._received = ""

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    async def asked(self) -> dict[str, Any]:
        """The next command; a client need not end it with a newline."""
        while True:
            try:
                request, end = json.JSONDecoder().raw_decode(self._received)
            except json.JSONDecodeError:
                data = await self.reader.read(4096)
                assert data, "the connection has ended"
                self._received += data.decode()
            else:
                self._received = self._received[end:]
                assert isinstance(request, dict)
                return request

    async def answer(self, result: object, **event: object) -> dict[str, Any]:
        """Answer the next command, after an event if there is one."""
        request = await self.asked()
        if event:
            self.say(json.dumps(event).encode() + b"\n")
        # The negotiation is the only command without an id.
        numbered = {"id": request["id"]} if "id" in request else {}
        self.say(json.dumps({"return": result, **numbered}).encode() + b"\n")
        return request


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def connections() -> AsyncIterator[tuple[FakeQemu, socket.socket, Tasks]]:
    ours, theirs = socket.socketpair()
    fake = FakeQemu(*await asyncio.open_connection(sock=theirs))
    tasks = Tasks("test")
    yield fake, ours, tasks
    await tasks.close()
    ours.close()
    await hang_up(fake.writer)


class Heard:
    """What a monitor tells unasked."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.lost = asyncio.Event()

    def event(self, name: str, data: Mapping[str, Any]) -> None:
        self.events.append((name, data))


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[FakeQemu, Monitor, Heard]]:
    heard = Heard()
    async with connections() as (fake, ours, tasks), asyncio.timeout(PATIENCE_S):
        fake.say(GREETING)
        monitor, _ = await asyncio.gather(Monitor.connect(ours, tasks, heard.event, heard.lost.set), fake.answer({}))
        yield fake, monitor, heard


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no QEMU that hangs: only a test of the limit has a short one, and only around what hangs."""
    monkeypatch.setattr(session, "CALL_LIMIT_S", PATIENCE_S)


@contextmanager
def impatient() -> Iterator[None]:
    """A limit that is soon over, for what would never be answered."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "CALL_LIMIT_S", 0.05)
        yield


async def test_commands_are_answered_and_events_come_in_order_with_them() -> None:
    async with connected() as (fake, monitor, heard):
        result, _ = await asyncio.gather(
            monitor.execute("query-status"), fake.answer({"status": "running"}, event="STOP", timestamp={})
        )
        assert result == {"status": "running"}
        assert heard.events == [("STOP", {})]


async def test_events_are_kept_nowhere() -> None:
    async with connected() as (fake, monitor, heard):
        for number in range(500):
            fake.say(json.dumps({"event": "RTC_CHANGE", "data": {"offset": number}}).encode() + b"\n")
        await asyncio.gather(monitor.execute("query-status"), fake.answer({}))
        assert len(heard.events) == 500
        assert monitor._client.events.history == ()
        assert monitor._client.events.empty()


async def test_a_command_that_qemu_refuses_is_rejected() -> None:
    async with connected() as (fake, monitor, _):

        async def refuse() -> None:
            request = await fake.asked()
            error = {"class": "GenericError", "desc": "not now"}
            fake.say(json.dumps({"error": error, "id": request["id"]}).encode() + b"\n")

        with pytest.raises(Rejected, match="not now"):
            await asyncio.gather(monitor.execute("cont"), refuse())


@pytest.mark.parametrize("said", [b"", b"hello\n", b"[]\n", b"{}\n", b"\xff\n", b"x" * 2_000_000])
async def test_whatever_is_no_greeting_is_unresponsive(said: bytes) -> None:
    async with connections() as (fake, ours, tasks), asyncio.timeout(PATIENCE_S):
        fake.say(said)
        with impatient(), pytest.raises(Unresponsive):
            await Monitor.connect(ours, tasks, lambda name, data: None, lambda: None)
        assert len(tasks) == 0


async def test_a_connection_that_is_closed_at_once_is_unresponsive() -> None:
    async with connections() as (fake, ours, tasks), asyncio.timeout(PATIENCE_S):
        fake.writer.close()
        with pytest.raises(Unresponsive):
            await Monitor.connect(ours, tasks, lambda name, data: None, lambda: None)


async def test_a_connection_that_is_lost_while_it_is_made_is_unresponsive(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(self: object, address: object) -> None:
        raise AssertionError  # as qemu.qmp does where the connection has ended in the same turn

    monkeypatch.setattr(QMPClient, "connect", gone)
    async with connections() as (_, ours, tasks):
        with pytest.raises(Unresponsive, match="lost as soon as it was made"):
            await Monitor.connect(ours, tasks, lambda name, data: None, lambda: None)


async def test_a_command_that_is_never_answered_times_out_and_the_next_one_may_be() -> None:
    async with connected() as (fake, monitor, heard):
        with impatient(), pytest.raises(Unresponsive, match="cont timed out"):
            await monitor.execute("cont")
        await fake.asked()
        result, _ = await asyncio.gather(monitor.execute("query-name"), fake.answer({"name": "x"}))
        assert result == {"name": "x"}
        assert not heard.lost.is_set()


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(b"nonsense\n", id="no JSON"),
        pytest.param(b'{"return": "' + b"x" * 2_000_000 + b'"}\n', id="a line that is too long"),
        pytest.param(b"[" * 200_000 + b"\n", id="too deep"),
        pytest.param(b"\xff\xfe\n", id="not UTF-8"),
        pytest.param(b'{"error": {"class": "GenericError", "desc": "what?"}}\n', id="an error to nothing"),
        pytest.param(b'{"event": 7}\n[]\n', id="not an object"),
    ],
)
async def test_a_connection_that_lies_is_lost_and_that_is_told_once(said: bytes) -> None:
    async with connected() as (fake, monitor, heard):
        fake.say(said)
        await heard.lost.wait()
        with pytest.raises(Unresponsive):
            await monitor.execute("query-status")


async def test_a_command_under_way_fails_when_the_connection_breaks() -> None:
    async with connected() as (fake, monitor, heard):

        async def hang_up() -> None:
            await fake.asked()
            fake.writer.close()

        with pytest.raises(Unresponsive):
            await asyncio.gather(monitor.execute("query-status"), hang_up())
        await heard.lost.wait()


async def test_a_connection_that_was_closed_on_purpose_is_not_lost() -> None:
    async with connected() as (fake, monitor, heard):
        monitor.close()
        assert await fake.reader.read() == b""
        assert not heard.lost.is_set()


async def turns(count: int) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", range(8))
async def test_an_attempt_that_is_cancelled_hangs_up(count: int) -> None:
    async with connections() as (fake, ours, tasks), asyncio.timeout(PATIENCE_S):
        # QEMU serves one client at a time: one that is left connected would shut the next one out.
        attempt = asyncio.get_running_loop().create_task(
            Monitor.connect(ours, tasks, lambda name, data: None, lambda: None)
        )
        await turns(count)
        attempt.cancel()
        result = await asyncio.gather(attempt, return_exceptions=True)
        if count:
            del ours
            assert await fake.reader.read() == b""
        assert isinstance(result[0], asyncio.CancelledError)


async def test_a_node_that_stops_while_a_connection_breaks_leaves_nothing_unseen() -> None:
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
    for count in range(12):
        async with connected() as (fake, _, _):
            fake.writer.transport.abort()
            await turns(count)
    gc.collect()
    await turns(1)
    assert unseen == []


async def test_a_connection_that_is_lost_as_soon_as_it_is_made_leaves_nothing_unseen() -> None:
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unseen.append(context))
    for count in range(12):
        async with connections() as (fake, ours, tasks), asyncio.timeout(PATIENCE_S):
            fake.say(GREETING)
            attempt = asyncio.ensure_future(Monitor.connect(ours, tasks, lambda name, data: None, lambda: None))
            await fake.answer({})
            await turns(count)
            fake.writer.close()
            with suppress(Unresponsive):
                await attempt
                await turns(1)  # it has begun to attend to the connection
    gc.collect()
    await turns(1)
    assert unseen == []


@contextmanager
def full_queue(directory: Path) -> Iterator[tuple[socket.socket, Callable[[str], socket.socket]]]:
    """What QEMU listens on, whose queue has no place left because of what was given up; how to connect to it."""

    def connect(name: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.setblocking(False)
            connection.connect(str(directory / name))
        except OSError:
            connection.close()
            raise
        return connection

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(directory / "q"))
        listener.listen(0)
        connect("q").close()
        with pytest.raises(BlockingIOError):
            connect("q")
        yield listener, connect


async def test_a_queue_that_is_full_is_waited_for(tmp_path: Path) -> None:
    with full_queue(tmp_path) as (listener, connect):
        waiting = asyncio.ensure_future(taken(connect, "q"))
        await turns(8)
        assert not waiting.done()
        listener.accept()[0].close()
        async with asyncio.timeout(PATIENCE_S):
            ours = await waiting
        theirs, _ = listener.accept()
        with ours, theirs:
            theirs.sendall(GREETING)
            assert ours.recv(len(GREETING)) == GREETING


async def test_a_queue_that_stays_full_is_no_end_of_the_guest(tmp_path: Path) -> None:
    with full_queue(tmp_path) as (_, connect), pytest.raises(Unresponsive, match=r"q: QEMU took no connection within"):
        await taken(connect, "q", 0.1)


async def test_what_does_not_listen_is_told_at_once(tmp_path: Path) -> None:
    with full_queue(tmp_path) as (listener, connect):
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            await taken(connect, "q")
