"""What people read: of images that do not come in, of stops, of panics, and of waits that are over."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from aetherscale.__main__ import program
from aetherscale.actors.compute.model.effects import GuestEnded
from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.actors.compute.qemu.guest import _PANIC
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.files.header import ImageRejected, inspect
from aetherscale.actors.images.model.commands import ImportImage
from aetherscale.actors.images.model.decide import decide, evolve, pending
from aetherscale.actors.images.model.events import ImageDeleted
from aetherscale.actors.images.model.presentation import is_ready
from aetherscale.bus.refusals import hint
from aetherscale.debugger.maintenance import import_
from aetherscale.debugger.past import explained
from aetherscale.debugger.why import explain
from aetherscale.eventstore.store import Locked
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.output import Output
from aetherscale.gateways.cli.parse import parse
from aetherscale.gateways.cli.program import Ready
from aetherscale.gateways.cli.tree import ENTRIES
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.settings import Settings
from tests.support.memory_fixtures import WEB, node
from tests.support.memory_node import MemoryNode
from tests.unit.debugger.test_debugger import debugging, until_phase

__all__ = ["node"]


async def why(node: MemoryNode) -> tuple[list[str], str]:
    """Every sentence of the VM `web`, and the sum of them."""
    log = debugging(node)
    past = await log.state_at(await log.position(None))
    found = await explain(log, past, VM_KIND, past.find("vm", "default", "web"), whole=True)
    return [sentence.text for chapter in found.chapters for sentence in chapter.sentences], found.summary


async def test_a_stop_while_the_vm_waits_to_be_started_again_ends_no_process(node: MemoryNode) -> None:
    node.host.behaviour = lambda vm_id: Behaviour(crash_after_s=0.0)
    await node.ask("compute", "create-vm", WEB, deadline_us=node.now_us + 50_000)
    await until_phase(node, "booting")
    await node.final("compute", "stop-vm", {"vm-id": "web"})
    sentences, _ = await why(node)
    assert sentences[-1] == "it was stopped before it ran again"
    assert "its process ended" not in sentences


async def test_a_panic_is_told_once(node: MemoryNode) -> None:
    await node.final("compute", "create-vm", {**WEB, "restart": "never"})
    (process,) = node.host.processes.values()
    assert process.observe is not None
    process._ended_as = GuestEnded(process.vm_id, process.run, "panic", _PANIC)
    process.observe(process._ended_as)
    await until_phase(node, "failed")
    sentences, summary = await why(node)
    assert summary.count("panicked") == 1
    assert all(sentence.count("panicked") <= 1 for sentence in sentences)


async def test_an_image_that_is_rejected_is_rejected_once(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    host = HostImages(tmp_path / "state", tmp_path / "cache", Imports((tmp_path,)))
    image = None
    for event in decide(None, ImportImage("1", "x", str(tmp_path / "empty.img"), None, "none"), 0):
        image = evolve(image, event, 0)
    assert image is not None
    owed = pending(image)
    assert owed is not None
    for event in (*decide(image, await host.perform(owed, lambda step, **fields: None), 1), ImageDeleted()):
        image = evolve(image, event, 1)
    with pytest.raises(Refused) as refused:
        is_ready(image)
    assert refused.value.message == "the image could not be imported: image rejected: it is empty"
    assert "ls -l" in hint(refused.value.remedy)


def test_an_empty_file_is_not_said_to_be_something_else(tmp_path: Path) -> None:
    (tmp_path / "empty.img").touch()
    with pytest.raises(ImageRejected) as rejected:
        inspect(tmp_path / "empty.img")
    assert "to its end" in rejected.value.remedy


@pytest.mark.parametrize(("is_note", "word"), [(True, "note: "), (False, "error: ")])
def test_a_wait_that_is_over_is_no_error(is_note: bool, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    Output(json=False).failure(Failure(504, "the wait of 1 s ran out", is_note=is_note))
    assert capsys.readouterr().err == f"{word}the wait of 1 s ran out\n"


def test_a_checksum_may_be_in_upper_case() -> None:
    words = ["image", "import", "x.img", "--sha256", "AB" * 32]
    assert parse(words, ENTRIES).values["sha256"] == "ab" * 32


class TestStateDirectories:
    def test_one_that_another_process_holds_is_a_conflict(self) -> None:
        with pytest.raises(Refused) as refused, explained():
            raise Locked("another process writes to this log")
        assert refused.value.reason == Reason.CONFLICT

    def test_one_that_cannot_be_used_is_told_with_what_was_to_be_done(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        def ready(told: Ready) -> None:
            raise AssertionError("it is a file")

        with pytest.raises(Refused) as refused:
            program().serve(Settings(tmp_path / "file", "host1", simulated=True), ready)
        assert refused.value.message.startswith(f"serve: the state directory {tmp_path}/file cannot be used: ")
        assert "--state-dir" in hint(refused.value.remedy)
        with pytest.raises(Refused, match="the event log cannot be used: /x: No space"), explained():
            raise OSError(errno.ENOSPC, "No space", "/x")

    def test_an_import_that_is_refused_leaves_nothing_behind(self, tmp_path: Path) -> None:
        with pytest.raises(Refused, match="nothing was imported"):
            import_(tmp_path / "new", [b"{}\n"], epoch="e", now_us=1)
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_that_was_there_stays(self, tmp_path: Path) -> None:
        (tmp_path / "there").mkdir()
        with pytest.raises(Refused, match="nothing was imported"):
            import_(tmp_path / "there", [b"{}\n"], epoch="e", now_us=1)
        assert (tmp_path / "there").exists()
