"""A Debian with Debian's own cloud-init, which takes what its VM is given from a disk of ours, under emulation.

`just debian-cloud-init` runs this: minutes, so that it is no part of `just test`. The image is made as by a user:
built with the package, exported, and imported with the first boot `cloud-init`, as images of distributions are.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.integration.debian_images import BUILD, RECIPE, has, key_pair, said, waited
from tests.support.debian_suites import MARKS
from tests.support.nats_server import free_port
from tests.support.node import RunningNode

SECRET = "correct-horse-battery"
SCRIPT = f"""#!/bin/bash
# {SECRET}
echo run >> /root/runs
[[ $HOME = /root ]] && ip -o addr show scope global | grep -q . && echo online
cat /root/mine
echo the end
"""
# No locales are installed; a list of users of its own does not make ours go away.
USER_DATA = """#cloud-config
locale: false
users: []
bootcmd:
  - echo boot >> /root/boots
runcmd:
  - echo mine comes first > /root/mine
"""

pytestmark = MARKS


@pytest.fixture
async def image(make_node: MakeNode, tmp_path: Path) -> RunningNode:
    """A node that has the image `cloudy`."""
    node = make_node()
    await node.start()
    options = {"recipe": RECIPE, "name": "debian", "packages": ["cloud-init"], "size-gib": 3}
    built = (await node.request(BUILD, options))[-1]
    assert built["type"] == "result", built
    file = tmp_path / "cloudy.qcow2"
    status, _, err = await node.cli("image", "export", "debian", str(file), "--timeout", "60s")
    assert status == 0, err
    status, out, err = await node.cli("image", "inspect", str(file), "--json")
    assert (status, json.loads(out)["first-boot"]) == (0, "cloud-init"), err
    importing = ("image", "import", str(file), "--name", "cloudy", "--ready", "channel", "--first-boot", "cloud-init")
    status, _, err = await node.cli(*importing, "--timeout", "60s")
    assert status == 0, err
    file.unlink()
    return node


async def test_a_guest_with_cloud_init_takes_all_that_it_is_given_and_once(image: RunningNode, tmp_path: Path) -> None:
    own = await key_pair(tmp_path / "own")
    script, data = tmp_path / "setup.sh", tmp_path / "user-data.yaml"
    script.write_text(SCRIPT)
    data.write_text(USER_DATA)
    creating = (
        *("vm", "create", "web", "--image", "cloudy", "--memory", "768M", "--publish", f"{free_port()}:22"),
        *("--ssh-key", f"{own}.pub", "--user", "joe", "--cloud-init", str(data)),
        *("--init-script", str(script), "--wait-for", "init"),
    )
    status, err = await waited(image, *creating, waiting=("vm", "wait", "web", "--for", "init"))
    assert status == 0, err
    view = await image.vm("web")
    assert (view["first-boot"], view["init-script"]["state"]) == ("cloud-init", "succeeded")
    assert view["init-script"]["output"].endswith("online\nmine comes first\nthe end\n"), "after cloud-init's end"
    status, err = await waited(image, "vm", "wait", "web", waiting=("vm", "wait", "web"))
    assert status == 0, err
    assert "the end" in await said(image, "web", "journalctl", "-u", "aetherscale-init", "-o", "cat")
    logged_in = ("vm", "ssh", "web", "-i", own)
    assert await image.cli(*logged_in, "--", "id -un; sudo id -un; hostnamectl --static") == (0, "joe\nroot\nweb\n", "")
    status, out, err = await image.cli(*logged_in, "--user", "root", "--", "id")
    assert (status, out) == (255, ""), err
    names = await said(image, "web", "sh", "-c", "blkid -o value -s LABEL /dev/vdb; cat /sys/block/vdb/ro")
    assert names.split() == ["CIDATA", "1"]
    failed = await said(image, "web", "systemctl", "--failed", "--quiet", "--plain", "--no-legend")
    assert failed == ""
    instance = f"aetherscale-{view['id']}\n"
    assert await said(image, "web", "cat", "/var/lib/cloud/data/instance-id") == instance
    # Another run has the same instance, the user-data, and no script.
    status, err = await waited(image, "vm", "restart", "web", waiting=("vm", "wait", "web"))
    assert status == 0, err
    assert await said(image, "web", "cat", "/root/runs") == "run\n", "it is not run again"
    assert await said(image, "web", "cat", "/root/boots") == "boot\nboot\n"
    assert await said(image, "web", "cat", "/var/lib/cloud/data/instance-id") == instance
    assert "aetherscale.init\n" not in await said(image, "web", "ls", "/run/aetherscale")
    status, out, _ = await image.cli("events", "list", "--json")
    assert [event["type"] for event in json.loads(out)].count("VmInitEnded") == 1
    status, _, err = await image.cli("vm", "stop", "web")
    assert status == 0, err
    with_it = [path for path in image.state_dir.rglob("*") if path.is_file() and has(path, SECRET)]
    assert with_it == [], "neither the host nor the disk of the guest has the script"
    assert [path.name for path in (image.state_dir / "init").iterdir()] == [f"{view['id']}.user-data"]
    assert (await image.cli("vm", "delete", "web"))[0] == 0
    assert list((image.state_dir / "init").iterdir()) == []


async def test_keys_without_a_user_are_roots_and_the_image_s_own_user_s(image: RunningNode, tmp_path: Path) -> None:
    own = await key_pair(tmp_path / "own")
    creating = ("vm", "create", "db", "--image", "cloudy", "--memory", "768M", "--publish", f"{free_port()}:22")
    status, err = await waited(image, *creating, "--ssh-key", f"{own}.pub", waiting=("vm", "wait", "db"))
    assert status == 0, err
    for user in ("root", "debian"):
        assert await image.cli("vm", "ssh", "db", "-i", own, "--user", user, "--", "id -un") == (0, f"{user}\n", "")
    assert (await image.cli("vm", "delete", "db", "--kill"))[0] == 0
