"""Messages get the names of their callers and keep their order, whoever has to be asked for."""

from __future__ import annotations

import asyncio

from aetherscale.bus.arrivals import MAX_ARRIVALS, Arrivals
from aetherscale.bus.bus import Incoming
from aetherscale.bus.callers import NOBODY, inbox_of, is_secret

SECRETS = ("_INBOX.aaaaaaaaaaaaaaaaaaaaaa", "_INBOX.bbbbbbbbbbbbbbbbbbbbbb")


class Asked:
    """Callers who are known once the test says so."""

    def __init__(self) -> None:
        self.answers: dict[str, asyncio.Future[str]] = {}
        self.asked: list[str] = []
        self.names: dict[str, str] = {}

    def known(self, incoming: Incoming) -> str:
        return self.names.get(inbox_of(incoming.reply), "")

    async def find(self, reply: str) -> str:
        self.asked.append(reply)
        answer = self.answers.setdefault(inbox_of(reply), asyncio.get_running_loop().create_future())
        self.names[inbox_of(reply)] = name = await answer
        return name

    def answer(self, inbox: str, name: str) -> None:
        self.answers[inbox].set_result(name)


class World:
    def __init__(self) -> None:
        self.callers = Asked()
        self.taken: list[tuple[str, str]] = []
        self.refused: list[str] = []
        self.arrivals = Arrivals(
            self.callers,
            lambda incoming: incoming.body != b"query",
            lambda incoming, actor: self.taken.append((incoming.subject, actor)),
            lambda incoming: self.refused.append(incoming.subject),
        )

    def put(self, name: str, reply: str, body: bytes = b"") -> None:
        self.arrivals.put(Incoming(name, body, {}, reply))


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_came_later_waits_and_all_are_asked_for_at_once() -> None:
    world = World()
    first, second = SECRETS
    world.put("1", f"{first}.1")
    world.put("2", f"{second}.1")
    world.put("3", f"{first}.2")
    world.put("4", "")
    world.put("5", f"{second}.2", b"query")
    await turns()
    assert world.callers.asked == [f"{first}.1", f"{second}.1"]
    world.callers.answer(second, "unix:joe")
    await turns()
    assert world.taken == []
    world.callers.answer(first, "unix:ann")
    await turns()
    assert world.taken == [("1", "unix:ann"), ("2", "unix:joe"), ("3", "unix:ann"), ("4", NOBODY), ("5", NOBODY)]
    world.put("6", f"{first}.3")
    assert world.taken[-1] == ("6", "unix:ann"), "in the same turn"
    await world.arrivals.close()


async def test_of_whom_nobody_will_ask_nobody_is_asked() -> None:
    world = World()
    world.put("1", f"{SECRETS[0]}.1", b"query")
    world.put("2", "")
    assert world.taken == [("1", NOBODY), ("2", NOBODY)]
    assert world.callers.asked == []
    await world.arrivals.close()


async def test_replies_that_are_heard_by_different_callers_are_asked_for_each() -> None:
    world = World()
    world.put("1", "_INBOX.aaaaaaaaaaaaaaaaaaaaaa")
    world.put("2", "_INBOX.bbbbbbbbbbbbbbbbbbbbbb")
    await turns()
    world.callers.answer("_INBOX.bbbbbbbbbbbbbbbbbbbbbb", "unix:joe")
    world.callers.answer("_INBOX.aaaaaaaaaaaaaaaaaaaaaa", "unix:ann")
    await turns()
    assert world.taken == [("1", "unix:ann"), ("2", "unix:joe")]
    await world.arrivals.close()


async def test_as_many_wait_as_may_and_one_more_is_refused() -> None:
    world = World()
    for number in range(MAX_ARRIVALS + 1):
        world.put(str(number), f"{SECRETS[0]}.{number}")
    assert world.refused == [str(MAX_ARRIVALS)]
    await turns()
    assert len(world.callers.asked) == 1
    world.callers.answer(SECRETS[0], "unix:ann")
    await turns()
    assert world.taken == [(str(number), "unix:ann") for number in range(MAX_ARRIVALS)]
    await world.arrivals.close()


async def test_what_waits_at_the_end_is_handed_on_without_a_name() -> None:
    world = World()
    world.put("1", f"{SECRETS[0]}.1")
    world.put("2", "")
    await turns()
    await world.arrivals.close()
    assert world.taken == [("1", NOBODY), ("2", NOBODY)]


def test_a_subject_is_secret_where_a_token_cannot_be_guessed() -> None:
    assert is_secret("_INBOX.0123456789abcdef")
    assert is_secret("_INBOX_joe.0123456789abcdef.1")
    for guessable in ("", "_INBOX.0123456789abcde", "foo.bar", "aether.v1.default.rsp.0123456789abcdef"):
        assert not is_secret(guessable), guessable
    assert inbox_of("_INBOX.0123456789abcdef.1") == "_INBOX.0123456789abcdef"
    assert inbox_of("_INBOX.0123456789abcdef") == "_INBOX.0123456789abcdef"
