"""The pages "Back up" and "Restore" of docs/runbook.md: their commands, as they stand, on a real node with a VM."""

from __future__ import annotations

import asyncio
import re
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import BIN, good, told
from tests.support.node import PATIENCE_S, ROOT, TRACE, RunningNode

pytestmark = pytest.mark.integration

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
OUR_OWN = "# a node of your own"
CTRL_C = "# Ctrl-C in the node's terminal"
SERVE = "aetherscale serve"


def blocks(page: str) -> list[list[str]]:
    """The lines of each block of commands on a page, without those for the service."""
    section = RUNBOOK.partition(f"\n## {page}\n")[2].partition("\n## ")[0]
    found = [block.splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]
    return [lines for lines in found if not lines[0].startswith("# the service")]


class Terminal:
    """What a user types, with the home directory in `home`."""

    def __init__(self, node: RunningNode, home: Path) -> None:
        self._node = node
        self._home = home
        self._exports: list[str] = []

    async def type(self, lines: list[str]) -> None:
        """Each line as it stands; the node is ended and started where the page says so."""
        for line in lines:
            if line == CTRL_C:
                assert await self._node.stop() == 0
            elif line.partition("#")[0].strip() == SERVE:
                await self._node.start()
            elif line.startswith("export "):
                self._exports.append(line)
            elif not line.startswith("#"):
                await self._run(line)

    async def _run(self, line: str) -> None:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-euc", "\n".join((*self._exports, line))),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=self._home,
            env={"HOME": str(self._home), "PATH": f"{BIN}:/usr/bin:/bin", "LANG": "C.UTF-8"},
        )
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 0, f"{line}\n{out.decode()}"
        assert TRACE not in out.decode()


async def everything(node: RunningNode) -> dict[str, Any]:
    """What a user sees of a node: VMs, deleted ones too, images, and every event."""
    return {
        "vms": await told(node, "vm", "list", "--all"),
        "images": await told(node, "image", "list", "--all"),
        "events": await told(node, "events", "list"),
    }


async def test_what_was_backed_up_is_restored_as_it_was(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node(directory=".local/state/aetherscale")
    await node.start()
    await good(node, "image", "build", "tiny")
    await good(node, "vm", "create", "web", "--image", "tiny", "--label", "env=test", "--disk", "1G")
    await good(node, "vm", "exec", "web", "--", "sh", "-c", "echo before > /data/file; sync")
    terminal = Terminal(node, tmp_path)
    backup, log_alone = blocks("Back up")
    restore, import_alone = blocks("Restore")

    at = backup.index(CTRL_C)
    await terminal.type(backup[:at])
    before = await everything(node)
    await terminal.type(backup[at:])

    # What happens after the backup is not in it.
    await good(node, "vm", "exec", "web", "--", "sh", "-c", "echo after > /data/file; sync")
    at = next(at for at, line in enumerate(restore) if line.startswith("aetherscale vm start"))
    await terminal.type(restore[:at])
    assert await everything(node) == before
    await terminal.type(restore[at:])
    (web,) = await told(node, "vm", "list")
    assert (web["name"], web["phase"], web["labels"]) == ("web", "ready", {"env": "test"})
    assert await good(node, "vm", "exec", "web", "--", "cat", "/data/file") == "before\n"

    await terminal.type(log_alone)
    now = await told(node, "events", "list")
    await terminal.type(import_alone)
    assert await told(node, "events", "list", "--state-dir", str(tmp_path / "restored")) == now


def test_each_block_says_whose_it_is() -> None:
    for page in ("Back up", "Restore"):
        whole, log_alone = blocks(page)
        assert whole[0] == OUR_OWN
        assert CTRL_C in whole, "the node is at rest while its directory is copied"
        assert log_alone[0].startswith("aetherscale log")
