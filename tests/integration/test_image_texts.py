"""Small texts from servers: whole or not at all, bounded in size and in time."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aetherscale.actors.images.catalogue import catalogues
from aetherscale.actors.images.catalogue.catalogues import Catalogues
from aetherscale.actors.images.fetching import texts
from aetherscale.actors.images.fetching.texts import fetch_text
from aetherscale.kernel.fault import Fault
from tests.support.fetching import HASTY, LOOPBACK, PATIENT, no_proxy
from tests.support.http_server import Answer, Asked, http_server, says, serves

__all__ = ["no_proxy"]

pytestmark = pytest.mark.integration


async def failure(*answers: Answer, most_bytes: int = 1000) -> Fault:
    async with http_server(*answers) as server:
        with pytest.raises(Fault) as failed:
            await fetch_text(server.url("/SUMS"), most_bytes, HASTY)
    assert failed.value.remedy
    return failed.value


async def hangs(asked: Asked, writer: asyncio.StreamWriter) -> None:
    await says("200 OK", {"Content-Length": "10"}, b"a")(asked, writer)
    await asyncio.Event().wait()


async def test_a_text_comes_in_whole() -> None:
    async with http_server(serves(b"x" * 1000)) as server:
        assert await fetch_text(server.url(), 1000, PATIENT) == b"x" * 1000


async def test_a_text_is_bounded() -> None:
    assert "more than 1000 bytes" in (await failure(serves(b"x" * 1001))).reason
    # Also where its size is not said.
    assert "more than 1000 bytes" in (await failure(says("200 OK", {}, b"x" * 5000))).reason


async def test_half_a_text_is_none() -> None:
    failed = await failure(serves(b"x" * 100, cut_after=50))
    assert (failed.retryable, "failed" in failed.reason) == (True, True)


@pytest.mark.parametrize(("status", "again"), [("404 Not Found", False), ("503 Service Unavailable", True)])
async def test_a_refusal_is_told(status: str, again: bool) -> None:
    failed = await failure(says(status, {"Content-Length": "0"}))
    assert (status in failed.reason, failed.retryable) == (True, again)


async def test_a_server_that_falls_silent_is_given_up() -> None:
    assert "said nothing" in (await failure(hangs)).reason


async def test_a_text_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "DEADLINE_S", 0.2)
    async with http_server(hangs) as server:
        with pytest.raises(Fault, match=r"was not read within 0\.2 s"):
            await fetch_text(server.url(), 1000, PATIENT)


async def test_a_private_address_is_not_asked() -> None:
    async with http_server(serves(b"x")) as server:
        with pytest.raises(Fault, match="no address that this node may download from"):
            await fetch_text(server.url(), 1000, type(PATIENT)())
        assert server.asked == []


async def test_a_search_does_not_wait_for_a_catalogue_that_does_not_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogues, "PATIENCE_S", 0.1)
    async with http_server(hangs) as server:
        ours = Catalogues(server.url(), tmp_path, LOOPBACK)
        assert "did not answer within 0.1 s" in await ours.refresh()
        assert ours.find("debian-12") is not None
        await ours.close()
