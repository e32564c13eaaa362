"""The guest agent, answered for by a guest that may hang, lie or flood."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from aetherscale.actors.compute.qemu import agent, ports
from aetherscale.actors.compute.qemu.agent import AgentPort, AgentSilent
from aetherscale.actors.compute.qemu.ports import ReadyPort
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused

PATIENCE_S = 30.0

Answer = Callable[[dict[str, Any]], bytes | None]


async def hang_up(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with suppress(ConnectionError):
        await writer.wait_closed()


class FakeGuest:
    """The other end of a port: answers requests by a function, and may say anything else."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Answer) -> None:
        self.reader = reader
        self.writer = writer
        self.answer = answer
        self.asked: list[str] = []

    async def serve(self) -> None:
        while line := await self.reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            self.asked.append(request["execute"])
            answer = self.answer(request)
            if answer is not None:
                self.writer.write(answer)


def honest(request: dict[str, Any]) -> bytes | None:
    match request["execute"]:
        case "guest-sync-delimited":
            return b"\xff" + returned(request["arguments"]["id"])
        case "guest-ping":
            return returned({})
        case _:
            return None


def returned(result: object) -> bytes:
    return json.dumps({"return": result}).encode() + b"\n"


@asynccontextmanager
async def guest(answer: Answer) -> AsyncIterator[tuple[FakeGuest, AgentPort]]:
    ours, theirs = socket.socketpair()
    fake = FakeGuest(*await asyncio.open_connection(sock=theirs, limit=1 << 20), answer)
    port = AgentPort()
    await asyncio.get_running_loop().create_unix_connection(lambda: port, sock=ours)
    tasks = Tasks("test")
    tasks.spawn(fake.serve(), "guest")
    async with asyncio.timeout(PATIENCE_S):
        yield fake, port
    port.close()
    await tasks.close()
    await hang_up(fake.writer)


@pytest.fixture
def short_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "CALL", agent.CALL._replace(time_s=0.2))
    monkeypatch.setattr(agent, "START", agent.CALL._replace(time_s=0.2))


async def test_an_agent_that_answers_is_there() -> None:
    async with guest(honest) as (fake, port):
        await port.ping()
        assert fake.asked == ["guest-sync-delimited", "guest-ping"]


async def test_what_was_said_before_the_mark_is_thrown_away() -> None:
    def stale(request: dict[str, Any]) -> bytes | None:
        rubbish = b'{"return": 1}\nrubbish' if request["execute"] == "guest-sync-delimited" else b""
        return rubbish + (honest(request) or b"")

    async with guest(stale) as (_, port):
        await port.ping()


@pytest.mark.usefixtures("short_limit")
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda request: None, id="silence"),
        pytest.param(lambda request: b"\xff" + returned(0), id="another number"),
        pytest.param(lambda request: b"\xffno json\n", id="no JSON"),
        pytest.param(lambda request: b"\xff" + b"[" * 60_000 + b"\n", id="too deep"),
        pytest.param(lambda request: b"\xff[]\n", id="no object"),
        pytest.param(lambda request: b"\xff{}\n", id="neither result nor error"),
        pytest.param(lambda request: b"\xff" + b"x" * 200_000, id="a flood without an end"),
        pytest.param(
            lambda request: honest(request) if "sync" in request["execute"] else returned("x" * 100_000),
            id="an answer that is too long",
        ),
    ],
)
async def test_an_agent_that_hangs_lies_or_floods_is_silent(answer: Answer) -> None:
    async with guest(answer) as (_, port):
        with pytest.raises(AgentSilent):
            await port.ping()


async def test_a_busy_guest_has_the_time_of_a_start_for_what_comes_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "CALL", agent.CALL._replace(time_s=0.0))

    def busy(request: dict[str, Any]) -> bytes | None:
        return returned({"pid": 7}) if request["execute"] == "guest-exec" else honest(request)

    async with guest(busy) as (fake, port):
        with pytest.raises(AgentSilent):
            await port.ping()
        assert await port.start(["true"]) == 7
        assert fake.asked[-2:] == ["guest-sync-delimited", "guest-exec"]


@pytest.mark.parametrize("at_once", [False, True])
async def test_a_late_answer_that_was_to_bring_into_step_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    limit = agent.CALL
    late: list[bytes] = []
    heard = asyncio.Event()

    def slow(request: dict[str, Any]) -> bytes | None:
        answer = honest(request) or b""
        if not late:
            late.append(answer)
            heard.set()
            return None
        if request["execute"] != "guest-sync-delimited":
            return answer
        for part in [late[0] + answer] if at_once else [late[0], answer]:
            port.received(part)
        return None

    async with guest(slow) as (_, port):
        monkeypatch.setattr(agent, "CALL", limit._replace(time_s=0.0))
        with pytest.raises(AgentSilent):
            await port.ping()
        await heard.wait()
        monkeypatch.setattr(agent, "CALL", limit._replace(time_s=PATIENCE_S))
        await port.ping()


@pytest.mark.usefixtures("short_limit")
async def test_after_a_late_answer_the_next_call_gets_its_own() -> None:
    started: list[int] = []
    asked_about: list[int] = []
    overdue: list[bytes] = []

    def late(request: dict[str, Any]) -> bytes | None:
        match request["execute"]:
            case "guest-exec":
                started.append(len(started) + 1)
                answer = returned({"pid": started[-1]})
                if started[-1] == 2:
                    # It comes with the next answer, whatever was asked.
                    overdue.append(answer)
                    return None
            case "guest-exec-status":
                asked_about.append(request["arguments"]["pid"])
                answer = returned({"exited": True, "exitcode": 0})
            case _:
                answer = honest(request) or b""
        return (overdue.pop() if overdue else b"") + answer

    async with guest(late) as (_, port):
        await port.execute(["/bin/x"], 30)
        with pytest.raises(Refused, match="timed out"):
            await port.execute(["/bin/x"], 30)
        await port.execute(["/bin/x"], 30)
    assert asked_about == [1, 3]


