"""Who acts: on the node's own server the Unix user, on another one the NATS user, and nobody by another's inbox."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aetherscale.bus import blocking, peers
from aetherscale.bus.blocking import Connection
from aetherscale.bus.bus import Incoming
from aetherscale.bus.callers import NOBODY, NatsCallers
from aetherscale.bus.embedded import EmbeddedServer
from aetherscale.bus.endpoint import Endpoint, parse_endpoint
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.serverconf import ACCOUNT
from tests.integration.conftest import MakeNode
from tests.support.nats_server import NatsServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WAIT_S = 30.0
SUBJECT = "orders"
NOBODYS_UID = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="sockets of other users are made")
ME = f"unix:{peers.name_of(os.geteuid())}"


@contextmanager
def somebody_else() -> Iterator[None]:
    """What is connected in here is another user's."""
    os.seteuid(NOBODYS_UID)
    try:
        yield
    finally:
        os.seteuid(0)


class World:
    """A node's side of a server: messages on `SUBJECT`, with who they are from."""

    def __init__(self, callers: NatsCallers, bus: NatsBus, endpoint: Endpoint) -> None:
        self.callers, self._bus, self._endpoint = callers, bus, endpoint
        self.heard: asyncio.Queue[Incoming] = asyncio.Queue()

    def client(self, **credentials: str) -> Connection:
        """Somebody's connection."""
        endpoint = self._endpoint
        if credentials:
            endpoint = parse_endpoint(endpoint.url, **credentials)
        return blocking.connect(endpoint)

    async def actor(self, client: Connection, reply: str, body: bytes = b"x" * 100) -> str:
        """Who a message with this reply subject is taken to be from."""
        client.publish(SUBJECT, body, reply=reply)
        incoming = await asyncio.wait_for(self.heard.get(), WAIT_S)
        return self.callers.known(incoming) or await self.callers.find(incoming.reply)


def inbox(client: Connection, end: str = ".*") -> str:
    """A subject that the client listens to and nobody guesses, as the libraries of NATS do."""
    drawn = f"_INBOX.{secrets.token_hex(11)}"
    client.subscribe(drawn + end)
    client.flush()
    return drawn


@asynccontextmanager
async def listening(bus_at: Endpoint, callers_at: Endpoint, account: str) -> AsyncIterator[World]:
    bus = NatsBus(lambda: bus_at, name="node", clock=lambda: 0)
    asking = NatsBus(lambda: callers_at, name="callers", clock=lambda: 0)
    await bus.start(WAIT_S)
    await asking.start(WAIT_S)
    callers = NatsCallers(asking, lambda: callers_at, account=account)
    await callers.start()
    world = World(callers, bus, bus_at)
    await bus.listen(SUBJECT, "", world.heard.put_nowait)
    yield world
    await callers.close()
    await asking.close()
    await bus.close()


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[World]:
    """On the node's own server."""
    (tmp_path / "state").mkdir(mode=0o700)
    server = EmbeddedServer(tmp_path / "state", "n1")
    await server.start()
    async with listening(server.endpoint, server.system, ACCOUNT) as world:
        yield world
    await server.close()


@as_root
async def test_local_clients_are_the_users_whose_sockets_they_have(own: World) -> None:
    mine = own.client()
    with somebody_else():
        theirs = own.client()
    name = peers.name_of(NOBODYS_UID)
    for client, actor in ((mine, ME), (theirs, f"unix:{name}"), (mine, ME)):
        for _ in range(3):
            assert await own.actor(client, inbox(client, "")) == actor, "an inbox for each request"
        many = inbox(client)
        for number in range(5):
            assert await own.actor(client, f"{many}.{number}") == actor, "one for all"
    mine.close()
    theirs.close()


@as_root
async def test_whoever_names_the_inbox_of_another_gains_no_name(own: World) -> None:
    forger = own.client()
    with somebody_else():
        idle, busy = own.client(), own.client()
    for victim, asked in ((idle, 0), (busy, 3)):
        theirs = inbox(victim)
        for number in range(asked):
            assert await own.actor(victim, f"{theirs}.{number}") != NOBODY
        assert await own.actor(forger, f"{theirs}.forged") == NOBODY
    for each in (forger, idle, busy):
        each.close()


@as_root
async def test_a_subject_that_can_be_guessed_or_that_others_hear_is_nobodys(own: World) -> None:
    forger = own.client()
    with somebody_else():
        victim = own.client()
    for _ in range(5):
        victim.publish("anything", b"")
    victim.subscribe("news.*")
    victim.subscribe("_INBOX.>")
    theirs = inbox(victim)
    forger.subscribe(f"{theirs}.*")
    forger.flush()
    assert await own.actor(forger, "news.today") == NOBODY
    assert await own.actor(forger, f"_INBOX.{secrets.token_hex(11)}.1") == NOBODY, "who hears all asks for nothing"
    assert await own.actor(victim, f"{theirs}.1") == NOBODY, "two hear it"
    assert await own.actor(victim, "") == NOBODY
    mine = inbox(forger)
    assert await own.actor(forger, f"{mine}.1") == ME, "though another hears all inboxes"
    forger.close()
    victim.close()


