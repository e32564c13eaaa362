"""Subscribers and callers who do not read: they cost themselves their messages, and nobody else anything."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.cli import simulated_node
from tests.support.node import PATIENCE_S, RunningNode

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

VMS = 60
ASKED = 400
MIB = 1024 * 1024
LIST = "aether.v1.default.cmd.compute.list-vms"


@contextmanager
def deaf(node: RunningNode) -> Iterator[socket.socket]:
    """A client that hears all events, and reads nothing after its greeting."""
    context = json.loads((node.state_dir / "nats.json").read_text())
    host, _, port = context["url"].removeprefix("nats://").partition(":")
    login = json.dumps({"user": context["user"], "pass": context["password"], "verbose": False, "headers": True})
    with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
        # What the kernel keeps for it is little, so that it is slow soon.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert connection.recv(4096).startswith(b"INFO")
        connection.sendall(f"CONNECT {login}\r\nSUB aether.v1.*.evt.> 1\r\nSUB deaf.> 2\r\nPING\r\n".encode())
        assert b"PONG" in connection.recv(4096)
        yield connection


def memory_bytes(node: RunningNode) -> int:
    lines = Path(f"/proc/{node.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def test_who_does_not_read_costs_only_themselves(make_node: MakeNode, tmp_path: Path) -> None:
    node = await simulated_node(make_node, tmp_path)
    client = await node.client()
    heard = await client.subscribe("aether.v1.*.evt.*.vm.*.vm-ready")
    await client.flush()
    with deaf(node) as connection:
        for number in range(VMS // 2):
            assert (await node.task("compute", "create-vm", name=f"a-{number}", image="blank"))["type"] == "result"
        before = memory_bytes(node)
        # It asks for whole lists again and again, and takes none of them.
        for number in range(ASKED):
            connection.sendall(f"PUB {LIST} deaf.{number} 2\r\n{{}}\r\n".encode())
        for number in range(VMS // 2):
            assert (await node.task("compute", "create-vm", name=f"b-{number}", image="blank"))["type"] == "result"
        assert len(await node.vms()) == VMS
        assert memory_bytes(node) - before < 32 * MIB
        ready = [(await heard.next_msg(PATIENCE_S)).subject for _ in range(VMS)]
        assert len(set(ready)) == VMS
    assert await node.stop() == 0
