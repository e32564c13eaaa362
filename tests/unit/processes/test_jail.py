"""The jail of a process: what is taken away, in which order, and the uid that it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.kernel.fault import Fault
from aetherscale.kernel.names import ID_PATTERN
from aetherscale.processes import launch, users


def test_a_jail_takes_everything_away_before_qemu_begins() -> None:
    wrapped = launch.Jail(uid=1_900_000_000, file_limit_bytes=4096).wrap(["/usr/bin/qemu", "-x"])
    before, command = wrapped[: wrapped.index("/usr/bin/qemu")], wrapped[wrapped.index("/usr/bin/qemu") :]
    assert command == ["/usr/bin/qemu", "-x"]
    for word in (
        *("--core=0", "--fsize=4096", "--reuid=1900000000", "--regid=1900000000", "--clear-groups"),
        *("--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"),
    ):
        assert word in before


def test_a_jail_for_kvm_has_one_group_and_no_other() -> None:
    wrapped = launch.Jail(uid=1_900_000_000, group=108).wrap(["qemu"])
    assert "--groups=108" in wrapped
    assert "--clear-groups" not in wrapped


def test_a_node_that_is_not_root_still_gives_everything_else_away() -> None:
    wrapped = launch.Jail(uid=None, drops_bounds=False).wrap(["qemu"])
    assert not any("uid" in word for word in wrapped)
    assert {"--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"} <= set(wrapped)
    assert "--bounding-set=-all" not in wrapped, "only CAP_SETPCAP lets it go, and setpriv would fail"


def test_a_root_that_keeps_its_bounding_set_gives_all_up_right_before_qemu() -> None:
    wrapped = launch.Jail(uid=None, drops_bounds=False, gives_up=True).wrap(["/usr/bin/qemu", "-x"])
    assert [Path(word).name for word in wrapped[-3:]] == ["uncapable.py", "qemu", "-x"]
    assert wrapped.index("--no-new-privs") < len(wrapped) - 3


def test_a_root_that_stays_root_still_loses_its_bounding_set() -> None:
    assert "--bounding-set=-all" in launch.Jail(uid=None).wrap(["qemu"])


def test_a_jail_whose_uid_is_mapped_asks_for_it_between_the_limits_and_the_drop() -> None:
    wrapped = launch.Jail(uid=1_900_000_000, mapper=Path("/run/m.sock")).wrap(["qemu"])
    names = [Path(word).name for word in wrapped]
    order = [names.index(word) for word in ("prlimit", "unshare", "mapped.py", "setpriv", "qemu")]
    assert order == sorted(order)
    assert wrapped[order[2] + 1 : order[3]] == ["/run/m.sock", "1900000000"]


@given(st.from_regex(ID_PATTERN), st.from_regex(ID_PATTERN))
def test_every_vm_has_a_uid_of_its_own_that_nobody_else_hands_out(one: str, other: str) -> None:
    uids = [users.derived_uid(vm_id) for vm_id in (one, other)]
    assert all(0x7000_0000 <= uid < 0x7FFE_0000 for uid in uids)
    assert (uids[0] == uids[1]) == (one == other)


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(Fault, match="qemu-system-x86_64 is not installed") as fault:
        launch.program("qemu-system-x86_64")
    assert fault.value.remedy == "apt-get install --no-install-recommends qemu-system-x86"
    assert not fault.value.retryable
