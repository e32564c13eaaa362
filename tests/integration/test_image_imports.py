"""Imports as the host does them: turns, what is kept of broken ones, what callers hand over, what stays behind."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import stat
import sys
import tempfile
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest

from aetherscale import filecopy, incoming
from aetherscale.actors.images.driver import MOST_OF_ONE_TENANT, HostImages, Imports
from aetherscale.actors.images.fetching import kept
from aetherscale.actors.images.model.effects import EffectFailed, FetchImage, ImageRemoved, ImageStored, RemoveImage
from aetherscale.kernel.fault import Fault
from tests.support.cli import good, told
from tests.support.fetching import ETAG, LOOPBACK, MIB, no_proxy
from tests.support.http_server import Asked, http_server, says, serves
from tests.support.node import ROOT, RunningNode

__all__ = ["no_proxy"]

pytestmark = pytest.mark.integration

DISK = bytes(510) + b"\x55\xaa" + os.urandom(2 * MIB - 512)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
def images(state: Path, tmp_path: Path) -> HostImages:
    incoming.prepare(state, "host1")
    return HostImages(state, tmp_path / "cache", Imports((tmp_path / "allowed",), LOOPBACK))


@pytest.fixture
async def node(make_node: Any) -> RunningNode:
    running: RunningNode = make_node("--simulated")
    await running.start()
    return running


def quiet(step: str, **fields: Any) -> None:
    """What nobody wants to hear."""


def tree(directory: Path) -> dict[str, str]:
    """All that there is below a directory, with its mode."""
    return {
        str(path.relative_to(directory)): f"{stat.S_IMODE(path.lstat().st_mode):o}"
        for path in sorted(directory.rglob("*"))
    }


async def cut(images: HostImages, url: str, image: str, tenant: str = "default", *, source: str = "") -> None:
    """An import that breaks off for good, and is undone."""
    failed = await images.perform(FetchImage("fetch-1", image, url, None, tenant), quiet)
    assert isinstance(failed, EffectFailed), failed
    undone = RemoveImage("remove-1", image, source or url, rolled_back=True, tenant=tenant)
    assert await images.perform(undone, quiet) == ImageRemoved("remove-1")


class TestKept:
    async def test_the_next_import_of_the_same_source_goes_on_where_the_last_ended(
        self, images: HostImages, state: Path
    ) -> None:
        refuses = says("404 Not Found", {"Content-Length": "0"})
        async with http_server(serves(DISK, cut_after=MIB, etag=ETAG), refuses, serves(DISK, etag=ETAG)) as server:
            await cut(images, server.url(), "one")
            assert sorted(tree(state / "images").values()) == ["600", "600", "700"]
            stored = await images.perform(FetchImage("fetch-1", "two", server.url(), None, "default"), quiet)
        assert isinstance(stored, ImageStored)
        assert (state / "images/two.raw").read_bytes() == DISK
        assert server.asked[2].headers["range"] == f"bytes={MIB}-"
        assert tree(state / "images") == {"kept": "700", "two.raw": "400"}

    @pytest.mark.parametrize(("tenant", "path"), [("other", "/image"), ("default", "/another")])
    async def test_nobody_else_and_no_other_source_gets_it(self, images: HostImages, tenant: str, path: str) -> None:
        refuses = says("404 Not Found", {"Content-Length": "0"})
        async with http_server(serves(DISK, cut_after=MIB, etag=ETAG), refuses, serves(DISK, etag=ETAG)) as server:
            await cut(images, server.url(), "one")
            await images.perform(FetchImage("fetch-1", "two", server.url(path), None, tenant), quiet)
        assert "range" not in server.asked[2].headers

    async def test_an_image_that_somebody_deleted_is_not_kept(self, images: HostImages, state: Path) -> None:
        refuses = says("404 Not Found", {"Content-Length": "0"})
        async with http_server(serves(DISK, cut_after=MIB, etag=ETAG), refuses) as server:
            await images.perform(FetchImage("fetch-1", "one", server.url(), None), quiet)
            assert (state / "images/one.part").stat().st_size == MIB
            await images.perform(RemoveImage("remove-1", "one", server.url()), quiet)
        assert tree(state / "images") == {}

    @pytest.mark.parametrize(("size", "is_kept"), [(kept.LEAST_BYTES - 1, False), (kept.LEAST_BYTES, True)])
    def test_only_what_is_worth_it_is_kept(self, tmp_path: Path, size: int, is_kept: bool) -> None:
        part = tmp_path / "i.part"
        part.write_bytes(bytes(size))
        part.with_name("i.part.json").write_text("{}")
        kept.keep(part, "t", "http://h/x", 1000.0)
        assert (not part.exists()) == is_kept

    def test_what_has_no_validator_is_not_kept(self, tmp_path: Path) -> None:
        part = tmp_path / "i.part"
        part.write_bytes(bytes(MIB))
        kept.keep(part, "t", "http://h/x", 1000.0)
        assert part.exists()

    def test_a_few_are_kept_for_each_tenant_and_in_all_and_for_a_week(self, tmp_path: Path) -> None:
        def keep(tenant: str, number: int) -> None:
            part = tmp_path / "i.part"
            part.write_bytes(bytes(MIB))
            part.with_name("i.part.json").write_text("{}")
            kept.keep(part, tenant, f"http://h/{tenant}/{number}", float(number))

        def has(tenant: str, number: int) -> bool:
            kept.take(tmp_path / "t.part", tenant, f"http://h/{tenant}/{number}")
            found = (tmp_path / "t.part").exists()
            (tmp_path / "t.part").unlink(missing_ok=True)
            return found

        for number in range(6):
            keep("a", number)
        keep("b", 0)
        assert len(list((tmp_path / "kept").glob("*.part"))) == kept.MOST_OF_TENANT + 1
        assert [has("a", number) for number in range(6)] == [False, False, True, True, True, True]
        assert has("b", 0), "what one tenant keeps is not at the cost of another"
        for number in range(kept.MOST_OF_ALL + 1):
            keep(f"t{number}", number)
        assert len(list((tmp_path / "kept").glob("*.part"))) == kept.MOST_OF_ALL
        kept.sweep(tmp_path, 2 + kept.KEPT_S)
        assert not has("t1", 1)
        assert has("t2", 2)
        kept.sweep(tmp_path, kept.KEPT_S * 2)
        assert list((tmp_path / "kept").iterdir()) == []


class TestTurns:
    async def test_slow_servers_of_one_tenant_stop_neither_others_nor_the_shared_threads(
        self, images: HostImages, state: Path, tmp_path: Path
    ) -> None:
        asked = asyncio.Event()
        waits: list[str] = []

        def waited(step: str, **fields: Any) -> None:
            waits.append(step)

        async def stall(_: Asked, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await asyncio.Event().wait()

        async with http_server(stall) as slow, http_server(serves(DISK, etag=ETAG)) as quick:
            stalled = [
                asyncio.ensure_future(images.perform(FetchImage("fetch-1", f"s{n}", slow.url(), None, "slow"), waited))
                for n in range(MOST_OF_ONE_TENANT + 2)
            ]
            await asked.wait()
            # More than there are shared threads: each of these has to come to its end.
            for number in range(3):
                stored = await images.perform(FetchImage("fetch-1", f"q{number}", quick.url(), None, "quick"), quiet)
                assert isinstance(stored, ImageStored)
                assert await asyncio.to_thread(lambda: 1) == 1
            assert [step for step in waits if "waiting" in step] == [
                f"waiting: {MOST_OF_ONE_TENANT} other imports are under way"
            ] * 2
            for each in stalled:
                each.cancel()
            await asyncio.wait(stalled)
        assert (state / "images/q2.raw").exists()

    async def test_an_image_is_deleted_while_it_comes_and_while_it_waits(self, node: RunningNode) -> None:
        begun = asyncio.Event()

        async def stall(asked: Asked, writer: asyncio.StreamWriter) -> None:
            await serves(DISK, cut_after=MIB, etag=ETAG)(asked, writer)
            begun.set()
            await asyncio.Event().wait()

        async with http_server(stall) as server:
            names = [f"i{number}" for number in range(MOST_OF_ONE_TENANT + 1)]
            imports = [
                asyncio.ensure_future(node.task("images", "import-image", source=server.url(), name=name))
                for name in names
            ]
            await begun.wait()
            while len(await node.request("aether.v1.default.cmd.images.list-images", {})) <= len(names):
                continue
            for name in reversed(names):
                assert (await node.task("images", "delete-image", image=name))["type"] == "result"
            for answer in await asyncio.gather(*imports):
                assert answer["code"] == 409
                assert "was deleted before it was ready" in answer["message"]
        assert not list((node.state_dir / "images").glob("*.*"))


class TestStored:
    async def test_what_was_stored_and_not_told_is_told_though_its_source_is_gone(
        self, images: HostImages, state: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "allowed").mkdir()
        source = tmp_path / "allowed/disk.img"
        source.write_bytes(DISK)
        effect = FetchImage("fetch-1", "one", str(source), None)
        first = await images.perform(effect, quiet)
        assert isinstance(first, ImageStored)
        source.unlink()
        assert await images.perform(effect, quiet) == first
        assert tree(state / "images") == {"one.raw": "400"}

    async def test_a_file_of_the_largest_size_comes_in_and_one_byte_more_does_not(
        self, images: HostImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "allowed").mkdir()
        source = tmp_path / "allowed/disk.img"
        source.write_bytes(DISK)
        monkeypatch.setattr("aetherscale.actors.images.driver.SIZE_CAP_BYTES", len(DISK) - 1)
        failed = await images.perform(FetchImage("fetch-1", "one", str(source), None), quiet)
        assert isinstance(failed, EffectFailed)
        assert failed.reason == f"it has {len(DISK)} bytes or more, and {len(DISK) - 1} are allowed"
        monkeypatch.setattr("aetherscale.actors.images.driver.SIZE_CAP_BYTES", len(DISK))
        stored = await images.perform(FetchImage("fetch-1", "one", str(source), None), quiet)
        assert isinstance(stored, ImageStored)
        assert (stored.size_bytes, stored.virtual_size_bytes) == (len(DISK), len(DISK))


class TestCopy:
    def open_both(self, tmp_path: Path, source: Path) -> tuple[int, int]:
        return os.open(source, os.O_RDONLY), os.open(tmp_path / "copy", os.O_RDWR | os.O_CREAT, 0o600)

    @pytest.mark.parametrize("byte", [101, 103])
    def test_a_file_that_a_qemu_has_locked_for_writing_is_refused(self, tmp_path: Path, byte: int) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        holder = os.open(source, os.O_RDONLY)
        lock = filecopy._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
        original, target = self.open_both(tmp_path, source)
        with pytest.raises(Fault, match="has locked it"):
            filecopy.copy(original, target, lambda done, total: None)
        os.close(holder)
        assert filecopy.copy(original, target, lambda done, total: None) == len(DISK)

    def test_a_qemu_that_only_reads_is_no_matter(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        holder = os.open(source, os.O_RDONLY)
        for byte in (100, 201, 203):
            lock = filecopy._FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(holder, fcntl.F_OFD_SETLK, lock)
        assert filecopy.copy(*self.open_both(tmp_path, source), lambda done, total: None) == len(DISK)

    def test_a_file_that_is_open_for_writing_is_refused_until_it_is_closed(self, tmp_path: Path) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        original, target = self.open_both(tmp_path, source)
        with source.open("ab"), pytest.raises(Fault, match="open for writing"):
            filecopy.copy(original, target, lambda done, total: None)
        assert filecopy.copy(original, target, lambda done, total: None) == len(DISK)

    @pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
    def test_a_file_that_changes_meanwhile_is_refused(self, tmp_path: Path, change: str) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        original, target = self.open_both(tmp_path, source)

        def meddle(done: int, total: int) -> None:
            with source.open("r+b") as file:
                if change == "rewrite":
                    file.write(b"x")
                    file.flush()
                    os.utime(source, ns=(1, 1))
                else:
                    file.truncate(len(DISK) + (1 if change == "grow" else -1))

        with pytest.raises(Fault, match="another program is writing to the file"):
            filecopy.copy(original, target, meddle)

    @pytest.mark.parametrize("more", [0, 4096])
    def test_a_file_that_is_mostly_hole_is_refused_at_once(self, tmp_path: Path, more: int) -> None:
        source = tmp_path / "source"
        source.write_bytes(DISK)
        data = source.stat().st_blocks * 512
        os.truncate(source, filecopy.MOST_HOLES_BYTES + data + more)
        original, target = self.open_both(tmp_path, source)
        if more:
            with pytest.raises(Fault, match=f"it has {filecopy.MOST_HOLES_BYTES + 4096} bytes of holes"):
                filecopy.copy(original, target, lambda done, total: None)
        else:
            assert filecopy.copy(original, target, lambda done, total: None) == source.stat().st_size
            assert os.fstat(target).st_blocks * 512 < 2 * len(DISK)


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
        assert set(tree(node.state_dir / "images").values()) == {"400"}

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
