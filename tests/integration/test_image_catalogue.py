"""Images by their names in a catalogue, from a server of ours to VMs: fetched once, told of, updated beside VMs."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.http_server import Asked, HttpServer, http_server, says, serves
from tests.support.image_imports import DISK
from tests.support.node import ROOT, RunningNode

pytestmark = pytest.mark.integration

NEWER = DISK[:512] + os.urandom(len(DISK) - 512)
CREATE = "aether.v1.default.cmd.compute.create-vm"


class Site:
    """A distribution's server: a file, and its checksums beside it."""

    def __init__(self, content: bytes, algorithm: str = "sha256") -> None:
        self.algorithm = algorithm
        self.publish(content)
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuses = ""
        self.server: HttpServer | None = None

    def publish(self, content: bytes) -> None:
        self.content = content
        self.sums = f"{hashlib.new(self.algorithm, content).hexdigest()} *web.img\n".encode()

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            await says(self.refuses, {"Content-Length": "0"})(asked, writer)
        elif asked.target == "/SUMS":
            await serves(self.sums)(asked, writer)
        else:
            head = serves(self.content, cut_after=64 * 1024, etag=f'"{self.sums[:8]!r}"')
            if not self.gate.is_set():
                # The headers and a beginning, then nothing until the gate is open.
                lines = {"content-length": str(len(self.content))}
                await says("200 OK", lines, self.content[: 64 * 1024])(asked, writer)
                await self.gate.wait()
                writer.write(self.content[64 * 1024 :])
                await writer.drain()
            else:
                head = serves(self.content)
                await head(asked, writer)

    def downloads(self) -> int:
        assert self.server is not None
        return sum(asked.target == "/web.img" for asked in self.server.asked)

    def catalogue(self, name: str = "web") -> str:
        assert self.server is not None
        files = f'url = "{self.server.url("/web.img")}"\nchecksums = "{self.server.url("/SUMS")}"\n'
        both = "".join(f"[image.{arch}]\n{files}" for arch in ("x86_64", "aarch64"))
        return f'[[image]]\nname = "{name}"\nabout = "A web server"\nuser = "www"\n{both}'


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[Site]:
    async with http_server(site) as server:
        site.server = server
        yield site
        site.gate.set()


@pytest.fixture
def start(make_node: Any, tmp_path: Path) -> Callable[[Site], Any]:
    async def started(site: Site) -> RunningNode:
        catalogue = tmp_path / "catalogue.toml"
        catalogue.write_text(site.catalogue())
        node: RunningNode = make_node("--simulated", "--image-catalogue", str(catalogue))
        await node.start()
        return node

    return started


async def ask(node: RunningNode, task: str, options: Any) -> list[Any]:
    return await node.request(f"aether.v1.default.cmd.images.{task}", options)


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


async def test_a_catalogue_by_url_is_asked_at_each_search_and_kept(make_node: Any, tmp_path: Path) -> None:
    async with served(Site(DISK)) as site:
        shown = {"text": site.catalogue("one")}

        async def catalogue(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await serves(shown["text"].encode())(asked, writer)

        async with http_server(catalogue) as other:
            node: RunningNode = make_node("--simulated", "--image-catalogue", other.url("/ours.toml"))
            await node.start()

            async def own() -> tuple[set[str], str]:
                found = await ask(node, "search-images", {})
                entries = [each["catalogue-image"] for each in found if each["type"] == "item"]
                return {each["name"] for each in entries if each["catalogue"] == "own"}, found[-1]["trouble"]

            assert await own() == ({"one"}, "")
            shown["text"] = site.catalogue("two")
            assert await own() == ({"two"}, "")
            shown["text"] = "name = 7"
            names, trouble = await own()
            assert names == {"two"}
            assert "line 1, field 'name'" in trouble
        await node.kill()
        await node.start()
        names, trouble = await own()
        assert names == {"two"}, "what it said last counts while it is away"
        assert trouble
        assert (await ask(node, "fetch-image", {"name": "two"}))[-1]["type"] == "result"


async def test_a_file_that_is_no_catalogue_stops_the_node_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text('[[image]]\nname = "web"\nabout = 7\n')
    process = await asyncio.create_subprocess_exec(
        *(
            sys.executable,
            "-m",
            "aetherscale",
            "serve",
            "--state-dir",
            str(tmp_path / "s"),
            "--simulated",
            "--image-catalogue",
            str(path),
        ),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 2
    assert b"line 3, field 'about': it is 7, expected" in said


async def checked(site: Site, path: Path) -> tuple[int | None, str]:
    path.write_text(site.catalogue())
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tools.catalogue", str(path)), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    said, _ = await process.communicate()
    return process.returncode, said.decode()


async def test_each_entry_of_a_catalogue_can_be_asked_for(tmp_path: Path) -> None:
    async with served(Site(DISK)) as site:
        status, said = await checked(site, tmp_path / "c.toml")
        assert (status, said.splitlines()[-1]) == (0, "2 of 2 files are there, each with its checksum")
        site.sums = b""
        status, said = await checked(site, tmp_path / "c.toml")
        assert (status, said.splitlines()[-1]) == (1, "0 of 2 files are there, each with its checksum")
        assert "it has no SHA-256" in said
        site.refuses = "410 Gone"
        status, said = await checked(site, tmp_path / "c.toml")
        assert status == 1
        assert "HTTP Error 410: Gone" in said


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
