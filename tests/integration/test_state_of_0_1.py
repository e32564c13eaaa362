"""A state directory of version 0.1 opens, replays to the same views, and goes on."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import MakeNode, good, told
from tests.support.node import RunningNode

GOLDEN = Path(__file__).parents[1] / "golden" / "state-0.1"
LAST = 35
"""Its last event."""
LATER = {
    "publish": [], "host-loopback": False, "groups": [], "forwards": [], "rules-revision": 0, "rules-applied": 0,
    "switches": [], "ssh-keys": [], "first-boot": None, "init-script": None, "user": None,
    "cloud-init-sha256": None,
}  # fmt: skip
"""What VMs have had since."""


@pytest.fixture
def node(make_node: MakeNode) -> RunningNode:
    """A node on that directory that is not started."""
    made = make_node("--simulated")
    made.state_dir.mkdir(mode=0o700, exist_ok=True)
    with tarfile.open(GOLDEN / "state.tar.gz") as archive:
        # Python 3.11.2, which Debian 12 has, does not know filters; from 3.12 on there has to be one.
        safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(made.state_dir, **safely)  # noqa: S202 - the archive is ours
    return made


async def replays(node: RunningNode) -> dict[str, Any]:
    """What it was asked then; of what there was not yet there is none."""
    found = {at: await told(node, "replay", "--at", at, "--all") for at in ("5", "20", str(LAST))}
    assert all((views.pop("network"), views.pop("group")) == ([], []) for views in found.values())
    vms = [vm for views in found.values() for vm in views["vm"]]
    assert all({field: vm.pop(field) for field in LATER} == LATER for vm in vms)
    images = [image for views in found.values() for image in views["image"]]
    later = {"first-boot": "none", "catalogued": False, "published": None, "user": None, "labels": {}}
    assert all({field: image.pop(field) for field in later} == later for image in images)
    return found


async def test_it_replays_to_the_views_that_it_had(node: RunningNode) -> None:
    assert await replays(node) == json.loads((GOLDEN / "replays.json").read_text())


async def test_it_goes_on(node: RunningNode) -> None:
    assert (node.state_dir / "views.db").exists()
    await node.start()
    assert [path.name for path in node.state_dir.glob("*views.db*")] == []
    assert {vm["name"]: vm["image"] for vm in await told(node, "vm", "list")} == {"web": "bare", "db": "bare"}
    await good(node, "vm", "create", "new", "--image", "bare")
    await good(node, "vm", "delete", "web")
    assert await replays(node) == json.loads((GOLDEN / "replays.json").read_text())
    assert await told(node, "replay", "vm") == await told(node, "vm", "list")
    await node.stop()
    await node.start()
    assert sorted(vm["name"] for vm in await told(node, "vm", "list")) == ["db", "new"]
    await node.stop()
    assert (await told(node, "log", "verify"))["problems"] == []
