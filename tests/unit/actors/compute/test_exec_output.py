"""What a program in a guest printed fits into one message, and how it ended is told; so is how a guest was stopped."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from aetherscale.actors.compute.driver import ExecResult
from aetherscale.actors.compute.service import EXEC_OUTPUT_BYTES, _fitting
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.kernel.wire import encode
from tests.support.memory_node import MemoryNode


@pytest.mark.parametrize("output", [b"", b"hello\n", b"\xff\xfe"])
def test_little_is_told_whole(output: bytes) -> None:
    assert _fitting(output) == (output.decode("utf-8", "replace"), False)


@pytest.mark.parametrize("unit", [b"y\n", b"\x00", b"\xff", "\u00e4".encode(), b'"'])
def test_much_is_cut_by_the_size_that_it_has_on_the_wire(unit: bytes) -> None:
    text, cut = _fitting(unit * 1_500_000)
    assert cut
    assert EXEC_OUTPUT_BYTES // 2 < len(encode(text)) <= EXEC_OUTPUT_BYTES


@pytest.mark.parametrize(
    "ended", [ExecResult(3, None, b"out", b"err", truncated=False), ExecResult(None, 9, b"", b"", truncated=True)]
)
async def test_how_a_program_ended_is_told_as_the_guest_says(
    ended: ExecResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def execute(
        self: SimulatedDriver, vm_id: str, argv: Sequence[str], *more: object, **named: object
    ) -> ExecResult:
        return ended

    monkeypatch.setattr(SimulatedDriver, "execute", execute)
    node = MemoryNode()
    await node.start()
    await node.final("images", "build-image", {"recipe": "tiny"})
    await node.final("compute", "create-vm", {"image": "tiny", "name": "web"})
    told = await node.final("compute", "exec-vm", {"vm-id": "web", "command": ["false"]})
    fields = ("exit-code", "signal", "stdout", "stderr", "truncated")
    assert [told[name] for name in fields] == [
        ended.exit_code, ended.signal, ended.stdout.decode(), ended.stderr.decode(), ended.truncated,
    ]  # fmt: skip
    await node.close()


async def test_a_stop_that_is_forced_says_how_long_was_waited() -> None:
    node = MemoryNode()
    node.host.behaviour = lambda vm_id: Behaviour(shutdown_s=None)
    await node.start()
    await node.final("images", "build-image", {"recipe": "tiny"})
    await node.final("compute", "create-vm", {"image": "tiny", "name": "web"})
    told = await node.ask("compute", "stop-vm", {"vm-id": "web", "grace-s": 0.01})
    [forced] = [chunk for chunk in told if chunk.get("status") == "forcing"]
    assert forced["waited-s"] == 0.01
    await node.close()
