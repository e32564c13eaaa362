"""SIGKILL of the real node at every call of the port that keeps init scripts, and at every append around it.

The ordinary run tries some of the calls; `just kills` tries all of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aetherscale.eventstore.integrity import verify
from tests.integration.conftest import MakeNode
from tests.support.compute_fixtures import tiny_image_file
from tests.support.event_logs import open_reader, read_all
from tests.support.kills import Account, started_again, until_answered
from tests.support.node import Chunk, RunningNode, guests

__all__ = ["tiny_image_file"]

pytestmark = [pytest.mark.integration, pytest.mark.timeout(7200)]

EVERY = int(os.environ.get("AETHERSCALE_KILLS_EVERY", "9"))
"""Which calls are tried: each so-manieth."""
SECRET = "correct-horse-battery"
SCRIPT = f"#!/bin/sh\n# {SECRET}\necho run >> /data/runs\nsync\n"


async def played(node: RunningNode, image: Path) -> tuple[Account, bool]:
    """The life of a VM with a script; what was told, and whether the node died on the way."""
    account = Account()
    imported = {"source": str(image), "name": "tiny", "ready": "channel", "first-boot": "tiny"}
    created = {"name": "web", "image": "tiny", "init-script": SCRIPT, "wait-for": "init", "restart": "never"}
    died = await until_answered(node, account, "image", "images.import-image", imported)
    died |= await until_answered(node, account, "create", "compute.create-vm", created)
    assert account.answers["create"]["type"] == "result", account.answers["create"]
    assert account.answers["create"]["vm"]["init-script"]["state"] == "succeeded"
    ran: Chunk = {"retryable": True}
    # The node may die here too, and the agent of the guest may not be heard at once by the next one.
    while ran.get("retryable"):
        account.answers.pop("ran", None)
        asked = {"vm-id": "web", "command": ["cat", "/data/runs"]}
        died |= await until_answered(node, account, "ran", "compute.exec-vm", asked)
        ran = account.answers["ran"]
    assert ran["stdout"] == "run\n", ran
    died |= await until_answered(node, account, "delete", "compute.delete-vm", {"vm-id": "web", "kill": True})
    assert account.answers["delete"]["type"] == "result"
    return account, died


async def settled(node: RunningNode) -> None:
    """Nothing is left on the host, and the log has everything once."""
    if await node.stop() != 0:
        await started_again(node)
        assert await node.stop() == 0
    assert guests(node.state_dir) == {}
    assert list((node.state_dir / "init").iterdir()) == []
    with_it = [path for path in node.state_dir.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert with_it == []
    path = node.state_dir / "events.db"
    assert verify(path).problems == ()
    reader = await open_reader(path)
    try:
        types = [each.type for each in await read_all(reader)]
    finally:
        await reader.close()
    counts = {each: types.count(each) for each in ("VmRequested", "VmInitEnded", "VmDeleted")}
    assert counts == {"VmRequested": 1, "VmInitEnded": 1, "VmDeleted": 1}
    assert types.count("VmInitScriptRemoved") <= 1


async def test_a_node_that_is_killed_at_any_call_runs_a_script_once_and_leaves_nothing_of_it(
    make_node: MakeNode, tmp_path: Path, tiny_image_file: Path
) -> None:
    image = tmp_path / "tiny.raw"
    image.hardlink_to(tiny_image_file)
    calls = tmp_path / "calls"
    whole = make_node(directory="whole")
    whole.program = ("-m", "tests.support.mortal_node", "0", str(calls), "init")
    await whole.start()
    _, died = await played(whole, image)
    assert not died
    await settled(whole)
    names = calls.read_text().splitlines()
    steps = {"before keep", "before _write", "after _write", "after keep", "before RemoveScript", "before remove"}
    assert steps <= set(names), names

    tried: dict[str, Any] = {}
    for number in range(1, len(names) + 1, EVERY):
        node = make_node(directory=f"killed-{number}")
        told = tmp_path / f"calls-{number}"
        node.program = ("-m", "tests.support.mortal_node", str(number), str(told), "init")
        await node.start()
        _, died = await played(node, image)
        await settled(node)
        tried[f"{number} {told.read_text().splitlines()[-1]}"] = died
    print(f"{len(names)} calls, {len(tried)} tried: {tried}")
    assert sum(tried.values()) > len(tried) // 2
