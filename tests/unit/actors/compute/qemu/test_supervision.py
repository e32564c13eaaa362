"""How an end for want of memory is told from another, and what the service of a host is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aetherscale.actors.compute.qemu import supervision
from aetherscale.actors.compute.qemu.supervision import Detached, Limits, SystemdScopes, cgroup_of
from aetherscale.kernel.errors import Refused
from aetherscale.setup import hostsetup, hostwork

SCOPE = "/aetherscale.slice/aetherscale-probe-1.scope"


class Counted:
    """The counts of a slice, as the kernel writes them."""

    def __init__(self, cgroups: Path) -> None:
        self._file = cgroups / "aetherscale.slice" / "memory.events"
        self._file.parent.mkdir()

    def write(self, oom_kill: int) -> None:
        self._file.write_text(f"low 0\nhigh 0\nmax 7\noom {oom_kill + 1}\noom_kill {oom_kill}\noom_group_kill 9\n")

    def remove(self) -> None:
        self._file.unlink()


@pytest.fixture
def counted(tmp_path: Path) -> Counted:
    return Counted(tmp_path)


@pytest.fixture
def scopes(tmp_path: Path, counted: Counted) -> SystemdScopes:
    counted.write(3)
    made = SystemdScopes("systemd-run", of_user=False, cgroups=tmp_path)
    made.count_in(SCOPE)
    return made


def test_what_was_counted_before_is_nobodys(scopes: SystemdScopes) -> None:
    assert scopes.why_killed() == ""


def test_each_kill_for_memory_is_told_once(scopes: SystemdScopes, counted: Counted) -> None:
    counted.write(5)
    assert "out of the memory" in scopes.why_killed()
    assert "out of the memory" in scopes.why_killed()
    assert scopes.why_killed() == ""


def test_a_slice_that_is_made_anew_counts_from_nothing(scopes: SystemdScopes, counted: Counted) -> None:
    counted.remove()
    assert scopes.why_killed() == ""
    counted.write(1)
    assert "out of the memory" in scopes.why_killed()


def test_without_a_memory_controller_nobody_can_tell(tmp_path: Path) -> None:
    made = SystemdScopes("systemd-run", of_user=False, cgroups=tmp_path)
    made.count_in(SCOPE)
    assert made.why_killed() == ""
    made.count_in("")
    assert (made.why_killed(), Detached().why_killed()) == ("", "")


def test_the_control_group_is_the_one_of_version_2() -> None:
    assert cgroup_of(f"4:memory:/\n1:name=systemd:/x\n0::{SCOPE}\n") == SCOPE
    assert cgroup_of("4:memory:/\n") == ""


def test_a_users_scopes_are_made_by_the_users_manager() -> None:
    made = SystemdScopes("systemd-run", of_user=True, runtime_dir="/run/user/7")
    words = list(made.around("0123456789abcdef", 3, Limits(512, 2)))
    assert words[:3] == ["systemd-run", "--user", "--scope"]
    assert f"--property=MemoryMax={512 + supervision.QEMU_MIB}M" in words
    assert "--property=CPUQuota=300%" in words
    assert made.environment == {"XDG_RUNTIME_DIR": "/run/user/7"}
    assert words != list(made.around("0123456789abcdef", 3, Limits(512, 2))), "a leftover one has another name"


async def test_systemd_where_there_is_none_is_refused_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_SYSTEMD", Path("/nowhere"))
    with pytest.raises(ValueError, match="this host is not run by systemd; with --supervisor auto"):
        await supervision.choose("systemd")
    assert isinstance(await supervision.choose("auto"), Detached)


async def test_a_systemd_that_makes_no_scopes_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervision, "_SYSTEMD", tmp_path)
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\necho 'Access denied' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match="systemd makes no scope: Access denied"):
        await supervision.choose("systemd")
    assert isinstance(await supervision.choose("auto"), Detached)


async def test_a_systemd_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(supervision, "_SYSTEMD", tmp_path)
    monkeypatch.setattr(supervision, "PROBE_LIMIT_S", 0.05)
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match="systemd made no scope within"):
        await supervision.choose("systemd")


async def test_a_manager_that_ends_with_a_session_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervision, "_SYSTEMD", tmp_path)
    monkeypatch.setattr(supervision, "_LINGERING", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    program = tmp_path / "systemd-run"
    program.write_text("#!/bin/sh\necho 0::/aetherscale.slice/aetherscale-probe-1.scope\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ValueError, match=r"ends with the user's last session.*loginctl enable-linger"):
        await supervision.choose("systemd")
    (tmp_path / "nobody").touch()
    assert (await supervision.choose("systemd")).name == "systemd, the user's manager"


def test_the_unit_is_of_this_installation() -> None:
    unit = hostsetup.unit("/opt/x/bin/python", 994)
    assert "ExecStart=/opt/x/bin/python -m aetherscale serve\n" in unit
    assert "/run/user/994" in unit
    assert "KillMode=process\n" in unit
    assert "{" not in unit


def test_a_host_without_systemd_is_not_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostwork, "SYSTEMD", Path("/nowhere"))
    with pytest.raises(Refused, match="not run by systemd"):
        list(hostsetup.set_up(dry_run=True, networks=True))
