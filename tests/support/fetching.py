"""Fixtures and helpers of the tests that bring a file in."""

from __future__ import annotations

import asyncio
import hashlib
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.images.fetching.copying import Places
from aetherscale.actors.images.fetching.fetch import Fetched, Limits, fetch
from aetherscale.kernel.fault import Fault
from tests.support.http_server import Asked, serves

MIB = 1 << 20
CONTENT = hashlib.shake_128(b"an image").digest(3 * MIB + 17)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
ETAG = '"one"'
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
PATIENT = Limits(connect_s=30, idle_s=30, pace_bytes=0, progress_bytes=1 << 40, again_s=0, networks=LOOPBACK)
"""Servers may be slow, and every connection that breaks is told as a failure."""
HASTY = replace(PATIENT, idle_s=0.2)
STUBBORN = replace(PATIENT, progress_bytes=Limits().progress_bytes)
"""As a node does it: another connection, as long as each one brings something."""


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


async def stalls_midway(asked: Asked, writer: asyncio.StreamWriter) -> None:
    """Send the beginning, and then nothing."""
    await serves(CONTENT, cut_after=MIB, etag=ETAG)(asked, writer)
    await asyncio.Event().wait()


async def cancelled_midway(source: str, part: Path) -> None:
    """Begin a download, and cancel it once something is there."""
    some_is_there = asyncio.Event()
    # The idle limit is far beyond the test's own: only the cancellation can end it.
    limits = replace(PATIENT, idle_s=3600)
    download = asyncio.create_task(bring(source, part, limits=limits, progress=lambda done, total: some_is_there.set()))
    await some_is_there.wait()
    download.cancel()
    with pytest.raises(asyncio.CancelledError):
        await download


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "image.part"


async def bring(source: str, part: Path, **options: Any) -> Fetched:
    given: dict[str, Any] = {
        "sha256": None, "size_cap_bytes": 16 * MIB, "progress": lambda done, total: None, "limits": PATIENT,
        "places": Places(part.parent / "state", (part.parent,)),
    }  # fmt: skip
    return await fetch(source, part, **(given | options))


async def failure(source: str, part: Path, **options: Any) -> Fault:
    with pytest.raises(Fault) as failed:
        await bring(source, part, **options)
    assert failed.value.remedy
    return failed.value


def left_over(part: Path) -> list[str]:
    return sorted(path.name for path in part.parent.iterdir())
