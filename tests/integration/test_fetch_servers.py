"""Servers that lie, stall or lead elsewhere."""

from __future__ import annotations

import asyncio
import os
import random
from ipaddress import ip_network
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.kernel.fault import Fault
from tests.support.fetching import (
    CONTENT,
    ETAG,
    HASTY,
    MIB,
    PATIENT,
    SHA256,
    bring,
    cancelled_midway,
    failure,
    left_over,
    no_proxy,
    part,
    stalls_midway,
)
from tests.support.http_server import Asked, http_server, says, serves
from tests.support.names import KNOWS_LOCALHOST

__all__ = ["no_proxy", "part"]

pytestmark = pytest.mark.integration


class TestServers:
    async def test_a_length_that_is_a_lie_is_a_failure(self, part: Path) -> None:
        async with http_server(says("200 OK", {"Content-Length": "1000"}, b"short")) as server:
            failed = await failure(server.url(), part)
        assert failed.retryable
        assert "after 5 of 1000 bytes" in failed.reason

    async def test_a_part_longer_than_it_says_is_a_failure(self, part: Path) -> None:
        total = {"Content-Range": f"bytes {MIB}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": ETAG}
        async with http_server(
            serves(CONTENT, cut_after=MIB, etag=ETAG), says("206 Partial Content", total, bytes(4 * MIB))
        ) as server:
            assert (await failure(server.url(), part)).retryable
            failed = await failure(server.url(), part)
        assert not failed.retryable
        assert "and sent" in failed.reason

    async def test_a_chunked_body_comes_in_and_a_broken_one_is_a_failure(self, part: Path) -> None:
        chunked = {"Transfer-Encoding": "chunked"}
        told: list[int | None] = []
        async with http_server(
            says("200 OK", chunked, b"5\r\nhello\r\n3\r\n"), says("200 OK", chunked, b"5\r\nhello\r\n0\r\n\r\n")
        ) as server:
            assert (await failure(server.url(), part)).retryable
            await bring(server.url(), part, progress=lambda done, total: told.append(total))
        assert part.read_bytes() == b"hello"

    async def test_a_size_over_the_cap_is_refused_before_anything_is_written(self, part: Path) -> None:
        async with http_server(serves(CONTENT)) as server:
            failed = await failure(server.url(), part, size_cap_bytes=MIB)
        assert not failed.retryable
        assert "are allowed" in failed.reason
        assert not part.exists()

    async def test_a_body_over_the_cap_is_cut_while_it_comes(self, part: Path) -> None:
        async with http_server(says("200 OK", {}, CONTENT)) as server:
            failed = await failure(server.url(), part, size_cap_bytes=MIB)
        assert not failed.retryable
        assert part.stat().st_size <= MIB

    async def test_a_wrong_checksum_leaves_nothing(self, part: Path) -> None:
        async with http_server(serves(CONTENT, etag=ETAG)) as server:
            failed = await failure(server.url(), part, sha256="0" * 64)
        assert not failed.retryable
        assert SHA256 in failed.reason
        assert left_over(part) == []

    async def test_a_checksum_is_of_the_whole_file_also_when_it_came_in_two_parts(self, part: Path) -> None:
        answers = [serves(CONTENT, cut_after=cut, etag=ETAG) for cut in (MIB, None)]
        async with http_server(*answers) as server:
            assert (await failure(server.url(), part, sha256=SHA256)).retryable
            os.pwrite(descriptor := os.open(part, os.O_WRONLY), b"bit rot", 1000)
            os.close(descriptor)
            assert not (await failure(server.url(), part, sha256=SHA256)).retryable
        assert left_over(part) == []

    @pytest.mark.parametrize("headers", [False, True])
    async def test_a_server_that_stalls_is_given_up(self, part: Path, headers: bool) -> None:
        async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
            if headers:
                await says("200 OK", {"Content-Length": "1000"}, b"and then")(asked, writer)
            await asyncio.Event().wait()

        async with http_server(stall) as server:
            failed = await failure(server.url(), part, limits=HASTY)
        assert failed.retryable
        assert "the server said nothing for 0.2 s" in failed.reason

    @pytest.mark.parametrize("crowded", [False, True])
    async def test_a_server_that_sends_too_little_is_given_up_however_often_it_sends(
        self, part: Path, crowded: bool
    ) -> None:
        async def drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await says("200 OK", {"Content-Length": str(len(CONTENT)), "ETag": ETAG})(asked, writer)
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.01)

        # The other of the two limits is met by anybody.
        paces = {"pace_s": 0.2, "pace_bytes": 0 if crowded else MIB, "crowded_bytes": MIB if crowded else 0}
        async with http_server(drip) as server:
            failed = await failure(
                server.url(), part, limits=replace(PATIENT, idle_s=3600, **paces), is_crowded=lambda: crowded
            )
        assert failed.retryable
        assert "the server is too slow" in failed.reason
        assert ("while others waited" in failed.reason) == crowded

    @pytest.mark.parametrize("word", [b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n", b""])
    async def test_a_head_that_never_ends_is_given_up(self, part: Path, word: bytes) -> None:
        async def drip(asked: Asked, writer: asyncio.StreamWriter) -> None:
            writer.write(word)
            while True:
                writer.write(b"X")
                await writer.drain()
                await asyncio.sleep(0.01)

        async with http_server(drip) as server:
            failed = await failure(server.url(), part, limits=replace(PATIENT, pace_s=0.2, pace_bytes=1))
        assert failed.retryable

    async def test_an_address_that_is_not_public_is_not_reached(self, part: Path) -> None:
        async with http_server(serves(CONTENT)) as server:
            named = ("localhost",) if KNOWS_LOCALHOST else ()
            for host in (*named, "127.0.0.1", "127.1", "0", "[::ffff:127.0.0.1]"):
                failed = await failure(f"http://{host}:{server.port}/image", part, limits=replace(PATIENT, networks=()))
                assert not failed.retryable
                assert "has no address that this node may download from" in failed.reason
        assert server.asked == []
        assert left_over(part) == []

    async def test_nor_is_one_that_a_redirection_leads_to(self, part: Path) -> None:
        async with http_server(serves(CONTENT)) as inner:
            moved = says("302 Found", {"Location": f"http://127.0.0.2:{inner.port}/image"})
            async with http_server(moved) as server:
                failed = await failure(
                    server.url(), part, limits=replace(PATIENT, networks=(ip_network("127.0.0.1/32"),))
                )
        assert failed.reason == "127.0.0.2 has no address that this node may download from"
        assert inner.asked == []

    async def test_a_proxy_is_reached_wherever_it_is_and_not_asked_for_what_is_not_public(
        self, part: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with http_server(serves(CONTENT)) as proxy:
            monkeypatch.delenv("no_proxy")
            monkeypatch.setenv("http_proxy", proxy.url(""))
            limits = replace(PATIENT, networks=())
            fetched = await bring("http://images.example/x", part, limits=limits)
            failed = await failure("http://127.1/x", part, limits=limits)
        assert fetched.sha256 == SHA256
        assert [asked.target for asked in proxy.asked] == ["http://images.example/x"]
        assert "has no address that" in failed.reason

    @pytest.mark.parametrize(
        "status", ["300 Multiple", "301 Moved", "302 Found", "303 See", "304 Not", "307 T", "308 P"]
    )
    @pytest.mark.parametrize("headers", [{}, {"Location": ""}, {"Location": "http://[::1"}, {"Location": "//"}])
    async def test_a_redirection_that_leads_nowhere_is_a_failure_with_a_reason(
        self, part: Path, status: str, headers: dict[str, str]
    ) -> None:
        async with http_server(says(status, {**headers, "Content-Length": "0"})) as server:
            failed = await failure(server.url(), part)
        assert not failed.retryable
        assert left_over(part) == []

    async def test_whatever_a_server_says_is_an_answer_or_a_failure(self, part: Path) -> None:
        chosen = random.Random(4)  # noqa: S311 - no secret is made of it
        words = [
            *(
                "HTTP/1.1 200 OK\r\n",
                "HTTP/1.1 206 P\r\n",
                "HTTP/1.0 302 F\r\n",
                "HTTP/1.1 999 \x1b[2J\r\n",
                "HTTP/9 x\r\n",
            ),
            *("HTTP/1.1 100 C\r\n\r\n", "HTTP/1.1 416 R\r\n", "Location: http://\xff\x80/\r\n", "Location: /\x7f\r\n"),
            *("Location: http://a@b:c/\r\n", "Location: http://127.0.0.1:99999/\r\n", "Content-Length: -5\r\n"),
            *("Content-Length: 9999999999999999999999\r\n", "Content-Length: x\r\n", "Content-Length: 3\r\n"),
            *(
                "Transfer-Encoding: chunked\r\n",
                "-5\r\n",
                "5\r\nhello\r\n",
                "0\r\n\r\n",
                "Content-Range: bytes 0-4/5\r\n",
            ),
            *(
                'ETag: "\xe9\x00"\r\n',
                "Last-Modified: \x00\r\n",
                "Content-Encoding: gzip\r\n",
                ": \r\n",
                "\r\n",
                "\r\n\r\n",
                "x",
            ),
        ]

        async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
            said = chosen.choice(words[:7]) + "".join(chosen.choices(words, k=chosen.randrange(8))) + "\r\nhello"
            writer.write(said.encode("latin-1"))
            await writer.drain()

        async with http_server(answer) as server:
            for _ in range(400):
                reason = "?"
                try:
                    await bring(server.url(), part)
                except Fault as failed:
                    reason = failed.reason
                assert reason.isprintable()
                for path in part.parent.iterdir():
                    path.unlink()

    async def test_a_cancelled_download_ends_at_once_and_can_go_on(self, part: Path) -> None:
        async with http_server(stalls_midway, serves(CONTENT, etag=ETAG)) as server:
            await cancelled_midway(server.url(), part)
            have_bytes = part.stat().st_size
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert have_bytes > 0
        assert server.asked[1].headers["range"] == f"bytes={have_bytes}-"

    async def test_redirections_are_followed_and_passwords_stay_with_their_server(self, part: Path) -> None:
        moved = says("302 Found", {"Location": "/elsewhere", "Content-Length": "9"}, b"unrelated")
        async with http_server(moved, serves(CONTENT)) as server:
            assert (await bring(server.url(user="me:s%20cret@"), part)).sha256 == SHA256
        assert [asked.target for asked in server.asked] == ["/image", "/elsewhere"]
        assert server.asked[0].headers["authorization"] == "Basic bWU6cyBjcmV0"
        assert "authorization" not in server.asked[1].headers
        assert server.asked[0].headers["host"] == f"127.0.0.1:{server.port}"

    @pytest.mark.parametrize("target", ["/image", "file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://x/"])
    async def test_redirections_that_lead_nowhere_good_are_not_followed(self, part: Path, target: str) -> None:
        async with http_server(says("301 Moved Permanently", {"Location": target})) as server:
            failed = await failure(server.url(), part)
        assert not failed.retryable
        assert "elsewhere" in failed.reason
        assert len(server.asked) <= 12
        assert left_over(part) == []

    async def test_a_redirection_with_an_endless_body_is_not_read(self, part: Path) -> None:
        async def endless(asked: Asked, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 302 Found\r\nLocation: /image\r\n\r\n")
            while True:
                writer.write(bytes(MIB))
                await writer.drain()

        async with http_server(endless, serves(CONTENT)) as server:
            assert (await bring(server.url(), part)).sha256 == SHA256
            await server.hung_up.wait()

    @pytest.mark.parametrize(
        ("status", "retryable"),
        [("404 Not Found", False), ("401 Unauthorized", False), ("410 Gone", False), ("204 No Content", False),
         ("500 Internal Server Error", True), ("503 Service Unavailable", True), ("429 Too Many Requests", True)],
    )  # fmt: skip
    async def test_a_refusal_is_told_with_its_number(self, part: Path, status: str, retryable: bool) -> None:
        async with http_server(says(status, {"Content-Length": "0"})) as server:
            failed = await failure(server.url(), part)
        assert failed.retryable == retryable
        assert status[:3] in failed.reason

    async def test_an_encoding_that_nobody_asked_for_is_refused(self, part: Path) -> None:
        async with http_server(serves(CONTENT, content_encoding="gzip")) as server:
            failed = await failure(server.url(), part)
        assert "gzip" in failed.reason
        assert not failed.retryable

    @pytest.mark.parametrize(
        "answer",
        [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000, b"HTTP/1.1 200 " + b"x" * 100_000],
    )
    async def test_a_server_that_speaks_no_http_is_a_failure(self, part: Path, answer: bytes) -> None:
        async def nonsense(asked: Asked, writer: asyncio.StreamWriter) -> None:
            writer.write(answer)
            await writer.drain()

        async with http_server(nonsense) as server:
            assert (await failure(server.url(), part)).retryable

    async def test_a_server_that_is_not_there_is_a_failure(self, part: Path) -> None:
        async with http_server(serves(b"")) as server:
            url = server.url()
        assert (await failure(url, part)).retryable

    @pytest.mark.parametrize(
        "url", ["http://", "http:///x", "http://[::1", "http://127.0.0.1:port/", "http://a b/", "ftp://x/y"]
    )
    async def test_an_address_that_is_none_is_refused(self, part: Path, url: str) -> None:
        assert not (await failure(url, part)).retryable

    async def test_an_address_is_sent_as_the_web_wants_it(self, part: Path) -> None:
        async with http_server(serves(CONTENT)) as server:
            await bring(server.url("/b ild/größe%20x?q=a b#part"), part)
        assert server.asked[0].target == "/b%20ild/gr%C3%B6%C3%9Fe%20x?q=a%20b"

    async def test_a_part_file_that_is_a_link_is_not_followed(self, part: Path) -> None:
        precious = part.with_name("precious")
        precious.write_text("precious")
        part.symlink_to(precious)
        async with http_server(serves(CONTENT)) as server:
            assert not (await failure(server.url(), part)).retryable
        assert precious.read_text() == "precious"
