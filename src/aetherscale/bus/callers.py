"""The sender of a message on NATS, as far as the server and this host know: `unix:joe`, `nats:joe`, or `user:nats`.

A message does not say who sent it. The server does say which connection listens on the reply subject (CONNZ, filtered
by that subject), and the one that gets a reply on a subject that no other can guess is the caller. What is certain of
that connection:

    our own server, asked in its system account:  address and port ─▶ the socket on this host ─▶ its uid ─▶ unix:joe
    another server, asked in our own account:     the user that it let in                              ─▶ nats:joe

It is accountability and no authorization: nothing is allowed for a name. Who has seen the inbox of somebody else can
name it for the reply. That is found out where a connection has sent fewer messages than would be its own; and a subject
that can be guessed, or is heard by several, is `user:nats`. Knows nothing of what a message asks for.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated, Final, Protocol

import msgspec
from msgspec import Meta, Struct

from aetherscale.bus.bus import Bus, BusUnavailable, Incoming, NoResponders, TooLarge
from aetherscale.bus.endpoint import Endpoint
from aetherscale.bus.peers import Peer, name_of, peer
from aetherscale.bus.tasks import Tasks

log = logging.getLogger(__name__)

NOBODY: Final = "user:nats"
"""All that is certain of a message on NATS: its sender may publish there."""
OUR_ACCOUNT: Final = "$SYS.REQ.ACCOUNT.PING.CONNZ"
ALL_ACCOUNTS: Final = "$SYS.REQ.SERVER.PING.CONNZ"
ANSWER_S: Final = 5.0
"""A server that takes longer is not asked again until the next connection."""
START_S: Final = 1.0
"""How long a start waits for that answer: one that may not ask gets none."""
FRESH_S: Final = 1.0
"""How long the owner of an inbox is remembered: its connection may end, and another may listen."""
COUNT_S: Final = (0.01, 0.05, 0.2)
"""Waits before a connection is taken for one that has not sent what came."""
MAX_KNOWN: Final = 4096
MIN_SECRET: Final = 16
"""Characters of a token that cannot be guessed; the libraries of NATS draw 22."""
LOOPBACK: Final = "127.0.0.1"

_NAME = re.compile(r"[A-Za-z0-9._@+-]{1,64}")
_HIDDEN: Final = "[REDACTED]"


class Callers(Protocol):
    """The senders of messages."""

    def known(self, incoming: Incoming) -> str:
        """The actor, where it is known already, or cannot be; else "", and `find` has to be asked."""
        ...

    async def find(self, reply: str) -> str:
        """The actor, after the server has been asked. Never raises, and ends within `ANSWER_S`."""
        ...


class Strangers:
    """Callers of whom nothing is known, as on a bus that is no NATS."""

    def known(self, incoming: Incoming) -> str:
        """As in `Callers`."""
        return NOBODY

    async def find(self, reply: str) -> str:
        """As in `Callers`."""
        return NOBODY


Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class Caller(Struct, frozen=True):
    """A connection, as CONNZ has it."""

    cid: Count
    ip: str = ""
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    in_msgs: Count = 0
    authorized_user: str = ""
    subscriptions_list: list[str] = []


class _Connections(Struct, frozen=True):
    connections: list[Caller] = []


class _Answer(Struct, frozen=True):
    data: _Connections


class _Known(Struct):
    actor: str
    until_s: float
    caller: Caller | None = None
    peer: Peer | None = None
    """Its socket, when it was looked at last."""


class NatsCallers:
    """Asks a server over `bus`. With an `account`, `bus` is in the system account of a server on this host."""

    def __init__(self, bus: Bus, endpoint: Callable[[], Endpoint], *, account: str = "") -> None:
        self._bus, self._endpoint, self._account = bus, endpoint, account
        self._tasks = Tasks("callers")
        self._able = False
        """Whether the server has given a name since the last connect."""
        self._known: dict[str, _Known] = {}
        """By inbox."""
        self._sent: dict[int, int] = {}
        """Messages that were taken for those of a connection."""
        self._actors: dict[int, str] = {}
        """Of connections."""
        bus.on_reconnect(self._try_soon)

    async def start(self) -> None:
        """Find out whether this server gives names; if it does not, or not soon, that is not an error."""
        await asyncio.wait([self._tasks.spawn(self._try(), "try")], timeout=START_S)

    async def close(self) -> None:
        """Ask no more."""
        await self._tasks.close()

    def known(self, incoming: Incoming) -> str:
        """As in `Callers`."""
        if not self._able or not is_secret(incoming.reply):
            return NOBODY
        known = self._known.get(inbox_of(incoming.reply))
        if known is None or known.until_s < asyncio.get_running_loop().time():
            return ""
        if known.caller is not None and known.actor != NOBODY:
            if not self._has_sent(known, known.caller, incoming):
                return ""
            self._count(known.caller.cid)
        return known.actor

    def _has_sent(self, known: _Known, caller: Caller, incoming: Incoming) -> bool:
        """Whether a connection has sent one more message: the server has counted it, or the kernel its bytes."""
        if self._sent.get(caller.cid, 0) < caller.in_msgs:
            return True
        now = self._socket(caller) if known.peer is not None else None
        if now is None or known.peer is None or now.cookie != known.peer.cookie:
            return False
        size_bytes = len(incoming.subject) + len(incoming.reply) + len(incoming.body)
        has_sent = now.sent_bytes > known.peer.sent_bytes + size_bytes
        if has_sent:
            known.peer = now
        return has_sent

    async def find(self, reply: str) -> str:
        """As in `Callers`."""
        try:
            caller, has_sent = await self._listener(reply)
        except (BusUnavailable, NoResponders, TooLarge, TimeoutError, msgspec.MsgspecError) as failure:
            log.warning("the NATS server does not identify callers (%r); callers are %s for now", failure, NOBODY)
            self._able = False
            return NOBODY
        if caller is None or not has_sent:
            return self._remember(reply, caller, NOBODY)
        self._count(caller.cid)
        return self._remember(reply, caller, await self._actor(caller))

    async def _listener(self, reply: str) -> tuple[Caller | None, bool]:
        """The one connection that listens as a caller does, and whether it can have sent the message."""
        caller: Caller | None = None
        # A server counts what a client has sent a moment after it has passed it on.
        for wait_s in (0.0, *COUNT_S):
            await asyncio.sleep(wait_s)
            listening = [each for each in await self._ask(reply) if _hears(each, reply)]
            if len(listening) != 1:
                return None, False
            caller = listening[0]
            if caller.in_msgs > self._sent.get(caller.cid, 0):
                return caller, True
        log.warning("a reply was to go to the inbox of another NATS connection than the one that asked for it")
        return caller, False

    def _try_soon(self) -> None:
        # Another server, or the same started again: it counts its connections anew.
        self._able = False
        self._tasks.spawn(self._try(), "try")

    async def _try(self) -> None:
        self._known.clear()
        self._sent.clear()
        self._actors.clear()
        try:
            await self._ask(self._bus.inbox())
        except (BusUnavailable, NoResponders, TooLarge, TimeoutError, msgspec.MsgspecError) as failure:
            log.info("the NATS server does not identify callers (%r): callers are %s", failure, NOBODY)
        else:
            self._able = True

    async def _ask(self, reply: str) -> list[Caller]:
        question = {"auth": True, "subscriptions": True, "filter_subject": reply}
        subject = ALL_ACCOUNTS if self._account else OUR_ACCOUNT
        if self._account:
            question["acc"] = self._account
        async with aclosing(self._bus.request(subject, msgspec.json.encode(question), timeout_s=ANSWER_S)) as answers:  # type: ignore[type-var]
            async for answer in answers:
                return msgspec.json.decode(answer, type=_Answer).data.connections
        raise TimeoutError

    async def _actor(self, caller: Caller) -> str:
        if caller.cid not in self._actors:
            if len(self._actors) >= MAX_KNOWN:
                self._actors.clear()
            self._actors[caller.cid] = await self._unix(caller) if self._account else self._nats(caller)
        return self._actors[caller.cid]

    async def _unix(self, caller: Caller) -> str:
        found = self._socket(caller)
        # Names may come from afar.
        return NOBODY if found is None else f"unix:{await asyncio.to_thread(name_of, found.uid)}"

    def _socket(self, caller: Caller) -> Peer | None:
        """Its socket, where that is on this host and the server is ours."""
        if not self._account or not caller.ip.startswith("127."):
            return None
        return peer((caller.ip, caller.port), (LOOPBACK, self._port))

    def _nats(self, caller: Caller) -> str:
        user = caller.authorized_user
        # A server has one token for all clients without a name; some servers send it.
        hidden = user == _HIDDEN or user == self._endpoint().token
        return f"nats:{user}" if _NAME.fullmatch(user) and not hidden else NOBODY

    @property
    def _port(self) -> int:
        return int(self._endpoint().url.rpartition(":")[2])

    def _count(self, cid: int) -> None:
        if cid not in self._sent and len(self._sent) >= MAX_KNOWN:
            del self._sent[next(iter(self._sent))]
        self._sent[cid] = self._sent.get(cid, 0) + 1

    def _remember(self, reply: str, caller: Caller | None, actor: str) -> str:
        """Keep what is true of the whole inbox for a while."""
        inbox = inbox_of(reply)
        if caller is None or inbox == reply or f"{inbox}.*" in caller.subscriptions_list:
            if inbox not in self._known and len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            until_s = asyncio.get_running_loop().time() + FRESH_S
            self._known[inbox] = _Known(actor, until_s, caller, self._socket(caller) if caller is not None else None)
        return actor


def inbox_of(reply: str) -> str:
    """The part that all reply subjects of one caller share, as far as it cannot be guessed: `_INBOX.secret` or all of
    it.
    """
    parent = _parent(reply)
    return parent if is_secret(parent) else reply


def _parent(reply: str) -> str:
    return reply.rpartition(".")[0]


def is_secret(subject: str) -> bool:
    """Whether it cannot be guessed: another subject may be that of a listener that asked nothing."""
    return not subject.startswith(("aether.", "$")) and any(len(token) >= MIN_SECRET for token in subject.split("."))


def _hears(caller: Caller, reply: str) -> bool:
    """Whether a connection listens as those do who have asked: to the very subject, or to one token below a secret."""
    everyone = caller.subscriptions_list
    return reply in everyone or (f"{_parent(reply)}.*" in everyone and is_secret(_parent(reply)))
