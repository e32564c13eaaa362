"""Init scripts in real guests: run once, told once, and known to nobody."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import MakeNode
from tests.support.node import RunningNode, guests

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

SECRET = "correct-horse-battery"
ONCE = f"#!/bin/sh\n# {SECRET}\necho run >> /data/runs\necho done\n"


def script(place: Path, text: str) -> str:
    path = place / "setup.sh"
    path.write_text(text)
    return str(path)


async def made(node: RunningNode, path: str, *more: str, image: str = "tiny") -> tuple[int, str, str]:
    return await node.cli("vm", "create", "web", "--image", image, "--init-script", path, *more)


async def in_guest(node: RunningNode, *command: str) -> str:
    status, said, wrong = await node.cli("vm", "exec", "web", "--", *command)
    assert status == 0, wrong
    return said


async def events_of(node: RunningNode, kind: str) -> list[dict[str, Any]]:
    status, said, wrong = await node.cli("events", "list", "--json")
    assert status == 0, wrong
    return [event for event in json.loads(said) if event["type"] == kind]


def places_of(state_dir: Path, secret: str) -> list[str]:
    """The files of a node, and the command lines of this host, that have a text in them."""
    files = [path for path in state_dir.rglob("*") if path.is_file() and not path.is_symlink()]
    lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if os.access(path, os.R_OK)]
    return [str(path) for path in (*files, *lines) if secret.encode() in contents(path)]


def children(pid: int) -> list[int]:
    """The processes that a process has started, such as its nats-server."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


async def test_a_script_is_run_once_whatever_comes_and_nobody_has_it_after_its_run(
    node: RunningNode, tmp_path: Path
) -> None:
    (tmp_path / "script").mkdir()
    path = script(tmp_path / "script", ONCE)
    status, said, wrong = await made(node, path, "--wait-for", "init", "--json")
    assert status == 0, wrong
    view = json.loads(said)
    assert (view["phase"], view["first-boot"]) == ("ready", "tiny")
    assert (view["init-script"]["state"], view["init-script"]["output"]) == ("succeeded", "done\n")
    await node.until_vm("web", phase="ready")
    # The end of a host: the node and QEMU are killed, and both start again.
    for how in ("restart", "reboot", "guest"):
        match how:
            case "restart":
                assert (await node.cli("vm", "restart", "web"))[0] == 0
            case "reboot":
                (pid,) = guests(node.state_dir)
                await node.kill()
                os.kill(pid, signal.SIGKILL)
                await node.start()
                status, _, wrong = await node.cli("vm", "wait", "web")
                assert status == 0, wrong
            case "guest":
                assert (await node.cli("vm", "stop", "web", "--kill"))[0] == 0
                assert (await node.cli("vm", "start", "web"))[0] == 0
        assert await in_guest(node, "cat", "/data/runs") == "run\n"
    assert len(await events_of(node, "VmInitEnded")) == 1
    assert len(await events_of(node, "VmInitScriptRemoved")) == 1
    status, said, _ = await node.cli("vm", "wait", "web", "--for", "init")
    assert (status, said) == (0, f"web ({view['id']}) is ready; its init script has succeeded\n")
    assert list((node.state_dir / "init").iterdir()) == []
    assert places_of(node.state_dir, SECRET) == []
    assert SECRET not in "\n".join(node.output)
    # Nor does a core file have what the node, its nats-server or QEMU had in memory.
    for pid in (node.pid, *children(node.pid), *guests(node.state_dir)):
        assert re.search(r"Max core file size +0 ", Path(f"/proc/{pid}/limits").read_text())


