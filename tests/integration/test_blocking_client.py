"""The command line's NATS client, on a real nats-server and against nats-py."""

from __future__ import annotations

import asyncio
import select
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from aetherscale.bus import blocking
from aetherscale.bus.bus import BusUnavailable, NoResponders, TooLarge
from aetherscale.bus.endpoint import Endpoint
from tests.support.nats_server import NatsServer

pytestmark = pytest.mark.integration

T = TypeVar("T")
WAIT_S = 10.0


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    made = NatsServer(tmp_path / "store")
    await made.start()
    yield made
    await made.kill()


@pytest.fixture
async def peer(server: NatsServer) -> AsyncIterator[Client]:
    client = await nats.connect(server.endpoint.url)
    yield client
    await client.close()


async def in_thread(work: Callable[[], T]) -> T:
    """Blocking work beside the loop on which the peer answers."""
    async with asyncio.timeout(WAIT_S):
        return await asyncio.to_thread(work)


async def answer(peer: Client, subject: str, *chunks: bytes) -> None:
    async def reply(message: Msg) -> None:
        for chunk in chunks:
            await peer.publish(message.reply, chunk, headers={"Aether-Node": "n1"})
        await peer.publish(message.reply, b"")

    await peer.subscribe(subject, cb=reply)
    await peer.flush()


def ask(server: NatsServer, subject: str, timeout_s: float = WAIT_S) -> list[dict[str, Any]]:
    with blocking.connect(server.endpoint) as connection:
        return list(connection.request(subject, b"{}", {"Nats-Msg-Id": "k"}, timeout_s=timeout_s))


async def test_a_request_gets_its_chunks_up_to_the_empty_message(server: NatsServer, peer: Client) -> None:
    await answer(peer, "list", b'{"type":"item"}', b'{"type":"result","count":1}')
    assert await in_thread(lambda: ask(server, "list")) == [{"type": "item"}, {"type": "result", "count": 1}]


async def test_a_reply_of_many_and_large_chunks_comes_whole_and_in_order(server: NatsServer, peer: Client) -> None:
    chunks = [b'{"n":%d,"text":"%s"}' % (number, b"x" * (number * 97 % 60_000)) for number in range(500)]
    await answer(peer, "list", *chunks)
    got = await in_thread(lambda: ask(server, "list"))
    assert [chunk["n"] for chunk in got] == list(range(500))
    assert got == [msgspec.json.decode(chunk) for chunk in chunks]


async def test_what_it_sends_arrives_as_it_was_sent(server: NatsServer, peer: Client) -> None:
    subscription = await peer.subscribe("there.>")
    await peer.flush()

    def send() -> None:
        with blocking.connect(server.endpoint) as connection:
            connection.publish("there.x", b"\x00\r\nbody", {"Nats-Msg-Id": "k 1", "Aether-Deadline": "17"}, "back")
            connection.publish("there.y", b"")
            connection.flush()

    await in_thread(send)
    first, second = await subscription.next_msg(WAIT_S), await subscription.next_msg(WAIT_S)
    assert (first.subject, first.reply, first.data) == ("there.x", "back", b"\x00\r\nbody")
    assert first.headers == {"Nats-Msg-Id": "k 1", "Aether-Deadline": "17"}
    assert (second.subject, second.data, second.headers) == ("there.y", b"", None)


async def test_nobody_home_is_told_at_once(server: NatsServer) -> None:
    with pytest.raises(NoResponders, match=r"nobody\.home"):
        await in_thread(lambda: ask(server, "nobody.home"))


async def test_silence_ends_a_request_after_its_time(server: NatsServer, peer: Client) -> None:
    await peer.subscribe("silent")
    await peer.flush()
    with pytest.raises(TimeoutError, match="silent"):
        await in_thread(lambda: ask(server, "silent", 0.05))


async def test_an_answer_that_is_no_json_is_told(server: NatsServer, peer: Client) -> None:
    await answer(peer, "odd", b"[1]")
    with pytest.raises(BusUnavailable, match="not a JSON object"):
        await in_thread(lambda: ask(server, "odd"))


async def test_a_tail_hears_everything_in_order_while_it_publishes(server: NatsServer) -> None:
    def tail() -> list[bytes]:
        with blocking.connect(server.endpoint) as connection, blocking.connect(server.endpoint) as other:
            subscription = connection.subscribe("news.*")
            unheard = connection.subscribe("other")
            connection.flush()
            for number in range(300):
                other.publish("news.x", b"%d" % number)
                connection.publish("news.y", b"mine")
            got = []
            for incoming in subscription:
                if incoming.subject == "news.x":
                    got.append(incoming.body)
                if len(got) == 300:
                    break
            assert unheard.receive(0) is None
            return got

    assert await in_thread(tail) == [b"%d" % number for number in range(300)]


