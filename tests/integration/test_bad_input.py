"""Whatever strangers send, on whichever subject: a typed error, a node that lives, and nothing left behind."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeNode
from tests.support.node import RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CMD = "aether.v1.default.cmd"
TASKS = {
    "compute": (
        *("create-vm", "start-vm", "stop-vm", "restart-vm", "delete-vm", "list-vms", "vm-info"),
        *("vm-logs", "exec-vm", "vm-console", "console-input"),
    ),
    "images": ("import-image", "build-image", "delete-image", "list-images", "image-info"),
}
HOSTILE_NAMES = (
    "..",
    "../../etc/passwd",
    "a,b",
    "a\nb",
    "a\n",
    "a\x00b",
    "a.b",
    "*",
    ">",
    "",
    "a" * 10_000,
    "ä",
    "-rf",
    "a b",
)
BROKEN_BODIES = (
    b"not json",
    b"[]",
    b"null",
    b"5",
    b'{"vm-id": NaN}',
    b'{"a": Infinity}',
    b'{"vm-id": "a", "vm-id": "b"}',
    b'{"surely-unknown": 1}',
    b"\xff\xfe\x00",
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b"[" * 10_000,
    b'{"vm-id": ' + b"9" * 5000 + b"}",
    b'{"vm-id": {"a": 1}}',
    b"x" * (1024 * 1024 - 512),
)


@pytest.fixture
async def node(make_node: MakeNode) -> RunningNode:
    running = make_node("--simulated")
    await running.start()
    return running


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def is_typed_error(chunk: dict[str, Any]) -> bool:
    return chunk["type"] == "error" and chunk["code"] in (400, 404, 413) and bool(chunk["message"])


async def test_every_task_refuses_every_broken_body_and_the_node_stays_as_large_as_it_was(node: RunningNode) -> None:
    async def everything() -> None:
        for component, tasks in TASKS.items():
            for task in tasks:
                for body in BROKEN_BODIES:
                    chunks = await node.request(f"{CMD}.{component}.{task}", body)
                    assert is_typed_error(chunks[-1]), (component, task, body[:40], chunks)
        for body in BROKEN_BODIES:
            assert is_typed_error((await node.request("aether.v1.default.rpc", body))[-1])

    await everything()
    before_kib = resident_kib(node.pid)
    for _ in range(4):
        await everything()
    assert resident_kib(node.pid) - before_kib < 8 * 1024


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_hostile_names_are_refused_with_their_field(node: RunningNode, name: str) -> None:
    for component, task, field in (
        ("compute", "create-vm", "image"),
        ("compute", "vm-info", "vm-id"),
        ("compute", "delete-vm", "vm-id"),
        ("images", "delete-image", "image"),
    ):
        chunk = (await node.request(f"{CMD}.{component}.{task}", {field: name}))[-1]
        assert is_typed_error(chunk), chunk
        # A dot is allowed in the name of an image, so that one is merely not there.
        assert chunk["details"]["field"] == field
    chunk = (await node.request(f"{CMD}.compute.create-vm", {"image": "tiny", "name": name}))[-1]
    assert chunk["details"]["field"] == "name"
    assert sorted(path.name for path in node.state_dir.parent.iterdir()) == ["state"]


@pytest.mark.parametrize(
    "subject",
    [
        "aether.v1.default.cmd.compute.no-such-task",
        "aether.v1.default.cmd.compute.UPPER",
        "aether.v1.sys.cmd.compute.list-vms",
        "aether.v1.UPPER.cmd.compute.list-vms",
        "aether.v1.default.obj.vm.not-an-id.vm-info",
    ],
)
async def test_malformed_subjects_are_refused_or_have_no_listener(node: RunningNode, subject: str) -> None:
    client = await node.client()
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    await client.publish(subject, b"{}", reply=inbox)
    reply = await replies.next_msg(30)
    if (reply.headers or {}).get("Status") != "503":
        assert is_typed_error(json.loads(reply.data))


async def test_a_flood_of_garbage_does_not_keep_honest_callers_waiting_for_ever(node: RunningNode) -> None:
    client = await node.client()
    for number in range(10_000):
        await client.publish(f"{CMD}.compute.create-vm", b'{"image": %d}' % number)
    await client.flush()
    async with asyncio.timeout(150):  # a bound on a hang
        assert (await node.request(f"{CMD}.compute.list-vms", {}))[-1] == {"type": "result", "count": 0}


async def test_late_and_malformed_headers_are_refused(node: RunningNode) -> None:
    late = await node.request(f"{CMD}.compute.list-vms", {}, Aether_Deadline="1000")
    assert late[-1]["code"] == 504
    for headers in ({"Aether_Deadline": "soon"}, {"Nats_Msg_Id": "k" * 129}):
        assert (await node.request(f"{CMD}.compute.list-vms", {}, **headers))[-1]["code"] == 400
