"""`vm copy` with a guest that lies: about sizes, digests and names; and with words that mean nothing."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.gateways.cli import copyfrom, copyto, vm_copy
from aetherscale.gateways.cli.copypaths import Place, place_of, quoted, shown
from aetherscale.gateways.cli.copyscripts import Source, Target, source_of, target_of
from aetherscale.gateways.cli.failures import Failure
from aetherscale.gateways.cli.guestprogram import Output
from aetherscale.gateways.cli.output import PlainProgress, Progress
from aetherscale.gateways.cli.vm_copy import advancing

CONTENT = b"content of a file"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Guest:
    """A guest that says this of a file, and sends these bytes for it."""

    def __init__(self, says: str, *sends: bytes, exit_code: int | None = 0) -> None:
        self.says, self.sends, self.exit_code = says, sends, exit_code
        self.asked: list[int] = []
        self.has_left = False

    def answer(self, context: object, vm: str, script: str, *arguments: str, timeout_s: float = 0) -> str:
        return self.says

    def program(self, context: object, vm: str, command: list[str], *, has_input: bool) -> Guest:
        self.asked.append(int(command[-1]))
        self.left: Iterator[bytes] = iter(self.sends)
        self.has_ended = False
        return self

    def heard(self) -> Output | None:
        data = next(self.left, None)
        self.has_ended = data is None
        return None if data is None else Output(data, is_error=False)

    def took(self, count: int) -> None:
        return

    def leave(self) -> None:
        self.has_left = True


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def copy(guest: Guest, *, force: bool = False, path: str = "/a/file") -> dict[str, Any]:
        monkeypatch.setattr(copyfrom, "run", guest.answer)
        monkeypatch.setattr(copyfrom, "GuestProgram", guest.program)
        context = SimpleNamespace(
            values={"force": force}, out=SimpleNamespace(note=lambda text: None),
            program=SimpleNamespace(new_token=lambda: "0123456789abcdef"),
        )  # fmt: skip
        return copyfrom.copy_from(context, Place("web", path), Place("", str(tmp_path)), Progress("web"))  # type: ignore[arg-type]

    return copy


def file_of(size_bytes: int = len(CONTENT), digest: str = DIGEST) -> str:
    return f"file {size_bytes} 4755 {digest}"


def test_a_file_comes_whole_and_without_setuid(copied: Any, tmp_path: Path) -> None:
    done = copied(Guest(file_of(), CONTENT[:5], CONTENT[5:]))
    assert (done["size-bytes"], done["sha256"], done["resumed-bytes"]) == (len(CONTENT), DIGEST, 0)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o755
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_no_more_is_taken_than_the_guest_said(copied: Any, tmp_path: Path) -> None:
    guest = Guest(file_of(), CONTENT + b"x" * 100_000, *[b"y" * 100_000] * 1000)
    copied(guest)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert len(list(guest.left)) == 1000, "what comes after it is not even read"
    assert guest.has_left


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (Guest(file_of(digest="0" * 64), CONTENT), "is not what web said"),
        (Guest(file_of(), CONTENT[:-1]), "ended after 16 bytes, expected 17"),
        (Guest(file_of(10**14), CONTENT), "ended after 17 bytes"),
        (Guest(file_of(), CONTENT[:-1], exit_code=None), "was cut off"),
        (Guest(file_of(0, DIGEST)), "says that it has 0 bytes, and has some"),
        (Guest("file -1 644 -"), "no answer of its shell"),
        (Guest("file 9999999999999999 644 -"), "no answer of its shell"),
        (Guest("file 1 9 -"), "no answer of its shell"),
        (Guest("file 1 644 zz"), "no answer of its shell"),
        (Guest("file 1 644 -\nfile 2 644 -"), "no answer of its shell"),
        (Guest("\x1b[2J" * 1000), "no answer of its shell"),
        (Guest(""), "no answer of its shell"),
    ],
)
def test_what_is_not_what_the_guest_said_never_comes_to_its_place(
    copied: Any, tmp_path: Path, guest: Guest, why: str
) -> None:
    with pytest.raises(Failure, match=why) as failed:
        copied(guest)
    assert len(failed.value.message) < 400
    assert not (tmp_path / "file").exists()


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["_write", "_put"])
def test_a_target_that_is_full_does_not_stay_so(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(copyfrom, call, full if call == "_write" else copyfrom._put)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Failure, match=r"has no room for the 17 bytes of .*; what had come was removed") as failed:
        copied(Guest(file_of(), CONTENT))
    assert failed.value.hint == f"df -h {tmp_path}"
    assert list(tmp_path.iterdir()) == []


def test_what_no_copy_would_go_on_with_is_not_left(copied: Any, tmp_path: Path) -> None:
    """Without a digest nothing tells which file a partial one is of."""
    for guest in (Guest(file_of(digest="-"), CONTENT[:-1]), Guest("unsized 444", CONTENT, exit_code=None)):
        with pytest.raises(Failure):
            copied(guest)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(Failure):
        copied(Guest(file_of(), CONTENT[:-1]))
    assert [each.name for each in tmp_path.iterdir()] == [f".file.{DIGEST[:16]}.part"]


def test_a_file_that_has_no_size_comes_whole(copied: Any, tmp_path: Path) -> None:
    """As those of /proc, whose content is made as it is read."""
    done = copied(Guest("unsized 444", CONTENT[:5], CONTENT[5:]))
    assert (done["size-bytes"], done["sha256"]) == (len(CONTENT), "")
    assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("guest", "why"),
    [
        (Guest("unsized 444", *[b"x" * 2**20] * 65), "more than 64 MiB come out of it"),
        (Guest("unsized 444", CONTENT, exit_code=1), "cannot be read in the guest"),
        (Guest("unsized 444", CONTENT, exit_code=None), "was cut off"),
    ],
)
def test_a_file_that_has_no_size_is_whole_or_not_there(copied: Any, tmp_path: Path, guest: Guest, why: str) -> None:
    with pytest.raises(Failure, match=why):
        copied(guest)
    assert list(tmp_path.iterdir()) == []


def test_what_was_damaged_before_is_begun_anew(copied: Any, tmp_path: Path) -> None:
    content = bytes(200_000)
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / f".file.{digest[:16]}.part").write_bytes(b"x" * 150_000)
    guest = Guest(file_of(len(content), digest), content)
    guest.sends = (content,)
    copied(guest)
    assert guest.asked == [2, 0], "first what seems to lack, then all"
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "directory", "pipe", "two names"])
def test_a_partial_file_that_is_not_ours_is_not_written(copied: Any, tmp_path: Path, kind: str) -> None:
    part, victim = tmp_path / f".file.{DIGEST[:16]}.part", tmp_path / "victim"
    victim.write_bytes(b"mine")
    if kind == "link":
        part.symlink_to(victim)
    elif kind == "directory":
        part.mkdir()
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.hardlink_to(victim)
    with pytest.raises(Failure):
        copied(Guest(file_of(), CONTENT))
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize("force", [False, True])
def test_what_is_there_is_replaced_when_that_was_asked_for(copied: Any, tmp_path: Path, force: bool) -> None:
    (tmp_path / "file").write_bytes(b"before")
    if force:
        copied(Guest(file_of(), CONTENT), force=True)
    else:
        with pytest.raises(Failure, match="is there already"):
            copied(Guest(file_of(), CONTENT))
    assert (tmp_path / "file").read_bytes() == (CONTENT if force else b"before")


@pytest.mark.parametrize("path", ["/", "/a/", "/a/..", "/a/."])
def test_a_path_that_names_no_file_is_refused(copied: Any, path: str) -> None:
    with pytest.raises(Failure, match="names no file"):
        copied(Guest(file_of(), CONTENT), path=path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("web:/etc/passwd", Place("web", "/etc/passwd")),
        ("web:/a:b\nc", Place("web", "/a:b\nc")),
        ("./web:/x", Place("", "./web:/x")),
        ("/tmp/a:b", Place("", "/tmp/a:b")),
        ("file", Place("", "file")),
        (":/x", Place("", ":/x")),
        ("My notes: new.txt", Place("", "My notes: new.txt")),
    ],
)
def test_a_place_is_in_a_guest_where_a_colon_comes_before_a_slash(text: str, place: Place) -> None:
    assert place_of(text) == place


@pytest.mark.parametrize("text", ["web:", "web:etc", "web:~/x", "web:/a\0b"])
def test_a_path_in_a_guest_begins_with_a_slash(text: str) -> None:
    with pytest.raises(Failure, match="begins with /"):
        place_of(text)


def test_a_file_here_that_has_a_colon_is_named_in_the_hint() -> None:
    with pytest.raises(Failure) as failed:
        place_of("notes:of today")
    assert failed.value.hint == "notes:/root/; a file here whose name has a colon: './notes:of today'"


@pytest.mark.parametrize(
    ("path", "message", "typed"),
    [
        ("/a b", "/a b", "'/a b'"),
        ("/ä", "/ä", "'/ä'"),
        ("/a\nerror: b", "$'/a\\nerror: b'", "$'/a\\nerror: b'"),
        ("/\x1b[2J'\\", "$'/\\x1b[2J\\'\\\\'", "$'/\\x1b[2J\\'\\\\'"),
        ("/\u202e", "$'/\\U0000202e'", "$'/\\U0000202e'"),
        ("/\udcff", "/\udcff", "'/\udcff'"),
        ("/\udcff\n", "$'/\\xff\\n'", "$'/\\xff\\n'"),
    ],
)
def test_a_name_drives_no_terminal_and_can_be_typed(path: str, message: str, typed: str) -> None:
    assert (shown(path), quoted(path)) == (message, typed)
    printed = subprocess.run(
        ["bash", "-c", f"printf %s {typed}"], stdout=subprocess.PIPE, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert printed.stdout == os.fsencode(path)


def test_hints_name_what_is_to_be_typed(tmp_path: Path) -> None:
    hints = []
    for said in ("no-directory", "directory", "other"):
        with pytest.raises(Failure) as failed:
            (target_of if said == "no-directory" else source_of)(said, "web", "/a b/c")
        hints.append(failed.value.hint)
    assert hints == [
        "aetherscale vm exec web -- mkdir -p '/a b'",
        "aetherscale vm exec web -- tar c -C '/a b/c' . | tar x",
        "aetherscale vm exec web -- cat '/a b/c'",
    ]
    with pytest.raises(Failure) as failed:
        copyto._opened(str(tmp_path), Place("web", "/data"))
    assert failed.value.hint == f"tar c -C {tmp_path} . | aetherscale vm exec web -- tar x -C /data"


def test_what_has_no_size_here_is_read_once() -> None:
    version = Path("/proc/version")
    with version.open("rb") as file:
        content, size_bytes = copyto._content(str(version), file, 0)
        assert (size_bytes, content.read()) == (len(version.read_bytes()), version.read_bytes())
    with Path("/dev/zero").open("rb") as file, pytest.raises(Failure, match="more than 64 MiB"):
        copyto._content("/dev/zero", file, 0)


def test_what_a_guest_says_of_a_target_is_read_strictly() -> None:
    assert target_of("in file 7", "web", "/a") == Target(True, "file", 7)
    for said in ("in file", "on file 7", "in file -7", "in file 7\n", "in socket 7", "in file 7 8", ""):
        with pytest.raises(Failure, match="no answer"):
            target_of(said, "web", "/a")
    assert source_of(f"file 7 4755 {DIGEST}", "web", "/a") == Source(7, 0o755, DIGEST)


def test_progress_is_told_now_and_then_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)  # what is told depends on the time alone
    advance = advancing(PlainProgress("web"), 1000 * 2**20, 0)
    for done in range(1001):
        now_s += 0.1
        advance(done * 2**20)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 10
    assert lines[1].startswith("web: copying: 107.0 MiB of 1000.0 MiB, 9.9 MiB/s, 90 s left")


def test_what_a_guest_complains_of_is_cut_off() -> None:
    assert vm_copy.complaint("x" * 10_000).message.count("x") == vm_copy.MOST_SAID
