"""What callers are told of VMs on the way: of the time that a guest has, and of a guest that is paused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import pytest

from aetherscale.actors.compute.driver import Terminal
from aetherscale.actors.compute.model.effects import PauseReason, ProcessUser
from aetherscale.actors.compute.model.events import VmBooted
from aetherscale.actors.compute.model.presentation import view
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.gateways.cli.output import Progress
from aetherscale.gateways.cli.work import tell
from aetherscale.kernel.errors import Reason, Refused
from tests.support.memory_fixtures import WEB, node
from tests.support.memory_node import MemoryNode
from tests.support.vm_pasts import DISK, REQUESTED, given

__all__ = ["node"]


async def pause(node: MemoryNode, reason: PauseReason) -> None:
    """Have QEMU pause the guest, as it does when the disk is full."""
    assert node.node is not None
    (vm_id,) = node.host.processes
    process = node.host.live(vm_id)
    assert process is not None
    process.pause(reason)
    # Whoever asks to start a VM that runs gets in line behind what was said of it.
    await node.final("compute", "start-vm", {"vm-id": "web"})


def steps(chunks: Any) -> list[str]:
    """How far the command line says that it is, step by step."""
    progress, found = Progress("web"), []
    for chunk in chunks:
        if chunk["type"] == "status":
            tell(progress, chunk)
            found.append(progress.phase)
    return found


class TestTheTimeThatAGuestHas:
    @pytest.mark.parametrize(("task", "word"), [("stop-vm", "stopping"), ("delete-vm", "deleting")])
    async def test_a_forced_stop_is_announced_before_the_wait(self, node: MemoryNode, task: str, word: str) -> None:
        await node.final("compute", "create-vm", WEB)
        chunks = await node.ask("compute", task, {"vm-id": "web", "grace-s": 7})
        assert chunks[0]["grace-s"] == 7
        assert steps(chunks)[0] == f"{word}: asked the guest to power off; forced stop in 7 s"

    async def test_nothing_is_announced_where_nobody_is_asked(self, node: MemoryNode) -> None:
        await node.final("compute", "create-vm", WEB)
        assert steps(await node.ask("compute", "stop-vm", {"vm-id": "web", "kill": True}))[0] == "stopping"
        assert steps(await node.ask("compute", "delete-vm", {"vm-id": "web"}))[0] == "deleting"

    async def test_a_guest_that_did_not_power_off_is_told_of(self, node: MemoryNode) -> None:
        node.host.behaviour = lambda vm_id: Behaviour(shutdown_s=None)
        await node.final("compute", "create-vm", WEB)
        told = steps(await node.ask("compute", "stop-vm", {"vm-id": "web", "grace-s": 0}))
        assert "forcing: the guest did not power off within 0 s" in told


HELD: Mapping[PauseReason, tuple[str, str]] = {
    "disk": ("there was no room left on the host's disk", "make room on the host"),
    "io-error": ("its disk gave an I/O error", "aetherscale vm start web"),
    "internal-error": ("the accelerator reported an internal error", "aetherscale vm stop web --kill"),
    "user": ("another program paused it through QMP", "resume it over QMP"),
}


@pytest.mark.parametrize(
    ("task", "more"), [("exec-vm", {}), ("vm-terminal", {"session": "s"}), ("vm-program", {"session": "s"})]
)
@pytest.mark.parametrize("reason", HELD)
async def test_a_program_in_a_guest_that_is_paused_is_refused_with_the_reason(
    node: MemoryNode, reason: PauseReason, task: str, more: dict[str, str]
) -> None:
    await node.final("compute", "create-vm", WEB)
    await pause(node, reason)
    answer = await node.final("compute", task, {"vm-id": "web", "command": ["true"], **more})
    why, what_to_do = HELD[reason]
    assert (answer["code"], answer["message"]) == (409, f"the VM 'web' is paused: {why}")
    assert what_to_do in answer["details"]["hint"]


async def test_a_guest_that_is_paused_while_a_program_starts_is_told_as_the_reason(
    node: MemoryNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def terminal(self: SimulatedDriver, *asked: object) -> Terminal:
        await pause(node, "disk")
        raise Refused(Reason.DEADLINE, "'true' has not begun within 30 s")

    monkeypatch.setattr(SimulatedDriver, "terminal", terminal)
    await node.final("compute", "create-vm", WEB)
    asked = {"vm-id": "web", "session": "s", "command": ["true"]}
    answer = await node.final("compute", "vm-terminal", asked)
    assert (answer["code"], answer["message"]) == (409, f"the VM 'web' is paused: {HELD['disk'][0]}")


async def test_a_program_on_a_terminal_tells_its_output_and_how_it_has_ended(node: MemoryNode) -> None:
    await node.final("compute", "create-vm", WEB)
    told = await node.ask("compute", "vm-terminal", {"vm-id": "web", "session": "s", "command": ["echo", "hi"]})
    assert [chunk.get("status") for chunk in told[:2]] == ["progress", "attached"]
    assert [base64.b64decode(chunk["data"]) for chunk in told if chunk["type"] == "item"] == [b"hi\r\n"]
    assert (told[-1]["reason"], told[-1]["exit-code"]) == ("ended", 0)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"rows": 0}, "rows"),
        ({"columns": 65_536}, "columns"),
        ({"term": "-x"}, "term"),
        ({"term": "x" * 65}, "term"),
        ({"term": "xterm\n"}, "term"),
        ({"command": []}, "command"),
        ({"session": ""}, "session"),
    ],
)
async def test_a_terminal_that_is_asked_for_wrongly_is_refused(
    node: MemoryNode, wrong: dict[str, object], field: str
) -> None:
    await node.final("compute", "create-vm", WEB)
    asked = {"vm-id": "web", "session": "s", "command": ["true"], **wrong}
    answer = await node.final("compute", "vm-terminal", asked)
    assert (answer["code"], answer["details"]["field"]) == (400, field)


async def test_a_view_tells_how_the_guest_says_that_it_is_ready(node: MemoryNode) -> None:
    await node.final("images", "import-image", {"source": "/x.img", "name": "mute", "ready": "none"})
    made = await node.final("compute", "create-vm", {"image": "mute", "name": "mute"})
    assert msgspec.to_builtins(made["vm"])["ready-by"] == "none"
    made = await node.final("compute", "create-vm", WEB)
    assert msgspec.to_builtins(made["vm"])["ready-by"] == "channel"


@pytest.mark.parametrize(
    ("accelerator", "process_user", "isolation"),
    [
        ("kvm", "own", "kvm"),
        ("kvm", None, "kvm"),
        ("kvm", "node", "none"),
        ("kvm", "root", "none"),
        ("tcg", "own", "none"),
        ("tcg", "node", "none"),
    ],
)
def test_isolation_is_kvm_only_with_a_user_of_its_own(
    accelerator: Literal["kvm", "tcg"], process_user: ProcessUser | None, isolation: str
) -> None:
    booted = VmBooted(1, 4711, 99, "boot", accelerator, process_user)
    vm = given(REQUESTED, DISK, booted).state
    assert vm is not None
    seen = view(vm, "host1", 3)
    assert (seen.isolation, seen.process_user, seen.accelerator) == (isolation, process_user, accelerator)


async def test_a_program_with_streams_tells_both_outputs_and_how_it_has_ended(node: MemoryNode) -> None:
    await node.final("compute", "create-vm", WEB)
    command = ["sh", "-c", "echo one; echo two >&2; exit 3"]
    told = await node.ask("compute", "vm-program", {"vm-id": "web", "session": "s", "command": command})
    assert [chunk.get("status") for chunk in told[:2]] == ["progress", "attached"]
    assert told[1]["pid"] >= 100
    items = [chunk for chunk in told if chunk["type"] == "item"]
    assert [(name, base64.b64decode(data)) for each in items for name, data in each.items() if name != "type"] == [
        ("data", b"one\n"),
        ("error-data", b"two\n"),
    ]
    assert (told[-1]["reason"], told[-1]["exit-code"]) == ("ended", 3)


async def test_what_a_guest_says_of_itself_is_told_and_is_no_event(node: MemoryNode) -> None:
    await node.final("compute", "create-vm", WEB)
    assert node.log is not None
    before = len(await node.log.read(0, 1_000_000))
    told = await node.final("compute", "guest-info", {"vm-id": "web"})
    assert (told["guest"].agent, told["guest"].os) == ("answers", "simulated")
    assert len(await node.log.read(0, 1_000_000)) == before
    await pause(node, "disk")
    assert (await node.final("compute", "guest-info", {"vm-id": "web"}))["code"] == 409


@pytest.mark.parametrize(("asked", "shown"), [({}, 24), ({"tail-bytes": 0}, 0), ({"tail-bytes": 7}, 7)])
async def test_a_console_shows_so_much_of_before_as_was_asked_for(
    node: MemoryNode, asked: dict[str, int], shown: int
) -> None:
    await node.final("compute", "create-vm", WEB)
    console = {"vm-id": "web", "session": "s", **asked}
    told, _ = await asyncio.gather(
        node.ask("compute", "vm-console", console),
        node.final("compute", "stop-vm", {"vm-id": "web", "kill": True}),
    )
    assert next(chunk for chunk in told if chunk.get("status") == "attached")["history-bytes"] == shown
    refused = await node.final("compute", "vm-console", {**console, "tail-bytes": (1 << 20) + 1})
    assert (refused["code"], refused["details"]["field"]) == (400, "tail-bytes")