async def test_a_script_that_fails_is_told_with_its_output_and_the_vm_goes_on(
    node: RunningNode, tmp_path: Path
) -> None:
    path = script(tmp_path, "#!/bin/sh\nseq 1 2000\nprintf 'no \\033[2Jroom\\377\\n' >&2\nexit 7\n")
    status, said, wrong = await made(node, path, "--wait-for", "init")
    assert (status, said) == (1, "")
    assert "error: the init script of the VM 'web' failed with exit status 7; the VM itself is ready" in wrong
    assert "  | no \ufffd[2Jroom\ufffd\n" in wrong
    view = await node.vm("web")
    assert (view["phase"], view["failure"]) == ("ready", None)
    init = view["init-script"]
    assert (init["state"], init["exit-status"]) == ("failed", 7)
    assert "2000\nno" in init["output"]
    assert len(init["output"].encode()) <= 4096
    status, _, wrong = await node.cli("vm", "wait", "web", "--for", "init")
    assert (status, "failed with exit status 7" in wrong) == (1, True)
    status, said, _ = await node.cli("why", "vm", "web")
    assert "its init script failed with exit status 7" in said
    assert await in_guest(node, "hostname") == "web\n"


async def test_a_guest_that_is_rebooted_by_its_script_does_not_run_it_again(node: RunningNode, tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\necho run >> /data/runs\nsync\nreboot\nsleep 1000\n")
    status, _, wrong = await made(node, path, "--wait-for", "init")
    assert (status, "was interrupted" in wrong) == (1, True), wrong
    await node.until_vm("web", phase="ready")
    assert await in_guest(node, "cat", "/data/runs") == "run\n"


async def test_a_guest_that_is_killed_in_its_script_does_not_run_it_again(node: RunningNode, tmp_path: Path) -> None:
    path = script(tmp_path, "#!/bin/sh\necho run >> /data/runs\nsync\ntouch /run/begun\nsleep 1000\n")
    status, _, wrong = await made(node, path)
    assert status == 0, wrong
    await in_guest(node, "sh", "-c", "until [ -e /run/begun ]; do sleep 0.1; done")
    (pid,) = guests(node.state_dir)
    os.kill(pid, signal.SIGKILL)
    status, _, wrong = await node.cli("vm", "wait", "web", "--for", "init")
    assert (status, "interrupted" in wrong) == (1, True), wrong
    await node.until_vm("web", phase="ready")
    assert await in_guest(node, "cat", "/data/runs") == "run\n"
    assert list((node.state_dir / "init").iterdir()) == []


async def test_the_end_of_a_script_is_told_to_the_node_that_comes_after_one_that_was_killed(
    make_node: MakeNode, node: RunningNode, tmp_path: Path
) -> None:
    path = script(tmp_path, "#!/bin/sh\nuntil [ -e /run/go ]; do sleep 0.1; done\necho run >> /data/runs\n")
    status, _, wrong = await made(node, path)
    assert status == 0, wrong
    kept = node.state_dir / "init" / (await node.vm("web"))["id"]
    assert kept.read_text() == Path(path).read_text()
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    status, _, wrong = await node.cli("vm", "wait", "web", "--for", "init", "--timeout", "1s")
    assert status == 5, wrong
    await node.kill()
    await node.start()
    assert kept.exists()
    await in_guest(node, "touch", "/run/go")
    status, _, wrong = await node.cli("vm", "wait", "web", "--for", "init")
    assert status == 0, wrong
    await node.kill()
    await node.start()
    assert await in_guest(node, "cat", "/data/runs") == "run\n"
    assert len(await events_of(node, "VmInitEnded")) == 1
    assert not kept.exists()


async def test_without_the_condition_file_it_is_run_once_more_and_that_is_no_second_event(
    node: RunningNode, tmp_path: Path
) -> None:
    status, _, wrong = await made(node, script(tmp_path, ONCE), "--wait-for", "init")
    assert status == 0, wrong
    await in_guest(node, "sh", "-c", "rm /data/aetherscale/init.begun; sync")
    (before,) = guests(node.state_dir)
    # In the guest: what it was given is there for as long as its QEMU is.
    await node.cli("vm", "exec", "web", "--", "reboot")
    seen = ""
    for _ in range(600):
        status, seen, _ = await node.cli("vm", "exec", "web", "--", "cat", "/data/runs")
        if seen == "run\nrun\n":
            break
    assert seen == "run\nrun\n"
    assert set(guests(node.state_dir)) == {before}
    assert len(await events_of(node, "VmInitEnded")) == 1
