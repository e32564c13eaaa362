"""A state directory of somebody else is left as it is, and one's own is closed to everybody else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from aetherscale.eventstore.store import StoreError
from tests.support.cli import BIN, MakeNode, good, run, simulated_node
from tests.support.event_logs import SqliteWorld, filled, open_reader

SOMEBODY = 54321
NAMES = ("events.lock", "events.reserve", "events.head", "events.db", "events.db-wal", "events.db.new", "snapshots.db")
root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


def seen(directory: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """Owner, mode, time of the last change and content of all that is in a directory; of the shared memory its owner.

    Who reads beside a running node notes that there, as SQLite has it.
    """
    found = {}
    for path in (directory, *directory.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        changed = (status.st_mtime_ns, content) if not path.name.endswith("-shm") else (0, b"")
        found[path.name] = (status.st_uid, status.st_mode, *changed)
    return found


def given_away(directory: Path) -> None:
    """All of it is another user's from now on."""
    for path in (*directory.rglob("*"), directory):
        os.chown(path, SOMEBODY, SOMEBODY, follow_symlinks=False)


@root
@pytest.mark.parametrize("words", ["serve --simulated", "log archive --keep 1", "log import /dev/null"])
async def test_root_writes_nothing_into_the_directory_of_another_user(tmp_path: Path, words: str) -> None:
    state, victim = tmp_path / "state", tmp_path / "victim"
    state.mkdir()
    victim.write_bytes(b"precious")
    if words.startswith("log archive"):
        await (await filled(SqliteWorld(state))).close()
    for name in NAMES:
        (state / name).unlink(missing_ok=True) if name in ("events.lock", "events.reserve") else None
        if not (state / name).exists():
            (state / name).symlink_to(victim)
    given_away(state)
    before = seen(state)

    status, _, err = await run(*words.split(), "--state-dir", str(state))

    assert status == 1, err
    assert victim.read_bytes() == b"precious"
    assert seen(state) == before
    if not words.startswith("log archive"):  # which says first that it does not follow a link to read
        assert f"{state}: it belongs to uid {SOMEBODY}, and this is root" in err
        assert "hint: run the command as" in err
    assert "Traceback" not in err


@root
@pytest.mark.parametrize("planted", NAMES)
def test_a_link_in_the_own_directory_is_not_followed(tmp_path: Path, planted: str) -> None:
    state, victim = tmp_path / "state", tmp_path / "victim"
    state.mkdir()
    victim.write_bytes(b"precious")
    (state / planted).symlink_to(victim)
    os.chown(state / planted, SOMEBODY, SOMEBODY, follow_symlinks=False)
    said = []
    with subprocess.Popen(
        ["timeout", "-s", "TERM", "60", BIN / "aetherscale", "serve", "--simulated", "--state-dir", state],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("ready"):
                process.terminate()
    assert victim.read_bytes() == b"precious", "".join(said)
    assert "Traceback" not in "".join(said)


@root
@pytest.mark.parametrize("words", ["events list", "replay", "diff 1", "log verify", "log info", "log export"])
async def test_root_reads_the_log_of_a_service_and_leaves_nothing_there(tmp_path: Path, words: str) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    running = await filled(SqliteWorld(state))
    await running.close()
    given_away(state)
    before = seen(state)
    status, _, err = await run(*words.split(), "--state-dir", str(state))
    assert "Traceback" not in err
    if words in ("log info", "log export"):  # the others find that the types of these events are not known
        assert status == 0, err
    assert seen(state) == before


@root
async def test_a_log_of_another_user_is_read_beside_its_node_and_after_a_tidy_end(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    world = SqliteWorld(state)
    store = await filled(world, 2)
    given_away(state)
    before = seen(state)
    reader = await open_reader(world.path)
    assert [event.seq for event in await reader.read(0)] == [1, 2, 3, 4]
    await reader.close()
    assert seen(state) == before
    await store.close()


@root
async def test_a_log_of_another_user_that_was_not_closed_is_not_touched(tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    state.mkdir()
    copy.mkdir()
    store = await filled(SqliteWorld(state), 2)
    for name in ("events.db", "events.db-wal", "events.head"):
        (copy / name).write_bytes((state / name).read_bytes())
    await store.close()
    given_away(copy)
    before = seen(copy)
    with pytest.raises(StoreError, match="only its owner can read it"):
        await open_reader(copy / "events.db")
    assert seen(copy) == before


@pytest.mark.parametrize("words", ["events list", "replay", "log verify", "log import /dev/null", "serve --simulated"])
@pytest.mark.parametrize("place", ["file", "closed"])
def test_a_place_that_is_no_directory_of_ours_is_named_in_a_sentence(tmp_path: Path, words: str, place: str) -> None:
    path = tmp_path / place
    # Root obeys modes without these rights.
    lost = "-dac_override,-dac_read_search"
    # What a container has made inheritable would come back with the exec.
    humbled = ("setpriv", f"--bounding-set={lost}", f"--inh-caps={lost}") if os.geteuid() == 0 else ()
    if place == "file":
        path.touch()
    else:
        path.mkdir(mode=0)
    process = subprocess.run(
        [*humbled, sys.executable, "-m", "aetherscale", *words.split(), "--state-dir", path],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "HOME": "/"},
    )  # fmt: skip
    assert process.returncode in (1, 3), process.stderr
    assert "Traceback" not in process.stderr
    assert str(path) in process.stderr
    assert "hint: " in process.stderr


async def test_a_lived_state_directory_is_closed_to_others_whatever_the_umask(
    make_node: MakeNode, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        node = await simulated_node(make_node, tmp_path)
        await good(node, "vm", "create", "web", "--image", "blank")
        alive = modes_of(node.state_dir)
        await node.kill()
        await node.start()
        await good(node, "vm", "delete", "web")
        await node.stop()
        await good(node, "log", "archive", "--keep", "1")
        copied = tmp_path / "copied"
        await good(node, "log", "export", str(tmp_path / "log.jsonl"))
        await run("log", "import", str(tmp_path / "log.jsonl"), "--state-dir", str(copied))
    finally:
        os.umask(before)
    for found in (alive, modes_of(node.state_dir), modes_of(copied)):
        assert {name: f"{mode:o}" for name, mode in found.items() if mode & 0o077} == {}
    assert {"events.db", "events.db-wal", "events.lock", "events.reserve", "nats.json", "nats/server.conf"} <= set(
        alive
    )


def modes_of(directory: Path) -> dict[str, int]:
    found = {str(path.relative_to(directory)): path.lstat() for path in directory.rglob("*")}
    found["."] = directory.lstat()
    return {name: stat.S_IMODE(status.st_mode) for name, status in found.items()}
