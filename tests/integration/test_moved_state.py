"""The state directory of a running node is moved away, and something else is put in its place."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from aetherscale.runtime import guard
from tests.integration.conftest import MakeNode
from tests.support.eventually import PATIENCE_S, asked_until
from tests.support.node import RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


def servers_pid(node: RunningNode) -> int:
    """Of the nats-server that is a child of the node."""
    children = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
    (found,) = [pid for pid in children if "nats-server" in Path(f"/proc/{pid}/cmdline").read_text()]
    return int(found)


async def test_a_node_whose_directory_is_moved_away_ends_and_says_why(make_node: MakeNode) -> None:
    node = make_node("--simulated")
    await node.start()
    aside = node.state_dir.with_name("aside")
    node.state_dir.rename(aside)
    await asyncio.wait_for(node.ended(), PATIENCE_S)
    said = "\n".join(node.output)
    assert await node.stop() == 1
    # A nats-server makes directories for its store again.
    what = r"is no longer there|was moved away, and something else is in its place"
    assert re.search(rf"the state directory {node.state_dir} ({what}), so this node ends", said)
    shutil.rmtree(node.state_dir, ignore_errors=True)
    aside.rename(node.state_dir)
    await node.start()
    assert await node.stop() == 0


async def test_two_nodes_are_not_on_one_path_for_long(make_node: MakeNode) -> None:
    first = make_node("--simulated")
    await first.start()
    server = servers_pid(first)
    os.kill(first.pid, signal.SIGSTOP)  # so that it notices nothing for now
    first.state_dir.rename(aside := first.state_dir.with_name("aside"))
    shutil.copytree(aside, first.state_dir, ignore=lambda _, names: [each for each in names if each.endswith(".sock")])
    second = make_node("--simulated")
    with pytest.raises(AssertionError, match=rf"the node that runs as pid {first.pid} uses .* too"):
        await second.start()
    assert await second.stop() == 1
    assert servers_pid(first) == server, "the server of a node that lives is left alone"

    os.kill(first.pid, signal.SIGCONT)
    await asyncio.wait_for(first.ended(), PATIENCE_S)
    assert "was moved away, and something else is in its place" in "\n".join(first.output)
    assert await first.stop() == 1
    await second.start()
    assert await second.stop() == 0


async def test_a_fault_of_the_file_system_is_not_a_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    real = Path.stat

    def stat(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        nonlocal looks
        looks += self == tmp_path
        if self == tmp_path and 1 < looks < 5:
            raise PermissionError
        return real(self, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat)
    guarding = asyncio.ensure_future(guard.guard(tmp_path, look_s=0.001))

    async def has_looked() -> bool:
        return looks > 6

    await asked_until(has_looked)
    assert not guarding.done()
    monkeypatch.undo()
    guarding.cancel()