def program(*statuses: dict[str, Any]) -> Answer:
    """A guest in which a program runs, and each question about it gets the next answer."""
    left = list(statuses)

    def answer(request: dict[str, Any]) -> bytes | None:
        match request["execute"]:
            case "guest-exec":
                return returned({"pid": 7})
            case "guest-exec-status":
                return returned(left.pop(0) if left else {"exited": False})
            case _:
                return honest(request)

    return answer


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_a_program_is_asked_about_until_it_has_ended() -> None:
    ended = {"exited": True, "exitcode": 3, "out-data": encoded(b"out"), "err-data": encoded(b"err")}
    async with guest(program({"exited": False}, {"exited": False}, ended)) as (fake, port):
        done = await port.execute(["/bin/x", "y"], 30)
    assert (done.exit_code, done.signal, done.stdout, done.stderr, done.truncated) == (3, None, b"out", b"err", False)
    assert fake.asked.count("guest-exec-status") == 3
    assert fake.asked.count("guest-sync-delimited") == 1


async def test_a_busy_guest_has_its_time_to_start_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    async with guest(program({"exited": True, "exitcode": 0}, {"exited": True, "exitcode": 4})) as (_, port):
        await port.execute(["/bin/x"], 30)
        monkeypatch.setattr(agent, "CALL", agent._Limits(4096, 0.0))
        assert (await port.execute(["/bin/x"], 30)).exit_code == 4


async def test_a_program_that_does_not_end_is_left_to_go_on() -> None:
    async with guest(program()) as (_, port):
        with pytest.raises(Refused, match="continues in the guest") as refused:
            await port.execute(["/bin/sleep"], 0.3)
    assert refused.value.reason == Reason.DEADLINE
    assert "What it has printed is not known" in refused.value.message, "an agent tells it at the end alone"
    assert refused.value.remedy == ("give it more time, or a terminal, which shows the output as it comes",)


@pytest.mark.parametrize("by", ["the guest's end", "ours"])
async def test_a_call_that_waits_ends_with_the_vm(by: str) -> None:
    asked = asyncio.Event()

    def hangs(request: dict[str, Any]) -> bytes | None:
        if request["execute"] == "guest-exec-status":
            asked.set()
            return None
        return program()(request)

    async with guest(hangs) as (fake, port):
        waiting = asyncio.ensure_future(port.ended(7))
        await asked.wait()
        if by == "ours":
            port.close()
        else:
            await hang_up(fake.writer)
        with pytest.raises(Refused, match="the VM has ended, or its node does") as refused:
            await waiting
    assert refused.value.reason == Reason.UNAVAILABLE


async def test_of_too_much_output_the_beginning_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "OUTPUT", agent._Limits(4096, 10.0))
    output = bytes(range(256)) * 400
    ended = {"out-data": encoded(output), "err-data": encoded(b"e" * 50_000), "exited": True, "exitcode": 5}
    async with guest(program(ended)) as (_, port):
        done = await port.execute(["/bin/x"], 30)
    assert done.truncated
    assert done.exit_code == 5
    assert 2000 < len(done.stdout) < 4096
    assert output.startswith(done.stdout)


async def test_what_the_agent_cannot_run_is_refused_with_its_reason() -> None:
    def refuse(request: dict[str, Any]) -> bytes | None:
        if request["execute"] == "guest-exec":
            return b'{"error": {"class": "GenericError", "desc": "no such file"}}\n'
        return honest(request)

    async with guest(refuse) as (_, port):
        with pytest.raises(Refused, match="no such file") as refused:
            await port.execute(["/nope"], 30)
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "command")


async def test_a_port_that_is_flooded_is_read_at_a_bounded_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "RATE_LIMIT_BYTES", 1000)
    ours, theirs = socket.socketpair()
    heard = asyncio.Event()
    port = ReadyPort(heard.set)
    await asyncio.get_running_loop().create_unix_connection(lambda: port, sock=ours)
    _, writer = await asyncio.open_connection(sock=theirs)
    # More than the kernel holds for a port, so that the writer has to wait for the reader.
    writer.write(b"x" * 500_000)
    flooding = asyncio.get_running_loop().create_task(writer.drain())
    done, _ = await asyncio.wait({flooding}, timeout=0.3)
    assert not done
    # It is read on from second to second, so that what comes after the flood is heard in the end.
    monkeypatch.setattr(ports, "RATE_LIMIT_BYTES", 1_000_000)
    writer.write(b"\nready\n")
    async with asyncio.timeout(PATIENCE_S):
        await flooding
        await heard.wait()
    port.close()
    await hang_up(writer)


@pytest.mark.parametrize(
    ("said", "is_ready"),
    [
        (b"ready\n", True),
        (b"booting\nready\r\n", True),
        (b"ready", False),
        (b"not ready\n", False),
        (b"x" * 10_000 + b"ready\n", False),
    ],
)
def test_only_the_line_ready_means_ready(said: bytes, is_ready: bool) -> None:
    heard: list[bool] = []
    port = ReadyPort(lambda: heard.append(True))
    for at in range(0, len(said), 3):
        port.received(said[at : at + 3])
    assert bool(heard) == is_ready
