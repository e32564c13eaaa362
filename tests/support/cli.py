"""The command line as users and scripts have it: real programs against a real node, whose guests are simulated."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any, Protocol

from tests.support.node import PATIENCE_S, ROOT, RunningNode

BIN = Path(sys.executable).parent


class MakeNode(Protocol):
    """Makes a node that is not started."""

    def __call__(self, *arguments: str) -> RunningNode: ...


async def simulated_node(make_node: MakeNode, directory: Path) -> RunningNode:
    """A node with simulated guests and an image for them, `blank`, whose file is in the directory."""
    running = make_node("--simulated")
    await running.start()
    image = directory / "blank.img"
    image.write_bytes(bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512))
    await good(running, "image", "import", str(image), "--name", "blank", "--ready", "channel")
    return running


async def good(node: RunningNode, *words: str) -> str:
    """What a command that has to succeed writes to stdout."""
    status, out, err = await node.cli(*words)
    assert status == 0, err
    return out


async def told(node: RunningNode, *words: str) -> Any:
    """What a command that has to succeed says as JSON."""
    return json.loads(await good(node, *words, "--json"))


async def run(*words: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """A command without any node."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", *words), stdout=PIPE, stderr=PIPE, env=env, cwd=ROOT
    )
    out, err = await asyncio.wait_for(process.communicate(), PATIENCE_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
