"""Images by their names in a catalogue, from a server of ours to VMs: fetched once, told of, updated beside VMs."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.distribution import Site, ask, served
from tests.support.image_imports import DISK
from tests.support.node import RunningNode

pytestmark = pytest.mark.integration

NEWER = DISK[:512] + os.urandom(len(DISK) - 512)
CREATE = "aether.v1.default.cmd.compute.create-vm"


@pytest.fixture
def start(make_node: Any, tmp_path: Path) -> Callable[[Site], Any]:
    async def started(site: Site) -> RunningNode:
        catalogue = tmp_path / "catalogue.toml"
        catalogue.write_text(site.catalogue())
        node: RunningNode = make_node("--simulated", "--image-catalogue", str(catalogue))
        await node.start()
        return node

    return started


async def test_ten_creates_at_once_make_one_download_and_ten_vms_of_one_image(start: Any) -> None:
    async with served(Site(DISK)) as site:
        node = await start(site)
        ends = await asyncio.gather(*(node.request(CREATE, {"image": "web", "name": f"vm-{n}"}) for n in range(10)))
        assert [end[-1]["type"] for end in ends] == ["result"] * 10, ends
        assert {end[-1]["vm"]["image"] for end in ends} == {"web"}
        assert site.downloads() == 1
        [image] = [each["image"] for each in await ask(node, "list-images", {}) if each["type"] == "item"]
        assert (image["catalogued"], image["user"]) == (True, "www")
        assert image["sha256"] == hashlib.sha256(DISK).hexdigest()
        assert image["published"] == f"sha256:{image['sha256']}"


async def test_a_create_is_told_of_the_download_before_its_vm_is_there(start: Any) -> None:
    async with served(Site(DISK)) as site:
        node = await start(site)
        site.gate.clear()
        said: list[Any] = []
        async for chunk in node.stream(CREATE, {"image": "web", "name": "vm"}):
            said.append(chunk)
            if chunk.get("step") == "fetching":
                assert chunk["total-bytes"] == len(DISK)
                assert not any("vm-id" in each for each in said)
                site.gate.set()
        assert (said[0]["status"], said[0]["name"]) == ("importing", "web")
        assert said[-1]["type"] == "result"
        assert said[-1]["vm"]["name"] == "vm"


async def test_a_failed_download_fails_the_create_in_its_words_and_the_next_create_tries_anew(start: Any) -> None:
    async with served(Site(DISK)) as site:
        site.refuses = "403 Forbidden"
        node = await start(site)
        failed = (await node.request(CREATE, {"image": "web", "name": "vm"}))[-1]
        assert failed["type"] == "error"
        assert "the server answered 403 Forbidden" in failed["message"]
        assert failed["details"]["hint"]
        site.refuses = ""
        assert (await node.request(CREATE, {"image": "web", "name": "vm"}))[-1]["type"] == "result"


async def test_a_file_with_another_checksum_than_the_published_one_is_no_image(start: Any) -> None:
    async with served(Site(DISK, "sha512")) as site:
        node = await start(site)
        site.content = NEWER
        failed = (await ask(node, "fetch-image", {"name": "web"}))[-1]
        assert "its SHA-512 is " in failed["message"]
        assert [path.name for path in (node.state_dir / "images").iterdir()] == []


async def test_a_file_of_checksums_without_the_name_fetches_nothing(start: Any) -> None:
    async with served(Site(DISK)) as site:
        site.sums = site.sums.replace(b"web.img", b"web.img.old")
        node = await start(site)
        failed = (await ask(node, "fetch-image", {"name": "web"}))[-1]
        assert "has no SHA-256, SHA-384 or SHA-512 of 'web.img'" in failed["message"]
        assert site.downloads() == 0


async def test_an_image_that_is_here_wins_and_is_told(start: Any, tmp_path: Path) -> None:
    local = tmp_path / "other.img"
    local.write_bytes(NEWER)
    async with served(Site(DISK)) as site:
        node = await start(site)
        await ask(node, "import-image", {"source": str(local), "name": "web"})
        made = (await node.request(CREATE, {"image": "web", "name": "vm"}))[-1]
        assert made["type"] == "result"
        assert site.downloads() == 0
        found = await ask(node, "search-images", {"word": "WEB SERV"})
        [entry] = [each["catalogue-image"] for each in found if each["type"] == "item"]
        assert (entry["local"], entry["source"], entry["is-of-catalogue"]) == ("ready", str(local), False)
        refused = (await ask(node, "update-image", {"image": "web"}))[-1]
        assert (refused["code"], str(local) in refused["message"]) == (409, True)


async def test_an_update_fetches_what_has_changed_beside_vms_that_keep_what_they_have(start: Any) -> None:
    async with served(Site(DISK)) as site:
        node = await start(site)
        await node.request(CREATE, {"image": "web", "name": "old"})
        unchanged = (await ask(node, "update-image", {"image": "web"}))[-1]
        assert (unchanged["type"], site.downloads()) == ("result", 1)
        before = unchanged["image"]
        old_file = node.state_dir / "images" / "content" / f"{before['sha256']}.raw"
        site.publish(NEWER)
        updated = (await ask(node, "update-image", {"image": "web"}))[-1]["image"]
        assert (updated["id"], updated["phase"]) == (before["id"], "ready")
        assert updated["sha256"] == hashlib.sha256(NEWER).hexdigest()
        assert site.downloads() == 2
        assert (node.state_dir / "images" / f"{before['id']}.raw").read_bytes() == NEWER
        assert old_file.read_bytes() == DISK, "a VM that was requested before may still need it"
        assert (await node.request(CREATE, {"image": "web", "name": "new"}))[-1]["type"] == "result"


async def test_a_failed_update_leaves_the_image_as_it_was(start: Any) -> None:
    async with served(Site(DISK)) as site:
        node = await start(site)
        await ask(node, "fetch-image", {"name": "web"})
        site.publish(b"<html>gone</html>")
        failed = (await ask(node, "update-image", {"image": "web"}))[-1]
        assert failed["type"] == "error"
        assert failed["message"].startswith("the image could not be updated, and is what it was: image rejected")
        image = (await ask(node, "image-info", {"image": "web"}))[-1]["image"]
        assert (image["phase"], image["failure"]["phase"]) == ("ready", "updating")
        assert {path.name for path in (node.state_dir / "images").iterdir()} == {f"{image['id']}.raw", "content"}
        assert (node.state_dir / "images" / f"{image['id']}.raw").read_bytes() == DISK
        assert (await node.request(CREATE, {"image": "web", "name": "vm"}))[-1]["type"] == "result"
        site.publish(NEWER)
        assert (await ask(node, "update-image", {"image": "web"}))[-1]["image"]["failure"] is None


async def test_an_image_is_used_while_its_update_is_under_way_also_after_a_kill(start: Any) -> None:
    async with served(Site(DISK)) as site:
        node = await start(site)
        await ask(node, "fetch-image", {"name": "web"})
        site.publish(NEWER)
        site.gate.clear()
        async for chunk in node.stream("aether.v1.default.cmd.images.update-image", {"image": "web"}):
            if chunk.get("step") == "fetching":
                break
        assert (await node.request(CREATE, {"image": "web", "name": "vm"}))[-1]["type"] == "result"
        await node.kill()
        site.gate.set()
        await node.start()
        image = (await ask(node, "update-image", {"image": "web"}))[-1]["image"]
        assert image["sha256"] == hashlib.sha256(NEWER).hexdigest()


async def test_a_compressed_file_has_the_published_checksum_and_comes_out_as_it_is(start: Any) -> None:
    packed = gzip.compress(DISK)
    async with served(Site(packed)) as site:
        node = await start(site)
        image = (await ask(node, "fetch-image", {"name": "web"}))[-1]["image"]
        assert image["published"] == f"sha256:{hashlib.sha256(packed).hexdigest()}"
        assert image["sha256"] == hashlib.sha256(DISK).hexdigest()
        assert (node.state_dir / "images" / f"{image['id']}.raw").read_bytes() == DISK
        names = sorted(path.name for path in (node.state_dir / "images").iterdir())
        assert names == sorted([f"{image['id']}.raw", "content"])


LARGE: Final = DISK[:512] + bytes(64 << 20) + os.urandom(4 << 20)


@pytest.mark.parametrize("step", ["looking up the checksum", "fetching", "checking", "unpacking"])
async def test_a_kill_in_any_phase_leaves_no_half_image_and_the_next_node_finishes(start: Any, step: str) -> None:
    async with served(Site(gzip.compress(LARGE, 1))) as site:
        node = await start(site)
        async for chunk in node.stream(CREATE, {"image": "web", "name": "vm"}):
            if chunk.get("step") == step:
                break
        await node.kill()
        images = node.state_dir / "images"
        assert [path.name for path in images.glob("*.raw")] in ([], [f"{chunk['image-id']}.raw"])
        await node.start()
        made = (await node.request(CREATE, {"image": "web", "name": "vm"}))[-1]
        assert made["type"] == "result", made
        [image] = [each["image"] for each in await ask(node, "list-images", {}) if each["type"] == "item"]
        assert image["sha256"] == hashlib.sha256(LARGE).hexdigest()
        assert {path.name for path in images.iterdir()} == {f"{image['id']}.raw", "content"}


async def test_a_download_is_told_with_its_rate_and_the_time_that_is_left(start: Any) -> None:
    async with served(Site(DISK)) as site:
        node = await start(site)
        site.gate.clear()
        told: list[Any] = []
        async for chunk in node.stream(CREATE, {"image": "web", "name": "vm"}):
            if chunk.get("status") == "progress" and "done-bytes" in chunk:
                told.append(chunk)
                site.gate.set()
        assert {"step", "done-bytes", "total-bytes", "rate-bytes-s", "left-s", "image-id"} <= told[0].keys()
        assert told[-1]["done-bytes"] == told[-1]["total-bytes"] == len(DISK)


async def test_a_vm_that_runs_keeps_its_base_while_the_image_is_updated(make_node: Any, tmp_path: Path) -> None:
    """With QEMU: the disk of a guest is an overlay on the file that its image had."""
    async with served(Site(DISK)) as site:
        catalogue = tmp_path / "catalogue.toml"
        catalogue.write_text(site.catalogue())
        node: RunningNode = make_node("--image-catalogue", str(catalogue))
        await node.start()
        old = (await node.request(CREATE, {"image": "web", "name": "old", "memory-mib": 64}))[-1]
        assert old["type"] == "result", old
        site.publish(NEWER)
        updated = (await ask(node, "update-image", {"image": "web"}))[-1]
        assert updated["image"]["sha256"] == hashlib.sha256(NEWER).hexdigest()
        new = (await node.request(CREATE, {"image": "web", "name": "new", "memory-mib": 64}))[-1]
        assert new["type"] == "result", new
        bases = {name: (node.state_dir / "vms" / vm["vm-id"] / "base.img") for name, vm in (("old", old), ("new", new))}
        assert bases["old"].read_bytes() == DISK
        assert bases["new"].read_bytes() == NEWER
        again = (await node.request("aether.v1.default.cmd.compute.restart-vm", {"vm-id": "old"}))[-1]
        assert again["type"] == "result", again
        assert bases["old"].read_bytes() == DISK
