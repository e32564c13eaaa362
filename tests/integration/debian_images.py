"""A whole Debian as users get it: built by a node, booted by it twice, under emulation where there is no KVM.

`just debian-image` runs this: minutes, so that it is no part of `just test`. `RECIPE` names the recipe. Disks are kept
for a day in pytest's cache, so that a second run builds nothing.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.integration.conftest import MakeNode
from tests.support.debian_suites import MARKS
from tests.support.nats_server import free_port
from tests.support.node import RunningNode

RECIPE = os.environ.get("RECIPE", "debian-12")
BUILD = "aether.v1.default.cmd.images.build-image"
PACKAGE = "less"
DISK_GIB = 5
SECRET = "correct-horse-battery"
SCRIPT = f"""#!/bin/bash
# {SECRET}
echo run >> /root/runs
sleep 1000 &
[[ $HOME = /root ]] && ip -o addr show scope global | grep -q . && echo online
echo the end
"""

pytestmark = MARKS


@pytest.fixture
async def image(make_node: MakeNode) -> RunningNode:
    """A node that has the image `debian`, with a package beside its own."""
    node = make_node()
    await node.start()
    options = {"recipe": RECIPE, "name": "debian", "packages": [PACKAGE], "size-gib": 3}
    chunks = await node.request(BUILD, options)
    print("\n".join(str(chunk.get("step", chunk)) for chunk in chunks))
    assert chunks[-1]["type"] == "result", chunks[-1]
    return node


async def test_a_node_that_is_killed_while_it_builds_ends_the_build_and_begins_it_again(make_node: MakeNode) -> None:
    node = make_node()
    await node.start()
    # Other packages than those above, so that there is something to build.
    options = {"recipe": RECIPE, "name": "again", "packages": [PACKAGE, "ncal"]}
    async for chunk in node.stream(BUILD, options, Nats_Msg_Id="once"):
        assert chunk["type"] != "result", "a disk that was kept was copied: nothing was built"
        if "configuring" in str(chunk.get("step", "")):
            break
    await node.kill()
    await node.start()
    answer = (await node.request(BUILD, options, Nats_Msg_Id="once"))[-1]
    assert answer["type"] == "result", answer
    assert answer["image"]["phase"] == "ready"


async def said(node: RunningNode, vm: str, *command: str) -> str:
    status, out, err = await node.cli("vm", "exec", vm, "--", *command)
    assert status == 0, err
    return out


async def waited(node: RunningNode, *command: str, waiting: tuple[str, ...]) -> tuple[int, str]:
    """Run what may take an emulated guest longer than a command may take here, and wait on: exit status and stderr."""
    status, _, err = await node.cli(*command, "--timeout", "60s")
    while status == 5:
        status, _, err = await node.cli(*waiting, "--timeout", "60s")
    return status, err


async def its_script_was_run(node: RunningNode, name: str) -> None:
    """Once, as a unit, with the network up; what it printed is told, and what it left running runs on."""
    init = (await node.vm(name))["init-script"]
    assert init["output"].endswith("online\nthe end\n"), init
    assert await said(node, name, "cat", "/root/runs") == "run\n"
    assert "the end" in await said(node, name, "journalctl", "-u", "aetherscale-init", "-o", "cat")
    assert "1000" in await said(node, name, "pgrep", "-a", "sleep")
    assert await said(node, name, "sh", "-c", "ls -d /dev/shm/aetherscale-init* || true") == ""


def has(path: Path, text: str) -> bool:
    """Whether a file has a text in it; a piece is looked at with the end of the one before it."""
    before = b""
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            if text.encode() in before + piece:
                return True
            before = piece[-len(text) :]
    return False


async def key_pair(path: Path) -> str:
    """The path of a private key; that of the public one ends with .pub."""
    making = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path))
    assert await (await asyncio.create_subprocess_exec(*making)).wait() == 0
    return str(path)


async def test_two_guests_of_an_image_are_ready_and_are_two_hosts(image: RunningNode, tmp_path: Path) -> None:
    found: list[tuple[str, str]] = []
    own, foreign = await key_pair(tmp_path / "own"), await key_pair(tmp_path / "foreign")
    for name, ending in (("one", "exit 0"), ("two", "exit 7")):
        script = tmp_path / f"{name}.sh"
        script.write_text(f"{SCRIPT}{ending}\n")
        creating = (
            *("vm", "create", name, "--image", "debian", "--disk", f"{DISK_GIB}G", "--memory", "512M"),
            *("--ssh-key", f"{own}.pub", "--publish", f"{free_port()}:22"),
            *("--init-script", str(script), "--wait-for", "init", *(("--user", "joe") if name == "two" else ())),
        )
        status, err = await waited(image, *creating, waiting=("vm", "wait", name, "--for", "init"))
        if name == "one":
            assert status == 0, err
        else:
            assert status == 1, err
            assert "failed with exit status 7; the VM itself is " in err
        await its_script_was_run(image, name)
        # It is ready when it can be logged in to, by whoever has the key, and nothing is asked.
        user = "joe" if name == "two" else "root"
        logged_in = ("vm", "ssh", name, "-i", own)
        assert await image.cli(*logged_in, "--", "id -un; exit 7") == (7, f"{user}\n", "")
        assert await image.cli(*logged_in, "--", "sudo id -un; pwd; hostnamectl hostname") == (
            0,
            f"root\n{'/home/joe' if name == 'two' else '/root'}\n{name}\n",
            "",
        )
        assert (await said(image, name, "hostnamectl", "--static")).strip() == name
        if name == "two":
            status, out, err = await image.cli(*logged_in, "--user", "root", "--", "id")
            assert (status, out) == (255, ""), err
        status, out, err = await image.cli("vm", "ssh", name, "-i", foreign, "--", "id")
        assert (status, out) == (255, ""), err
        release = await said(image, name, "cat", "/etc/os-release")
        assert f'VERSION_ID="{RECIPE.removeprefix("debian-")}"' in release
        assert "/less" in await said(image, name, "sh", "-c", "command -v less")
        size_kib = int((await said(image, name, "df", "--output=size", "/")).split()[-1])
        assert size_kib > (DISK_GIB - 1) << 20, "the root file system has grown"
        machine_id = (await said(image, name, "cat", "/etc/machine-id")).strip()
        assert len(machine_id) == 32
        found.append((machine_id, await said(image, name, "cat", "/etc/ssh/ssh_host_ed25519_key.pub")))
        assert (await said(image, name, "passwd", "--status", "root")).split()[1] == "L"
        failed = await said(image, name, "systemctl", "--failed", "--quiet", "--plain", "--no-legend")
        assert [line.split()[0] for line in failed.splitlines()] == (
            ["aetherscale-init.service"] if name == "two" else []
        )
        addresses = await said(image, name, "ip", "-4", "addr", "show", "scope", "global")
        assert "inet " in addresses
        if name == "one":
            status, err = await waited(image, "vm", "restart", name, waiting=("vm", "wait", name))
            assert status == 0, err
            assert await said(image, name, "cat", "/root/runs") == "run\n", "it is not run again"
        status, _, err = await image.cli("vm", "stop", name)
        assert status == 0, err
        with_it = [path for path in image.state_dir.rglob("*") if path.is_file() and has(path, SECRET)]
        assert with_it == [], "neither the host nor the disk of the guest has the script"
    assert len({machine_id for machine_id, _ in found}) == 2
    assert len({key for _, key in found}) == 2
