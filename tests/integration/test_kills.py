"""SIGKILL of the real node at every call of a port, with real QEMU, and an account of what was acknowledged.

The ordinary run tries some of the calls; `just kills` tries all of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from aetherscale.eventstore.integrity import verify
from tests.integration.conftest import MakeNode
from tests.support.event_logs import open_reader, read_all
from tests.support.kills import Account, started_again, until_answered
from tests.support.node import RunningNode, guests
from tests.support.raw_images import bare_image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(7200)]

EVERY = int(os.environ.get("AETHERSCALE_KILLS_EVERY", "9"))
"""Which calls are tried: each so-manieth."""

STEPS: tuple[tuple[str, str, dict[str, Any], int], ...] = (
    ("create", "compute.create-vm", {"name": "web", "image": "bare", "memory-mib": 64, "restart": "never"}, 1),
    ("stop", "compute.stop-vm", {"vm-id": "web", "kill": True}, 0),
    ("start", "compute.start-vm", {"vm-id": "web"}, 1),
    ("again", "compute.start-vm", {"vm-id": "web"}, 1),
    ("delete", "compute.delete-vm", {"vm-id": "web", "kill": True}, 0),
)
"""Key, task, options, and how many guests there are afterwards."""


async def played(node: RunningNode, image: Path) -> tuple[Account, bool]:
    """The life of a VM, from its image to its end; what was told, and whether the node died on the way."""
    account = Account()
    died = await until_answered(
        node, account, "image", "images.import-image", {"source": str(image), "name": "bare", "ready": "none"}
    )
    before: set[int] = set()
    for key, task, options, count in STEPS:
        died |= await until_answered(node, account, key, task, options)
        answer = account.answers[key]
        assert answer["type"] == "result", answer
        found = set(guests(node.state_dir))
        assert len(found) == count, f"after {key}: {found}"
        if key == "again":
            assert found == before, "the guest was not harmed"
        before = found
    return account, died


async def settled(node: RunningNode, account: Account) -> bool:
    """Every answer is the same again, the log has each command once, and nothing is left on the host.

    Whether the node died on the way, as it does where its fatal call is one of the last.
    """
    again, died = Account(), False
    for key, task, options, _ in STEPS:
        died |= await until_answered(node, again, key, task, options)
        assert again.answers[key] == account.answers[key], key
    if await node.stop() != 0:
        died = True
        await started_again(node)
        assert await node.stop() == 0
    assert guests(node.state_dir) == {}
    assert list((node.state_dir / "vms").iterdir()) == []
    assert len(list((node.state_dir / "images").glob("*.raw"))) == 1
    path = node.state_dir / "events.db"
    assert verify(path).problems == ()
    reader = await open_reader(path)
    try:
        events = await read_all(reader)
        assert [each.seq for each in events] == list(range(1, len(events) + 1))
        for key in {*account.acknowledged, *account.answers}:
            accepted = await reader.accepted("default", key)
            assert accepted is not None, f"{key} was acknowledged and is lost"
            own = [each.seq for each in events if each.command_id == key]
            assert own == list(range(accepted.first_seq, accepted.last_seq + 1)), key
    finally:
        await reader.close()
    assert [each.type for each in events].count("VmRequested") == 1
    assert [each.type for each in events].count("VmDeleted") == 1
    return died


async def test_a_node_that_is_killed_at_any_call_of_a_port_loses_nothing_and_leaves_nothing(
    make_node: MakeNode, tmp_path: Path
) -> None:
    image = bare_image(tmp_path)
    calls = tmp_path / "calls"

    whole = make_node(directory="whole")
    whole.program = ("-m", "tests.support.mortal_node", "0", str(calls))
    await whole.start()
    account, died = await played(whole, image)
    assert not died
    names = calls.read_text().splitlines()
    await settled(whole, account)
    assert {"before spawn", "after commit", "before BootVm", "after RemoveVm", "after reply"} <= set(names)

    tried = deaths = 0
    for number in range(1, len(names) + 1, EVERY):
        node = make_node(directory=f"killed-{number}")
        node.program = ("-m", "tests.support.mortal_node", str(number), str(tmp_path / f"calls-{number}"))
        await node.start()
        account, died = await played(node, image)
        died_late = await settled(node, account)
        assert not (died and died_late)
        died |= died_late
        reached = len((tmp_path / f"calls-{number}").read_text().splitlines())
        assert died == (reached == number), f"call {number}: {reached} calls were made"
        tried, deaths = tried + 1, deaths + died
    print(f"{len(names)} calls of ports, {tried} tried, {deaths} deaths: nothing lost, nothing left")
    # Where two chunks go out as one there are fewer replies: how often depends on who is faster.
    assert deaths > tried // 2
