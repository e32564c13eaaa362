"""The component of docs/adding-a-component.md, taken from the page and added to a copy of the tree.

Nothing but its folder, its name and its file of the command line is added; the rest has to follow.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from aetherscale.bus.blocking import connect
from aetherscale.bus.endpoint import read_endpoint
from tests.support.raw_images import bare_image

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "adding-a-component.md"
BLOCK: Final = re.compile(r"```python\n(.*?)```", re.DOTALL)
NAMED: Final = re.compile(r"`(src/aetherscale/[\w/.]+\.py)`")
LISTED: Final = re.compile(r"^COMPONENTS: Final = .*$", re.MULTILINE)
PATIENCE_S: Final = 120


def files_of_the_page() -> Iterator[tuple[str, str]]:
    """(path, text) of each block of the page: its path is the last one named before it."""
    text = PAGE.read_text()
    for block in BLOCK.finditer(text):
        yield NAMED.findall(text[: block.start()])[-1], block[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the component in it."""
    copy = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "src", copy / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "docs", copy / "docs")
    shutil.copytree(ROOT / "tools", copy / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name, text in files_of_the_page():
        path = copy / name
        if path.name == "components.py":
            old = path.read_text()
            assert len(LISTED.findall(old)) == 1
            path.write_text(LISTED.sub(text.strip(), old))
        else:
            assert not path.exists(), f"{name} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return copy


class Program:
    """The program of the copy, on a state directory."""

    def __init__(self, tree: Path, state_dir: Path) -> None:
        self.state_dir = state_dir
        self._env = {
            **os.environ,
            "PYTHONPATH": str(tree / "src"),
            "PYTHONWARNINGS": "error",
            "COLUMNS": "120",
            "AETHERSCALE_HTTP": "127.0.0.1:0",
        }
        self._command = [sys.executable, "-m", "aetherscale", "--state-dir", str(state_dir)]

    def run(self, *words: str, status: int = 0) -> str:
        """What a command prints, on stdout and stderr."""
        done = subprocess.run(
            [*self._command, *words],
            env=self._env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == status, done.stdout
        return done.stdout

    def json(self, *words: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.run(*words, "--json"))

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """A node, for as long as the block lasts."""
        node = subprocess.Popen(
            [*self._command, "serve", "--simulated"], env=self._env, stdout=subprocess.PIPE, text=True
        )
        try:
            assert node.stdout is not None
            said = ""
            while not said.startswith("ready"):
                said = node.stdout.readline()
                assert said, "the node has ended"
            yield
        finally:
            node.send_signal(signal.SIGTERM)
            node.communicate(timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def program(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A node of the copy with an image."""
    place = tmp_path_factory.mktemp("node")
    program = Program(tree, place / "state")
    with program.serving():
        program.run("image", "import", str(bare_image(place)), "--name", "base")
        yield program


def test_nothing_but_its_folder_its_name_and_its_commands_is_added(tree: Path) -> None:
    added = {
        str(path.relative_to(tree))
        for path in tree.rglob("*.py")
        if not (ROOT / path.relative_to(tree)).exists()
        or path.read_bytes() != (ROOT / path.relative_to(tree)).read_bytes()
    }
    outside = {name for name in added if not name.startswith("src/aetherscale/actors/volumes/")}
    assert outside == {"src/aetherscale/components.py", "src/aetherscale/gateways/cli/volume.py"}


@pytest.mark.parametrize(
    "check",
    [["lint-imports", "--no-logo", "--no-cache"], ["ruff", "check", "--no-cache", "src/aetherscale/actors/volumes"]],
    ids=["imports", "style"],
)
def test_the_rules_hold_for_it_as_they_are(tree: Path, check: list[str]) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(check[0]), *check[1:]],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout


def test_its_types_are_right(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--cache-dir", str(tree / ".mypy_cache"), "-p", "aetherscale.actors.volumes"],
        cwd=tree,
        env={**os.environ, "MYPYPATH": "src"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.integration
def test_it_lives_is_seen_from_everywhere_and_is_rebuilt_from_the_log(program: Program) -> None:
    made = program.json("volume", "create", "data", "--image", "base", "--size", "2G")
    assert (made["name"], made["phase"], made["size-mib"]) == ("data", "ready", 2048)
    assert (program.state_dir / "volumes" / f"{made['id']}.raw").stat().st_size == 2 << 30
    assert program.json("volume", "list") == [made] == program.json("replay", "volume")
    for table in (program.run("volume", "list"), program.run("replay", "volume")):
        assert "SIZE" in table
        assert "2048M" in table
    assert program.json("volume", "show", made["id"][:6]) == made
    assert [each["type"] for each in program.json("events", "list", "--volume", "data")] == [
        "VolumeRequested", "VolumeMade",
    ]  # fmt: skip
    assert "asked for the volume 'data' of 2048 MiB" in program.run("why", "volume", "data")
    assert [change["kind"] for change in program.json("diff", "1")["changes"]] == ["image", "volume"]
    assert "data" in program.run("completion", "words", "--", "volume", "show", "")
    assert "manage volumes" in program.run("--help")
    assert "MiB are free for volumes" in program.run("doctor", status=1 if b"error" in _doctor(program) else 0)
    events = program.json("events", "catalogue")
    assert {"VolumeRequested", "VolumeDeleted"} <= {each["type"] for each in events}


def _doctor(program: Program) -> bytes:
    found = subprocess.run(
        [*program._command, "doctor"], env=program._env, capture_output=True, check=False, timeout=PATIENCE_S
    )
    return b"error" if found.returncode else b""


@pytest.mark.integration
def test_it_is_a_service_and_its_tasks_are_told(program: Program) -> None:
    with connect(read_endpoint(program.state_dir)) as connection:
        said = next(iter(connection.request("$SRV.INFO.aether-volumes", b"", timeout_s=PATIENCE_S)))
    endpoints = {each["name"] for each in said["endpoints"]}
    assert {"create-volume", "delete-volume", "list-volumes", "volume-info"} == endpoints


@pytest.mark.integration
def test_it_has_routes_over_http(program: Program) -> None:
    async def ask() -> None:
        transport = httpx.AsyncHTTPTransport(uds=str(program.state_dir / "http.sock"))
        async with httpx.AsyncClient(base_url="http://localhost", transport=transport, timeout=PATIENCE_S) as client:
            headers = {"Idempotency-Key": "k"}
            made = await client.post("/v1/volumes?wait=30", json={"name": "web", "image": "base"}, headers=headers)
            assert (made.status_code, made.json()["name"]) == (201, "web")
            assert (await client.get("/v1/operations/k")).json()["status"] == "done"
            assert (await client.get("/v1/volumes/web")).json() == made.json()
            document = (await client.get("/v1/openapi.json")).json()
            assert {"get", "delete"} == document["paths"]["/v1/volumes/{volume}"].keys()
            assert "VolumeView" in document["components"]["schemas"]
            assert (await client.delete("/v1/volumes/web?wait=30")).status_code == 200

    asyncio.run(ask())


@pytest.mark.integration
def test_its_name_is_its_own_and_its_image_stays_for_as_long_as_it_does(program: Program) -> None:
    program.run("volume", "create", "one", "--image", "base")
    assert "a volume named 'one' exists already" in program.run("volume", "create", "one", "--image", "base", status=1)
    refused = program.run("image", "delete", "base", status=1)
    assert "in use by" in refused
    assert "volume" in refused
    program.run("volume", "delete", "one")
    program.run("volume", "create", "one", "--image", "base")
    program.run("volume", "delete", "one")
    assert "no such volume: 'one'" in program.run("volume", "show", "one", status=3)


@pytest.mark.integration
def test_a_node_that_comes_back_has_it_from_a_snapshot_and_the_log(tree: Path, tmp_path: Path) -> None:
    program = Program(tree, tmp_path / "state")
    with program.serving():
        program.run("image", "import", str(bare_image(tmp_path)), "--name", "base")
        made = program.json("volume", "create", "data", "--image", "base")
    assert (tmp_path / "state" / "snapshots.db").exists()
    with program.serving():
        assert program.json("volume", "list") == [made]
        refused = program.run("image", "delete", "base", "--tenant", "default", status=1)
        assert "in use by 1 volume(s): data" in refused
        mine = f"--tenant default --state-dir {program.state_dir}"
        assert f"hint: aetherscale {mine} volume delete data\n" in refused
        assert program.run("completion", "words", "--", "why", "volume", "") == "data\n"
        assert program.run("completion", "words", "--", "why", "image", "") == "base\n"


def test_the_generated_pages_tell_of_it(tree: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "aetherscale.docs", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tree / "src")},
        check=True,
        timeout=PATIENCE_S,
    )
    assert "### VolumeRequested" in (tmp_path / "events.md").read_text()
    subjects = (tmp_path / "subjects.md").read_text()
    assert "### create-volume" in subjects
    assert "aetherscale volume create" in (tmp_path / "cli.md").read_text()
    assert "### VolumeView" in subjects
    assert "| `POST /v1/volumes` |" in (tmp_path / "http.md").read_text()
