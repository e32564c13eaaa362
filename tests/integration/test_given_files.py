"""Files that a command line names, to the end: stdin, a pipe of the shell, keys as an editor of Windows writes them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from tests.support.cli import good
from tests.support.fetching import no_proxy
from tests.support.image_imports import DISK, node, state
from tests.support.node import ROOT, RunningNode

__all__ = ["no_proxy", "node", "state"]

pytestmark = pytest.mark.integration

SCRIPT = "#!/bin/sh\necho ä\n"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBWHAVAlRwCN2gHbNZAfNCcZ6LxAdoBaF0xjmGt5kq8Q"


@pytest.fixture
async def imaged(node: RunningNode, tmp_path: Path) -> RunningNode:
    (tmp_path / "disk.img").write_bytes(DISK)
    await good(node, "image", "import", str(tmp_path / "disk.img"), "--first-boot", "aetherscale")
    return node


async def script_of(node: RunningNode, vm: str) -> str:
    return str((await node.vm(vm))["init-script"]["sha256"])


async def test_a_script_and_keys_come_as_they_were_given(imaged: RunningNode, tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(f"\ufeff# mine\r\n{KEY} joe\r\n".encode())
    (tmp_path / "plain").write_text(SCRIPT)
    creating = ("vm", "create", "--image", "disk", "--ssh-key", str(tmp_path / "keys"), "--no-wait", "--init-script")
    digest = hashlib.sha256(SCRIPT.encode()).hexdigest()
    status, _, err = await imaged.cli(*creating, "-", "one", stdin=SCRIPT)
    assert status == 0, err
    assert (await imaged.vm("one"))["ssh-keys"] == [f"{KEY} joe"]
    assert await script_of(imaged, "one") == digest
    # As `--init-script <(command)`: a pipe that the shell has opened.
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "aetherscale", *creating, f"/dev/fd/{reading}", "two"),
        env=imaged.environment, cwd=ROOT, pass_fds=(reading,), stdout=PIPE, stderr=PIPE,
    )  # fmt: skip
    os.close(reading)
    os.write(writing, SCRIPT.encode())
    os.close(writing)
    _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert await script_of(imaged, "two") == digest


async def test_what_is_wrong_names_the_option_and_the_file(imaged: RunningNode, tmp_path: Path) -> None:
    path = tmp_path / "setup.sh"
    creating = ("vm", "create", "web", "--image", "disk", "--no-wait")
    for content, said, hint in (
        (b"#!/bin/sh\r\n", "--init-script: got a script whose lines end with CR LF", rf"sed -i 's/\r$//' {path}"),
        (b"\xef\xbb\xbf#!/bin/sh\n", "--init-script: got a script that begins with a byte order mark", str(path)),
        (b"echo\n", "--init-script: got a script whose first line does not name its interpreter", "#!/bin/sh"),
        (b"", "--init-script: got an empty script", "leave it out"),
        ("#!/bin/sh\n".encode("utf-16"), f"--init-script: {path} cannot be read", "iconv -f UTF-16 -t UTF-8"),
    ):
        path.write_bytes(content)
        status, _, err = await imaged.cli(*creating, "--init-script", str(path))
        assert status == 2, err
        assert said in err
        assert hint in err
    status, _, err = await imaged.cli(*creating, "--init-script", "-", "--ssh-key", "-", stdin=SCRIPT)
    assert (status, "stdin is read once" in err) == (2, True), err
    os.mkfifo(tmp_path / "fifo")
    status, _, err = await imaged.cli(*creating, "--init-script", str(tmp_path / "fifo"))
    assert (status, f"--init-script: {tmp_path / 'fifo'} cannot be read: it is a FIFO" in err) == (2, True), err
    status, _, err = await imaged.cli(*creating, "--ssh-key", "-", stdin=f"{KEY}\n{KEY} joe\n")
    assert (status, "--ssh-key: got the key" in err) == (2, True), err
