"""One suite for the driver of images, on files and on the host in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from aetherscale.actors.images.building import debianimage
from aetherscale.actors.images.building.debiantree import Plan
from aetherscale.actors.images.building.mirrors import sources
from aetherscale.actors.images.building.programs import run
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.model.effects import BuildImage, FetchImage, ImageRemoved, ImageStored, RemoveImage
from aetherscale.actors.images.simulated.driver import SimulatedImages, SimulatedStore
from aetherscale.kernel.failures import EffectFailed
from aetherscale.runtime.component import Driver
from tests.support.raw_images import bare_image

ID = "0123456789abcdef"
MIRROR = "http://127.0.0.1:9/debian"
BUILD = BuildImage("build-1", ID, "debian-12", ("nginx",), MIRROR, 2)


class World(Protocol):
    """A host, and what can be seen of it behind a driver's back."""

    source: str

    def driver(self) -> Driver[Any, Any]:
        """A new driver on it, as a process of the node has one."""
        ...

    def images(self) -> set[str]:
        """The ids of the images that are there."""
        ...

    async def have_built(self) -> BuildImage:
        """Have what a recipe needs here already; the effect that asks for an image of it."""
        ...

    def break_it(self) -> None:
        """The next fetch fails."""
        ...

    def mend(self) -> None:
        """What it fails for is gone."""
        ...


class Files:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._state = directory / "state"
        self._state.mkdir(mode=0o700)
        self._image = bare_image(directory)
        self.source = str(self._image)
        self._obstacle = self._state / "images" / f"{ID}.part"

    def driver(self) -> HostImages:
        return HostImages(self._state, self._directory / "cache", Imports((self._directory,)))

    def images(self) -> set[str]:
        files = (self._state / "images").iterdir()
        return {path.name.split(".")[0] for path in files if path.suffix in (".raw", ".qcow2")}

    async def have_built(self) -> BuildImage:
        plan = Plan("bookworm", await sources("bookworm", MIRROR), ("nginx",))
        kept = self._directory / "cache/debian/disks" / debianimage.key_of(plan)
        kept.mkdir(parents=True)
        await run("qemu-img", "create", "-q", "-f", "qcow2", str(kept / "disk.qcow2"), "1G")
        return BUILD

    def break_it(self) -> None:
        # A directory is in the way of the file that is being written.
        self._obstacle.mkdir(parents=True)

    def mend(self) -> None:
        self._obstacle.rmdir()


class Memory:
    source = "/disk.raw"

    def __init__(self) -> None:
        self._store = SimulatedStore()

    def driver(self) -> SimulatedImages:
        return SimulatedImages(self._store)

    def images(self) -> set[str]:
        return self._store.images

    async def have_built(self) -> BuildImage:
        return BUILD

    def break_it(self) -> None:
        self._store.failures.append(("something is in the way", False))

    def mend(self) -> None:
        """It fails once."""


@pytest.fixture(params=["files", "simulated"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    return Files(tmp_path) if request.param == "files" else Memory()


@pytest.fixture
async def driver(world: World) -> AsyncIterator[Driver[Any, Any]]:
    reported: list[Any] = []
    made = world.driver()
    await made.start(reported.append)  # type: ignore[arg-type]
    yield made
    await made.close()
    assert reported == []


def quiet(step: str, **fields: Any) -> None:
    """A progress that nobody follows."""


async def fetch(driver: Driver[Any, Any], world: World, attempt: int = 1) -> Any:
    return await driver.perform(FetchImage(f"fetch-{attempt}", ID, world.source, None, "default"), quiet)


async def test_an_image_that_is_fetched_is_there_with_its_sizes(driver: Driver[Any, Any], world: World) -> None:
    stored = await fetch(driver, world)
    assert isinstance(stored, ImageStored)
    assert (stored.key, stored.format, stored.size_bytes, stored.virtual_size_bytes) == (
        "fetch-1", "raw", 1 << 20, 1 << 20,
    )  # fmt: skip
    assert len(stored.sha256) == 64
    assert world.images() == {ID}


async def test_an_effect_that_is_performed_again_ends_in_the_same_world(driver: Driver[Any, Any], world: World) -> None:
    first = await fetch(driver, world)
    assert await fetch(driver, world) == first
    assert world.images() == {ID}
    for _ in range(2):
        assert await driver.perform(RemoveImage("remove-1", ID, world.source), quiet) == ImageRemoved("remove-1")
        assert world.images() == set()


async def test_an_image_that_is_built_again_is_the_same(driver: Driver[Any, Any], world: World) -> None:
    effect = await world.have_built()
    first = await driver.perform(effect, quiet)
    assert isinstance(first, ImageStored), first
    assert world.images() == {ID}
    assert await driver.perform(effect, quiet) == first
    assert world.images() == {ID}


async def test_the_driver_of_the_next_process_finds_what_the_last_one_stored(world: World) -> None:
    first = await fetch(world.driver(), world)
    assert await fetch(world.driver(), world) == first


async def test_what_the_host_refuses_is_an_answer_and_nothing_is_left_of_it(
    driver: Driver[Any, Any], world: World
) -> None:
    world.break_it()
    refused = await fetch(driver, world)
    assert isinstance(refused, EffectFailed)
    assert (refused.key, refused.retryable) == ("fetch-1", False)
    assert refused.reason
    assert world.images() == set()
    world.mend()
    assert isinstance(await fetch(driver, world, 2), ImageStored)


async def test_a_comparison_with_the_log_finds_nothing_and_changes_nothing(
    driver: Driver[Any, Any], world: World
) -> None:
    await fetch(driver, world)
    await driver.reconcile({})
    assert world.images() == {ID}
