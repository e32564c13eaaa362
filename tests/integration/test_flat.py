"""A real node after many VMs, consoles, failures and lost connections has as many files open as before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.eventually import asked_until
from tests.support.nats_server import taken_port
from tests.support.node import RunningNode, guests
from tests.support.processes import nats_server_of
from tests.support.raw_images import bare_image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CYCLES = 15


def open_files(node: RunningNode) -> int:
    return len(os.listdir(f"/proc/{node.pid}/fd"))


async def cycle(node: RunningNode, number: int) -> None:
    """A VM from its creation to its end, with a crash on the way, one that cannot be made, and a broker that dies."""
    name = f"vm-{number}"
    made = await node.task("compute", "create-vm", name=name, image="bare", memory_mib=64, restart="never")
    assert made["type"] == "result", made
    (pid,) = guests(node.state_dir)
    os.kill(pid, signal.SIGKILL)
    await node.until_vm(name, phase="failed")
    assert (await node.task("compute", "start-vm", vm_id=name))["type"] == "result"
    with taken_port() as port:
        failed = await node.task("compute", "create-vm", name="shut", image="bare", publish=[f"{port}:80"])
    assert (failed["type"], failed["code"]) == ("error", 500), failed
    assert (await node.task("compute", "delete-vm", vm_id=name, kill=True))["type"] == "result"
    assert guests(node.state_dir) == {}
    if number % 5 == 0:
        server = nats_server_of(node)
        assert server is not None
        os.kill(server, signal.SIGKILL)
        await node.insist("aether.v1.default.cmd.compute.list-vms", {}, f"look-{number}")


async def test_many_vms_leave_no_file_open(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    await node.start()
    image = str(bare_image(tmp_path))
    assert (await node.task("images", "import-image", source=image, name="bare", ready="none"))["type"] == "result"
    await cycle(node, 0)
    before = open_files(node)
    for number in range(1, CYCLES + 1):
        await cycle(node, number)

    async def is_as_before() -> bool:
        # What a broker that died left behind is closed a moment later.
        return open_files(node) <= before

    await asked_until(is_as_before)
    assert await node.stop() == 0
