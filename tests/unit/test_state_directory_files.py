"""Files of the state directory are opened so that nobody else can make us write elsewhere."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from aetherscale import statedir
from aetherscale.statedir import NotOurs

SOMEBODY = 54321
root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    statedir.make(made)
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0, 0o002, 0o022, 0o077])
def test_what_is_made_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        statedir.make(tmp_path / "a" / "b")
        os.close(statedir.open_file(tmp_path / "a" / "b" / "lock", os.O_RDWR | os.O_CREAT))
        statedir.write_file(tmp_path / "a" / "b" / "whole", b"1")
    finally:
        os.umask(before)

    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o700, 0o700]
    assert [mode(path) for path in (tmp_path / "a" / "b").iterdir()] == [0o600, 0o600]


def test_a_file_that_others_may_read_is_closed_to_them(directory: Path) -> None:
    (directory / "lock").touch()
    (directory / "lock").chmod(0o666)
    os.close(statedir.open_file(directory / "lock", os.O_RDWR | os.O_CREAT))
    assert mode(directory / "lock") == 0o600


def planted_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def planted_dangling(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("not-there"))


def planted_hard_link(path: Path, victim: Path) -> None:
    path.hardlink_to(victim)


def planted_pipe(path: Path, victim: Path) -> None:
    os.mkfifo(path)


def planted_directory(path: Path, victim: Path) -> None:
    path.mkdir()


PLANTED = [planted_link, planted_dangling, planted_hard_link, planted_pipe, planted_directory]


@pytest.mark.parametrize("plant", PLANTED)
def test_what_is_planted_in_the_place_of_a_file_is_refused(
    directory: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plant(directory / "lock", victim)

    with pytest.raises(OSError, match="lock"):
        statedir.open_file(directory / "lock", os.O_RDWR | os.O_CREAT)
    if plant is not planted_directory:
        with pytest.raises(NotOurs):
            statedir.require_files(directory, ("absent", "lock"))

    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize("plant", PLANTED[:3])
def test_a_file_that_is_written_in_one_step_replaces_a_link_and_not_what_it_names(
    directory: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    plant(directory / "whole", victim)
    plant(directory / "whole.new", victim)

    statedir.write_file(directory / "whole", b"new")

    assert (victim.read_bytes(), (directory / "whole").read_bytes()) == (b"precious", b"new")
    assert sorted(path.name for path in directory.iterdir()) == ["whole"]


def test_a_link_is_not_read_through(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (directory / "head").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic link"):
        statedir.read_file(directory / "head", 10)
    assert statedir.read_file(tmp_path / "victim", 3) == b"pre"


def test_a_directory_that_others_may_write_to_is_refused_unless_it_is_sticky(directory: Path) -> None:
    for open_mode in (0o777, 0o720, 0o702):
        directory.chmod(open_mode)
        with pytest.raises(NotOurs, match="others may write to it") as refused:
            statedir.require(directory)
        assert refused.value.hint == f"chmod 700 {directory}"
    for fine in (0o700, 0o755, 0o1777):
        directory.chmod(fine)
        statedir.require(directory)


def test_a_file_in_the_place_of_a_directory_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(NotADirectoryError) as refused:
            statedir.make(path)
        assert refused.value.filename == str(path)


def test_links_of_our_own_lead_on_in_every_form(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "absolute").symlink_to(directory)
    (tmp_path / "relative").symlink_to("state")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "up").symlink_to("../relative")
    for path in ("absolute", "relative", "deep/up"):
        with statedir.opened(tmp_path / path) as descriptor:
            assert os.fstat(descriptor).st_ino == directory.stat().st_ino
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(OSError, match="Too many levels"):
        statedir.require(tmp_path / "round")


@root
def test_a_directory_of_another_user_is_refused_with_what_to_type(directory: Path) -> None:
    os.chown(directory, SOMEBODY, SOMEBODY)
    for use in (statedir.require, statedir.make):
        with pytest.raises(NotOurs, match=f"it belongs to uid {SOMEBODY}, and this is root") as refused:
            use(directory)
        assert refused.value.hint.startswith(f"run the command as uid {SOMEBODY}")
    with pytest.raises(NotOurs):
        statedir.open_file(directory / "lock", os.O_RDWR | os.O_CREAT)
    assert list(directory.iterdir()) == []
    assert not statedir.is_ours(directory)


@root
def test_a_file_of_another_user_is_refused(directory: Path) -> None:
    (directory / "lock").touch()
    os.chown(directory / "lock", SOMEBODY, SOMEBODY)
    with pytest.raises(NotOurs, match=f"it belongs to uid {SOMEBODY}"):
        statedir.open_file(directory / "lock", os.O_RDWR | os.O_CREAT)


@root
@pytest.mark.parametrize("target", ["state", "state/."])
def test_a_link_of_another_user_on_the_way_is_not_followed(tmp_path: Path, directory: Path, target: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(directory if target == "state" else tmp_path)
    os.chown(link, SOMEBODY, SOMEBODY, follow_symlinks=False)
    path = link if target == "state" else link / "state"
    with pytest.raises(NotOurs, match=f"through a symbolic link of uid {SOMEBODY}, link"):
        statedir.require(path)
