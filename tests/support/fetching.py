"""Fixtures and helpers of the tests that bring a file in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.images.fetch import Fetched, FetchFailed, Limits, fetch

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
