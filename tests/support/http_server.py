"""An HTTP server on loopback that answers as a test says, byte by byte, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from msgspec import Struct


class Asked(Struct, frozen=True):
    """A request: its target and its headers, with names in lower case."""

    target: str
    headers: dict[str, str]


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class HttpServer:
    """Give `answers` in order, one for each request; the last one again and again."""

    answers: list[Answer]
    scheme: str = "http"
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    hung_up: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    def url(self, path: str = "/image", user: str = "") -> str:
        return f"{self.scheme}://{user}127.0.0.1:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request. The end of a test may cancel it, which is no mistake to be logged."""
        with suppress(asyncio.CancelledError):
            await self.exchange(reader, writer)

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        task.add_done_callback(self.serving.discard)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            asked = Asked(head[0].split(" ")[1], {name.lower(): value for name, value in headers.items()})
            self.asked.append(asked)
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            await answer(asked, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.hung_up.set()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def http_server(*answers: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpServer]:
    """A server with these answers, until the end of the block."""
    ours = HttpServer(list(answers), scheme="https" if tls else "http")
    server = await asyncio.start_server(ours.serve, "127.0.0.1", 0, ssl=tls)
    ours.port = server.sockets[0].getsockname()[1]
    try:
        yield ours
    finally:
        server.close()
        # From Python 3.12 on a server waits for its connections, also those that are to hang.
        for writer in ours.writers:
            with suppress(AttributeError):  # the TLS of Python 3.11.2 has none left to abort where the caller has gone
                writer.transport.abort()
        serving = list(ours.serving)
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await server.wait_closed()


def says(status: str, headers: dict[str, str], body: bytes = b"") -> Answer:
    """Answer with exactly this, and close the connection."""

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\n".encode())
        for name, value in headers.items():
            writer.write(f"{name}: {value}\r\n".encode())
        writer.write(b"\r\n" + body)
        await writer.drain()

    return answer


def serves(content: bytes, *, ranges: bool = True, cut_after: int | None = None, **headers: str) -> Answer:
    """Answer as a good server does, which knows ranges unless told otherwise; end after `cut_after` bytes of the body.

    Headers are given as `etag='"1"'`, `last_modified="…"`.
    """
    given = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        first = 0
        same = asked.headers.get("if-range") in (given.get("etag"), given.get("last-modified"))
        if ranges and same and "range" in asked.headers:
            first = int(asked.headers["range"].removeprefix("bytes=").removesuffix("-"))
        body = content[first:]
        lines = {**given, "content-length": str(len(body))}
        if first:
            lines["content-range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        status = "206 Partial Content" if first else "200 OK"
        await says(status, lines, body[:cut_after])(asked, writer)

    return answer
