"""No secret of an image's source comes into the log, which is for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.memory_node import MemoryNode

SIGNED = [
    "https://user:s3cr3t@h/x.img",
    "https://h/x.img?sig=s3cr3t",
    "https://h/x.img?sv=2022-11-02&se=2026-01-01&sr=b&sp=r&sig=s3cr3t",
    "https://h/x.img?X-Amz-Algorithm=A&X-Amz-Credential=c&X-Amz-Signature=s3cr3t",
    "https://h/x.img?X-Goog-Signature=s3cr3t",
    "https://h/x.img?Expires=1&Signature=s3cr3t&Key-Pair-Id=K",
    "https://h/x.img?access_token=s3cr3t",
    "https://h/x.img?a=1;TOKEN=s3cr3t",
    "https://h/x.img?api_key=s3cr3t",
    "https://h/x.img?auth=s3cr3t",
    "https://h/x.img?private-key=s3cr3t",
    "https://h/x.img?%73ig=s3cr3t",
    "https://h/x.img#token=s3cr3t",
]
PLAIN = [
    "https://h/x.img",
    "https://h/get?file=x.img&download=1&version=12.5&author=a",
    "https://h/x.img?raw=true#part",
    "https://h/monkey/token/x.img?design=1",
    "/srv/images/a?sig=1@2.img",
]


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    running = MemoryNode()
    await running.start()
    yield running
    await running.close()


@pytest.mark.parametrize("source", SIGNED)
async def test_an_address_that_lets_in_whoever_has_it_is_refused(node: MemoryNode, source: str) -> None:
    answer = await node.final("images", "import-image", {"source": source, "name": "x"})
    assert (answer["code"], answer["details"]["field"]) == (400, "source")
    assert "image import FILE" in answer["details"]["hint"]
    assert "s3cr3t" not in str(answer)
    assert await node.events() == []


@pytest.mark.parametrize("source", PLAIN)
async def test_a_plain_address_is_recorded_as_it_is(node: MemoryNode, source: str) -> None:
    answer = await node.final("images", "import-image", {"source": source, "name": "x"})
    assert answer["image"].source == source
