"""The files that the node keeps init scripts in."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale import statedir
from aetherscale.actors.compute import freshscripts
from aetherscale.actors.compute.initfiles import InitFiles
from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.errors import Reason, Refused
from tests.support.vm_pasts import REQUESTED, SPEC, VM, state_of

OTHER = "1123456789abcdef"
WITH_SCRIPT = replace(REQUESTED, spec=replace(SPEC, init_sha256="5" * 64))


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def names(state_dir: Path) -> list[str]:
    return sorted(path.name for path in (state_dir / "init").iterdir())


async def test_a_script_is_there_for_the_node_alone_until_it_is_removed(tmp_path: Path) -> None:
    files = InitFiles(tmp_path)
    assert files.read(VM) is None
    old = os.umask(0)
    try:
        await files.keep(VM, b"#!/bin/sh\n")
        await files.keep(VM, b"#!/bin/sh\nagain\n")
    finally:
        os.umask(old)
    path = tmp_path / "init" / VM
    assert (path.stat().st_mode & 0o7777, path.parent.stat().st_mode & 0o7777) == (0o600, 0o700)
    assert files.read(VM) == b"#!/bin/sh\nagain\n"
    for _ in range(2):
        files.remove(VM)
        assert names(tmp_path) == []
    assert files.read(VM) is None


async def test_it_is_on_the_disk_before_anybody_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    await InitFiles(tmp_path).keep(VM, b"#!/bin/sh\n")
    assert synced == [f"{tmp_path}/init/{VM}.new", f"{tmp_path}/init"]


async def test_what_is_of_no_vm_is_removed_at_a_start_and_while_a_node_lives_after_a_while(tmp_path: Path) -> None:
    clock, known = Clock(), {VM: state_of(WITH_SCRIPT)}
    files = InitFiles(tmp_path, clock)
    for vm_id in (VM, OTHER):
        await files.keep(vm_id, b"#!/bin/sh\n")
    (tmp_path / "init" / f"{'2' * 16}.new").write_bytes(b"half a script")
    (tmp_path / "init" / "README").write_text("not ours")
    files.remove_unknown(known)
    assert names(tmp_path) == [VM, OTHER, "README"]
    clock.now_s = freshscripts.UNKNOWN_S + 1
    files.remove_unknown(known)
    assert names(tmp_path) == [VM, "README"]
    await files.keep(OTHER, b"#!/bin/sh\n")
    InitFiles(tmp_path, clock).remove_unknown(known)
    assert names(tmp_path) == [VM, "README"]


@pytest.mark.parametrize(
    "vm",
    [
        state_of(REQUESTED),
        state_of(WITH_SCRIPT, events.VmDeleteRequested(True, 0), events.VmDeleted()),
    ],
)
async def test_a_vm_that_has_none_any_more_keeps_none(tmp_path: Path, vm: Vm) -> None:
    files = InitFiles(tmp_path)
    await files.keep(VM, b"#!/bin/sh\n")
    files.remove_unknown({VM: vm})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, Reason.STORAGE_FULL), (errno.EDQUOT, Reason.STORAGE_FULL), (errno.EIO, Reason.UNAVAILABLE)],
)
async def test_a_host_that_cannot_keep_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: Reason
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(statedir, "write_file", refuse)
    with pytest.raises(Refused) as refused:
        await InitFiles(tmp_path).keep(VM, b"#!/bin/sh\necho top-secret\n")
    assert (refused.value.reason, refused.value.retryable) == (reason, True)
    assert "top-secret" not in refused.value.message


async def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    files = InitFiles(tmp_path)
    await files.keep(VM, b"#!/bin/sh\n")
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "init" / OTHER).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic link"):
        files.read(OTHER)
    await files.keep(OTHER, b"#!/bin/sh\n")
    assert (tmp_path / "elsewhere").read_text() == "precious"
    assert files.read(OTHER) == b"#!/bin/sh\n"


async def test_user_data_is_there_for_the_node_alone_until_the_vm_is_gone(tmp_path: Path) -> None:
    files = InitFiles(tmp_path)
    await files.keep(VM, b"#!/bin/sh\n")
    await files.keep_user_data(VM, b"#cloud-config\n")
    path = files.place_of_user_data(VM)
    assert (path.stat().st_mode & 0o7777, path.read_bytes()) == (0o600, b"#cloud-config\n")
    files.remove(VM)
    assert (files.read(VM), files.read_user_data(VM)) == (None, b"#cloud-config\n")
    await files.keep(VM, b"#!/bin/sh\n")
    for _ in range(2):
        files.remove_all(VM)
        assert names(tmp_path) == []
    assert files.read_user_data(VM) is None


async def test_user_data_of_no_vm_is_removed_at_a_start_and_that_of_one_stays(tmp_path: Path) -> None:
    files = InitFiles(tmp_path)
    for vm_id in (VM, OTHER):
        await files.keep_user_data(vm_id, b"#cloud-config\n")
    (tmp_path / "init" / f"{OTHER}.user-data.new").write_bytes(b"#cloud")
    with_data = state_of(replace(REQUESTED, spec=replace(SPEC, cloud_init_sha256="5" * 64)))
    InitFiles(tmp_path).remove_unknown({VM: with_data})
    assert names(tmp_path) == [f"{VM}.user-data"]
    # A VM with a script alone has no use for it.
    InitFiles(tmp_path).remove_unknown({VM: state_of(WITH_SCRIPT)})
    assert names(tmp_path) == []
