"""Files that come in: downloads that break and go on, and copies."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.images.fetching import kept
from aetherscale.actors.images.fetching.copying import Places
from aetherscale.actors.images.fetching.fetch import Fetched
from tests.support.fetching import CONTENT, ETAG, MIB, SHA256, STUBBORN, bring, failure, left_over, no_proxy, part
from tests.support.http_server import http_server, says, serves
from tests.support.node import ROOT

__all__ = ["no_proxy", "part"]

pytestmark = pytest.mark.integration


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

    async def test_connections_that_break_are_made_again_as_long_as_each_brings_something(self, part: Path) -> None:
        answers = [serves(CONTENT, cut_after=cut, etag=ETAG) for cut in (16 * 1024, MIB, None)]
        async with http_server(*answers) as server:
            assert (await bring(server.url(), part, limits=STUBBORN)).sha256 == SHA256
        assert [asked.headers.get("range") for asked in server.asked] == [
            None,
            "bytes=16384-",
            f"bytes={16384 + MIB}-",
        ]

    async def test_a_connection_that_brings_next_to_nothing_is_the_last(self, part: Path) -> None:
        answers = [serves(CONTENT, cut_after=cut, etag=ETAG) for cut in (MIB, 16 * 1024 - 1, None)]
        async with http_server(*answers) as server:
            failed = await failure(server.url(), part, limits=STUBBORN)
        assert failed.retryable
        assert f"after {MIB + 16383} of {len(CONTENT)} bytes" in failed.reason
        assert len(server.asked) == 2

    async def test_what_comes_again_and_again_is_no_progress(self, part: Path) -> None:
        async with http_server(serves(CONTENT, ranges=False, cut_after=MIB, etag=ETAG)) as server:
            assert (await failure(server.url(), part, limits=STUBBORN)).retryable
        assert len(server.asked) == 2

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

    @pytest.mark.parametrize(
        ("headers", "said"),
        [
            ({}, "try again: it begins anew, since the server does not say (by ETag or Last-Modified) whether"),
            ({"etag": 'W/"weak"'}, "try again: it begins anew, since the server does not say"),
            ({"etag": ETAG}, "try again: it goes on where it ended, if the server sends a part of a file when asked"),
            ({"last_modified": "Mon, 01 Jan 2024 00:00:00 GMT", "accept_ranges": "none"}, "if the server sends a part"),
        ],
    )
    async def test_what_the_next_try_does_is_told_as_far_as_the_server_lets_it_be_known(
        self, part: Path, headers: dict[str, Any], said: str
    ) -> None:
        async with http_server(serves(CONTENT, cut_after=2 * MIB, **headers)) as server:
            assert said in str((await failure(server.url(), part)).remedy)

    async def test_a_server_that_sends_parts_is_gone_on_from_for_sure(self, part: Path) -> None:
        answers = [serves(CONTENT, cut_after=cut, etag=ETAG) for cut in (2 * MIB, 1024)]
        async with http_server(*answers) as server:
            assert "if the server sends" in str((await failure(server.url(), part)).remedy)
            assert (await failure(server.url(), part)).remedy == "try again: it goes on where it ended"
        part.unlink()
        async with http_server(serves(CONTENT, cut_after=2 * MIB, etag=ETAG, accept_ranges="bytes")) as server:
            assert (await failure(server.url(), part)).remedy == "try again: it goes on where it ended"

    async def test_nothing_is_said_to_be_gone_on_from_where_too_little_came_to_be_kept(self, part: Path) -> None:
        async with http_server(serves(CONTENT, cut_after=kept.LEAST_BYTES - 1, etag=ETAG)) as server:
            assert (await failure(server.url(), part)).remedy == "try again"

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

    async def test_what_is_not_there_and_what_is_forbidden_are_told_apart_by_nobody(
        self, tmp_path: Path, part: Path
    ) -> None:
        outside = tmp_path.parent / f"{tmp_path.name}-outside"
        outside.mkdir()
        state = tmp_path / "state"
        (state / "images").mkdir(parents=True)
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "real").mkdir()
        for file in (outside / "secret", tmp_path / "real/image", state / "images/theirs.raw"):
            file.write_bytes(CONTENT)
        (tmp_path / "link").symlink_to(tmp_path / "real/image")
        (tmp_path / "way").symlink_to(tmp_path / "real")
        (tmp_path / "out").symlink_to(outside)
        paths = [
            *("absent", "absent/file", "fifo", "real", "link", "way/image", "out/secret", "real/../link", ""),
            *("state/images/theirs.raw", "state", "real/image/x", "real//image", "x" * 300),
        ]
        for source in (
            *(f"{tmp_path}/{path}" for path in paths),
            f"{outside}/secret",
            f"{outside}/absent",
            "/dev/zero",
        ):
            failed = await failure(source, part)
            assert (failed.reason, failed.retryable) == (f"{source} is no file that this node may import", False)
        assert not part.exists()
        assert (await bring(str(tmp_path / "real/image"), part)).sha256 == SHA256

    async def test_without_a_directory_nothing_is_imported_by_its_path(self, tmp_path: Path, part: Path) -> None:
        (tmp_path / "source").write_bytes(CONTENT)
        places = Places(tmp_path / "state")
        assert "may import" in (await failure(str(tmp_path / "source"), part, places=places)).reason

    async def test_a_relative_path_is_refused(self, part: Path) -> None:
        assert not (await failure("image.qcow2", part)).retryable


async def test_a_full_disk_is_told_as_such(tmp_path: Path, part: Path) -> None:
    """A file size limit stands for the disk: it is met by the same write, with the same consequence."""
    script = f"""
import asyncio, resource, signal, sys
from pathlib import Path
from aetherscale.actors.images.fetching import kept
from aetherscale.actors.images.fetching.copying import Places
from aetherscale.actors.images.fetching.fetch import fetch
from aetherscale.kernel.fault import Fault
from tests.support.fetching import PATIENT
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({MIB}, {MIB}))
try:
    asyncio.run(fetch(sys.argv[1], Path({str(part)!r}), sha256=None, size_cap_bytes=1 << 40, progress=lambda *_: None,
                      places=Places(Path("/nowhere"), (Path({str(tmp_path)!r}),)), limits=PATIENT))
except Fault as failed:
    print(failed.reason, failed.retryable)
"""
    (tmp_path / "source").write_bytes(CONTENT)
    async with http_server(serves(CONTENT)) as server:
        for source in (str(tmp_path / "source"), server.url()):
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", script, source, stdout=asyncio.subprocess.PIPE, cwd=ROOT
            )
            said, _ = await child.communicate()
            assert said.decode().strip() == f"no room on the disk of {part.parent} False"
            assert left_over(part) == ["source"], "what has arrived would keep the log from growing"
