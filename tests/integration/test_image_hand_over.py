"""Files that callers hand over to the node: they come in by the hand of their owner, and nothing is left of them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from aetherscale import incoming
from tests.support.cli import good, told
from tests.support.fetching import MIB, no_proxy
from tests.support.image_imports import DISK, node, state, tree
from tests.support.node import ROOT, RunningNode

__all__ = ["no_proxy", "node", "state"]

pytestmark = pytest.mark.integration


class TestHandedOver:
    async def test_a_file_comes_in_by_the_hand_of_its_owner_and_nothing_is_left(
        self, node: RunningNode, tmp_path: Path
    ) -> None:
        outside = tmp_path.parent / f"{tmp_path.name}-home"
        outside.mkdir()
        (outside / "Disk é.img").write_bytes(DISK)
        (outside / "link").symlink_to("Disk é.img")
        (view,) = (await told(node, "image", "import", str(outside / "Disk é.img")),)
        assert (view["name"], view["size-bytes"]) == ("disk", len(DISK))
        assert (await told(node, "image", "import", str(outside / "link"), "--name", "two"))["sha256"] == view["sha256"]
        assert tree(node.state_dir / "incoming") == {"node.json": "600"}
        assert set(tree(node.state_dir / "images").values()) == {"400", "700"}

    async def test_what_is_refused_is_taken_back(self, node: RunningNode, tmp_path: Path) -> None:
        (tmp_path / "x.img").write_bytes(DISK)
        (tmp_path / "bad.img").write_bytes(bytes(MIB))
        await good(node, "image", "import", str(tmp_path / "x.img"))
        status, _, err = await node.cli("image", "import", str(tmp_path / "x.img"))
        assert status == 1
        assert "exists already" in err
        status, _, err = await node.cli("image", "import", str(tmp_path / "bad.img"))
        assert "no boot signature" in err
        assert tree(node.state_dir / "incoming") == {"node.json": "600"}

    @pytest.mark.parametrize(
        ("options", "said", "hint"),
        [
            (("--name", "Web Server"), "--name: got 'Web Server', expected a name", "perhaps web-server"),
            (("--sha256", "0f"), "--sha256: got '0f', expected 64 lower-case hex digits", ""),
            (("--label", "é=1"), "--label: got 'é', expected a key", ""),
            (("--label", "a=1", "--label", "a=2"), "--label: 'a' is given as '1' and as '2'", ""),
            (("--name", "taken"), "an image named 'taken' exists already (it is ready)", "image delete taken"),
        ],
    )
    async def test_options_are_checked_before_anything_is_copied(
        self, node: RunningNode, tmp_path: Path, options: tuple[str, ...], said: str, hint: str
    ) -> None:
        (tmp_path / "x.img").write_bytes(DISK)
        await good(node, "image", "import", str(tmp_path / "x.img"), "--name", "taken")
        # Nobody may copy anything to where it would be handed over: whatever is said was found out before.
        (node.state_dir / "incoming" / "node.json").unlink()
        status, _, err = await node.cli("image", "import", str(tmp_path / "x.img"), *options)
        assert status in (1, 2)
        assert said in err
        assert hint in err

    async def test_a_file_of_whose_name_none_can_be_made_is_not_copied(self, node: RunningNode, tmp_path: Path) -> None:
        (tmp_path / "123.img").write_bytes(DISK)
        (node.state_dir / "incoming" / "node.json").unlink()
        status, _, err = await node.cli("image", "import", str(tmp_path / "123.img"))
        assert (status, "no name can be made from '123.img'" in err) == (2, True), err

    async def test_what_a_node_left_half_written_is_told_in_words(self, node: RunningNode, tmp_path: Path) -> None:
        (tmp_path / "x.img").write_bytes(DISK)
        (node.state_dir / "incoming" / "node.json").write_text('{"node":')
        status, _, err = await node.cli("image", "import", str(tmp_path / "x.img"))
        assert (status, "node.json is not what a node writes there" in err) == (1, True), err

    @pytest.mark.parametrize(
        ("name", "said"),
        [("absent", "cannot be read: No such file"), ("fifo", "no regular file"), (".", "no regular file"),
         ("busy.img", "another program is writing to the file")],
    )  # fmt: skip
    async def test_what_cannot_be_handed_over_is_told_before_the_node_is_asked(
        self, node: RunningNode, tmp_path: Path, name: str, said: str
    ) -> None:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "busy.img").write_bytes(DISK)
        with (tmp_path / "busy.img").open("ab"):
            status, _, err = await node.cli("image", "import", str(tmp_path / name), "--name", "x")
        assert status == 1
        assert said in err
        assert "hint: " in err
        assert "Traceback" not in err
        assert await told(node, "image", "list", "--all") == []
        assert tree(node.state_dir / "incoming") == {"node.json": "600"}

    async def test_nobody_can_name_what_another_one_handed_over(self, node: RunningNode, tmp_path: Path) -> None:
        directory = node.state_dir / "incoming"
        for source in (directory / "node.json", directory, node.state_dir / "nats.json", node.state_dir / "events.db"):
            answer = await node.task("images", "import-image", source=str(source), name="stolen")
            assert answer["details"]["reason"] == f"{source} is no file that this node may import"

    async def test_an_interrupted_hand_over_leaves_nothing(self, node: RunningNode, tmp_path: Path) -> None:
        source = tmp_path / "large.img"
        with source.open("wb") as file:
            file.write(DISK)
            for _ in range(256):
                file.write(os.urandom(MIB))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "aetherscale", "image", "import", str(source)),
            stdout=PIPE, stderr=PIPE, env=node.environment, cwd=ROOT,
        )  # fmt: skip
        assert process.stderr is not None
        said = await process.stderr.readline()
        assert b"copying the file to the node" in said
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert b"Traceback" not in err
        # Either it was still being copied, or the node has it by now and goes on: both are told by the status.
        assert process.returncode in (130, 5, 0)
        if process.returncode == 130:
            assert tree(node.state_dir / "incoming") == {"node.json": "600"}

    def test_what_nobody_took_is_removed_after_a_week(self, state: Path, tmp_path: Path) -> None:
        incoming.prepare(state, "host1")
        (tmp_path / "x.img").write_bytes(DISK)
        token = "01234567-89ab-7def-8123-456789abcdef"
        place, taker = incoming.hand_over(state, tmp_path / "x.img", token, lambda done, total: None)
        assert (taker, incoming.is_handed_over(state, place)) == ("host1", True)
        assert tree(state / "incoming") == {token: "700", f"{token}/x.img": "600", "node.json": "600"}
        os.utime(state / "incoming" / token, (1000, 1000))
        incoming.sweep(state, 1000 + incoming.KEPT_S)
        assert Path(place).exists()
        incoming.sweep(state, 1001 + incoming.KEPT_S)
        assert tree(state / "incoming") == {"node.json": "600"}

    @pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs other users")
    async def test_a_member_of_the_group_hands_over_what_it_may_read_and_sees_nothing_else(
        self, tmp_path: Path
    ) -> None:
        """The node's directory belongs to 2001:2002, and the caller is 3001 with the group 2002."""
        below_tmp = len(tmp_path.relative_to(tempfile.gettempdir()).parts)
        for directory in (tmp_path, *tmp_path.parents[: below_tmp - 1]):
            directory.chmod(0o755)
        state = tmp_path / "service"
        state.mkdir()
        os.chown(state, 2001, 2002)
        state.chmod(0o750)
        own, secret = tmp_path / "own.img", tmp_path / "secret.img"
        for path, uid in ((own, 3001), (secret, 2001)):
            path.write_bytes(DISK)
            os.chown(path, uid, uid)
            path.chmod(0o600)
        script = """
import os, sys
from pathlib import Path
from aetherscale import incoming
state, what = Path(sys.argv[1]), sys.argv[2]
if what == "prepare":
    incoming.prepare(state, "host1")
elif what == "list":
    print(os.listdir(state / "incoming"))
elif what == "read":
    sys.stdout.buffer.write(Path(sys.argv[3]).read_bytes()[:512])
elif what == "forget":
    incoming.forget(state, sys.argv[3])
else:
    print(incoming.hand_over(state, Path(what), sys.argv[3], lambda done, total: None)[0])
"""

        async def as_user(uid: int, *arguments: str) -> tuple[int, str]:
            process = await asyncio.create_subprocess_exec(
                *("setpriv", f"--reuid={uid}", f"--regid={uid - 2001 + 2002}", "--groups=2002"),
                *("env", f"PYTHONPATH={':'.join(sys.path[1:])}:{ROOT / 'src'}", "python3", "-c", script),
                *(str(state), *arguments),
                stdout=PIPE,
                stderr=PIPE,
                cwd="/",
            )
            out, err = await process.communicate()
            return process.returncode or 0, (out + err).decode("latin-1")

        status, said = await as_user(2001, "prepare")
        if status and "No module named" in said:
            pytest.skip("other users cannot read this interpreter")
        assert status == 0, said
        assert stat.S_IMODE((state / "incoming").stat().st_mode) == 0o1730
        token = "01234567-89ab-7def-8123-456789abcdef"
        status, place = await as_user(3001, str(own), token)
        assert status == 0, place
        assert tree(state / "incoming") == {token: "770", f"{token}/own.img": "640", "node.json": "640"}
        assert (await as_user(2001, "read", place.strip()))[0] == 0, "the node can read it"
        assert (await as_user(3001, "list"))[0] != 0
        status, said = await as_user(3001, str(secret), "11234567-89ab-7def-8123-456789abcdef")
        assert status != 0
        assert "PermissionError" in said
        assert (await as_user(2001, "forget", place.strip()))[0] == 0
        assert tree(state / "incoming") == {"node.json": "640"}
