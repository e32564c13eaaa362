"""Real VDE switches of other users than the node: which modes let it in, and what it says where they do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.support import vde_switches
from tests.support.vde_switches import vde_switch

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(120),
    pytest.mark.skipif(bool(vde_switches.missing()), reason=vde_switches.missing()),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two other users"),
]

NODE: Final = 65001
"""The uid and the gid of a node that is not root."""
PLUGGED: Final = """
import asyncio, sys
from aetherscale.actors.compute.qemu import vde
from aetherscale.kernel.fault import Fault

async def main():
    try:
        vde.require(sys.argv[1])
        ports = [await vde.plug_in(sys.argv[1], "0123456789abcdef") for _ in range(2)]
        frame = bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(46)
        ports[0].frames.send(frame)
        got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(ports[1].frames, 2000), 30)
        print("got" if got == frame else got)
    except Fault as fault:
        print(fault.reason, "-", fault.remedy)

asyncio.run(main())
"""
"""A frame from one port of a switch to another, by a node."""


@pytest.fixture
def lab() -> Iterator[Path]:
    """A place for a switch that every user can get to."""
    directory = Path(tempfile.mkdtemp(prefix="vde-"))
    directory.chmod(0o777)
    yield directory / "lab.ctl"
    shutil.rmtree(directory)


def plugged(lab: Path, uid: int) -> str:
    """What comes of it where a user with this uid, and a group of the same number, is the node."""
    user = ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups") if uid else ()
    words = [*user, sys.executable, "-c", PLUGGED, str(lab)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    if "Permission denied" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip(f"another user cannot run the code here: {done.stderr[-200:]}")
    assert not done.stderr, done.stderr
    return done.stdout


def test_a_node_of_another_user_is_let_in_by_its_group_alone(lab: Path) -> None:
    with vde_switch(lab):
        assert plugged(lab, 0) == "got\n"
        said = plugged(lab, NODE)
        assert f"the VDE switch at {lab} cannot be used: this node, which runs as uid {NODE}, may not write to" in said
        assert f"vde_switch -sock {lab} -mode 660 -group {NODE} -daemon" in said
    with vde_switch(lab, "-mode", "660", "-group", "nogroup"):
        assert "may not write to" in plugged(lab, NODE)
        assert plugged(lab, 65534) == "got\n"


def test_a_switch_of_an_ordinary_user_serves_a_node_of_root_and_of_others(lab: Path) -> None:
    words = ["setpriv", "--reuid=65002", f"--regid={NODE}", "--clear-groups"]
    with vde_switch(lab, "-mode", "660", within=words):
        assert plugged(lab, 0) == "got\n"
        assert plugged(lab, NODE) == "got\n"
