"""Files that come in: downloads that break and go on, servers that lie, stall and loop, and copies."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.images.fetch import Fetched, FetchFailed, Limits, fetch
from tests.support.http_server import Asked, http_server, says, serves

pytestmark = pytest.mark.integration

MIB = 1 << 20
CONTENT = hashlib.shake_128(b"an image").digest(3 * MIB + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = '"one"'
PATIENT = Limits(connect_s=30, idle_s=30)
HASTY = Limits(connect_s=30, idle_s=0.2)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "image.part"


async def bring(source: str, part: Path, **options: Any) -> Fetched:
    given: dict[str, Any] = {
        "sha256": None, "size_cap_bytes": 16 * MIB, "progress": lambda done, total: None, "limits": PATIENT,
    }  # fmt: skip
    return await fetch(source, part, **(given | options))


async def failure(source: str, part: Path, **options: Any) -> FetchFailed:
    with pytest.raises(FetchFailed) as failed:
        await bring(source, part, **options)
    assert failed.value.hint
    return failed.value


def left_over(part: Path) -> list[str]:
    return sorted(path.name for path in part.parent.iterdir())


class TestDownload:
    async def test_a_file_comes_in_whole_and_private_and_its_progress_is_told(self, part: Path) -> None:
        told: list[tuple[int, int | None]] = []
        async with http_server(serves(CONTENT, etag=ETAG)) as server:
            fetched = await bring(
                server.url(), part, sha256=SHA256, progress=lambda done, total: told.append((done, total))
            )
        assert fetched == Fetched(part, SHA256, len(CONTENT))
        assert part.read_bytes() == CONTENT
        assert part.stat().st_mode & 0o777 == 0o600
        assert told[-1] == (len(CONTENT), len(CONTENT))
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert {total for _, total in told} == {len(CONTENT)}
        assert server.asked[0].headers["accept-encoding"] == "identity"
        assert left_over(part) == ["image.part"]

    async def test_a_broken_download_goes_on_where_it_ended(self, part: Path) -> None:
        async with http_server(
            serves(CONTENT, cut_after=MIB, etag=ETAG),
            serves(CONTENT, cut_after=MIB, etag=ETAG),
            serves(CONTENT, etag=ETAG),
        ) as server:
            for ended_after in (MIB, 2 * MIB):
                failed = await failure(server.url(), part)
                assert failed.retryable
                assert f"after {ended_after} of {len(CONTENT)} bytes" in failed.reason
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert [asked.headers.get("range") for asked in server.asked] == [None, f"bytes={MIB}-", f"bytes={2 * MIB}-"]
        assert server.asked[1].headers["if-range"] == ETAG
        assert left_over(part) == ["image.part"]

    async def test_a_date_will_do_where_there_is_no_strong_etag(self, part: Path) -> None:
        date = "Mon, 01 Jan 2024 00:00:00 GMT"
        answers = [serves(CONTENT, cut_after=cut, etag='W/"weak"', last_modified=date) for cut in (MIB, None)]
        async with http_server(*answers) as server:
            assert (await failure(server.url(), part)).retryable
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert server.asked[1].headers["if-range"] == date
        assert server.asked[1].headers["range"] == f"bytes={MIB}-"

    async def test_without_a_name_for_the_very_file_a_download_starts_again(self, part: Path) -> None:
        async with http_server(serves(CONTENT, cut_after=MIB), serves(CONTENT)) as server:
            assert (await failure(server.url(), part)).retryable
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert "range" not in server.asked[1].headers

    async def test_a_server_without_ranges_sends_all_of_it_again(self, part: Path) -> None:
        answers = [serves(CONTENT, ranges=False, cut_after=cut, etag=ETAG) for cut in (MIB, None)]
        async with http_server(*answers) as server:
            assert (await failure(server.url(), part)).retryable
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert "range" in server.asked[1].headers

    async def test_a_file_that_has_changed_since_is_never_mixed_with_the_old_one(self, part: Path) -> None:
        new = bytes(reversed(CONTENT))[: 2 * MIB]
        async with http_server(serves(CONTENT, cut_after=MIB, etag=ETAG), serves(new, etag='"two"')) as server:
            assert (await failure(server.url(), part)).retryable
            await bring(server.url(), part)
        assert part.read_bytes() == new

    @pytest.mark.parametrize(
        ("status", "headers"),
        [
            (
                "206 Partial Content",
                {"Content-Range": f"bytes {MIB}-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": '"two"'},
            ),
            ("206 Partial Content", {"Content-Range": f"bytes 0-{len(CONTENT) - 1}/{len(CONTENT)}", "ETag": ETAG}),
            ("206 Partial Content", {"Content-Range": f"bytes {MIB}-{len(CONTENT)}/{len(CONTENT) + 1}", "ETag": ETAG}),
            ("206 Partial Content", {"Content-Range": f"bytes {MIB}-{MIB}/{len(CONTENT)}", "ETag": ETAG}),
            ("206 Partial Content", {"Content-Range": "bytes x-y/z", "ETag": ETAG}),
            ("206 Partial Content", {"ETag": ETAG}),
            ("416 Range Not Satisfiable", {"Content-Range": f"bytes */{MIB // 2}"}),
        ],
    )
    async def test_a_part_that_does_not_fit_makes_it_start_again(
        self, part: Path, status: str, headers: dict[str, str]
    ) -> None:
        async with http_server(
            serves(CONTENT, cut_after=MIB, etag=ETAG),
            says(status, headers, b"nonsense" * 1000),
            serves(CONTENT, etag=ETAG),
        ) as server:
            assert (await failure(server.url(), part)).retryable
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert "range" not in server.asked[2].headers

    async def test_another_url_starts_again(self, part: Path) -> None:
        async with http_server(serves(CONTENT, cut_after=MIB, etag=ETAG), serves(CONTENT, etag=ETAG)) as server:
            assert (await failure(server.url("/old"), part)).retryable
            await bring(server.url("/new"), part)
        assert "range" not in server.asked[1].headers

    async def test_after_a_boot_of_the_host_a_download_starts_again(self, part: Path) -> None:
        async with http_server(serves(CONTENT, cut_after=MIB, etag=ETAG), serves(CONTENT, etag=ETAG)) as server:
            assert (await failure(server.url(), part)).retryable
            kept = part.with_name("image.part.json")
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            assert boot in kept.read_text()
            kept.write_text(kept.read_text().replace(boot, "before"))
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert "range" not in server.asked[1].headers

    async def test_what_was_kept_but_cannot_be_read_starts_again(self, part: Path) -> None:
        async with http_server(serves(CONTENT, cut_after=MIB, etag=ETAG), serves(CONTENT, etag=ETAG)) as server:
            assert (await failure(server.url(), part)).retryable
            part.with_name("image.part.json").write_text("{")
            assert (await bring(server.url(), part)).sha256 == SHA256
        assert "range" not in server.asked[1].headers

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

    async def test_a_cancelled_download_ends_at_once_and_can_go_on(self, part: Path) -> None:
        some_is_there = asyncio.Event()

        async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await serves(CONTENT, cut_after=MIB, etag=ETAG)(asked, writer)
            await asyncio.Event().wait()

        async with http_server(stall, serves(CONTENT, etag=ETAG)) as server:
            # The idle limit is far beyond the test's own: only the cancellation can end it.
            download = asyncio.create_task(
                bring(server.url(), part, limits=Limits(idle_s=3600), progress=lambda done, total: some_is_there.set())
            )
            await some_is_there.wait()
            download.cancel()
            with pytest.raises(asyncio.CancelledError):
                await download
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


@pytest.fixture
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """What a server needs whose certificate nobody knows, and that certificate."""
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
class TestTls:
    async def test_a_certificate_that_nobody_trusts_is_not_trusted_here(
        self, part: Path, tls: tuple[ssl.SSLContext, Path]
    ) -> None:
        async with http_server(serves(CONTENT), tls=tls[0]) as server:
            failed = await failure(server.url(), part)
        assert "certificate is not trusted" in failed.reason
        assert not failed.retryable
        assert server.asked == []

    async def test_a_trusted_server_is_read_and_a_stall_ends_with_the_download(
        self, part: Path, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
        some_is_there = asyncio.Event()

        async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await serves(CONTENT, cut_after=MIB, etag=ETAG)(asked, writer)
            await asyncio.Event().wait()

        async with http_server(stall, serves(CONTENT, etag=ETAG), tls=tls[0]) as server:
            download = asyncio.create_task(
                bring(server.url(), part, limits=Limits(idle_s=3600), progress=lambda done, total: some_is_there.set())
            )
            await some_is_there.wait()
            download.cancel()
            with pytest.raises(asyncio.CancelledError):
                await download
            assert (await bring(server.url(), part)).sha256 == SHA256

    async def test_nothing_leads_from_https_to_http(
        self, part: Path, tls: tuple[ssl.SSLContext, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[1]))
        async with http_server(serves(CONTENT)) as plain:
            moved = says("302 Found", {"Location": plain.url()})
            async with http_server(moved, tls=tls[0]) as server:
                failed = await failure(server.url(), part)
        assert "from https to http" in failed.reason
        assert plain.asked == []


class TestCopy:
    async def test_a_file_is_copied_and_its_holes_stay_holes(self, tmp_path: Path, part: Path) -> None:
        source = tmp_path / "source"
        with source.open("wb") as file:
            file.seek(MIB)
            file.write(CONTENT)
            file.truncate(64 * MIB)
        fetched = await bring(str(source), part, size_cap_bytes=64 * MIB)
        assert fetched.size_bytes == 64 * MIB
        assert part.read_bytes() == source.read_bytes()
        assert fetched.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
        assert part.stat().st_blocks * 512 < 8 * MIB
        assert part.stat().st_mode & 0o777 == 0o600

    async def test_what_was_there_before_is_gone(self, tmp_path: Path, part: Path) -> None:
        (tmp_path / "source").write_bytes(b"new")
        part.write_bytes(CONTENT)
        part.with_name("image.part.json").write_text("{}")
        assert (await bring(str(tmp_path / "source"), part)).size_bytes == 3
        assert part.read_bytes() == b"new"
        assert left_over(part) == ["image.part", "source"]

    async def test_a_copy_is_checked_like_a_download(self, tmp_path: Path, part: Path) -> None:
        (tmp_path / "source").write_bytes(CONTENT)
        assert not (await failure(str(tmp_path / "source"), part, sha256="0" * 64)).retryable
        assert not part.exists()
        assert not (await failure(str(tmp_path / "source"), part, size_cap_bytes=MIB)).retryable
        assert not part.exists()
        assert (tmp_path / "source").read_bytes() == CONTENT

    async def test_a_link_to_a_file_is_a_file(self, tmp_path: Path, part: Path) -> None:
        (tmp_path / "source").write_bytes(CONTENT)
        (tmp_path / "link").symlink_to(tmp_path / "source")
        assert (await bring(str(tmp_path / "link"), part)).sha256 == SHA256
        assert not part.is_symlink()

    async def test_nothing_but_a_file_is_copied(self, tmp_path: Path, part: Path) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to(tmp_path / "fifo")
        for source in (tmp_path / "fifo", tmp_path / "link", Path("/dev/zero"), tmp_path, tmp_path / "absent"):
            failed = await failure(str(source), part)
            assert not failed.retryable
            assert str(source) in failed.reason
        assert not part.exists()

    async def test_a_relative_path_is_refused(self, part: Path) -> None:
        assert not (await failure("image.qcow2", part)).retryable


async def test_a_full_disk_is_told_as_such(tmp_path: Path, part: Path) -> None:
    """A file size limit stands for the disk: it is met by the same write, with the same consequence."""
    script = f"""
import asyncio, resource, signal, sys
from pathlib import Path
from aetherscale.actors.images.fetch import FetchFailed, fetch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {MIB}))
try:
    asyncio.run(fetch(sys.argv[1], Path({str(part)!r}), sha256=None, size_cap_bytes=1 << 40, progress=lambda *_: None))
except FetchFailed as failed:
    print(failed.reason, failed.retryable)
"""
    (tmp_path / "source").write_bytes(CONTENT)
    async with http_server(serves(CONTENT)) as server:
        for source in (str(tmp_path / "source"), server.url()):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, source, stdout=asyncio.subprocess.PIPE
            )
            said, _ = await child.communicate()
            assert said.decode().strip() == f"no room on the disk of {part.parent} False"
