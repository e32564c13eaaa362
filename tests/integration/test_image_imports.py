"""Imports as the host does them: turns, what is kept of broken ones, and what was stored already."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest

from aetherscale import incoming
from aetherscale.actors.images.driver import MOST_OF_ONE_TENANT, HostImages, Imports
from aetherscale.actors.images.fetching import kept
from aetherscale.actors.images.model.effects import FetchImage, ImageRemoved, ImageStored, RemoveImage
from aetherscale.kernel.failures import EffectFailed
from tests.support.fetching import ETAG, LOOPBACK, MIB, no_proxy
from tests.support.http_server import Asked, http_server, says, serves
from tests.support.image_imports import DISK, node, state, tree
from tests.support.node import RunningNode

__all__ = ["no_proxy", "node", "state"]

pytestmark = pytest.mark.integration


@pytest.fixture
def images(state: Path, tmp_path: Path) -> HostImages:
    incoming.prepare(state, "host1")
    return HostImages(state, tmp_path / "cache", Imports((tmp_path / "allowed",), LOOPBACK))


BY_CONTENT = {"content": "700", f"content/{hashlib.sha256(DISK).hexdigest()}.raw": "400"}


def quiet(step: str, **fields: Any) -> None:
    """What nobody wants to hear."""


async def cut(images: HostImages, url: str, image: str, tenant: str = "default", *, source: str = "") -> None:
    """An import that breaks off for good, and is undone."""
    failed = await images.perform(FetchImage("fetch-1", image, url, None, tenant), quiet)
    assert isinstance(failed, EffectFailed), failed
    undone = RemoveImage("remove-1", image, source or url, rolled_back=True, tenant=tenant)
    assert await images.perform(undone, quiet) == ImageRemoved("remove-1")


class TestKept:
    async def test_the_next_import_of_the_same_source_goes_on_where_the_last_ended(
        self, images: HostImages, state: Path
    ) -> None:
        refuses = says("404 Not Found", {"Content-Length": "0"})
        async with http_server(serves(DISK, cut_after=MIB, etag=ETAG), refuses, serves(DISK, etag=ETAG)) as server:
            await cut(images, server.url(), "one")
            assert sorted(tree(state / "images").values()) == ["600", "600", "700"]
            stored = await images.perform(FetchImage("fetch-1", "two", server.url(), None, "default"), quiet)
        assert isinstance(stored, ImageStored)
        assert (state / "images/two.raw").read_bytes() == DISK
        assert server.asked[2].headers["range"] == f"bytes={MIB}-"
        assert tree(state / "images") == {"kept": "700", "two.raw": "400"} | BY_CONTENT

    @pytest.mark.parametrize(("tenant", "path"), [("other", "/image"), ("default", "/another")])
    async def test_nobody_else_and_no_other_source_gets_it(self, images: HostImages, tenant: str, path: str) -> None:
        refuses = says("404 Not Found", {"Content-Length": "0"})
        async with http_server(serves(DISK, cut_after=MIB, etag=ETAG), refuses, serves(DISK, etag=ETAG)) as server:
            await cut(images, server.url(), "one")
            await images.perform(FetchImage("fetch-1", "two", server.url(path), None, tenant), quiet)
        assert "range" not in server.asked[2].headers

    async def test_an_image_that_somebody_deleted_is_not_kept(self, images: HostImages, state: Path) -> None:
        refuses = says("404 Not Found", {"Content-Length": "0"})
        async with http_server(serves(DISK, cut_after=MIB, etag=ETAG), refuses) as server:
            await images.perform(FetchImage("fetch-1", "one", server.url(), None), quiet)
            assert (state / "images/one.part").stat().st_size == MIB
            await images.perform(RemoveImage("remove-1", "one", server.url()), quiet)
        assert tree(state / "images") == {}

    @pytest.mark.parametrize(("size", "is_kept"), [(kept.LEAST_BYTES - 1, False), (kept.LEAST_BYTES, True)])
    def test_only_what_is_worth_it_is_kept(self, tmp_path: Path, size: int, is_kept: bool) -> None:
        part = tmp_path / "i.part"
        part.write_bytes(bytes(size))
        part.with_name("i.part.json").write_text("{}")
        kept.keep(part, "t", "http://h/x", 1000.0)
        assert (not part.exists()) == is_kept

    def test_what_has_no_validator_is_not_kept(self, tmp_path: Path) -> None:
        part = tmp_path / "i.part"
        part.write_bytes(bytes(MIB))
        kept.keep(part, "t", "http://h/x", 1000.0)
        assert part.exists()

    def test_a_few_are_kept_for_each_tenant_and_in_all_and_for_a_week(self, tmp_path: Path) -> None:
        def keep(tenant: str, number: int) -> None:
            part = tmp_path / "i.part"
            part.write_bytes(bytes(MIB))
            part.with_name("i.part.json").write_text("{}")
            kept.keep(part, tenant, f"http://h/{tenant}/{number}", float(number))

        def has(tenant: str, number: int) -> bool:
            kept.take(tmp_path / "t.part", tenant, f"http://h/{tenant}/{number}")
            found = (tmp_path / "t.part").exists()
            (tmp_path / "t.part").unlink(missing_ok=True)
            return found

        for number in range(6):
            keep("a", number)
        keep("b", 0)
        assert len(list((tmp_path / "kept").glob("*.part"))) == kept.MOST_OF_TENANT + 1
        assert [has("a", number) for number in range(6)] == [False, False, True, True, True, True]
        assert has("b", 0), "what one tenant keeps is not at the cost of another"
        for number in range(kept.MOST_OF_ALL + 1):
            keep(f"t{number}", number)
        assert len(list((tmp_path / "kept").glob("*.part"))) == kept.MOST_OF_ALL
        kept.sweep(tmp_path, 2 + kept.KEPT_S)
        assert not has("t1", 1)
        assert has("t2", 2)
        kept.sweep(tmp_path, kept.KEPT_S * 2)
        assert list((tmp_path / "kept").iterdir()) == []


class TestTurns:
    async def test_slow_servers_of_one_tenant_stop_neither_others_nor_the_shared_threads(
        self, images: HostImages, state: Path, tmp_path: Path
    ) -> None:
        asked = asyncio.Event()
        waits: list[str] = []

        def waited(step: str, **fields: Any) -> None:
            waits.append(step)

        async def stall(_: Asked, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await asyncio.Event().wait()

        async with http_server(stall) as slow, http_server(serves(DISK, etag=ETAG)) as quick:
            stalled = [
                asyncio.ensure_future(images.perform(FetchImage("fetch-1", f"s{n}", slow.url(), None, "slow"), waited))
                for n in range(MOST_OF_ONE_TENANT + 2)
            ]
            await asked.wait()
            # More than there are shared threads: each of these has to come to its end.
            for number in range(3):
                stored = await images.perform(FetchImage("fetch-1", f"q{number}", quick.url(), None, "quick"), quiet)
                assert isinstance(stored, ImageStored)
                assert await asyncio.to_thread(lambda: 1) == 1
            assert [step for step in waits if "waiting" in step] == [
                f"waiting: {MOST_OF_ONE_TENANT} other imports are under way"
            ] * 2
            for each in stalled:
                each.cancel()
            await asyncio.wait(stalled)
        assert (state / "images/q2.raw").exists()

    async def test_an_image_is_deleted_while_it_comes_and_while_it_waits(self, node: RunningNode) -> None:
        begun = asyncio.Event()

        async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await serves(DISK, cut_after=MIB, etag=ETAG)(asked, writer)
            begun.set()
            await asyncio.Event().wait()

        async with http_server(stall) as server:
            names = [f"i{number}" for number in range(MOST_OF_ONE_TENANT + 1)]
            imports = [
                asyncio.ensure_future(node.task("images", "import-image", source=server.url(), name=name))
                for name in names
            ]
            await begun.wait()
            while len(await node.request("aether.v1.default.cmd.images.list-images", {})) <= len(names):
                continue
            for name in reversed(names):
                assert (await node.task("images", "delete-image", image=name))["type"] == "result"
            for answer in await asyncio.gather(*imports):
                assert answer["code"] == 409
                assert "was deleted before it was ready" in answer["message"]
        assert not list((node.state_dir / "images").glob("*.*"))


class TestStored:
    async def test_what_was_stored_and_not_told_is_told_though_its_source_is_gone(
        self, images: HostImages, state: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "allowed").mkdir()
        source = tmp_path / "allowed/disk.img"
        source.write_bytes(DISK)
        effect = FetchImage("fetch-1", "one", str(source), None)
        first = await images.perform(effect, quiet)
        assert isinstance(first, ImageStored)
        source.unlink()
        assert await images.perform(effect, quiet) == first
        assert tree(state / "images") == {"one.raw": "400"} | BY_CONTENT

    async def test_a_file_of_the_largest_size_comes_in_and_one_byte_more_does_not(
        self, images: HostImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "allowed").mkdir()
        source = tmp_path / "allowed/disk.img"
        source.write_bytes(DISK)
        monkeypatch.setattr("aetherscale.actors.images.arrival.SIZE_CAP_BYTES", len(DISK) - 1)
        failed = await images.perform(FetchImage("fetch-1", "one", str(source), None), quiet)
        assert isinstance(failed, EffectFailed)
        assert failed.reason == f"it has {len(DISK)} bytes or more, and {len(DISK) - 1} are allowed"
        monkeypatch.setattr("aetherscale.actors.images.arrival.SIZE_CAP_BYTES", len(DISK))
        stored = await images.perform(FetchImage("fetch-1", "one", str(source), None), quiet)
        assert isinstance(stored, ImageStored)
        assert (stored.size_bytes, stored.virtual_size_bytes) == (len(DISK), len(DISK))