async def test_it_can_wait_for_a_message_and_something_else_at_once(server: NatsServer) -> None:
    def wait() -> None:
        with blocking.connect(server.endpoint) as connection, blocking.connect(server.endpoint) as other:
            subscription = connection.subscribe("console.out")
            connection.flush()
            assert subscription.receive(0) is None
            assert select.select([connection], [], [], 0)[0] == []
            other.publish("console.out", b"login:")
            other.publish("console.out", b"root")
            assert select.select([connection], [], [], WAIT_S)[0] == [connection]
            heard = b""
            while heard != b"login:root":
                incoming = subscription.receive(WAIT_S)
                assert incoming is not None
                heard += incoming.body
            subscription.unsubscribe()
            subscription.unsubscribe()

    await in_thread(wait)


async def test_what_the_broker_does_not_take_is_not_sent(server: NatsServer) -> None:
    def send() -> None:
        with blocking.connect(server.endpoint) as connection:
            with pytest.raises(TooLarge):
                connection.publish("x", b"x" * (connection.max_payload_bytes + 1))
            for subject in ("a b", "a.*", "", "a\r\nPUB b 0"):
                with pytest.raises(ValueError, match="subject"):
                    connection.publish(subject, b"")
            connection.flush()

    await in_thread(send)


async def test_a_flood_that_nobody_reads_does_not_fill_the_memory(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocking, "MAX_WAITING", 100)

    def neglect() -> None:
        with blocking.connect(server.endpoint) as connection, blocking.connect(server.endpoint) as other:
            connection.subscribe("flood")
            quiet = connection.subscribe("quiet")
            connection.flush()
            for _ in range(101):
                other.publish("flood", b"")
            other.flush()
            with pytest.raises(BusUnavailable, match="unread"):
                quiet.receive(WAIT_S)

    await in_thread(neglect)


async def test_a_broker_that_dies_is_told_at_once(server: NatsServer) -> None:
    connection = blocking.connect(server.endpoint)
    with closing(connection):
        subscription = connection.subscribe("x")
        connection.flush()
        await server.kill()
        with pytest.raises(BusUnavailable, match=server.endpoint.url):
            await in_thread(lambda: subscription.receive(WAIT_S))


async def test_where_nothing_listens_the_server_is_named(server: NatsServer) -> None:
    await server.kill()
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1.*refused"):
        blocking.connect(server.endpoint)


async def test_the_next_server_of_a_cluster_is_tried(server: NatsServer) -> None:
    dead = NatsServer(Path("/nowhere"))
    with blocking.connect(Endpoint(f"{dead.endpoint.url},{server.endpoint.url}")) as connection:
        assert connection.url == server.endpoint.url


async def test_wrong_credentials_are_told_without_the_password(tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "store", authorization={"user": "u", "password": "right"})
    await server.start()
    with pytest.raises(BusUnavailable, match="Authorization Violation") as told:
        await in_thread(lambda: blocking.connect(Endpoint(server.endpoint.url, "u", "wrong-secret")))
    assert "secret" not in str(told.value)
    with blocking.connect(Endpoint(server.endpoint.url, "u", "right")) as connection:
        connection.flush()
    await server.kill()


@pytest.fixture
def impostor() -> Iterator[Callable[[bytes], Endpoint]]:
    """A server that says something and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = []

        def serve(words: bytes) -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(words)

        def start(words: bytes) -> Endpoint:
            threads.append(threading.Thread(target=serve, args=(words,)))
            threads[-1].start()
            return Endpoint(f"nats://127.0.0.1:{listener.getsockname()[1]}")

        yield start
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"INFO {\r\n",
        b"INFO []\r\n",
        b"PING\r\n",
        b"x" * 100_000,
        b"INFO {}\r\nMSG a b c\r\n",
        b"INFO {}\r\n-ERR 'no'\r\n",
        b'INFO {"tls_required":true}\r\n',
    ],
)
def test_what_is_no_nats_server_is_told(impostor: Callable[[bytes], Endpoint], words: bytes) -> None:
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1"):
        blocking.connect(impostor(words))


def test_importing_it_imports_neither_asyncio_nor_nats() -> None:
    code = "import sys, aetherscale.bus.blocking; print({'asyncio', 'nats', 'ssl', 'logging'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
