"""QEMU's own filter of system calls refuses what a node's unit allows its processes: namespaces of their own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import pytest

from aetherscale.actors.compute.qemu.argv import SANDBOX
from tests.support.injected import system_call

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a process do a system call"),
]

UNSHARE, SETNS = 272, 308
NEW_USER_AND_NET: Final = 0x1000_0000 | 0x4000_0000


@contextmanager
def qemu(options: Sequence[str]) -> Iterator[int]:
    """One that has no guest and is ready: it has said its greeting."""
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "stdio"]
    around = ["prlimit", "--core=0", "--"]
    with subprocess.Popen([*around, *command, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert b"QMP" in process.stdout.readline()
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize(("call", "argument"), [(UNSHARE, NEW_USER_AND_NET), (SETNS, 0)], ids=["unshare", "setns"])
def test_it_gets_no_namespace(call: int, argument: int) -> None:
    with qemu(()) as pid:
        assert system_call(pid, call, argument) is not None, "else it is not the filter"
    with qemu(SANDBOX) as pid:
        assert system_call(pid, call, argument) is None
