"""What a caller may say to `build-image`: each mistake is refused with the field that it is in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.actors.images.model import commands, effects, events
from aetherscale.actors.images.model.decide import IMAGES
from aetherscale.actors.images.model.sentences import describe
from tests.support.memory_node import MemoryNode
from tests.support.spec import Given

ID = "0123456789abcdef"


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    running = MemoryNode()
    await running.start()
    yield running
    await running.close()


async def field_of_refusal(node: MemoryNode, options: dict[str, Any]) -> str:
    answer = await node.final("images", "build-image", options)
    assert answer["type"] == "error", answer
    assert answer["code"] == 400, answer
    return str(answer["details"]["field"])


@pytest.mark.parametrize(
    "name",
    ["sudo-", "a", "", "A", "Nginx", "-nginx", "nginx/bookworm", "nginx=1", "nginx:i386", "~nnginx", "?all", "a b",
     "nginx\n", "nginx;ls", "a,b", "x" * 101, "é" * 3],
)  # fmt: skip
async def test_what_is_no_name_of_a_package_is_refused(node: MemoryNode, name: str) -> None:
    assert (await field_of_refusal(node, {"recipe": "debian-12", "packages": [name]})).startswith("packages")


async def test_more_packages_than_anybody_needs_are_refused(node: MemoryNode) -> None:
    names = [f"package{number}" for number in range(201)]
    assert await field_of_refusal(node, {"recipe": "debian-12", "packages": names}) == "packages"
    assert (await node.final("images", "build-image", {"recipe": "debian-12", "packages": names[:200]}))[
        "type"
    ] == "result"


async def test_a_package_that_is_named_twice_is_refused(node: MemoryNode) -> None:
    assert await field_of_refusal(node, {"recipe": "debian-12", "packages": ["g++", "nginx", "g++"]}) == "packages"


@pytest.mark.parametrize(
    "mirror",
    ["ftp://mirror.example/debian", "http://joe:secret@mirror.example/debian", "http://mirror.example/debian?key=1",
     "http://mirror.example/debian#x", "http://mirror.example/ debian", "http://mirror.example/debian\n", "http://",
     "http://mirror.example/\x1b[2J", "file:/srv", "/srv/debian", "", "http://mirror.example/[signed-by=/x]",
     f"http://mirror.example/{'x' * 300}", "http://-mirror/"],
)  # fmt: skip
async def test_what_is_no_mirror_is_refused(node: MemoryNode, mirror: str) -> None:
    assert await field_of_refusal(node, {"recipe": "debian-13", "mirror": mirror}) == "mirror"


@pytest.mark.parametrize(
    "mirror", ["http://mirror.example/debian", "https://[fd00::1]:8080/debian/", "http://10.0.0.1"]
)
async def test_what_is_one_is_taken(node: MemoryNode, mirror: str) -> None:
    assert (await node.final("images", "build-image", {"recipe": "debian-13", "mirror": mirror}))["type"] == "result"


@pytest.mark.parametrize("size_gib", [0, -1, 1025])
async def test_a_size_beyond_its_bounds_is_refused(node: MemoryNode, size_gib: int) -> None:
    assert await field_of_refusal(node, {"recipe": "debian-12", "size-gib": size_gib}) == "size-gib"


@pytest.mark.parametrize(
    ("field", "value"), [("packages", ["nginx"]), ("mirror", "http://mirror.example/debian"), ("size-gib", 2)]
)
async def test_tiny_takes_none_of_them(node: MemoryNode, field: str, value: Any) -> None:
    assert await field_of_refusal(node, {"recipe": "tiny", field: value}) == field


@pytest.mark.parametrize(
    ("recipe", "ready", "first_boot"),
    [("debian-12", "agent", "aetherscale"), ("debian-13", "agent", "aetherscale"), ("tiny", "channel", "tiny")],
)
async def test_guests_of_a_debian_are_ready_when_their_agent_answers(
    node: MemoryNode, recipe: str, ready: str, first_boot: str
) -> None:
    await node.final("images", "build-image", {"recipe": recipe})
    image = (await node.final("images", "image-info", {"image": recipe}))["image"]
    assert (image.ready, image.first_boot) == (ready, first_boot)


MIRROR = "http://mirror.example/debian"


def test_what_was_asked_for_is_in_the_event_and_in_the_effect_of_every_attempt() -> None:
    wanted = commands.BuildImage(ID, "web", "debian-12", ("g++", "nginx"), MIRROR, 4)
    requested = events.ImageBuildRequested(
        ID, "web", "debian-12", ("g++", "nginx"), MIRROR, 4, first_boot="aetherscale"
    )
    image = Given(IMAGES, ()).when(wanted).then(requested)
    assert image.pending == effects.BuildImage("build-1", ID, "debian-12", ("g++", "nginx"), MIRROR, 4)
    assert describe(None, requested).text == (
        "asked to build the image 'web' from the recipe 'debian-12', with g++ nginx, from the mirror "
        "http://mirror.example/debian, of 4 GiB"
    )
