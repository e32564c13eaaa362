"""A log too large to be proved before it is used is proved beside the node, and said to be unproved elsewhere."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aetherscale.__main__ import program
from aetherscale.components import components
from aetherscale.eventstore import integrity
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.store import Damaged
from aetherscale.gateways.cli.main import run
from aetherscale.kernel.messages import Envelope
from aetherscale.kernel.reservations import RESERVATION_EVENTS, NameClaimed, name_stream
from aetherscale.runtime.app import running
from aetherscale.runtime.audit import audit
from aetherscale.runtime.host import LOG_NAME
from aetherscale.settings import Settings

NODE = "large"
WAIT_S = 60


@pytest.fixture
async def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory whose log of 50 commits counts as large."""
    monkeypatch.setattr(integrity, "PROVED_BYTES", 0)
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    store = await open_store(directory / LOG_NAME, node=NODE, epoch="e" * 32, now_us=1)
    log = EventLog(store, Codec(RESERVATION_EVENTS))
    for number in range(50):
        name = f"name-{number}"
        write = Write(name_stream("vm", "default", name), 0, (NameClaimed("vm", name, "owner"),))
        await log.append([write], Envelope(None, "default", "user:test", f"command-{number}", "c", None, number))
    await log.close()
    return directory


def damage(state_dir: Path, seq: int) -> None:
    """Change an event so that SQLite itself finds nothing wrong."""
    with closing(sqlite3.connect(state_dir / LOG_NAME)) as connection:
        for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("UPDATE events SET actor = 'user:nobody' WHERE seq = ?", (seq,))
        connection.commit()


async def test_a_large_log_that_is_whole_is_proved_whole(state_dir: Path) -> None:
    assert await audit(state_dir) is None


async def test_a_node_on_a_large_damaged_log_ends_as_soon_as_that_is_known(state_dir: Path) -> None:
    damage(state_dir, 7)
    async with running(components(), Settings(state_dir, NODE, simulated=True)) as (node, _):
        async with asyncio.timeout(WAIT_S):
            failure = await node.broken
    assert isinstance(failure, Damaged)
    assert failure.seq == 7


async def test_a_node_on_a_large_log_that_is_whole_goes_on(state_dir: Path) -> None:
    async with running(components(), Settings(state_dir, NODE, simulated=True)) as (node, _):
        assert await audit(state_dir) is None
        assert not node.broken.done()


async def test_a_node_that_ends_before_the_proof_does_takes_it_along(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
    start = asyncio.create_subprocess_exec

    async def noticed(*command: str, **options: Any) -> asyncio.subprocess.Process:
        process = await start(*command, **options)
        started.put_nowait(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noticed)
    auditing = asyncio.create_task(audit(state_dir))
    process = await started.get()
    auditing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await auditing
    assert process.returncode == -signal.SIGKILL


async def test_what_reads_a_large_log_says_that_it_was_not_proved(
    state_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await asyncio.to_thread(run, ["--state-dir", str(state_dir), "events", "list"], program()) == 0
    assert "was not verified" in capsys.readouterr().err
