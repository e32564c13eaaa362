"""A host that has more than its log says: processes and directories that nobody owns, a state directory copied."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.node import RunningNode, guests
from tests.support.raw_images import bare_image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

LOG = (
    "events.db",
    "events.head",
    "events.db-wal",
    "events.db-shm",
    "snapshots.db",
    "snapshots.db-wal",
    "snapshots.db-shm",
)


async def with_a_guest(node: RunningNode, directory: Path) -> str:
    """Start the node and a VM of it; the VM's id."""
    await node.start()
    image = await node.task("images", "import-image", source=str(bare_image(directory)), name="bare", ready="none")
    assert image["type"] == "result", image
    made = await node.task("compute", "create-vm", name="web", image="bare", memory_mib=64)
    assert made["type"] == "result", made
    vm_id: str = made["vm-id"]
    return vm_id


async def copied(source: Path, target: Path) -> None:
    """Copy a directory with all that is in it, pipes among it."""
    copying = await asyncio.create_subprocess_exec("cp", "-a", str(source), str(target))
    assert await copying.wait() == 0


async def types_of(node: RunningNode, vm_id: str) -> list[str]:
    status, out, err = await node.cli("events", "list", "--json")
    assert status == 0, err
    return [event["type"] for event in json.loads(out) if event["stream"] == f"vm-{vm_id}"]


async def test_what_a_log_has_never_heard_of_is_ended_told_and_kept(make_node: MakeNode, tmp_path: Path) -> None:
    node = make_node()
    vm_id = await with_a_guest(node, tmp_path)
    await node.kill()
    assert len(guests(node.state_dir)) == 1
    disk = (node.state_dir / "vms" / vm_id / "disk.qcow2").stat().st_ino
    for name in LOG:
        (node.state_dir / name).unlink(missing_ok=True)
    other = node.state_dir / "vms" / "1eedfeedfeedfeed"
    other.mkdir()
    (other / "disk.qcow2").write_bytes(b"somebody's")
    (node.state_dir / "vms" / "README").write_text("not ours")

    await node.start()
    gone = await node.until_vm(vm_id, phase="deleted")
    await node.until_vm("1eedfeedfeedfeed", phase="deleted")
    assert guests(node.state_dir) == {}
    assert await node.vms() == []
    assert gone["observed"] == "absent"
    kept = node.state_dir / "vms" / ".collected"
    names = {place.name[:16]: place for place in kept.iterdir()}
    assert names.keys() == {vm_id, "1eedfeedfeedfeed"}
    assert (names[vm_id] / "disk.qcow2").stat().st_ino == disk
    assert (names["1eedfeedfeedfeed"] / "disk.qcow2").read_bytes() == b"somebody's"
    assert (node.state_dir / "vms" / "README").exists()
    assert await types_of(node, vm_id) == ["VmStrayFound", "VmCollected"]
    status, out, _ = await node.cli("why", "vm", vm_id)
    assert status == 0
    assert "although the log did not know it" in out
    assert str(names[vm_id]) in out

    # A directory that comes back to a VM of which the log has the end is quarantined as well, at the next look.
    await node.stop()
    await copied(names[vm_id], node.state_dir / "vms" / vm_id)
    await node.start()
    await node.until_vm(vm_id, phase="deleted")
    assert not (node.state_dir / "vms" / vm_id).exists()
    assert (await types_of(node, vm_id))[2:] == ["VmStrayFound", "VmCollected"]
    assert len(list(kept.iterdir())) == 3


async def test_the_copy_of_a_state_directory_does_no_harm_to_the_original(make_node: MakeNode, tmp_path: Path) -> None:
    original = make_node(directory="original")
    vm_id = await with_a_guest(original, tmp_path)
    await original.kill()
    (guest,) = guests(original.state_dir)
    copy = make_node(directory="copy")
    await copied(original.state_dir, copy.state_dir)

    await copy.start()
    # Its log says that the VM runs, and no process of its own does.
    restarted = await copy.until_vm(vm_id, phase="running", restarts=1)
    assert restarted["exit"]["reason"] == "unknown"
    assert set(guests(original.state_dir)) == {guest}
    assert len(guests(copy.state_dir)) == 1
    await original.start()
    assert (await original.vm("web"))["restarts"] == 0
    assert set(guests(original.state_dir)) == {guest}
    removed = await copy.task("compute", "delete-vm", vm_id="web", kill=True)
    assert removed["type"] == "result", removed
    assert guests(copy.state_dir) == {}
    assert set(guests(original.state_dir)) == {guest}
    assert await original.stop() == 0
    assert await copy.stop() == 0
