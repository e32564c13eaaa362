"""Catalogues of an operator's own, by file and by URL, and the recipe that asks for each entry of one."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.distribution import Site, ask, served
from tests.support.http_server import Asked, http_server, serves
from tests.support.image_imports import DISK
from tests.support.node import ROOT, RunningNode

pytestmark = pytest.mark.integration


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


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('[[image]]\nname = "web"\nabout = 7\n', "line 3, field 'about': it is 7, expected", "correct that line"),
        ("image = [{name = 7}]", "image 1, field 'name': it is 7, expected", "correct that image"),
        ("", "catalogue.toml: it has no image", "correct it; docs/images.md has the fields"),
        (None, "it cannot be read: No such file or directory", "check the path"),
    ],
)
async def test_a_file_that_is_no_catalogue_stops_the_node_with_what_is_wrong(
    tmp_path: Path, text: str | None, said: str, hint: str
) -> None:
    path = tmp_path / "catalogue.toml"
    if text is not None:
        path.write_text(text)
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
    out, _ = await process.communicate()
    assert process.returncode == 2
    assert said in out.decode()
    assert f"hint: {hint}" in out.decode()


async def checked(site: Site, path: Path) -> tuple[int | None, str]:
    path.write_text(site.catalogue())
    return await asked_of(path)


async def asked_of(path: Path) -> tuple[int | None, str]:
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
        assert "the server answered 410 Gone" in said
        path = tmp_path / "c.toml"
        path.write_text(site.catalogue())
    status, said = await asked_of(path)  # the server is gone
    assert status == 1
    assert "nothing listens at 127.0.0.1, port" in said
    assert "Errno" not in said
