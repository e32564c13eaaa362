"""What a guest is given at its first boot, as a real guest finds it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.node import RunningNode
from tests.unit.actors.compute.model.test_ssh_keys import OTHER, key

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

GIVEN = "/sys/firmware/qemu_fw_cfg/by_name/opt/io.systemd.credentials/ssh.authorized_keys.root/raw"


async def test_a_guest_finds_its_keys_in_every_run_and_nobody_finds_them_in_a_command_line(node: RunningNode) -> None:
    [tiny] = await node.items("images.list-images", "image")
    source = shutil.copy(node.state_dir / "images" / f"{tiny['id']}.raw", node.state_dir.parent / "taking.raw")
    taking = {"source": str(source), "name": "taking", "ready": "channel", "first_boot": "credentials"}
    imported = await node.task("images", "import-image", **taking)
    assert imported["type"] == "result", imported
    wanted = [f"{key()} joe@host", OTHER]
    made = await node.task("compute", "create-vm", image="taking", name="web", ssh_keys=wanted)
    assert made["type"] == "result", made
    for _ in range(2):
        status, said, wrong = await node.cli("vm", "exec", "web", "--", "cat", GIVEN)
        assert (status, said.splitlines()) == (0, wanted), wrong
        for words in (("stop", "web", "--kill"), ("start", "web")):
            status, _, wrong = await node.cli("vm", *words)
            assert status == 0, wrong
    # With a user root has none, and what is the user's own is beside their keys.
    assert (await node.cli("vm", "delete", "web", "--kill"))[0] == 0
    source = shutil.copy(source, node.state_dir.parent / "ours.raw")
    ours = {"source": str(source), "name": "ours", "ready": "channel", "first_boot": "aetherscale"}
    assert (await node.task("images", "import-image", **ours))["type"] == "result"
    made = await node.task("compute", "create-vm", image="ours", name="web", ssh_keys=wanted, user="joe")
    assert made["type"] == "result", made
    status, said, wrong = await node.cli("vm", "exec", "web", "--", "ls", str(Path(GIVEN).parents[1]))
    assert (status, said.split()) == (0, ["aetherscale.user", "aetherscale.user.keys", "system.hostname"]), wrong
    for name, content in (("aetherscale.user", "joe"), ("aetherscale.user.keys", "\n".join((*wanted, "")))):
        path = str(Path(GIVEN).parents[1] / name / "raw")
        assert await node.cli("vm", "exec", "web", "--", "cat", path) == (0, content, "")
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    assert any(b"aetherscale.user.keys" in line for line in lines)
    assert not any(key().split()[1].encode() in line for line in lines)
