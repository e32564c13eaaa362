"""A distribution's server, with an image and its checksum, and a catalogue that leads there."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.support.http_server import Asked, HttpServer, http_server, says, serves
from tests.support.node import RunningNode


class Site:
    """A distribution's server: a file, and its checksums beside it."""

    def __init__(self, content: bytes, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self.publish(content)
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuses = ""
        self.server: HttpServer | None = None

    def publish(self, content: bytes) -> None:
        self.content = content
        self.sums = f"{hashlib.new(self.algorithm, content).hexdigest()} *web.img\n".encode()

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            await says(self.refuses, {"Content-Length": "0"})(asked, writer)
        elif asked.target == "/SUMS":
            await serves(self.sums)(asked, writer)
        else:
            head = serves(self.content, cut_after=64 * 1024, etag=f'"{self.sums[:8]!r}"')
            if not self.gate.is_set():
                # The headers and a beginning, then nothing until the gate is open.
                lines = {"content-length": str(len(self.content))}
                await says("200 OK", lines, self.content[: 64 * 1024])(asked, writer)
                await self.gate.wait()
                writer.write(self.content[64 * 1024 :])
                await writer.drain()
            else:
                head = serves(self.content)
                await head(asked, writer)

    def downloads(self) -> int:
        assert self.server is not None
        return sum(asked.target == "/web.img" for asked in self.server.asked)

    def catalogue(self, name: str = "web") -> str:
        assert self.server is not None
        files = f'url = "{self.server.url("/web.img")}"\nchecksums = "{self.server.url("/SUMS")}"\n'
        both = "".join(f"[image.{arch}]\n{files}" for arch in ("x86_64", "aarch64"))
        return f'[[image]]\nname = "{name}"\nabout = "A web server"\nuser = "www"\n{both}'


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[Site]:
    async with http_server(site) as server:
        site.server = server
        yield site
        site.gate.set()


async def ask(node: RunningNode, task: str, options: Any) -> list[Any]:
    return await node.request(f"aether.v1.default.cmd.images.{task}", options)