async def test_many_at_once_are_all_from_who_sent_them(own: World) -> None:
    client = own.client()
    mine = inbox(client)
    for number in range(500):
        client.publish(SUBJECT, b"", reply=f"{mine}.{number}")
    found = []
    for _ in range(500):
        incoming = await asyncio.wait_for(own.heard.get(), WAIT_S)
        found.append(own.callers.known(incoming) or await own.callers.find(incoming.reply))
    assert found == [ME] * 500
    client.close()


USERS = {"authorization": {"users": [{"user": name, "password": "p"} for name in ("node", "joe", "ann+1")]}}
NO_NAMES = {
    "authorization": {
        "users": [
            {"user": "joe", "password": "p"},
            {"user": "node", "password": "p", "permissions": {"publish": {"deny": "$SYS.>"}}},
        ]
    }
}


@asynccontextmanager
async def outside(directory: Path, options: dict[str, Any], **node: str) -> AsyncIterator[World]:
    server = NatsServer(directory / "store", **options)
    await server.start()
    endpoint = parse_endpoint(server.endpoint.url, **node)
    async with listening(endpoint, endpoint, "") as world:
        yield world
    await server.kill()


async def test_on_another_server_it_is_the_user_that_the_server_let_in(tmp_path: Path) -> None:
    async with outside(tmp_path, USERS, user="node", password="p") as world:
        clients = {name: world.client(user=name, password="p") for name in ("joe", "ann+1")}
        for name, client in clients.items():
            assert await world.actor(client, f"{inbox(client)}.1") == f"nats:{name}"
        theirs = inbox(clients["ann+1"])
        assert await world.actor(clients["joe"], f"{theirs}.1") != "nats:joe"
        for client in clients.values():
            client.close()


async def test_a_token_is_no_name_and_never_told(tmp_path: Path) -> None:
    token = "s3cr3t-w0rd"
    async with outside(tmp_path, {"authorization": {"token": token}}, token=token) as world:
        client = world.client(token=token)
        assert await world.actor(client, f"{inbox(client)}.1") == NOBODY
        client.close()


async def test_where_the_server_does_not_say_everybody_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aetherscale.bus.callers.ANSWER_S", 0.1)
    async with outside(tmp_path, NO_NAMES, user="node", password="p") as world:
        client = world.client(user="joe", password="p")
        assert await world.actor(client, f"{inbox(client)}.1") == NOBODY
        client.close()


async def test_events_and_views_of_a_real_node_name_the_user(make_node: MakeNode) -> None:
    node = make_node("--simulated")
    await node.start()
    status, _, err = await node.cli("image", "build", "tiny")
    assert status == 0, err
    status, _, err = await node.cli("vm", "create", "web", "--image", "tiny")
    assert status == 0, err
    _, out, _ = await node.cli("events", "list", "--json")
    events = {event["type"]: event["actor"] for event in json.loads(out)}
    assert (events["VmRequested"], events["VmReady"]) == (ME, "aether:compute")
    _, out, _ = await node.cli("why", "vm", "web")
    assert f"{ME} asked to create the VM 'web'" in out
    _, out, _ = await node.cli("vm", "show", "web", "--json")
    assert json.loads(out)["requested-by"] == ME
    _, out, _ = await node.cli("vm", "show", "web")
    assert ["requested-by", ME] in [line.split() for line in out.splitlines()]
    stopped = await node.request(
        "aether.v1.default.cmd.compute.stop-vm", {"vm-id": "web"}, Aether_Claimed_User="the-boss"
    )
    assert stopped[-1]["vm"]["requested-by"] == f"{ME} (says: the-boss)"


@as_root
@pytest.mark.parametrize("look", [peers.ask_kernel, peers.look_up])
def test_a_socket_of_this_host_tells_its_user(look: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        with somebody_else():
            theirs = socket.socket()
        theirs.connect(server.getsockname())
        client.connect(server.getsockname())
        for each, uid in ((theirs, NOBODYS_UID), (client, 0)):
            found = look(each.getsockname(), each.getpeername())
            assert found is not None
            assert found.uid == uid
        before = look(theirs.getsockname(), theirs.getpeername())
        theirs.send(b"x" * 1000)
        after = look(theirs.getsockname(), theirs.getpeername())
        assert after.cookie == before.cookie
        assert after.sent_bytes - before.sent_bytes in (0, 1000)
        theirs.close()
        assert look(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


def test_a_user_without_a_name_is_a_number() -> None:
    assert peers.name_of(0x7000_0001) == str(0x7000_0001)
